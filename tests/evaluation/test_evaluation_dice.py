"""Dice per organ against counted voxels; folders that do not fit are refused; means count scored cases only."""

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_oar.evaluation.dice import dice_per_organ, format_table, score_folder, summary

LABELS = {"heart": 1, "aorta": 2}
ENDING = ".nii.gz"


def cube(label: int, start: int, stop: int) -> np.ndarray:
    """A label map in which z in [start, stop) holds `label`: 6 voxels per layer."""
    labelled = np.zeros((10, 2, 3), np.uint8)
    labelled[start:stop] = label
    return labelled


def test_dice_of_shifted_slabs():
    # 4 layers each, 3 shared: 2 * 3 / 8
    assert dice_per_organ(cube(1, 0, 4), cube(1, 1, 5), LABELS)["heart"] == pytest.approx(0.75)


def test_perfect_and_disjoint():
    assert dice_per_organ(cube(1, 0, 4), cube(1, 0, 4), LABELS)["heart"] == 1
    assert dice_per_organ(cube(1, 0, 4), cube(1, 4, 8), LABELS)["heart"] == 0


def test_absent_in_both_is_not_scored_and_in_one_is_zero():
    empty, full = cube(0, 0, 1), cube(1, 0, 4)
    assert dice_per_organ(empty, empty, LABELS) == {"heart": None, "aorta": None}
    assert dice_per_organ(full, empty, LABELS) == {"heart": 0.0, "aorta": None}
    assert dice_per_organ(empty, full, LABELS) == {"heart": 0.0, "aorta": None}


def test_organs_do_not_mix():
    scores = dice_per_organ(cube(1, 0, 4), cube(2, 0, 4), LABELS)
    assert scores == {"heart": 0.0, "aorta": 0.0}


def test_background_is_no_organ():
    assert list(dice_per_organ(cube(1, 0, 4), cube(1, 0, 4), {"background": 0, **LABELS})) == ["heart", "aorta"]


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(1, 2, 3\) and \(3, 2, 1\)"):
        dice_per_organ(np.zeros((1, 2, 3)), np.zeros((3, 2, 1)), LABELS)


@pytest.fixture
def folders(tmp_path):
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    predictions.mkdir()
    references.mkdir()
    for case, stop in (("a", 4), ("b", 8)):
        write(references / f"{case}{ENDING}", cube(1, 0, 4))
        write(predictions / f"{case}{ENDING}", cube(1, 0, stop))
    (predictions / "plans.json").write_text("{}")  # nnU-Net leaves such files beside its predictions
    return predictions, references


def write(path, array, spacing=(1.0, 2.0, 3.0), origin=(5.0, -7.0, 11.0), direction=(1, 0, 0, 0, 1, 0, 0, 0, 1)):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction)
    sitk.WriteImage(image, str(path))


def test_a_folder(folders):
    scores = score_folder(*folders, LABELS, ENDING)
    assert list(scores) == ["a", "b"]
    assert scores["a"] == {"heart": 1.0, "aorta": None}
    assert scores["b"]["heart"] == pytest.approx(2 * 4 / 12)


@pytest.mark.parametrize("which", [0, 1])
def test_a_case_in_one_folder_only_is_named(folders, which):
    (folders[which] / f"b{ENDING}").unlink()
    with pytest.raises(ValueError, match=f"{folders[which].name} lacks 1 of the cases to score: b$"):
        score_folder(*folders, LABELS, ENDING)


def test_no_files_and_no_folder(folders):
    with pytest.raises(ValueError, match=".nrrd"):
        score_folder(*folders, LABELS, ".nrrd")
    with pytest.raises(ValueError, match="missing is not a folder"):
        score_folder(folders[0] / "missing", folders[1], LABELS, ENDING)


@pytest.mark.parametrize(
    "what, array, header",
    [
        ("size", np.zeros((10, 2, 4), np.uint8), {}),
        ("spacing", cube(1, 0, 4), {"spacing": (1.0, 2.0, 3.1)}),
        ("origin", cube(1, 0, 4), {"origin": (5.0, -7.0, 12.0)}),
        ("direction", cube(1, 0, 4), {"direction": (-1, 0, 0, 0, -1, 0, 0, 0, 1)}),
    ],
)
def test_another_grid_is_refused(folders, what, array, header):
    write(folders[0] / f"b{ENDING}", array, **header)
    with pytest.raises(ValueError, match=f"^b: .*{what}"):
        score_folder(*folders, LABELS, ENDING)


def test_rounded_headers_are_the_same_grid(folders):
    write(folders[0] / f"b{ENDING}", cube(1, 0, 4), spacing=(1.0, 2.0, 3.00001), origin=(5.0004, -7.0, 11.0))
    assert score_folder(*folders, LABELS, ENDING)["b"]["heart"] == 1


SCORES = {
    "first": {"heart": 0.5, "aorta": 0.25, "lung": None},
    "second": {"heart": 1.0, "aorta": None, "lung": None},
}


def test_summary_counts_scored_cases_and_weighs_organs_equally():
    assert summary(SCORES) == {"heart": 0.75, "aorta": 0.25, "lung": None, "mean": 0.5}
    assert summary({}) == {"mean": None}


def test_table():
    expected = """\
case     heart   aorta  lung
----------------------------
first   0.5000  0.2500     -
second  1.0000       -     -
----------------------------
mean    0.7500  0.2500     -
cases        2       1     0

mean of the organs: 0.5000"""
    assert format_table(SCORES) == expected


def test_table_without_cases():
    assert format_table({}).endswith("mean of the organs: -")
