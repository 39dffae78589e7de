"""Which part of the body a slice shows: the key `body_regions` of dataset.json, or what the organs in the slice say.

    "body_regions": {"names": ["head", "chest"], "cases": {"HAN_01": [[0, 40, "chest"], [40, 96, "head"]]}}

Half-open ranges of slices, counted from the feet, slice 0 the lowest, whatever way the file is stored. Slices and cases that are
left out have no region. nnU-Net ignores the key. Paper 003 (AttentionAnatomy), section 2.1: five regions, set by hand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nnunet_oar.axes import array_orientation

KEY = "body_regions"
NO_REGION = -1
MAX_DERIVED = 5


@dataclass(frozen=True)
class BodyRegions:
    """names; ranges: case -> (first slice, end, index into names), counted from the feet."""

    names: tuple[str, ...]
    ranges: Mapping[str, Sequence[tuple[int, int, int]]] = field(repr=False)

    @classmethod
    def from_dataset_json(cls, dataset_json: Mapping) -> BodyRegions | None:
        """None without the key. Raises ValueError that names the case and what is wrong with it."""
        entry = dataset_json.get(KEY)
        if entry is None:
            return None
        if (
            not isinstance(entry, Mapping)
            or set(entry) != {"names", "cases"}
            or not isinstance(entry["cases"], Mapping)
        ):
            raise ValueError(f'dataset.json, {KEY!r}: must be {{"names": [...], "cases": {{...}}}}, got {entry!r}')
        names = entry["names"]
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"dataset.json, {KEY!r}: names must be a list of names, got {names!r}")
        return cls(tuple(names), {case: _ranges(case, ranges, names) for case, ranges in entry["cases"].items()})

    def of_slices(self, case: str, count: int) -> np.ndarray:
        """(count,) index of the region of each slice of the file, counted from the feet; NO_REGION where there is none."""
        regions = np.full(count, NO_REGION)
        for first, end, index in self.ranges.get(case, ()):
            if end > count:
                raise ValueError(f"dataset.json, {KEY!r}: {case} has {count} slices, but a range ends at {end}")
            regions[first:end] = index
        return regions

    def of_preprocessed(
        self, case: str, properties: Mapping, count: int, slice_axis: int, transpose_forward: Sequence[int]
    ) -> np.ndarray:
        """(count,) as of_slices, for the slices of the preprocessed case along `slice_axis`; properties: nnU-Net's of the case.

        NO_REGION everywhere where the file's orientation is not known or the axis does not run along the body.
        """
        code = array_orientation(properties)
        direction = code[transpose_forward[slice_axis]] if code else None
        if direction not in ("S", "I"):
            return np.full(count, NO_REGION)
        first, end = properties["bbox_used_for_cropping"][slice_axis]
        in_file = first + np.floor((np.arange(count) + 0.5) * (end - first) / count).astype(int)
        regions = self.of_slices(case, properties["shape_before_cropping"][slice_axis])
        return (regions if direction == "S" else regions[::-1])[in_file]


def region_names(dataset_json: Mapping) -> tuple[str, ...]:
    """Names of the regions that dataset.json gives; none without the key. Raises as BodyRegions.from_dataset_json."""
    given = BodyRegions.from_dataset_json(dataset_json)
    return given.names if given else ()


def _ranges(case: str, ranges: Any, names: Sequence[str]) -> list[tuple[int, int, int]]:
    found, last = [], 0
    for entry in ranges if isinstance(ranges, list) else [ranges]:
        ok = isinstance(entry, list) and len(entry) == 3 and all(isinstance(value, int) for value in entry[:2])
        if not ok or not last <= entry[0] < entry[1]:
            raise ValueError(
                f"dataset.json, {KEY!r}: {case} must have a list of [first slice, end, region], counted from the feet and "
                f"in order, got {entry!r}"
            )
        if entry[2] not in names:
            raise ValueError(f"dataset.json, {KEY!r}: {case} names {entry[2]!r}, which is none of {', '.join(names)}")
        found.append((entry[0], entry[1], names.index(entry[2])))
        last = entry[1]
    return found


def derive_regions(slices: Sequence[frozenset[int]]) -> tuple[tuple[int, ...], ...]:
    """Regions from the organs that each slice of the training cases holds: the commonest sets, at most five.

    The commonest first; of equally common ones that with the lower labels. Only for data whose cases all annotate the same
    organs: elsewhere the sets would tell the source and not the region.
    """
    counts = Counter(slices)
    order = sorted(counts, key=lambda organs: (-counts[organs], sorted(organs)))
    return tuple(tuple(sorted(organs)) for organs in order[:MAX_DERIVED])


def nearest_region(holds: np.ndarray, region_organs: Sequence[Sequence[int]]) -> np.ndarray:
    """(slices,) index of the region whose set of organs differs least from what the slice holds, the first of several.

    holds: bool (K - 1, slices).
    """
    sets = np.zeros((len(region_organs), len(holds)), dtype=bool)
    for index, organs in enumerate(region_organs):
        sets[index, [label - 1 for label in organs]] = True
    return (sets[:, :, None] != holds[None]).sum(1).argmin(0)
