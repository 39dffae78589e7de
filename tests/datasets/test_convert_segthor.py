"""SegTHOR in miniature."""

import shutil

import numpy as np
import pytest
from published import SHAPE, everything, read, write_ct, write_volume

from nnunet_oar.datasets.convert.raw import write_raw
from nnunet_oar.datasets.convert.segthor import find


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "segthor"
    for name in ("Patient_01", "Patient_07"):
        write_ct(folder / "train" / name / f"{name}.nii.gz")
        labels = np.arange(np.prod(SHAPE), dtype=np.uint8).reshape(SHAPE) % 5
        write_volume(folder / "train" / name / "GT.nii.gz", labels)
    write_ct(folder / "test" / "Patient_41.nii.gz")
    (folder / "train" / "._Patient_01").mkdir()
    (folder / "test" / "._Patient_41.nii.gz").touch()
    return folder


def test_a_raw_data_set(source, tmp_path):
    target = tmp_path / "Dataset055_SegTHOR"
    found = find(source)
    write_raw(target, found, "SegTHOR", disable_progress_bar=True)
    assert found.organs == ("esophagus", "heart", "trachea", "aorta")
    assert everything(target / "imagesTr") == ["Patient_01_0000.nii.gz", "Patient_07_0000.nii.gz"]
    assert everything(target / "imagesTs") == ["Patient_41_0000.nii.gz"]
    np.testing.assert_array_equal(
        read(target / "labelsTr" / "Patient_07.nii.gz"), read(source / "train" / "Patient_07" / "GT.nii.gz")
    )


def test_the_folder_of_the_patients_will_do(source):
    found = find(source / "train")
    assert [case.name for case in found.training] == ["Patient_01", "Patient_07"] and not found.test


def test_another_layout_is_told_from_what_is_there(source):
    with pytest.raises(ValueError, match=r"looked for folders Patient_01, .* in .*/test and found Patient_41.nii.gz"):
        find(source / "test")
    shutil.move(source / "test" / "Patient_41.nii.gz", source / "test" / "41.nii.gz")
    with pytest.raises(ValueError, match=r"looked for Patient_41.nii.gz, .* in .*/test and found 41.nii.gz"):
        find(source)


@pytest.mark.parametrize("name", ["GT.nii.gz", "Patient_07.nii.gz"])
def test_a_patient_that_lacks_a_file_is_named(source, name):
    (source / "train" / "Patient_07" / name).unlink()
    with pytest.raises(ValueError, match=f"looked for {name} in .*Patient_07 and found "):
        find(source)


def test_a_patient_in_training_and_test_is_refused(source):
    write_ct(source / "test" / "Patient_01.nii.gz")
    with pytest.raises(ValueError, match="two CTs are called Patient_01: .*train.* and .*test"):
        find(source)
