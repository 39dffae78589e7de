"""KiTS19 in miniature: the layout, and a conversion to the end."""

import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
from published import SHAPE, SLICES_FIRST, everything, geometry, read, write_ct, write_volume

from nnunet_oar.datasets.convert.kits19 import find
from nnunet_oar.datasets.convert.raw import write_raw

REAL = Path(os.environ.get("OAR_REAL_DATA", "")) / "kits19_masks"


@pytest.fixture
def source(tmp_path) -> Path:
    """Two cases with labels of different types, and a test case."""
    folder = tmp_path / "kits19" / "data"
    labels = np.arange(np.prod(SHAPE)).reshape(SHAPE) % 3
    for number, dtype in ((0, np.uint8), (159, np.float64), (210, None)):
        case = folder / f"case_{number:05d}"
        write_ct(case / "imaging.nii.gz", affine=SLICES_FIRST, sform=2, qform=None)
        if dtype:
            write_volume(case / "segmentation.nii.gz", labels.astype(dtype), SLICES_FIRST, sform=2, qform=None)
    (folder / "kits.json").write_text("[]")
    return folder


def test_cases_without_a_segmentation_are_test_cases(source):
    found = find(source)
    assert [case.name for case in found.training] == ["case_00000", "case_00159"]
    assert [case.name for case in found.test] == ["case_00210"]
    assert found.organs == ("kidney", "tumor") and not found.remarks


def test_a_raw_data_set_with_the_axes_as_stored(source, tmp_path):
    target = tmp_path / "Dataset040_KiTS19"
    write_raw(target, find(source), "KiTS19", disable_progress_bar=True)
    assert everything(target) == [
        "dataset.json", "imagesTr", "imagesTr/case_00000_0000.nii.gz", "imagesTr/case_00159_0000.nii.gz",
        "imagesTs", "imagesTs/case_00210_0000.nii.gz", "labelsTr", "labelsTr/case_00000.nii.gz",
        "labelsTr/case_00159.nii.gz",
    ]  # fmt: skip
    assert json.loads((target / "dataset.json").read_text()) == {
        "name": "KiTS19",
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "kidney": 1, "tumor": 2},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    for case in ("case_00000", "case_00159"):
        image, labels = target / "imagesTr" / f"{case}_0000.nii.gz", target / "labelsTr" / f"{case}.nii.gz"
        assert image.read_bytes() == (source / case / "imaging.nii.gz").read_bytes()
        np.testing.assert_array_equal(read(labels), read(source / case / "segmentation.nii.gz"))
        assert read(labels).dtype == np.uint8
        assert geometry(labels) == geometry(source / case / "imaging.nii.gz")
        assert nibabel.aff2axcodes(nibabel.load(labels).affine) == ("I", "P", "L")


def test_another_layout_is_told_from_what_is_there(source, tmp_path):
    with pytest.raises(ValueError, match=r"looked for folders case_00000, .* in .*kits19 and found data/$"):
        find(source.parent)
    with pytest.raises(ValueError, match="in .*nowhere, which is not a folder"):
        find(tmp_path / "nowhere")


def test_a_case_without_its_ct_is_named(source):
    (source / "case_00159" / "imaging.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"looked for imaging.nii.gz in .*case_00159 and found segmentation.nii.gz"):
        find(source)


def test_test_cases_alone_are_refused(source):
    for path in source.rglob("segmentation.nii.gz"):
        path.unlink()
    with pytest.raises(ValueError, match="none of the 3 case folders .* holds segmentation.nii.gz"):
        find(source)


@pytest.mark.skipif(not REAL.is_dir(), reason="OAR_REAL_DATA does not hold kits19_masks")
@pytest.mark.parametrize("case", ["case_00004", "case_00015"])
def test_real_label_maps_come_out_as_they_are(case, tmp_path):
    """case_00004 is uint8 with an sform only, case_00015 uint16 with a qform only; the CTs are made up."""
    folder = tmp_path / "source" / case
    folder.mkdir(parents=True)
    mask = nibabel.load(REAL / f"{case}_segmentation.nii.gz")
    (folder / "segmentation.nii.gz").write_bytes((REAL / f"{case}_segmentation.nii.gz").read_bytes())
    header = mask.header.copy()
    header.set_data_dtype(np.int16)
    nibabel.save(nibabel.Nifti1Image(np.zeros(mask.shape, np.int16), mask.affine, header), folder / "imaging.nii.gz")
    write_raw(tmp_path / "Dataset040_X", find(tmp_path / "source"), "X", disable_progress_bar=True)
    labels = tmp_path / "Dataset040_X" / "labelsTr" / f"{case}.nii.gz"
    np.testing.assert_array_equal(read(labels), np.asanyarray(mask.dataobj))
    assert geometry(labels) == geometry(REAL / f"{case}_segmentation.nii.gz")
