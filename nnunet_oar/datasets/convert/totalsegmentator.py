"""The TotalSegmentator training data: SRC/s0000/{ct.nii.gz, segmentations/<organ>.nii.gz}, CT only.

An organ whose file a case lacks is not annotated there; an empty file says that the organ is not in the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnunet_oar.datasets.convert.layout import (
    FILE_ENDING,
    Case,
    Collection,
    chosen_organs,
    counted,
    entries,
    nothing_found,
    required_file,
    subfolders,
)

NAME = "TotalSegmentator"
HELP = "TotalSegmentator: SRC/s0000/ct.nii.gz and segmentations/ORGAN.nii.gz; --organs says which, without it they are listed"


def find(folder: Path, organs: Sequence[str] | None) -> Collection:
    """Raises ValueError for another layout, a subject without its CT, and unless `organs` names some that are there."""
    subjects = subfolders(folder, r"s\d+")
    if not subjects:
        raise nothing_found(folder, "folders s0000, s0001, ...")
    masks = {
        subject: {
            path.name.removesuffix(FILE_ENDING): path for path in entries(subject / "segmentations", r".*\.nii\.gz")
        }
        for subject in subjects
    }
    available = sorted(set().union(*masks.values()))
    if not available:
        raise nothing_found(subjects[0], "segmentations/ORGAN.nii.gz")
    if not organs:
        raise ValueError(f"name the organs to convert with --organs, of those in {folder}: {', '.join(available)}")
    names = chosen_organs(organs, available, folder)
    training, unannotated = [], 0
    for subject in subjects:
        image = required_file(subject / "ct.nii.gz")
        chosen = {organ: masks[subject][organ] for organ in names if organ in masks[subject]}
        if chosen:
            training.append(Case(subject.name, image, masks=chosen))
        else:
            unannotated += 1
    remarks = [f"left out: {counted(unannotated, 'CT')} without a mask of these organs"] if unannotated else []
    return Collection(names, tuple(training), remarks=tuple(remarks))
