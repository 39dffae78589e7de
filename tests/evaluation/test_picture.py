"""Slices are the right way round whatever the file's orientation, and the picture shows what was asked for."""

import matplotlib.image
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_oar.evaluation.picture import BORDERS, COLOURS, best_voxel, contour_picture, load_lps, oriented_slices

SHAPE = (4, 6, 8)  # z, y, x
LABELS = {"background": 0, "left": 1, "front": 2}


def corner_marked(z: str, y: str, x: str) -> np.ndarray:
    """Zeros but for the corner voxel at the patient's I or S, A or P, R or L."""
    volume = np.zeros(SHAPE)
    volume[-1 if z == "S" else 0, -1 if y == "P" else 0, -1 if x == "L" else 0] = 1
    return volume


def marked(plane: np.ndarray) -> tuple[str, str]:
    """Which corner of a slice holds the mark, as it is looked at."""
    ((row, column),) = np.argwhere(plane)
    return {0: "top", plane.shape[0] - 1: "bottom"}[row], {0: "left", plane.shape[1] - 1: "right"}[column]


def test_axial_slice_has_anterior_up_and_the_right_side_on_the_left():
    assert marked(oriented_slices(corner_marked("I", "A", "R"), (0, 0, 0)).axial) == ("top", "left")
    assert marked(oriented_slices(corner_marked("I", "P", "L"), (0, 0, 0)).axial) == ("bottom", "right")


def test_coronal_slice_has_the_head_up_and_the_right_side_on_the_left():
    assert marked(oriented_slices(corner_marked("S", "A", "R"), (0, 0, 0)).coronal) == ("top", "left")
    assert marked(oriented_slices(corner_marked("I", "A", "L"), (0, 0, 0)).coronal) == ("bottom", "right")


def test_sagittal_slice_has_the_head_up_and_anterior_on_the_left():
    assert marked(oriented_slices(corner_marked("S", "A", "R"), (0, 0, 0)).sagittal) == ("top", "left")
    assert marked(oriented_slices(corner_marked("I", "P", "R"), (0, 0, 0)).sagittal) == ("bottom", "right")


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_letters_stand_where_the_patients_sides_are(plane):
    # Where the volume begins and ends in the patient: feet to head, front to back, right to left.
    face = {"F": (0, 0), "H": (0, -1), "A": (1, 0), "P": (1, -1), "R": (2, 0), "L": (2, -1)}
    edge = (np.s_[:, 0], np.s_[:, -1], np.s_[0], np.s_[-1])
    for letter, here in zip(getattr(BORDERS, plane), edge, strict=True):
        volume = np.zeros(SHAPE)
        axis, end = face[letter]
        np.moveaxis(volume, axis, 0)[end] = 1
        seen = getattr(oriented_slices(volume, (1, 1, 1)), plane)
        assert seen[here].all() and seen.sum() == seen[here].size


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "LAI", "PSR", "IRA"])
def test_a_file_in_any_orientation_is_brought_into_order(orientation, tmp_path):
    image = sitk.GetImageFromArray(corner_marked("S", "A", "L"))
    image.SetSpacing((1.0, 2.0, 3.0))
    sitk.WriteImage(sitk.DICOMOrient(image, orientation), str(tmp_path / "case.nrrd"))
    array, spacing_mm = load_lps(tmp_path / "case.nrrd")
    np.testing.assert_array_equal(array, corner_marked("S", "A", "L"))
    assert spacing_mm == pytest.approx((3.0, 2.0, 1.0))


def test_direction_cosines_of_a_file_are_obeyed(tmp_path):
    # Written out by hand: this file's x runs from left to right (RAS in x), so its first column is the patient's left.
    image = sitk.GetImageFromArray(np.arange(24).reshape(2, 3, 4))
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    sitk.WriteImage(image, str(tmp_path / "case.nii.gz"))
    array, _ = load_lps(tmp_path / "case.nii.gz")
    np.testing.assert_array_equal(array, np.arange(24).reshape(2, 3, 4)[:, ::-1, ::-1])


def test_two_dimensions_are_refused(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 4), np.uint8)), str(tmp_path / "flat.png"))
    with pytest.raises(ValueError, match="flat.png"):
        load_lps(tmp_path / "flat.png")


def box(*ranges: tuple[int, int]) -> np.ndarray:
    mask = np.zeros((20, 20, 20), bool)
    mask[tuple(slice(*r) for r in ranges)] = True
    return mask


def test_slices_show_as_many_organs_as_possible_near_the_centre():
    low, high = box((0, 10), (2, 4), (2, 4)), box((8, 20), (2, 4), (2, 4))
    assert best_voxel([low, high], low.shape)[0] in (8, 9)  # the only slices with both
    assert best_voxel([low], low.shape)[0] in (4, 5)


def test_a_tip_is_not_worth_a_slice():
    organ = box((5, 15), (0, 10), (0, 10))
    tipped = box((14, 18), (0, 10), (0, 10)) | box((11, 12), (0, 1), (0, 1))  # one voxel far from the rest
    assert best_voxel([organ, tipped], organ.shape)[0] == 14


def test_without_organs_the_centre_is_shown():
    assert best_voxel([np.zeros((4, 6, 9), bool)], (4, 6, 9)) == (2, 3, 4)
    assert best_voxel([], (4, 6, 9)) == (2, 3, 4)


def volume_and_labels() -> tuple[np.ndarray, np.ndarray]:
    labelled = np.zeros((12, 20, 30), np.uint8)
    labelled[3:8, 8:12, 20:26] = 1
    labelled[3:8, 2:6, 5:20] = 2
    return np.full(labelled.shape, -1000, np.int16), labelled


def pixels_of(picture: np.ndarray, colour: str) -> np.ndarray:
    """(n, 2) rows and columns of the pixels in a colour, anti-aliased ones left out."""
    rgb = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return np.argwhere(np.abs(picture[..., :3] - rgb).max(-1) < 0.02)


def test_picture_has_every_organ_and_left_is_on_the_right(tmp_path):
    image, labelled = volume_and_labels()
    contour_picture(image, labelled, None, (3.0, 1.0, 1.0), LABELS, tmp_path / "case.png")
    picture = matplotlib.image.imread(tmp_path / "case.png")
    body = picture[: int(picture.shape[0] * 0.85), : picture.shape[1] // 3]  # the axial slice, no legend
    left, front = (pixels_of(body, colour).mean(0) for colour in COLOURS[:2])
    assert left[1] > front[1]  # the organ on the patient's left lies to the right
    assert left[0] > front[0]  # the anterior organ lies above
    assert [path.name for path in tmp_path.iterdir()] == ["case.png"]


@pytest.mark.parametrize("shift", [0, 2])
def test_picture_with_reference(shift, tmp_path):
    image, labelled = volume_and_labels()
    prediction = np.roll(labelled, shift, axis=1)
    contour_picture(image, prediction, labelled, (3.0, 1.0, 1.0), LABELS, tmp_path / "case.png", title="case")
    assert matplotlib.image.imread(tmp_path / "case.png").std() > 0


@pytest.mark.parametrize("shape", [(1, 20, 30), (40, 3, 3)])
def test_odd_volumes_and_empty_label_maps(shape, tmp_path):
    empty = np.zeros(shape, np.uint8)
    many = {f"organ_{number}": number for number in range(1, 12)}
    contour_picture(empty.astype(np.int16), empty, empty, (3.0, 1.0, 1.0), many, tmp_path / "case.png")
    assert (tmp_path / "case.png").stat().st_size > 0


def test_other_shapes_and_spacings_are_refused(tmp_path):
    image, labelled = volume_and_labels()
    with pytest.raises(ValueError, match="one shape"):
        contour_picture(image, labelled[1:], None, (3, 1, 1), LABELS, tmp_path / "case.png")
    with pytest.raises(ValueError, match="one shape"):
        contour_picture(image, labelled, labelled[1:], (3, 1, 1), LABELS, tmp_path / "case.png")
    with pytest.raises(ValueError, match="spacing_mm"):
        contour_picture(image, labelled, None, (3, 1, 0), LABELS, tmp_path / "case.png")
    assert not list(tmp_path.iterdir())
