"""Which array axis is which, against what nnU-Net's own readers make of real files in every orientation."""

import itertools

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient

from nnunet_oar.axes import anatomical_axes, array_orientation, orientation

ORIENTATIONS = [
    "".join(letters) for axes in itertools.permutations(("RL", "AP", "SI")) for letters in itertools.product(*axes)
]
SHAPE = (3, 4, 5)


def marked_image(code: str) -> sitk.Image:
    """A (3, 4, 5) LPS volume whose values are 10 * mm towards L, P or S of one axis; stored in orientation `code`."""
    z, y, x = np.indices(SHAPE)
    image = sitk.GetImageFromArray((x + 10 * y + 100 * z).astype(np.int16))
    return sitk.DICOMOrient(image, code)


def test_there_are_48():
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("code", ORIENTATIONS)
@pytest.mark.parametrize("reader", [SimpleITKIO, SimpleITKIOWithReorient, NibabelIO, NibabelIOWithReorient])
def test_the_values_grow_where_the_orientation_says(code, reader, tmp_path):
    path = tmp_path / "image.nii.gz"
    sitk.WriteImage(marked_image(code), str(path))
    data, properties = reader().read_images([str(path)])
    found = array_orientation(properties)
    step = {"L": 1, "R": -1, "P": 10, "A": -10, "S": 100, "I": -100}
    for axis, letter in enumerate(found):
        assert (np.diff(data[0], axis=axis) == step[letter]).all()
    axes = anatomical_axes([properties], (0, 1, 2))
    assert {found[axes.left_right]} <= set("LR")
    assert {found[axes.anterior_posterior]} <= set("AP")
    assert {found[axes.inferior_superior]} <= set("IS")
    if reader in (SimpleITKIOWithReorient, NibabelIOWithReorient):
        assert found == "SAR"


def test_an_oblique_image_goes_to_the_nearest_axes():
    angle = np.deg2rad(20)
    direction = [np.cos(angle), -np.sin(angle), 0, np.sin(angle), np.cos(angle), 0, 0, 0, 1]
    assert orientation(direction) == "SPL"


def properties(code: str) -> dict:
    return {"sitk_stuff": {"direction": marked_image(code).GetDirection()}}


def test_transposition_is_followed():
    # LPS is stored (z, y, x); nnU-Net puts (y, z, x) first with transpose_forward [1, 0, 2]
    axes = anatomical_axes([properties("LPS")], (1, 0, 2))
    assert (axes.left_right, axes.anterior_posterior, axes.inferior_superior) == (2, 0, 1)


def test_cases_that_disagree_have_no_axes():
    assert anatomical_axes([properties("LPS"), properties("PSL")], (0, 1, 2)) is None


def test_sides_that_disagree_are_noticed():
    assert anatomical_axes([properties("LPS"), properties("LPI")], (0, 1, 2)).sides_agree
    assert not anatomical_axes([properties("LPS"), properties("RPS")], (0, 1, 2)).sides_agree


def test_unknown_properties_are_unknown():
    assert anatomical_axes([{"spacing": [1, 1, 1]}], (0, 1, 2)) is None
    assert anatomical_axes([], (0, 1, 2)) is None


def test_nibabel_affines_with_large_spacing(tmp_path):
    path = tmp_path / "image.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros(SHAPE, np.int16), np.diag([-0.7, 5.0, 3.0, 1])), path)
    _, found = NibabelIO().read_images([str(path)])
    assert array_orientation(found) == "SAL"
