"""What `nnunet_oar annotations` counts, warns of and copies."""

import json

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_oar.annotation_table import EVERYTHING, examine_labels, format_table, update_preprocessed, warnings

LABELS = {"background": 0, "heart": 1, "liver": 2}
SOURCES = {"chest": {"cases": ["c_*"], "labels": ["heart"]}, "belly": {"cases": ["b_*"], "labels": ["liver", "heart"]}}


@pytest.fixture
def raw(tmp_path):
    """Two chests, of which one holds 3 voxels of an undeclared liver, and a belly without its declared heart."""
    folder = tmp_path / "raw" / "Dataset003_X"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for case, voxels in (("c_1", {1: 10}), ("c_2", {1: 5, 2: 3}), ("b_1", {2: 7})):
        labels = np.zeros(64, np.uint8)
        position = 0
        for label, count in voxels.items():
            labels[position : position + count] = label
            position += count
        image = sitk.GetImageFromArray(labels.reshape(4, 4, 4))
        sitk.WriteImage(image, str(folder / "labelsTr" / f"{case}.nii.gz"))
        sitk.WriteImage(image, str(folder / "imagesTr" / f"{case}_0000.nii.gz"))
    write(folder, {})
    return folder


def examine(folder, threads=1):
    files = {path.name[:-7]: str(path) for path in sorted((folder / "labelsTr").iterdir())}
    return examine_labels(json.loads((folder / "dataset.json").read_text()), files, threads, disable_progress_bar=True)


def write(folder, changes):
    content = {
        "labels": LABELS,
        "annotations": SOURCES,
        "file_ending": ".nii.gz",
        "channel_names": {"0": "CT"},
        "numTraining": 3,
    }
    (folder / "dataset.json").write_text(json.dumps(content | changes))


def test_voxels_are_counted_by_source_and_organ(raw):
    rows = {(row.source, row.organ): row for row in examine(raw, 2)}
    assert rows["chest", "heart"].voxels == {"c_1": 10, "c_2": 5} and rows["chest", "heart"].annotated
    assert rows["chest", "liver"].voxels == {"c_2": 3} and not rows["chest", "liver"].annotated
    assert rows["belly", "heart"].voxels == {} and rows["belly", "liver"].cases == 1


def test_what_contradicts_the_declaration_is_warned_of(raw):
    first, second = warnings(examine(raw))
    assert first == (
        "source chest does not declare liver, but 1 of its cases hold voxels of it (first: c_2, 3 voxels): they are ignored in "
        "training"
    )
    assert second.startswith("source belly declares heart, but none of its 1 cases holds a voxel of it")


def test_a_source_without_cases_is_warned_of_once(raw):
    write(raw, {"annotations": SOURCES | {"lost": {"cases": ["x"], "labels": ["heart"]}}})
    assert warnings(examine(raw))[-1] == "source lost has no training case"


def test_without_sources_it_is_one(raw):
    content = json.loads((raw / "dataset.json").read_text())
    del content["annotations"]
    (raw / "dataset.json").write_text(json.dumps(content))
    rows = examine(raw)
    assert [(row.source, row.cases, len(row.voxels)) for row in rows] == [(EVERYTHING, 3, 2), (EVERYTHING, 3, 2)]
    assert warnings(rows) == []


def test_the_table_is_aligned(raw):
    lines = format_table(examine(raw)).splitlines()
    assert lines[0].split() == ["source", "organ", "cases", "annotated", "cases", "with", "it", "voxels"]
    assert lines[2].split() == ["chest", "liver", "2", "no", "1", "3"] and len({len(line) for line in lines}) == 1


def test_an_unreadable_label_map_is_named(raw):
    (raw / "labelsTr" / "c_1.nii.gz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="c_1.nii.gz cannot be read"):
        examine(raw)


def test_headers_that_simpleitk_refuses_are_read(raw):
    """Direction cosines that are not orthonormal, as nnU-Net's nibabel reader takes them."""
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[0, 0, :2] = 1
    affine = np.array([[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    nibabel.save(nibabel.Nifti1Image(labels, affine), raw / "labelsTr" / "c_1.nii.gz")
    rows = {(row.source, row.organ): row for row in examine(raw)}
    assert rows["chest", "heart"].voxels["c_1"] == 2


def test_regions_are_one_sentence(raw):
    write(raw, {"labels": {"background": 0, "chest": [1, 2], "liver": 2}})
    with pytest.raises(ValueError, match="the label of chest is \\[1, 2\\]; regions are not supported"):
        examine(raw)


def test_update_copies_our_keys_alone(raw, tmp_path):
    preprocessed = tmp_path / "preprocessed"
    preprocessed.mkdir()
    with pytest.raises(ValueError, match="does not exist; run nnunet_oar prepare first"):
        update_preprocessed(raw, preprocessed)
    copy = preprocessed / "dataset.json"
    copy.write_text(json.dumps({"labels": LABELS, "name": "kept", "body_regions": {"names": []}}))
    assert update_preprocessed(raw, preprocessed) == ["annotations", "body_regions"]
    assert json.loads(copy.read_text()) == {"labels": LABELS, "name": "kept", "annotations": SOURCES}
    assert update_preprocessed(raw, preprocessed) == []
    copy.write_text(json.dumps({"labels": {"background": 0}}))
    before = copy.read_bytes()
    with pytest.raises(ValueError, match="the labels in .* differ, too; run nnunet_oar prepare again"):
        update_preprocessed(raw, preprocessed)
    assert copy.read_bytes() == before and list(preprocessed.iterdir()) == [copy]
