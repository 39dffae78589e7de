"""KiTS19, the kidney tumour challenge of 2019: SRC/case_00000/{imaging.nii.gz, segmentation.nii.gz}.

The files have their slices along the first axis and say so in the affine; nothing is turned. The published test cases
have no segmentation.nii.gz.
"""

from __future__ import annotations

from pathlib import Path

from nnunet_oar.datasets.convert.layout import Case, Collection, nothing_found, required_file, subfolders

NAME = "KiTS19"
HELP = "KiTS19: SRC/case_00000/imaging.nii.gz and segmentation.nii.gz (the cases without one become imagesTs)"
ORGANS = ("kidney", "tumor")


def find(folder: Path) -> Collection:
    """Raises ValueError for another layout, a case without its image, and where no case has a segmentation."""
    folders = subfolders(folder, r"case_\d+")
    if not folders:
        raise nothing_found(folder, "folders case_00000, case_00001, ...")
    training, test = [], []
    for case in folders:
        image, segmentation = required_file(case / "imaging.nii.gz"), case / "segmentation.nii.gz"
        if segmentation.is_file():
            training.append(Case(case.name, image, segmentation))
        else:
            test.append(Case(case.name, image))
    if not training:
        raise ValueError(f"none of the {len(folders)} case folders in {folder} holds segmentation.nii.gz")
    return Collection(ORGANS, tuple(training), tuple(test))
