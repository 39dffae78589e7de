"""VISCERAL Anatomy3 in miniature: one file per organ, named by RadLex number and annotator."""

import json

import numpy as np
import pytest
from published import everything, read, write_ct, write_mask

from nnunet_oar.annotations import Annotations
from nnunet_oar.datasets.convert.raw import write_raw
from nnunet_oar.datasets.convert.visceral import RADLEX, find
from nnunet_oar.sides import side_pairs

FIRST, SECOND, MAGNETIC = "10000100_1_CTce_ThAb", "10000005_1_CT_wb", "10000323_4_MRT1cefs_Ab"


@pytest.fixture
def source(tmp_path):
    """Liver and both kidneys of one CT, the liver of another, and an MR volume; organs lie in folders of their own."""
    folder = tmp_path / "visceral"
    for volume in (FIRST, SECOND, MAGNETIC):
        write_ct(folder / "Volumes" / f"{volume}.nii.gz")
    for name, index in ((f"{FIRST}_58_7", 0), (f"{FIRST}_29662_8", 1), (f"{FIRST}_29663_12", 2), (f"{SECOND}_58_6", 3)):
        write_mask(folder / "Segmentations" / f"{name}.nii.gz", index)
    write_mask(folder / "Segmentations" / f"{MAGNETIC}_58_4.nii.gz", 0)
    (folder / "Landmarks").mkdir()
    (folder / "Landmarks" / f"{FIRST}_LMAnnotations_4.fcsv").touch()
    return folder


def test_organs_are_labels_and_missing_files_are_not_annotated(source, tmp_path):
    target = tmp_path / "Dataset070_VISCERAL"
    found = find(source)
    write_raw(target, found, "VISCERAL", disable_progress_bar=True)
    description = json.loads((target / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "liver": 1, "kidney_right": 2, "kidney_left": 3}
    annotations = Annotations.from_dataset_json(description)
    assert annotations.labels(FIRST) == {1, 2, 3} and annotations.labels(SECOND) == {1}
    assert everything(target / "labelsTr") == [f"{SECOND}.nii.gz", f"{FIRST}.nii.gz"]
    assert [np.unique(read(target / "labelsTr" / f"{FIRST}.nii.gz")[i]).tolist() for i in range(5)] == [
        [1], [2], [3], [0], [0],
    ]  # fmt: skip
    assert found.remarks == (f"left out: 1 volume of MR (as {MAGNETIC}.nii.gz)",)


def test_organs_can_be_chosen(source):
    found = find(source, ["kidney_left", "kidney_right"])
    assert found.organs == ("kidney_left", "kidney_right") and [case.name for case in found.training] == [FIRST]
    assert f"left out: 1 volume of CT without any of these organs (as {SECOND})" in found.remarks
    with pytest.raises(ValueError, match="holds no mask of spleen; it has liver, kidney_right, kidney_left"):
        find(source, ["spleen"])


def test_of_several_annotators_the_lowest_number_is_taken(source):
    write_mask(source / "more" / f"{FIRST}_58_11.nii.gz", 4)
    found = find(source)
    case = next(case for case in found.training if case.name == FIRST)
    assert case.masks["liver"].name == f"{FIRST}_58_7.nii.gz"
    assert f"the lowest of several annotators is taken for 1 organ (as {FIRST}, liver)" in found.remarks


def test_what_is_not_used_is_said(source):
    write_mask(source / f"{FIRST}_2_0.nii.gz", 4)
    write_mask(source / f"{FIRST}_480_.nii.gz", 4)
    write_mask(source / "10000999_1_CT_wb_58_4.nii.gz", 4)
    (source / f"._{FIRST}.nii.gz").touch()
    assert find(source).remarks == (
        f"left out: 1 volume of MR (as {MAGNETIC}.nii.gz)",
        "left out: organs of 1 volume that are not there (as 10000999_1_CT_wb)",
        "left out: 1 RadLex number of no organ of VISCERAL (as 2)",
        f"left out: 1 file of another name (as {FIRST}_480_.nii.gz)",
    )


def test_a_file_that_lies_there_twice_is_named(source):
    write_ct(source / "copy" / f"{FIRST}.nii.gz")
    with pytest.raises(ValueError, match=f"two files are called {FIRST}.nii.gz: .*Volumes.* and .*copy"):
        find(source)


def test_another_layout_is_told_from_what_is_there(source):
    with pytest.raises(ValueError, match=r"looked for CT volumes such as 10000100.* in .*Landmarks and found .*fcsv"):
        find(source / "Landmarks")
    with pytest.raises(
        ValueError, match=rf"looked for organs such as {SECOND}_58_7.nii.gz of 2 CT volumes below .*Volumes"
    ):
        find(source / "Volumes")


def test_every_side_has_its_counterpart():
    organs = list(RADLEX.values())
    pairs, single = side_pairs({organ: number for number, organ in RADLEX.items()})
    assert len(organs) == len(set(organs)) == 20 and not single
    # left and right numbers as in RadLex: the left one follows the right one, but for the lungs
    assert sorted(pairs) == [(1326, 1302), (29663, 29662), (30325, 30324), (32249, 32248), (40358, 40357)]
