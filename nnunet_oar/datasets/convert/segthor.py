"""SegTHOR, thoracic organs at risk: SRC/train/Patient_01/{Patient_01.nii.gz, GT.nii.gz}, SRC/test/Patient_41.nii.gz."""

from __future__ import annotations

from pathlib import Path

from nnunet_oar.datasets.convert.layout import (
    FILE_ENDING,
    Case,
    Collection,
    entries,
    nothing_found,
    required_file,
    subfolders,
)

NAME = "SegTHOR"
HELP = (
    "SegTHOR: SRC/train/Patient_01/Patient_01.nii.gz and GT.nii.gz, SRC/test/Patient_41.nii.gz; SRC may be train itself"
)
ORGANS = ("esophagus", "heart", "trachea", "aorta")


def find(folder: Path) -> Collection:
    """Raises ValueError for another layout and for a patient without CT or GT.nii.gz."""
    train, test = folder / "train", folder / "test"
    if not train.is_dir():
        train = folder
    patients = subfolders(train, r"Patient_\d+")
    if not patients:
        raise nothing_found(train, "folders Patient_01, Patient_02, ...")
    training = [
        Case(
            patient.name, required_file(patient / f"{patient.name}{FILE_ENDING}"), required_file(patient / "GT.nii.gz")
        )
        for patient in patients
    ]
    images = entries(test, r"Patient_\d+\.nii\.gz")
    if not images and entries(test, ".*"):
        raise nothing_found(test, "Patient_41.nii.gz, Patient_42.nii.gz, ...")
    return Collection(
        ORGANS, tuple(training), tuple(Case(image.name.removesuffix(FILE_ENDING), image) for image in images)
    )
