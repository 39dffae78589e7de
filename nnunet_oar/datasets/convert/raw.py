"""A collection of CTs written as a raw nnU-Net data set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path

import numpy as np
from tqdm import tqdm

from nnunet_oar.annotations import KEY
from nnunet_oar.datasets.convert.layout import FILE_ENDING, Case, Collection
from nnunet_oar.datasets.convert.volumes import (
    copy_image,
    merge_masks,
    open_volume,
    read_label_map,
    require_same_grid,
    write_labels,
)
from nnunet_oar.files import folder_written_whole


@dataclass(frozen=True)
class Overlap:
    """Voxels that two masks or more claim, and the number of cases that have such."""

    voxels: int
    cases: int


def write_raw(folder: Path, collection: Collection, name: str, *, disable_progress_bar: bool = False) -> Overlap:
    """Write a raw nnU-Net data set to `folder`, which must not exist. CTs are copied, label maps are uint8.

    All headers are looked at before anything is written. Raises ValueError for a file that cannot be read, labels on
    another grid than their CT, unexpected label values and more than 255 organs; nothing is left then.
    """
    organs = collection.organs
    if len(organs) > 255:
        raise ValueError(f"label maps are written as uint8, which holds 255 organs, got {len(organs)}")
    for case in tqdm(
        (*collection.training, *collection.test), desc="headers", unit="case", disable=disable_progress_bar
    ):
        image = open_volume(case.image)
        for label_file in case.label_files:
            require_same_grid(image, open_volume(label_file))
    with folder_written_whole(folder) as partial:
        overlaps = []
        for part, cases in {"Tr": collection.training, "Ts": collection.test}.items():
            for case in tqdm(cases, desc=f"images{part}", unit="case", disable=disable_progress_bar or not cases):
                copy_image(case.image, _file(partial, f"images{part}", f"{case.name}_0000"))
                if case.label_files:
                    labels, overlap = _labels(case, organs)
                    write_labels(labels, case.image, _file(partial, f"labels{part}", case.name))
                    overlaps.append(overlap)
        description = {
            "name": name,
            "channel_names": {"0": "CT"},
            "labels": {"background": 0} | {organ: label for label, organ in enumerate(organs, start=1)},
            "numTraining": len(collection.training),
            "file_ending": FILE_ENDING,
        }
        sources = annotation_sources(collection.training, organs)
        if sources:
            description[KEY] = sources
        (partial / "dataset.json").write_text(json.dumps(description, indent=2) + "\n")
    return Overlap(sum(overlaps), sum(overlap > 0 for overlap in overlaps))


def annotation_sources(cases: Sequence[Case], organs: Sequence[str]) -> dict[str, dict]:
    """`annotations` of dataset.json: a source for each set of organs that cases annotate, the largest first.

    Empty where every case annotates every organ.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for case in cases:
        groups.setdefault(case.annotated(organs), []).append(escape(case.name))
    if set(groups) <= {tuple(organs)}:
        return {}
    ordered = sorted(groups.items(), key=lambda group: (-len(group[0]), group[1]))
    return {
        f"group_{number}": {"cases": names, "labels": list(annotated)}
        for number, (annotated, names) in enumerate(ordered, start=1)
    }


def _labels(case: Case, organs: Sequence[str]) -> tuple[np.ndarray, int]:
    """Label map of a training case, and the number of voxels that several masks claim."""
    if case.label_map is not None:
        return read_label_map(case.label_map, organs), 0
    return merge_masks({organs.index(organ) + 1: path for organ, path in case.masks.items()})


def _file(folder: Path, part: str, name: str) -> Path:
    (folder / part).mkdir(exist_ok=True)
    return folder / part / f"{name}{FILE_ENDING}"
