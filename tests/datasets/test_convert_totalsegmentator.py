"""TotalSegmentator in miniature: chosen organs, partial annotation, overlaps."""

import json

import numpy as np
import pytest
from published import LEFT_HANDED, read, write_ct, write_mask

from nnunet_oar.annotations import Annotations
from nnunet_oar.datasets.convert.raw import write_raw
from nnunet_oar.datasets.convert.totalsegmentator import find

MASKS = {
    "s0000": {"liver": [0, 1], "spleen": [(1, 0, 0), (2, 0, 0)], "kidney_left": []},
    "s0003": {"liver": [3], "kidney_left": [4]},
    "s0011": {"liver": [0], "spleen": [2], "kidney_left": [1]},
    "s0012": {"aorta": [0]},
}


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "totalsegmentator"
    for subject, masks in MASKS.items():
        write_ct(folder / subject / "ct.nii.gz", affine=LEFT_HANDED)
        for organ, slices in masks.items():
            write_mask(folder / subject / "segmentations" / f"{organ}.nii.gz", *slices, affine=LEFT_HANDED)
    (folder / "meta.csv").write_text("image_id;split\n")
    return folder


def test_labels_are_in_the_order_asked_for(source, tmp_path):
    target = tmp_path / "Dataset060_X"
    overlap = write_raw(target, find(source, ["spleen", "liver"]), "X", disable_progress_bar=True)
    labels = read(target / "labelsTr" / "s0000.nii.gz")
    # the spleen is the smaller organ where they overlap, in (1, 0, 0)
    expected = np.zeros_like(labels)
    expected[:2] = 2
    expected[1, 0, 0] = expected[2, 0, 0] = 1
    np.testing.assert_array_equal(labels, expected)
    assert (overlap.voxels, overlap.cases) == (1, 1)
    assert json.loads((target / "dataset.json").read_text())["labels"] == {"background": 0, "spleen": 1, "liver": 2}


def test_a_missing_file_is_not_annotated_and_an_empty_one_is_an_absent_organ(source, tmp_path):
    target = tmp_path / "Dataset060_X"
    found = find(source, ["liver", "spleen", "kidney_left"])
    write_raw(target, found, "X", disable_progress_bar=True)
    description = json.loads((target / "dataset.json").read_text())
    assert description["annotations"] == {
        "group_1": {"cases": ["s0000", "s0011"], "labels": ["liver", "spleen", "kidney_left"]},
        "group_2": {"cases": ["s0003"], "labels": ["liver", "kidney_left"]},
    }
    annotations = Annotations.from_dataset_json(description)
    assert annotations.annotated("s0000").all() and annotations.annotated("s0003").tolist() == [True, False, True]
    assert found.remarks == ("left out: 1 CT without a mask of these organs",) and description["numTraining"] == 3


def test_complete_annotation_needs_no_key(source, tmp_path):
    write_raw(tmp_path / "Dataset060_X", find(source, ["liver"]), "X", disable_progress_bar=True)
    assert "annotations" not in json.loads((tmp_path / "Dataset060_X" / "dataset.json").read_text())


def test_without_organs_the_sentence_lists_them(source):
    with pytest.raises(ValueError, match="--organs, .*: aorta, kidney_left, liver, spleen$"):
        find(source, None)


def test_an_organ_that_is_not_there_is_named(source):
    with pytest.raises(ValueError, match="holds no mask of kidney_lefft; it has aorta, kidney_left, liver, spleen"):
        find(source, ["liver", "kidney_lefft"])
    with pytest.raises(ValueError, match="named once, got liver more than once"):
        find(source, ["liver", "spleen", "liver"])


def test_another_layout_is_told_from_what_is_there(source):
    with pytest.raises(
        ValueError, match=r"looked for folders s0000, .* in .*s0000 and found ct.nii.gz, segmentations/"
    ):
        find(source / "s0000", ["liver"])
    (source / "s0003" / "ct.nii.gz").rename(source / "s0003" / "mri.nii.gz")
    with pytest.raises(ValueError, match=r"looked for ct.nii.gz in .*s0003 and found mri.nii.gz, segmentations/"):
        find(source, ["liver"])
