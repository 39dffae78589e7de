"""What a published data set holds, found by the names of its files; no voxel is read here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

FILE_ENDING = ".nii.gz"


@dataclass(frozen=True)
class Case:
    """One CT. name: as in nnU-Net's file names.

    label_map: a file with all organs of the data set. masks: organ -> a file of it alone, for the organs that the case
    annotates. A test case has neither.
    """

    name: str
    image: Path
    label_map: Path | None = None
    masks: Mapping[str, Path] = field(default_factory=dict)

    @property
    def label_files(self) -> list[Path]:
        return [*self.masks.values(), *([] if self.label_map is None else [self.label_map])]

    def annotated(self, organs: Sequence[str]) -> tuple[str, ...]:
        """Those of the organs that a training case annotates."""
        return tuple(organs) if self.label_map is not None else tuple(organ for organ in organs if organ in self.masks)


@dataclass(frozen=True)
class Collection:
    """The cases of a folder. organs: names of the labels 1, 2, ...; remarks: a line on each kind of file left out.

    Raises ValueError for two cases of one name.
    """

    organs: tuple[str, ...]
    training: tuple[Case, ...]
    test: tuple[Case, ...] = ()
    remarks: tuple[str, ...] = ()

    def __post_init__(self):
        seen: dict[str, Path] = {}
        for case in (*self.training, *self.test):
            if case.name in seen:
                raise ValueError(
                    f"two CTs are called {case.name}: {seen[case.name]} and {case.image}; keep one of them"
                )
            seen[case.name] = case.image


def entries(folder: Path, pattern: str) -> list[Path]:
    """The files and folders in `folder` whose whole name matches, in alphabetical order; none where it does not exist.

    Names that begin with a dot never do: archives made on macOS hold a file ._X beside each X.
    """
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in found if not path.name.startswith(".") and re.fullmatch(pattern, path.name))


def subfolders(folder: Path, pattern: str) -> list[Path]:
    return [path for path in entries(folder, pattern) if path.is_dir()]


def nothing_found(folder: Path, looked_for: str) -> ValueError:
    """The error for a wrong layout: what was looked for, where, and what is there."""
    if not folder.is_dir():
        return ValueError(f"looked for {looked_for} in {folder}, which is not a folder")
    names = [f"{path.name}/" if path.is_dir() else path.name for path in entries(folder, ".*")]
    there = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return ValueError(f"looked for {looked_for} in {folder} and found {there or 'nothing'}")


def required_file(path: Path) -> Path:
    """The path of a file that must exist; raises ValueError that says what lies there instead."""
    if not path.is_file():
        raise nothing_found(path.parent, path.name)
    return path


def chosen_organs(wanted: Sequence[str], available: Iterable[str], folder: Path) -> tuple[str, ...]:
    """`wanted` in its order. Raises ValueError for a name that is not available or is given twice."""
    available = list(available)
    unknown = [organ for organ in wanted if organ not in available]
    if unknown:
        raise ValueError(f"{folder} holds no mask of {', '.join(unknown)}; it has {', '.join(available)}")
    repeated = {organ for organ in wanted if list(wanted).count(organ) > 1}
    if repeated:
        raise ValueError(f"each organ may be named once, got {', '.join(sorted(repeated))} more than once")
    return tuple(wanted)


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
