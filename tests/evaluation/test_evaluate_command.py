"""nnunet_oar evaluate: files, tables, partial annotation, and what it refuses."""

import csv
import json
import time

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_oar.cli import main
from nnunet_oar.evaluation.metrics import METRICS, scores

LABELS = {"background": 0, "heart": 1, "lung_left": 2}


def write(path, array, spacing=(1.0, 2.0, 3.0), direction=None):
    image = sitk.GetImageFromArray(array.astype(np.uint8))
    image.SetSpacing(spacing)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.DICOMOrient(image, direction) if direction else image, str(path))


def organs(seed, shape=(10, 16, 14)):
    rng = np.random.default_rng(seed)
    array = np.zeros(shape, np.uint8)
    a, b, c = rng.integers(1, 4, 3)
    array[2 : 5 + a, 3 : 7 + b, 2 : 5 + c] = 1
    array[3:8, 10:14, 6 : 10 + a] = 2
    return array


@pytest.fixture
def folders(tmp_path):
    for index in range(4):
        write(tmp_path / "ref" / f"A_{index}.nii.gz", organs(index))
        write(tmp_path / "pred" / f"A_{index}.nii.gz", np.roll(organs(index), 1, axis=2))
        write(tmp_path / "other" / f"A_{index}.nii.gz", np.roll(organs(index), 2, axis=2))
    description = {"labels": LABELS, "channel_names": {"0": "CT"}, "numTraining": 4, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    return tmp_path


def evaluate(folder, *options, predictions="pred") -> int:
    return main(
        ["evaluate", "-i", str(folder / predictions), "-ref", str(folder / "ref"), "--dataset-json", str(folder / "dataset.json"),
         "-o", str(folder / "out"), "-np", "1", "--disable_progress_bar", *map(str, options)]
    )  # fmt: skip


def test_everything_that_is_written(folders, capsys):
    assert evaluate(folders, "--against", folders / "other") == 0
    printed = capsys.readouterr().out
    result = json.loads((folders / "out" / "scores.json").read_text())
    for index in range(4):
        for organ, label in LABELS.items():
            if label:
                expected = scores(np.roll(organs(index), 1, 2) == label, organs(index) == label, (3.0, 2.0, 1.0))
                found = result["cases"][f"A_{index}"][organ]
                assert found.keys() == expected.keys()
                assert all(found[name] == pytest.approx(expected[name]) for name in METRICS)
    of_heart = result["organs"]["heart"]
    dice = [result["cases"][case]["heart"]["dice"] for case in result["cases"]]
    assert of_heart["dice"]["mean"] == pytest.approx(np.mean(dice)) and of_heart["missed"] == 0
    assert result["tolerance_mm"] == {"heart": 2.0, "lung_left": 2.0}
    difference = result["against"]["difference"]["dice"]["heart"]
    assert difference["n"] == 4 and difference["mean"] > 0
    rows = list(csv.DictReader((folders / "out" / "scores.csv").read_text().splitlines()))
    assert len(rows) == 8 and float(rows[0]["dice"]) == pytest.approx(dice[0])
    summary = json.loads((folders / "out" / "summary.json").read_text())
    assert summary["mean"]["1"]["Dice"] == pytest.approx(np.mean(dice)) and len(summary["metric_per_case"]) == 4
    assert "surface Dice" in printed and "95 % interval" in printed and "minus" in printed


def test_two_processes_find_the_same(folders):
    assert evaluate(folders) == 0
    one = (folders / "out" / "scores.json").read_text()
    assert evaluate(folders, "-np", 2) == 0
    assert (folders / "out" / "scores.json").read_text() == one


def test_nnunets_own_tools_read_the_summary(folders):
    from nnunetv2.evaluation.evaluate_predictions import load_summary_json

    assert evaluate(folders) == 0
    loaded = load_summary_json(str(folders / "out" / "summary.json"))
    assert 0 < loaded["foreground_mean"]["Dice"] < 1 and set(loaded["mean"]) == {1, 2}


def test_only_what_is_annotated_counts(folders):
    description = json.loads((folders / "dataset.json").read_text())
    description["annotations"] = {"half": {"cases": ["A_0", "A_1"], "labels": ["heart"]}}
    (folders / "dataset.json").write_text(json.dumps(description))
    assert evaluate(folders) == 0
    result = json.loads((folders / "out" / "scores.json").read_text())
    # cases of no source are scored on everything
    assert [set(of) for of in result["cases"].values()] == [{"heart"}] * 2 + [{"heart", "lung_left"}] * 2
    assert result["organs"]["lung_left"]["annotated"] == 2 and result["organs"]["lung_left"]["dice"]["n"] == 2
    summary = json.loads((folders / "out" / "summary.json").read_text())
    assert summary["mean"]["2"]["Dice"] == pytest.approx(result["organs"]["lung_left"]["dice"]["mean"])


def test_organs_that_are_missed_and_invented(folders, capsys):
    write(folders / "pred" / "A_0.nii.gz", np.where(organs(0) == 1, 0, organs(0)))
    write(folders / "ref" / "A_1.nii.gz", np.where(organs(1) == 2, 0, organs(1)))
    write(folders / "pred" / "A_2.nii.gz", np.where(organs(2) == 2, 0, organs(2)))
    write(folders / "ref" / "A_2.nii.gz", np.where(organs(2) == 2, 0, organs(2)))
    assert evaluate(folders) == 0
    found = json.loads((folders / "out" / "scores.json").read_text())["organs"]
    assert (found["heart"]["missed"], found["heart"]["dice"]["n"], found["heart"]["hd_mm"]["n"]) == (1, 4, 3)
    assert (found["lung_left"]["invented"], found["lung_left"]["dice"]["n"], found["lung_left"]["hd_mm"]["n"]) == (
        1,
        3,
        2,
    )
    assert "nan" not in (folders / "out" / "scores.json").read_text().lower() and "nan" not in capsys.readouterr().out


def test_tolerances(folders, capsys):
    assert evaluate(folders, "--tolerance", 0.5, "heart=1.5") == 0
    result = json.loads((folders / "out" / "scores.json").read_text())
    assert result["tolerance_mm"] == {"heart": 1.5, "lung_left": 0.5}
    case = result["cases"]["A_0"]
    assert case["heart"]["surface_dice"] == 1 and case["lung_left"]["surface_dice"] < 1
    assert evaluate(folders, "--tolerance", 1, 2) == 1 and "two values for all organs" in capsys.readouterr().err
    assert (
        evaluate(folders, "--tolerance", "heart=1", "heart=2") == 1
        and "two values for heart" in capsys.readouterr().err
    )
    for text, problem in (
        ("x", "must be mm above 0"),
        ("=2", "must be mm above 0"),
        ("-1", "must be mm above 0"),
        ("hart=2", "given for 'hart'"),
    ):
        assert evaluate(folders, "--tolerance", text) == 1 and problem in capsys.readouterr().err


def test_orientation_decides_what_a_slice_is(folders):
    """The same organs stored from front to back: the path to add is that of axial slices."""
    assert evaluate(folders) == 0
    before = json.loads((folders / "out" / "scores.json").read_text())["cases"]
    for name in ("ref", "pred"):
        for path in (folders / name).iterdir():
            write(path, sitk.GetArrayFromImage(sitk.ReadImage(str(path))), direction="SAR")
    assert evaluate(folders) == 0
    after = json.loads((folders / "out" / "scores.json").read_text())["cases"]
    for case, of_case in before.items():
        for organ, values in of_case.items():
            assert all(after[case][organ][name] == pytest.approx(values[name], abs=1e-4) for name in METRICS)


def test_hidden_files_are_no_cases(folders):
    (folders / "pred" / ".tmp.A_9.nii.gz").write_bytes(b"left by a killed process")
    assert evaluate(folders) == 0


def test_what_is_to_be_ignored(folders):
    description = json.loads((folders / "dataset.json").read_text())
    description["labels"]["ignore"] = 3
    (folders / "dataset.json").write_text(json.dumps(description))
    for index in range(4):
        truth = organs(index)
        ignored = np.where(np.arange(truth.shape[2]) < 4, 3, truth)
        write(folders / "ref" / f"A_{index}.nii.gz", ignored)
        write(folders / "pred" / f"A_{index}.nii.gz", np.where(ignored == 3, 1, truth))
    assert evaluate(folders) == 0
    found = json.loads((folders / "out" / "scores.json").read_text())["organs"]
    assert found["heart"]["dice"]["mean"] == found["lung_left"]["dice"]["mean"] == 1


@pytest.mark.parametrize("kind", ["cut", "fraction", "not a number", "colour", "two dimensions"])
def test_damaged_label_maps_are_refused(kind, folders, capsys):
    path = folders / "pred" / "A_2.nii.gz"
    image = sitk.ReadImage(str(path))
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    elif kind in ("fraction", "not a number"):
        array = sitk.GetArrayFromImage(image).astype(np.float32)
        array[0, 0, 0] = 2.9999 if kind == "fraction" else np.nan
        changed = sitk.GetImageFromArray(array)
        changed.CopyInformation(image)
        sitk.WriteImage(changed, str(path))
    else:
        sitk.WriteImage(sitk.Compose(image, image, image) if kind == "colour" else image[:, :, 0], str(path))
    assert evaluate(folders) == 1
    error = capsys.readouterr().err
    assert "A_2" in error and error.count("\n") == 1 and not (folders / "out").exists()


@pytest.mark.parametrize("value", [9, 3])
def test_labels_of_another_model_are_refused(value, folders, capsys):
    write(folders / "pred" / "A_1.nii.gz", np.where(organs(1) == 2, value, organs(1)))
    assert evaluate(folders) == 1
    assert f"A_1.nii.gz holds labels that dataset.json does not name: {value}" in capsys.readouterr().err


def test_others_that_lack_a_case_are_refused_before_scoring(folders, capsys):
    (folders / "other" / "A_3.nii.gz").unlink()
    assert evaluate(folders, "--against", folders / "other") == 1
    printed = capsys.readouterr()
    assert "lacks 1 of the cases to score: A_3" in printed.err and not printed.out


def test_refusals(folders, capsys):
    out = folders / "out"
    assert evaluate(folders, predictions="nowhere") == 1 and "nowhere is not a folder" in capsys.readouterr().err
    (folders / "pred" / "A_3.nii.gz").unlink()
    assert evaluate(folders) == 1 and "lacks 1 of the cases to score: A_3" in capsys.readouterr().err
    write(folders / "pred" / "A_3.nii.gz", organs(3), spacing=(1.0, 2.0, 3.5))
    assert (
        evaluate(folders) == 1 and "A_3: prediction and reference must lie on the same grid" in capsys.readouterr().err
    )
    (folders / "pred" / "A_3.nii.gz").write_bytes(b"no image")
    assert evaluate(folders) == 1 and "A_3.nii.gz cannot be read" in capsys.readouterr().err
    (folders / "dataset.json").write_text('{"labels": {"background": 0}, "file_ending": ".nii.gz"}')
    assert evaluate(folders) == 1 and "names no organ" in capsys.readouterr().err
    (folders / "dataset.json").write_text("{}")
    assert evaluate(folders) == 1 and "is no dataset.json" in capsys.readouterr().err
    out.write_text("")
    assert evaluate(folders) == 1 and "is a file; name a folder" in capsys.readouterr().err


def test_a_data_set_by_its_number(folders, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_raw", str(folders))
    (folders / "Dataset007_X").mkdir()
    (folders / "dataset.json").rename(folders / "Dataset007_X" / "dataset.json")
    options = [
        "evaluate",
        "-i",
        folders / "pred",
        "-ref",
        folders / "ref",
        "-o",
        folders / "out",
        "-np",
        "1",
        "--disable_progress_bar",
    ]
    assert main([*map(str, options), "-d", "7"]) == 0
    (folders / "Dataset007_Y").mkdir()
    (folders / "Dataset007_Y" / "dataset.json").write_text("{}")
    assert main([*map(str, options), "-d", "7"]) == 1
    assert "could be Dataset007_X or Dataset007_Y" in capsys.readouterr().err
    assert (
        main([*map(str, options), "-d", "8"]) == 1 and "holds no Dataset008_*/dataset.json" in capsys.readouterr().err
    )


@pytest.mark.slow
def test_33_organs_of_a_large_pair(tmp_path):
    """20 s are wanted on two cores that do nothing else; a busy machine gets three times as many."""
    rng = np.random.default_rng(0)
    z, y, x = np.ogrid[:200, :512, :512]
    reference, prediction = (np.zeros((200, 512, 512), np.uint8) for _ in range(2))
    for label in range(1, 34):
        centre, radii = rng.uniform((30, 90, 90), (170, 420, 420)), rng.uniform(6, 45, 3) * (0.4, 1, 1)
        for array, shift in ((reference, 0), (prediction, 1.5)):
            from_centre = [
                (axis - at) / radius for axis, at, radius in zip((z, y - shift, x), centre, radii, strict=True)
            ]
            array[sum(of**2 for of in from_centre) < 1] = label
    write(tmp_path / "ref" / "a.nii.gz", reference, (0.9, 0.9, 2.5))
    write(tmp_path / "pred" / "a.nii.gz", prediction, (0.9, 0.9, 2.5))
    labels = {"background": 0} | {f"organ_{label}": label for label in range(1, 34)}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels, "file_ending": ".nii.gz"}))
    start = time.perf_counter()
    assert evaluate(tmp_path, "-np", 2) == 0
    seconds = time.perf_counter() - start
    print(f"{seconds:.1f} s")
    assert len(json.loads((tmp_path / "out" / "scores.json").read_text())["cases"]["a"]) == 33 and seconds < 60
