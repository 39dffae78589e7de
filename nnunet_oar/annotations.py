"""Which organs each case annotates: the keys `annotations` and `labels` of dataset.json.

    "annotations": {"han":     {"cases": ["HAN_*"], "labels": ["brainstem", "parotid_left"]},
                    "abdomen": {"cases": ["ABD_*"], "labels": ["liver", "spleen"]}}

Every training case belongs to exactly one source; without the key every case annotates everything. nnU-Net ignores the key.
Paper 003 (AttentionAnatomy), section 2.4: its mask vector w of a data source.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

KEY = "annotations"
# what nnU-Net ignores in dataset.json and we read
OWN_KEYS = (KEY, "body_regions")


def read_dataset_json(folder: Path) -> dict:
    """dataset.json of a data set's folder. Raises ValueError, naming the file, where it cannot be read."""
    file = folder / "dataset.json"
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} must hold an object")
    return found


def organ_labels(dataset_json: Mapping) -> dict[str, int]:
    """Organ -> label, without background and nnU-Net's ignore label, in the order of the labels. Raises ValueError for regions."""
    labels = {name: label for name, label in dataset_json["labels"].items() if name not in ("background", "ignore")}
    for name, label in labels.items():
        if not isinstance(label, int):
            raise ValueError(
                f"dataset.json: the label of {name} is {label!r}; regions are not supported, give each organ one number"
            )
    return dict(sorted(labels.items(), key=lambda item: item[1]))


@dataclass(frozen=True)
class Source:
    """One data source. patterns: of case names, as fnmatchcase; organs: what all of its cases annotate.

    The patterns are not printed: they may be the names of patients.
    """

    name: str
    patterns: tuple[str, ...] = field(repr=False)
    organs: frozenset[str]

    def holds(self, case: str) -> bool:
        return any(fnmatchcase(case, pattern) for pattern in self.patterns)


@dataclass(frozen=True)
class Annotations:
    """organs: names of the labels 1, 2, ...; sources: empty where every case annotates everything."""

    organs: tuple[str, ...]
    sources: tuple[Source, ...] = ()

    @classmethod
    def from_dataset_json(cls, dataset_json: Mapping) -> Annotations:
        """Raises ValueError that names the source and what is wrong with it."""
        organs = tuple(organ_labels(dataset_json))
        entries = dataset_json.get(KEY)
        if entries is None:
            return cls(organs)
        if not isinstance(entries, Mapping) or not entries:
            raise ValueError(
                f"dataset.json, {KEY!r}: must be an object of sources, got {entries!r}; remove it if there are none"
            )
        return cls(organs, tuple(_source(name, entry, organs) for name, entry in entries.items()))

    @property
    def complete(self) -> bool:
        """True where no source leaves an organ out."""
        return all(source.organs == frozenset(self.organs) for source in self.sources)

    def source(self, case: str) -> Source | None:
        """The source that a case belongs to; None where there are no sources. Raises ValueError for a case in none or in two."""
        if not self.sources:
            return None
        found = [source for source in self.sources if source.holds(case)]
        if len(found) != 1:
            where = " and ".join(repr(source.name) for source in found) or "no source"
            raise ValueError(
                f"dataset.json, {KEY!r}: case {case} belongs to {where}; the patterns in `cases` must put every training case into "
                f"exactly one source"
            )
        return found[0]

    def annotated(self, case: str) -> np.ndarray:
        """bool (K - 1,): whether the case annotates the organ of label 1, 2, ... Raises ValueError as `source`."""
        source = self.source(case)
        return np.array([source is None or organ in source.organs for organ in self.organs], dtype=bool)

    def scored(self, case: str) -> np.ndarray:
        """The same for scoring: a case of no source, such as a test case with the full truth, is scored on every organ."""
        if not any(source.holds(case) for source in self.sources):
            return np.ones(len(self.organs), dtype=bool)
        return self.annotated(case)

    def labels(self, case: str) -> frozenset[int]:
        """The labels that the case annotates."""
        return frozenset(int(index) + 1 for index in np.flatnonzero(self.annotated(case)))

    def check(self, cases: Iterable[str]) -> None:
        """Raise ValueError unless every case belongs to exactly one source."""
        for case in cases:
            self.source(case)


def without_own_keys(dataset_json: Mapping) -> dict:
    """What other trainers read of it."""
    return {key: value for key, value in dataset_json.items() if key not in OWN_KEYS}


def differences(raw: Mapping, preprocessed: Mapping) -> list[str]:
    """The keys that training depends on in which two versions of dataset.json differ."""
    return [key for key in ("labels", *OWN_KEYS) if raw.get(key) != preprocessed.get(key)]


def refuse_changed_dataset_json(raw_root: str | None, preprocessed_root: str, dataset: str) -> None:
    """nnU-Net trains from the preprocessed copy of dataset.json: raise RuntimeError where the raw one has changed since.

    Without the raw data set there is nothing to compare with.
    """
    raw = Path(raw_root or "") / dataset / "dataset.json"
    if raw_root is None or not raw.is_file():
        return
    copy = Path(preprocessed_root) / dataset / "dataset.json"
    changed = differences(read_dataset_json(raw.parent), read_dataset_json(copy.parent))
    if changed:
        number = int(re.match(r"Dataset(\d+)", dataset)[1])
        remedy = "prepare it again" if "labels" in changed else f"run nnunet_oar annotations -d {number} --update"
        raise RuntimeError(
            f"{raw} has changed since it was preprocessed: {', '.join(changed)} differ from {copy}; {remedy}"
        )


def _source(name: str, entry: Any, organs: Sequence[str]) -> Source:
    if not isinstance(entry, Mapping) or set(entry) != {"cases", "labels"}:
        raise ValueError(
            f'dataset.json, {KEY!r}: source {name!r} must be {{"cases": [...], "labels": [...]}}, got {entry!r}'
        )
    for key in ("cases", "labels"):
        values = entry[key]
        if isinstance(values, str) or not isinstance(values, Sequence) or not all(isinstance(v, str) for v in values):
            raise ValueError(f"dataset.json, {KEY!r}: {key} of source {name!r} must be a list of names, got {values!r}")
    unknown = [label for label in entry["labels"] if label not in organs]
    if unknown:
        raise ValueError(
            f"dataset.json, {KEY!r}: source {name!r} annotates {unknown[0]!r}, which is none of the labels {', '.join(organs)}"
        )
    if not entry["labels"] or not entry["cases"]:
        raise ValueError(f"dataset.json, {KEY!r}: source {name!r} needs at least one case pattern and one label")
    return Source(name, tuple(entry["cases"]), frozenset(entry["labels"]))
