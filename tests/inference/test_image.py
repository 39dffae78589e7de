from itertools import permutations, product

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_oar.inference.image import as_image, read_image, turned, turned_axes, write_labels

RNG = np.random.default_rng(0)
ORIENTATIONS = [
    "".join(pair[side] for pair, side in zip(order, sides, strict=True))
    for order in permutations(("RL", "AP", "SI"))
    for sides in product((0, 1), repeat=3)
]


def ct(orientation="LPS", dtype=np.int16) -> sitk.Image:
    image = sitk.GetImageFromArray(RNG.integers(-1000, 1000, (4, 5, 6)).astype(dtype))
    image.SetSpacing((1.0, 2.0, 3.0))
    return sitk.DICOMOrient(image, orientation)


@pytest.mark.parametrize("letters", ORIENTATIONS)
def test_arrays_are_turned_as_nnunets_reader_does(letters):
    source = ct(letters)
    image = as_image(source)
    expected = sitk.DICOMOrient(source, "RAS")
    array = turned(image.array[0], image.orientation, "SAR")
    assert np.array_equal(array, sitk.GetArrayFromImage(expected))
    spacing = [image.spacing_mm[axis] for axis in turned_axes(image.orientation, "SAR")]
    assert np.allclose(spacing, expected.GetSpacing()[::-1])
    # what is written into the view comes back in the file's own order
    labels = np.zeros(image.array.shape[1:], np.uint8)
    turned(labels, image.orientation, "SAR")[:] = array > 0
    assert np.array_equal(labels, image.array[0] > 0)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_labels_lie_on_the_grid_of_the_file(tmp_path, ending):
    source = ct("RAI")
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    source.SetDirection((np.reshape(source.GetDirection(), (3, 3)) @ turn).ravel())
    source.SetOrigin((10.0, -20.0, 30.0))
    sitk.WriteImage(source, str(tmp_path / f"ct{ending}"))
    image = read_image([tmp_path / f"ct{ending}"])
    labels = (image.array[0] > 0).astype(np.uint8)
    write_labels(image.with_labels(labels), tmp_path / f"labels{ending}")
    written, read = sitk.ReadImage(str(tmp_path / f"labels{ending}")), sitk.ReadImage(str(tmp_path / f"ct{ending}"))
    assert np.array_equal(sitk.GetArrayFromImage(written), labels)
    for what in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert np.allclose(getattr(written, what)(), getattr(read, what)(), atol=1e-5)


def test_a_sheared_nifti_goes_through_nibabel(tmp_path):
    affine = np.diag([-2.0, 2.0, 3.0, 1.0])
    affine[1, 2] = 1.2  # a tilted gantry
    image = nibabel.Nifti1Image(RNG.integers(-100, 100, (6, 5, 4)).astype(np.int16), None)
    image.set_sform(affine, 1)
    nibabel.save(image, tmp_path / "ct.nii.gz")
    found = read_image([tmp_path / "ct.nii.gz"])
    write_labels(found.with_labels((found.array[0] > 0).astype(np.uint8)), tmp_path / "labels.nii.gz")
    written = nibabel.load(tmp_path / "labels.nii.gz")
    assert np.allclose(written.affine, affine) and written.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(written.dataobj), np.asarray(image.dataobj) > 0)
    assert found.orientation == "SAL"


def test_arrays_need_their_geometry():
    array = np.zeros((3, 4, 5), np.float32)
    with pytest.raises(ValueError, match="needs spacing_mm.*direction"):
        as_image(array)
    image = as_image(array, (3, 2, 1), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    assert image.array.shape == (1, 3, 4, 5) and image.orientation == "SPL"
    assert isinstance(image.with_labels(array), np.ndarray)


def bad_files(folder):
    good = folder / "good.nii.gz"
    sitk.WriteImage(ct(), str(good))
    (folder / "truncated.nii.gz").write_bytes(good.read_bytes()[:-60])
    (folder / "text.nii.gz").write_text("no image")
    (folder / "empty.nii.gz").write_bytes(b"")
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 4, 5, 2), np.int16), np.eye(4)), folder / "four.nii.gz")
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 4, 5, 3), np.uint8), isVector=True), str(folder / "rgb.mha"))
    with_nan = np.zeros((3, 4, 5), np.float32)
    with_nan[1, 1, 1] = np.nan
    sitk.WriteImage(sitk.GetImageFromArray(with_nan), str(folder / "nan.nrrd"))
    huge = ct()
    huge.SetSpacing((1.0, 1.0, 900.0))
    sitk.WriteImage(huge, str(folder / "spacing.mha"))
    # nibabel takes the sform, SimpleITK the qform
    affine = np.array([[-0.9, 0, 0, 200], [0, 0.9, 0, -150], [0, 0, 3, -40], [0, 0, 0, 1]])
    two = nibabel.Nifti1Image(np.zeros((3, 4, 5), np.int16), affine)
    two.set_sform(affine, 2)
    two.set_qform(np.diag([-1.0, 1, 1, 1]) @ affine, 1)
    nibabel.save(two, folder / "directions.nii.gz")
    return folder


@pytest.mark.parametrize(
    "name, words",
    [
        ("truncated.nii.gz", ""), ("text.nii.gz", ""), ("empty.nii.gz", ""), ("missing.nii.gz", "does not exist"),
        ("four.nii.gz", "4 dimensions"), ("rgb.mha", "3 values in each voxel"), ("nan.nrrd", "1 voxels are NaN"),
        ("spacing.mha", "check the header's spacing"), ("directions.nii.gz", "two affines"),
    ],
)  # fmt: skip
def test_what_is_no_ct_is_refused_with_its_name(tmp_path, name, words):
    with pytest.raises(ValueError) as error:
        read_image([bad_files(tmp_path) / name])
    text = str(error.value)
    assert name in text and words in text and "\n" not in text


def test_channels_must_lie_on_one_grid(tmp_path):
    for name, letters in (("a.mha", "LPS"), ("b.mha", "RAS")):
        sitk.WriteImage(ct(letters), str(tmp_path / name))
    assert read_image([tmp_path / "a.mha"] * 2).array.shape[0] == 2
    with pytest.raises(ValueError, match="b.mha.*must lie on one grid"):
        read_image([tmp_path / "a.mha", tmp_path / "b.mha"])
