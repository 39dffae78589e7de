"""Reading CT series: every place in the patient is where the header says; what is no complete series is refused."""

import shutil

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from ct_series import POSITIONS, Geometry, oblique, write_series

from nnunet_oar.dicom.series import read_series
from nnunet_oar.dicom.volume import hu_image, labels_on_slices

DIRECTIONS = {**POSITIONS, **{f"oblique {seed}": oblique(seed) for seed in range(3)}}


def smooth(points: np.ndarray) -> np.ndarray:
    """HU that vary linearly in the patient: interpolation leaves them alone."""
    return points @ np.array([2.0, -3.0, 5.0]) / 4


@pytest.mark.parametrize("position", DIRECTIONS)
def test_every_voxel_lies_where_its_header_says(position, tmp_path):
    geometry = Geometry((7, 9), depths=np.arange(6) * 2.5, right=DIRECTIONS[position][0], down=DIRECTIONS[position][1])
    points, rng = geometry.points(), np.random.default_rng(0)
    hu = rng.integers(-1024, 2000, points.shape[:3])
    write_series(tmp_path, hu, geometry, order=rng.permutation(6))
    series = read_series(tmp_path)
    image = hu_image(series)
    array = sitk.GetArrayFromImage(image)
    assert array.dtype == np.int16
    for z, y, x in np.ndindex(array.shape):
        place = np.array(image.TransformIndexToPhysicalPoint((x, y, z)))
        distance = np.linalg.norm(points - place, axis=-1)
        nearest = np.unravel_index(distance.argmin(), distance.shape)
        assert distance[nearest] < 1e-4 and hu[nearest] == array[z, y, x]
    for index in range(6):
        corners = rng.uniform(0, 9, (5, 2))
        expected = geometry.origin(index) + (
            (corners[:, :1] - 0.5) * geometry.spacing[0] * np.array(geometry.down)
            + (corners[:, 1:] - 0.5) * geometry.spacing[1] * np.array(geometry.right)
        )
        assert np.allclose(series.patient_mm(index, corners), expected, atol=1e-4)
        assert np.allclose(series.corners(index, expected), corners, atol=1e-4)


def test_simpleitk_reads_the_same(tmp_path):
    geometry = Geometry(right=(1, 0, 0), down=(0, 1, 0))
    write_series(tmp_path, np.random.default_rng(0).integers(-1000, 1000, (20, 40, 48)), geometry)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    theirs, ours = reader.Execute(), hu_image(read_series(tmp_path))
    assert (sitk.GetArrayFromImage(theirs) == sitk.GetArrayFromImage(ours)).all()
    for get in ("GetOrigin", "GetSpacing", "GetDirection"):
        assert np.allclose(getattr(theirs, get)(), getattr(ours, get)(), atol=1e-5)


def test_rescaling_may_differ_from_slice_to_slice(tmp_path):
    def change(index, ds):
        ds.RescaleSlope, ds.RescaleIntercept = (2, -10) if index else (0.5, 3)

    stored = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    geometry = Geometry((3, 4), depths=np.arange(2) * 3.0)
    write_series(tmp_path, stored - 1024, geometry, change)
    array = sitk.GetArrayFromImage(hu_image(read_series(tmp_path)))
    assert array.dtype == np.float32 and np.array_equal(array, np.stack((stored[0] * 0.5 + 3, stored[1] * 2.0 - 10)))


@pytest.mark.parametrize("tilt", [0.0, 0.3, -0.25])
@pytest.mark.parametrize("position", ["head first, supine", "feet first, prone", "oblique 1"])
def test_tilted_and_uneven_slices_are_resampled_to_their_place(tilt, position, tmp_path):
    depths = np.cumsum([0, *([2.0] * 8), *([3.0] * 5), 2.5, 2.0])
    right, down = DIRECTIONS[position]
    geometry = Geometry((30, 24), depths=depths, right=right, down=down, tilt=tilt)
    points = geometry.points()
    write_series(tmp_path, np.rint(smooth(points)), geometry)
    with pytest.raises(ValueError, match="--resample accepts that"):
        read_series(tmp_path)
    series = read_series(tmp_path, resample=True)
    image = hu_image(series)
    array = sitk.GetArrayFromImage(image)
    # places of the voxels, and where each lies in the plane of every slice
    indices = np.stack(np.indices(array.shape)[::-1], axis=-1).reshape(-1, 3)
    matrix = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    places = (indices @ matrix.T + image.GetOrigin()).reshape(*array.shape, 3)
    along = (places - geometry.origin(0)) @ geometry.normal
    columns = (places - geometry.origin(0)) @ np.array(right) / geometry.spacing[1]
    rows = np.stack([(places - geometry.origin(k)) @ np.array(down) for k in range(len(depths))]) / geometry.spacing[0]
    inside = (columns >= 1) & (columns <= 22) & (rows.min(0) >= 1) & (rows.max(0) <= 28) & (along <= depths[-1])
    assert inside.sum() > 0.2 * points[..., 0].size
    assert np.abs(array - smooth(places))[inside].max() < 1.6
    # labels come back to the slices: a ball in the patient
    centre = geometry.origin(7) + 15 * 1.5 * np.array(down) + 12 * 1.2 * np.array(right)
    labels = (np.linalg.norm(places - centre, axis=-1) < 9).astype(np.uint8) * 2
    truth = np.linalg.norm(points - centre, axis=-1) < 9
    found = labels_on_slices(labels, series) == 2
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.93
    assert np.allclose(points[found].mean(0), points[truth].mean(0), atol=0.3)


def test_small_unevenness_of_rounded_positions_is_accepted(tmp_path):
    geometry = Geometry(depths=np.round(np.arange(12) * 1.25, 1))
    write_series(tmp_path, np.zeros((12, 40, 48)), geometry)
    series = read_series(tmp_path)
    assert series.step_mm == pytest.approx(13.8 / 11)
    assert np.allclose(series.distances_mm, geometry.depths - 250)


def two_series(folder, **elements):
    write_series(folder / "a", np.zeros((4, 8, 8)), Geometry((8, 8), depths=np.arange(4) * 3.0))
    write_series(folder / "b", np.ones((5, 8, 8)), Geometry((8, 8), depths=np.arange(5) * 3.0), **elements)


def test_several_series_are_listed_and_one_is_chosen(tmp_path):
    two_series(tmp_path)
    with pytest.raises(ValueError, match="holds 2 CT series; predict --series UID chooses one") as error:
        read_series(tmp_path)
    uids = {
        str(pydicom.dcmread(path).SeriesInstanceUID): n
        for path, n in zip(tmp_path.glob("*/slice0000.dcm"), "xy", strict=True)
    }
    assert all(uid in str(error.value) for uid in uids) and "5 images" in str(error.value)
    for uid in uids:
        series = read_series(tmp_path, uid)
        assert series.uid == uid and len(series.slices) in (4, 5)
    with pytest.raises(ValueError, match="has no CT series 1.2.3; it has"):
        read_series(tmp_path, "1.2.3")


def test_a_scout_in_a_series_of_its_own_and_other_modalities_are_passed_over(tmp_path):
    two_series(tmp_path, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_series(tmp_path / "mr", np.ones((3, 8, 8)), Geometry((8, 8), depths=np.arange(3) * 3.0), Modality="MR")
    sheet = "1.2.840.10008.5.1.4.1.1.7"  # secondary capture
    write_series(tmp_path / "dose", np.ones((1, 8, 8)), Geometry((8, 8), depths=np.zeros(1)), SOPClassUID=sheet)
    (tmp_path / "README.txt").write_text("not DICOM")
    (tmp_path / ".DS_Store").write_bytes(b"\0" * 200)
    assert len(read_series(tmp_path).slices) == 4


def test_files_without_preamble_and_endings_are_read(tmp_path):
    paths = write_series(tmp_path, np.zeros((3, 8, 8)), Geometry((8, 8), depths=np.arange(3) * 3.0))
    for index, path in enumerate(paths):
        dataset = pydicom.dcmread(path)
        dataset.preamble, dataset.file_meta = None, pydicom.dataset.FileMetaDataset()
        dataset.save_as(tmp_path / f"CT.1.2.{index}", implicit_vr=True, little_endian=True, enforce_file_format=False)
        path.unlink()
    assert sitk.GetArrayFromImage(hu_image(read_series(tmp_path))).max() == 0


def test_the_files_stay_as_they_are(tmp_path):
    paths = write_series(tmp_path / "in", np.zeros((3, 8, 8)), Geometry((8, 8), depths=np.arange(3) * 3.0))
    shutil.copytree(tmp_path / "in", tmp_path / "before")
    hu_image(read_series(tmp_path / "in"))
    assert all(path.read_bytes() == (tmp_path / "before" / path.name).read_bytes() for path in paths)
