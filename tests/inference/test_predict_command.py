"""The command in process, on a model without training: what it reads, writes, leaves alone and refuses."""

import csv
import hashlib
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.ndimage import label as components
from toy_model import ORGANS, SMALL, make_model

from nnunet_oar.cli import main
from nnunet_oar.inference import OARPredictor, batch, cases
from nnunet_oar.inference.image import as_image
from nnunet_oar.inference.model import load_model
from nnunet_oar.networks.cascade import CascadeNetwork
from nnunet_oar.networks.layers import Layer
from nnunet_oar.plan import CascadePlan
from nnunet_oar.roi import Box


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"), folds=2)


def ct(seed=0, orientation="LPS"):
    array = np.random.default_rng(seed).integers(-1000, 1000, (9, 12, 14)).astype(np.int16)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((2.0, 2.0, 3.0))
    return sitk.DICOMOrient(image, orientation)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "in"
    path.mkdir()
    sitk.WriteImage(ct(0), str(path / "one_0000.nii.gz"))
    sitk.WriteImage(ct(1, "RAI"), str(path / "any name.nrrd"))
    sitk.WriteImage(ct(2), str(path / "three.mha"))
    return path


def predict(*options) -> int:
    return main(["predict", *map(str, options)])


def names(path):
    return sorted(file.name for file in path.iterdir())


def test_a_folder_with_all_outputs(model, folder, tmp_path, capsys):
    out = tmp_path / "out"
    options = ("--preview", "--statistics", "--save_probabilities", "--disable_progress_bar", "-device", "cpu")
    assert predict("-i", folder, "-o", out, "-m", model, *options) == 0
    cases = {"one": ".nii.gz", "any name": ".nrrd", "three": ".mha"}
    expected = {f"{case}{ending}" for case, ending in cases.items()}
    expected |= {f"{case}{ending}" for case in cases for ending in (".json", ".png", ".npz", ".pkl")}
    assert set(names(out)) == expected | {"dataset.json", "plans.json", "statistics.csv", "statistics.json"}
    assert "one: " in capsys.readouterr().out
    rows = list(csv.DictReader((out / "statistics.csv").read_text().splitlines()))
    assert len(rows) == len(json.loads((out / "statistics.json").read_text())) >= 3
    for case, ending in cases.items():
        source = sitk.ReadImage(str(next(folder.glob(f"{case}*"))))
        written = sitk.ReadImage(str(out / f"{case}{ending}"))
        assert written.GetDirection() == source.GetDirection() and written.GetSize() == source.GetSize()
        labels, array = sitk.GetArrayFromImage(written), sitk.GetArrayFromImage(source)
        for row in (row for row in rows if row["case"] == case):
            mask = labels == int(row["label"])
            assert float(row["ml"]) == pytest.approx(mask.sum() * 12 / 1000, abs=1e-3)
            assert float(row["mean_hu"]) == pytest.approx(array[mask].mean(), abs=1e-2)
        probabilities = np.load(out / f"{case}.npz")["probabilities"]
        canonical = sitk.GetArrayFromImage(sitk.DICOMOrient(written, "RAS"))
        # float16 makes ties
        assert probabilities.shape == (4, *canonical.shape) and (probabilities.argmax(0) == canonical).mean() > 0.99


def test_one_file_some_organs_and_one_fold(model, folder, tmp_path):
    file = folder / "three.mha"
    for name, options in (("all", ()), ("some", ("--organs", "heart")), ("small", ("--remove-small", "1e9"))):
        assert predict("-i", file, "-o", tmp_path / name, "-m", model, "-f", 0, "-q", *options) == 0
    everything, heart, nothing = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / name / "three.mha"))) for name in ("all", "some", "small")
    )
    assert np.array_equal(heart, np.where(everything == 1, 1, 0)) and len(np.unique(everything)) > 2
    assert not nothing.any()


def test_parts_share_the_cases_and_what_is_done_is_left_alone(model, folder, tmp_path):
    out = tmp_path / "out"
    for part in (0, 1):
        assert predict("-i", folder, "-o", out, "-m", model, "-num_parts", 2, "-part_id", part, "-q") == 0
        assert len(list(out.glob("*.nii.gz")) + list(out.glob("*.nrrd")) + list(out.glob("*.mha"))) == (2, 3)[part]
    (out / "three.mha").unlink()
    before = (out / "one.nii.gz").stat().st_mtime_ns
    assert predict("-i", folder, "-o", out, "-m", model, "--continue_prediction", "-q") == 0
    assert (out / "three.mha").is_file() and (out / "one.nii.gz").stat().st_mtime_ns == before


def test_a_damaged_file_ends_nothing_but_itself(model, folder, tmp_path, capsys):
    (folder / "one_0000.nii.gz").write_bytes((folder / "one_0000.nii.gz").read_bytes()[:-40])
    sitk.WriteImage(ct(4)[:, :, :1], str(folder / "slice.mha"))
    out = tmp_path / "out"
    assert predict("-i", folder, "-o", out, "-m", model, "-q") == 1
    error = capsys.readouterr().err
    assert "one_0000.nii.gz" in error and "slice.mha: the CT is one voxel thick" in error
    assert "2 of 4 cases were not predicted" in error
    assert {"any name.nrrd", "three.mha"} < set(names(out)) and "slice.mha" not in names(out)
    assert not [name for name in names(out) if name.startswith(".")]


def test_the_model_by_its_data_set_and_what_it_is(model, folder, tmp_path, monkeypatch, capsys):
    results = tmp_path / "results" / "Dataset055_Toy"
    results.mkdir(parents=True)
    (results / model.name).symlink_to(model)
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    assert predict("-d", 55, "--list-organs") == 0
    assert capsys.readouterr().out.split() == ["1", ORGANS[0], "2", ORGANS[1], "3", ORGANS[2]]
    assert main(["info", str(model)]) == 0
    text = capsys.readouterr().out
    assert "OARCascadeTrainer" in text and "kidney_left" in text and "0 (1 epochs), 1 (1 epochs)" in text
    for options, words in (
        (("-d", 56), "holds no Dataset056_"), (("-d", 55, "-tr", "OARAttentionTrainer"), "holds no OARAttentionTrainer__"),
        ((), "either by -m MODEL_FOLDER or by -d ID"), (("-d", 55, "-m", model), "either by -m"),
        # a folder of one trainer, and the name of another
        (("-m", model, "-tr", "OARAttentionTrainer"), "-tr goes with -d"), (("-m", model, "-p", "Mine"), "-p goes with -d"),
    ):  # fmt: skip
        assert predict(*options, "--list-organs") == 1
        assert words in capsys.readouterr().err


def test_wrong_usage_is_answered_by_one_sentence(model, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(batch, "CONNECT_SECONDS", 1)
    out, empty = tmp_path / "out", tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").write_text("nothing")
    twice = tmp_path / "twice"
    twice.mkdir()
    for name in ("a.nrrd", "a_0000.mha"):
        sitk.WriteImage(ct(), str(twice / name))
    for options, words in (
        (("-i", folder, "-o", out, "-m", tmp_path / "none"), "does not exist"),
        (("-i", folder, "-o", out, "-m", tmp_path), "holds no plans.json"),
        (("-i", folder, "-o", out, "-m", model, "-f", 7), "not of 7"),
        (("-i", folder, "-o", out, "-m", model, "-chk", "no.pth"), "holds no fold_X/no.pth"),
        (("-i", folder, "-o", out, "-m", model, "--organs", "liver"), "no organ 'liver'"),
        (("-i", folder, "-o", out, "-m", model, "-device", "toaster"), "device 'toaster'"),
        (("-i", folder, "-o", out, "-m", model, "-num_parts", 2, "-part_id", 2), "-part_id must lie in 0 to 1"),
        (("-i", folder, "-o", folder, "-m", model), "which the results would replace"),
        (("-i", tmp_path / "nowhere", "-o", out, "-m", model), "nowhere does not exist"),
        (("-i", folder, "-o", out, "-m", model, "-num_parts", 0), "-num_parts must be at least 1"),
        (("-i", folder, "-o", out, "-m", model, "--remove-small", "nan"), "--remove-small must be mm^3, 0 or more"),
        (("-i", folder, "-o", out, "-m", model, "--remove-small", -3), "--remove-small must be mm^3, 0 or more"),
        (("-i", empty, "-o", out, "-m", model), "holds no image"),
        (("-i", twice, "-o", out, "-m", model), "would be the same case"),
        (("-o", out, "-m", model), "-i and -o are needed"),
        (("-i", folder, "-o", out, "-m", model, "-q", "--scheduler", "tcp://127.0.0.1:9"), "scheduler"),
    ):
        assert predict(*options) == 1
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1, (words, error)


def test_a_checkpoint_may_not_run_programs(tmp_path, capsys):
    model = make_model(tmp_path / "m")
    file = model / "fold_0" / "checkpoint_final.pth"
    stored = torch.load(file, weights_only=False)
    torch.save(stored | {"_best_ema": np.float64(0.5), "logging": {"a": [np.float32(1)]}}, file)
    load_model(model)  # what nnU-Net writes
    torch.save(stored | {"surprise": Touch(tmp_path / "touched")}, file)
    with pytest.raises(ValueError, match="checkpoint_final.pth holds more than weights.*--trust-checkpoint"):
        load_model(model)
    assert not (tmp_path / "touched").exists()
    load_model(model, trust_checkpoint=True)
    assert (tmp_path / "touched").exists()
    for content in (b"text", b"", file.read_bytes()[:200]):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="checkpoint_final.pth is no checkpoint or is damaged"):
            load_model(model)


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def refusal(capsys, *options) -> str:
    """The one line of a refused command."""
    assert predict(*options) == 1
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and printed.err.startswith("nnunet_oar predict: ") and not printed.out
    return printed.err


def write(path, *arguments):
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(ct(*arguments), str(path))
    return path


def labels_in(path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


# --- what goes in ---


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".NRRD", ".NII.GZ"])
def test_a_single_file_of_every_format(model, tmp_path, ending):
    source = write(tmp_path / "in" / f"ct{ending.lower()}", 0, "PIR")
    source = source.rename(source.with_name(f"ct{ending}"))
    out = tmp_path / "some" / "new" / "folder"
    assert predict("-i", source, "-o", out, "-m", model, "-f", 0, "-q") == 0
    # a header without its voxels would be half a result
    written = out / f"ct{'.mha' if ending == '.mhd' else ending.lower()}"
    assert names(out) == sorted([written.name, "ct.json", "dataset.json", "plans.json"])
    image, found = ct(0, "PIR"), sitk.ReadImage(str(written))
    assert found.GetPixelID() == sitk.sitkUInt8 and sitk.GetArrayFromImage(found).any()
    for what in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(found, what)(), getattr(image, what)(), atol=1e-5)


def test_any_naming(model, tmp_path):
    # of one channel a number at the end is the case's, unless it is nnU-Net's _0000
    cases = ("a.b", "CT 12", "Müller", "scan-2021", "x_000", "_", "patient_0001", "patient_0002", "ct_2024")
    for case in cases:
        write(tmp_path / "in" / f"{case}.nrrd")
    # neither are images, nor what hides, nor folders
    (tmp_path / "in" / "notes.txt").write_text("text")
    (tmp_path / "in" / ".hidden.nrrd").write_text("text")
    (tmp_path / "in" / "older").mkdir()
    assert predict("-i", tmp_path / "in", "-o", tmp_path / "out", "-m", model, "-f", 0, "-q") == 0
    expected = {f"{case}{ending}" for case in cases for ending in (".nrrd", ".json")}
    assert set(names(tmp_path / "out")) == expected | {"dataset.json", "plans.json"}


def test_two_channels(tmp_path):
    model = make_model(tmp_path, channels=2)
    for case in ("a", "b"):
        write(tmp_path / "in" / f"{case}_0000.nii.gz", 0)
        write(tmp_path / "in" / f"{case}_0001.nii.gz", 1 if case == "a" else 2)
    assert predict("-i", tmp_path / "in", "-o", tmp_path / "out", "-m", model, "-q") == 0
    # the second channel is looked at
    assert not np.array_equal(labels_in(tmp_path / "out" / "a.nii.gz"), labels_in(tmp_path / "out" / "b.nii.gz"))
    assert json.loads((tmp_path / "out" / "a.json").read_text())["input"] == ["a_0000.nii.gz", "a_0001.nii.gz"]


@pytest.mark.parametrize("case", ["dataset", "plans", "statistics"])
def test_a_case_with_the_name_of_another_output_is_refused(model, tmp_path, case, capsys):
    """nnUNetv2_ensemble reads dataset.json and plans.json, and must not find a manifest there."""
    source = write(tmp_path / "in" / f"{case}.nrrd")
    command = ("-i", source, "-o", tmp_path / "out", "-m", model, "-f", 0, "-q", "--statistics")
    assert predict(*command) == 1
    assert f"{case}.nrrd: rename it" in capsys.readouterr().err and not (tmp_path / "out").exists()


# --- what comes out ---


def test_the_manifest_tells_how_a_result_came_about(model, folder, tmp_path):
    options = ("-device", "cpu", "--organs", "heart", "kidney_left", "--remove-small", 30, "-q")
    assert predict("-i", folder / "one_0000.nii.gz", "-o", tmp_path / "out", "-m", model, *options) == 0
    content = json.loads((tmp_path / "out" / "one.json").read_text())
    assert set(content) == {
        "case", "input", "series", "shape", "spacing_mm", "warnings", "organs", "absent", "postprocessing", "fold_agreement",
        "boxes", "boxes_are_in", "seconds", "source", "model", "options", "files", "region_names", "device", "precision", "threads",
        "versions",
    }  # fmt: skip
    assert content["case"] == "one" and content["input"] == ["one_0000.nii.gz"] and content["device"] == "cpu"
    assert content["shape"] == [9, 12, 14] and content["spacing_mm"] == [3, 2, 2]
    labels, image = labels_in(tmp_path / "out" / "one.nii.gz"), labels_in(folder / "one_0000.nii.gz")
    assert content["organs"] and set(content["organs"]) | set(content["absent"]) == {"heart", "kidney_left"}
    for name, organ in content["organs"].items():
        mask = labels == ORGANS.index(name) + 1
        assert organ["label"] == ORGANS.index(name) + 1 and organ["voxels"] == mask.sum() > 0
        assert organ["ml"] == pytest.approx(mask.sum() * 12 / 1000, abs=1e-4)
        assert organ["mean_hu"] == pytest.approx(image[mask].mean(), abs=1e-3)
        extents = [np.ptp(index) + 1 for index in np.nonzero(mask)]
        assert organ["extent_mm"] == [size * mm for size, mm in zip(extents, (3, 2, 2), strict=True)]
    assert content["options"] == {
        "organs": ["heart", "kidney_left"],
        "remove_small_mm3": 30,
        "postprocessing": True,
    }
    assert content["files"] == ["one.nii.gz"] and content["region_names"] == {}
    assert content["model"]["sha256"] == {
        fold: hashlib.sha256((model / f"fold_{fold}" / "checkpoint_final.pth").read_bytes()).hexdigest()
        for fold in "01"
    }
    assert set(content["seconds"]) >= {"read", "networks", "labels", "write"} and len(content["boxes"]) == 2
    assert len(content["boxes_are_in"]["axes"]) == 3 and len(content["boxes_are_in"]["spacing_mm"]) == 3
    # nothing that names folders or people beyond the file
    assert str(tmp_path) not in (tmp_path / "out" / "one.json").read_text()


def test_the_manifest_tells_what_was_too_small(model, folder, tmp_path):
    """Each voxel has 12 mm^3."""
    counts = {}
    for mm3 in (0, 30):
        out = tmp_path / f"out{mm3}"
        options = ("-f", 0, "-q", "--disable_postprocessing", "--remove-small", mm3)
        assert predict("-i", folder / "one_0000.nii.gz", "-o", out, "-m", model, *options) == 0
        counts[mm3] = np.bincount(labels_in(out / "one.nii.gz").ravel(), minlength=4)
    changes = json.loads((tmp_path / "out30" / "one.json").read_text())["postprocessing"]
    removed = {organ: int(counts[0][label] - counts[30][label]) for label, organ in enumerate(ORGANS, start=1)}
    assert any(removed.values())
    assert {organ: change["removed"] for organ, change in changes.items()} == {o: n for o, n in removed.items() if n}
    assert all(0 < change["components_removed"] <= change["removed"] for change in changes.values())
    assert json.loads((tmp_path / "out0" / "one.json").read_text())["postprocessing"] == {}


def test_continuing_repeats_what_is_damaged_or_was_made_otherwise(model, folder, tmp_path, capsys):
    out, whole = tmp_path / "out", tmp_path / "whole"
    command = ("-i", folder, "-m", model, "-f", 0)
    for where in (out, whole):
        assert predict(*command, "-o", where, "-q") == 0
    content = (out / "one.nii.gz").read_bytes()
    (out / "one.nii.gz").write_bytes(content[: len(content) // 2])
    (out / "any name.json").unlink()
    capsys.readouterr()
    assert predict(*command, "-o", out, "--continue_prediction", "--disable_progress_bar") == 0
    said = capsys.readouterr().out
    assert "2 cases are there damaged" in said and "1 of 3 cases are there already" in said
    for name in ("one.nii.gz", "any name.nrrd", "three.mha"):
        assert np.array_equal(labels_in(out / name), labels_in(whole / name))
    for options, again in ((("--organs", "heart"), 3), (("-f", 1), 3), ((), 3), ((), 0)):
        assert predict(*command, *options, "-o", out, "--continue_prediction", "--disable_progress_bar") == 0
        said = capsys.readouterr().out
        assert (f"{again} cases are there damaged, of another CT or model" in said) == bool(again)
    assert np.array_equal(labels_in(out / "three.mha"), labels_in(whole / "three.mha"))


def test_probabilities_of_another_model_or_ct_do_not_stay(model, folder, tmp_path, capsys):
    out = tmp_path / "out"
    command = ("-i", folder / "one_0000.nii.gz", "-o", out, "-m", model)
    assert predict(*command, "-f", 0, "--save_probabilities", "--preview", "-q") == 0
    first = (out / "one.npz").read_bytes()
    # what somebody else put there is not touched
    (out / "one.txt").write_text("a note")
    assert predict(*command, "-f", 1, "-q") == 0
    assert names(out) == ["dataset.json", "one.json", "one.nii.gz", "one.txt", "plans.json"]
    again = ("-f", 1, "--save_probabilities", "--continue_prediction")
    assert predict(*command, *again, "-q") == 0 and (out / "one.npz").read_bytes() != first
    # the same model without them: they are its own still
    assert predict(*command, "-f", 1, "-q") == 0 and {"one.npz", "one.pkl"} < set(names(out))
    capsys.readouterr()
    assert predict(*command, *again) == 0 and "1 of 1 cases are there already" in capsys.readouterr().out
    sitk.WriteImage(ct(7), str(folder / "one_0000.nii.gz"))
    assert predict(*command, *again) == 0 and "1 cases are there damaged, of another CT" in capsys.readouterr().out
    (out / "one.pkl").unlink()
    assert predict(*command, *again) == 0 and "1 cases are there damaged" in capsys.readouterr().out


def test_what_was_begun_by_another_model_and_not_ended_does_not_stay(model, folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    command = ("-i", folder / "one_0000.nii.gz", "-o", out, "-m", model, "-q")
    assert predict(*command, "-f", 0, "--save_probabilities") == 0
    with monkeypatch.context() as patch:
        patch.setattr(cases, "_write_result", lambda *_: 1 / 0)
        assert predict(*command, "-f", 1, "--save_probabilities") == 1
    assert "one.npz" in names(out) and "one.nii.gz" not in names(out)
    assert json.loads((out / "one.json").read_text())["model"]["sha256"].keys() == {"1"}
    assert predict(*command, "-f", 0) == 0
    assert {"one.npz", "one.pkl"}.isdisjoint(names(out)) and "one.nii.gz" in names(out)


def test_results_above_the_cts_and_a_ct_that_is_gone(model, folder, tmp_path, capsys):
    command = ("-i", folder, "-o", tmp_path, "-m", model, "-f", 0, "--continue_prediction", "--disable_progress_bar")
    assert predict(*command) == 0
    sitk.WriteImage(ct(9), str(folder / "three.mha"))
    (folder / "any name.nrrd").unlink()
    (folder / "any name.nrrd").symlink_to(tmp_path / "nowhere.nrrd")
    # touched, and what it was
    (folder / "one_0000.nii.gz").touch()
    capsys.readouterr()
    assert predict(*command) == 1
    printed = capsys.readouterr()
    assert "2 cases are there damaged, of another CT" in printed.out and "1 of 3 cases are there already" in printed.out
    assert "any name.nrrd" in printed.err and "1 of 2 cases were not predicted" in printed.err


@pytest.mark.parametrize("files", [[["one.nii.gz"]], "one.nii.gz", [None], ["../one.txt"]])
def test_a_manifest_of_others_deletes_nothing(model, folder, tmp_path, files):
    out = tmp_path / "out"
    out.mkdir()
    (out / "one.json").write_text(json.dumps({"files": files}))
    for name in (tmp_path / "one.txt", out / "one.txt"):
        name.write_text("mine")
    assert (
        predict("-i", folder / "one_0000.nii.gz", "-o", out, "-m", model, "-f", 0, "--continue_prediction", "-q") == 0
    )
    assert (tmp_path / "one.txt").is_file() and (out / "one.txt").is_file() and labels_in(out / "one.nii.gz").any()


def test_an_interruption_is_one_line(model, folder, tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(batch, "predict_cases", interrupted)
    assert predict("-i", folder, "-o", tmp_path / "out", "-m", model, "-q") == 130
    assert capsys.readouterr().err.strip() == "nnunet_oar predict: interrupted"


def test_a_ct_that_is_0_but_for_one_slice_is_refused(model, tmp_path, capsys):
    array = np.zeros((9, 12, 14), np.int16)
    array[4] = np.random.default_rng(0).integers(-1000, 1000, (12, 14))
    (tmp_path / "in").mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "in" / "slice.nii.gz"))
    assert predict("-i", tmp_path / "in", "-o", tmp_path / "out", "-m", model, "-q") == 1
    assert "slice.nii.gz: the CT is one voxel thick where it is not 0, (1, 12, 14)" in capsys.readouterr().err


def test_a_ct_of_one_value_has_no_organs(model, tmp_path, capsys):
    image = sitk.GetImageFromArray(np.full((9, 12, 14), -1000, np.int16))
    (tmp_path / "in").mkdir()
    sitk.WriteImage(image, str(tmp_path / "in" / "air.nii.gz"))
    assert predict("-i", tmp_path / "in", "-o", tmp_path / "out", "-m", model, "-f", 0, "-q") == 0
    assert not labels_in(tmp_path / "out" / "air.nii.gz").any()
    assert "one value everywhere" in capsys.readouterr().err


def test_workers_in_another_folder_find_the_images(model, folder, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(
        batch, "predict_on_cluster", lambda address, settings, cases, *more: given.append((settings, cases)) or iter(())
    )
    monkeypatch.chdir(tmp_path)
    assert predict("-i", "in", "-o", "out", "-m", model, "-q", "--scheduler", "tcp://nowhere:1") == 0
    ((settings, cases),) = given
    assert len(cases) == 3 and all(file.is_absolute() for case in cases for file in case.files)
    assert settings.hashes == tuple(load_model(model).hashes.items())


def test_a_worker_refuses_a_checkpoint_that_was_replaced(tmp_path):
    model = make_model(tmp_path, folds=1)
    settings = batch.Settings(str(model), "cpu", hashes=tuple(load_model(model).hashes.items()))
    assert settings.load().model.hashes == dict(settings.hashes)
    file = model / "fold_0" / "checkpoint_final.pth"
    torch.save(torch.load(file, weights_only=False) | {"current_epoch": 7}, file)
    with pytest.raises(ValueError, match="the checkpoint is another one than where the prediction was started"):
        settings.load()


def test_a_folder_through_the_api(model, folder, tmp_path):
    predictor = OARPredictor(model, "cpu", folds=0)
    warnings = predictor.predict_folder(folder, tmp_path / "api")
    assert set(warnings) == {"one", "any name", "three"}
    assert predict("-i", folder, "-o", tmp_path / "command", "-m", model, "-f", 0, "-q", "-device", "cpu") == 0
    for name in ("one.nii.gz", "any name.nrrd", "three.mha"):
        assert np.array_equal(labels_in(tmp_path / "api" / name), labels_in(tmp_path / "command" / name))
        manifest = json.loads((tmp_path / "api" / f"{name.split('.')[0]}.json").read_text())
        assert manifest["warnings"] == warnings[name.split(".")[0]]
    (folder / "broken.mha").write_text("nothing")
    before = (folder / "one_0000.nii.gz").read_bytes()
    with pytest.raises(ValueError, match="which the results would replace"):
        predictor.predict_folder(folder, folder)
    assert (folder / "one_0000.nii.gz").read_bytes() == before and not (folder / "one.json").exists()
    with pytest.raises(ValueError, match="broken.mha"):
        predictor.predict_folder(folder, tmp_path / "again")
    assert (tmp_path / "again" / "one.nii.gz").is_file()


@pytest.mark.parametrize("name", ["labels.nii.gz", "labels.nii"])
def test_labels_that_a_full_disk_cut_off_are_no_result(tmp_path, name):
    """ITK writes what fits and says nothing; the limit of a process stands in for the disk."""
    script = (
        "import resource, sys, numpy as np, SimpleITK as sitk\n"
        "from pathlib import Path\n"
        "from nnunet_oar.files import written_whole\n"
        "from nnunet_oar.inference.image import write_labels\n"
        "labels = np.random.default_rng(0).integers(0, 255, (50, 60, 60)).astype(np.uint8)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60000, 60000))\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "with written_whole(Path(sys.argv[1]), keep_ending=True) as temporary:\n"
        "    write_labels(sitk.GetImageFromArray(labels), temporary)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / name)], capture_output=True, text=True)
    assert done.returncode and "is the disk full?" in done.stderr and list(tmp_path.iterdir()) == []


def test_the_models_descriptions_lie_beside_the_results(model, folder, tmp_path):
    assert predict("-i", folder, "-o", tmp_path / "out", "-m", model, "-q", "-f", 0) == 0
    for name in ("dataset.json", "plans.json"):
        assert (tmp_path / "out" / name).read_bytes() == (model / name).read_bytes()


def test_statistics_as_json_and_as_csv_and_of_parts_apart(model, folder, tmp_path):
    out = tmp_path / "out"
    for part in (0, 1):
        options = ("-num_parts", 2, "-part_id", part, "--statistics", "-q", "-f", 0)
        assert predict("-i", folder, "-o", out, "-m", model, *options) == 0
    assert not (out / "statistics.csv").exists()
    cases = []
    for part in (0, 1):
        rows = list(csv.DictReader((out / f"statistics_part{part}.csv").read_text().splitlines()))
        assert list(rows[0]) == ["case", "organ", "label", "ml", "mean_hu"]
        as_json = json.loads((out / f"statistics_part{part}.json").read_text())
        assert [{key: str(value) for key, value in row.items()} for row in as_json] == rows
        cases.append({row["case"] for row in rows})
    assert cases[0] | cases[1] == {"one", "any name", "three"} and not cases[0] & cases[1]


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "PIR"])
@pytest.mark.parametrize("reader", ["SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient"])
def test_probabilities_are_what_nnunets_ensemble_reads(tmp_path, orientation, reader):
    from nnunetv2.ensembling.ensemble import merge_files
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    model = make_model(tmp_path, image_reader_writer=reader)
    source = write(tmp_path / "in" / "ct.nii.gz", 3, orientation)
    out = tmp_path / "out"
    assert predict("-i", source, "-o", out, "-m", model, "--save_probabilities", "-q") == 0
    manager = PlansManager(json.loads((out / "plans.json").read_text()))
    io = manager.image_reader_writer_class()
    array, properties = io.read_images([str(source)])
    stored = pickle.loads((out / "ct.pkl").read_bytes())
    assert set(stored) == set(properties) and stored["spacing"] == properties["spacing"]
    probabilities = np.load(out / "ct.npz")["probabilities"].astype(np.float32)
    assert probabilities.shape == (len(ORGANS) + 1, *array.shape[1:])
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=2e-3)
    labels = io.read_seg(str(out / "ct.nii.gz"))[0][0]
    # half precision makes ties
    second, first = np.sort(probabilities, 0)[-2:]
    sure = first - second > 2e-3
    assert sure.mean() > 0.9 and np.array_equal(probabilities.argmax(0)[sure], labels[sure])
    # merged with itself by the stock code, the same labels in the CT's own orientation
    label_manager = manager.get_label_manager(json.loads((out / "dataset.json").read_text()))
    merge_files([str(out / "ct.npz")] * 2, str(tmp_path / "merged"), ".nii.gz", io, label_manager, False)
    merged = sitk.ReadImage(str(tmp_path / "merged.nii.gz"))
    assert (sitk.GetArrayFromImage(merged) == labels_in(out / "ct.nii.gz")).mean() > 0.95
    np.testing.assert_allclose(merged.GetDirection(), ct(3, orientation).GetDirection(), atol=1e-5)


def test_the_logits_of_two_folds_are_averaged(model, folder, tmp_path):
    file, odds = folder / "one_0000.nii.gz", {}
    for name, folds in (("0", ("0",)), ("1", ("1",)), ("both", ("0", "1")), ("default", None)):
        options = (("-f", *folds) if folds else ()) + ("--save_probabilities", "-q")
        assert predict("-i", file, "-o", tmp_path / name, "-m", model, *options) == 0
        probabilities = np.load(tmp_path / name / "one.npz")["probabilities"].astype(np.float64)
        odds[name] = np.log(probabilities[1:] / probabilities[:1])
    assert np.abs(odds["0"] - odds["1"]).max() > 0.5
    np.testing.assert_allclose(odds["both"], (odds["0"] + odds["1"]) / 2, atol=0.02)
    np.testing.assert_array_equal(odds["both"], odds["default"])
    agreement = {
        name: json.loads((tmp_path / name / "one.json").read_text())["fold_agreement"] for name in ("0", "both")
    }
    assert agreement["0"] is None and set(agreement["both"]) <= set(ORGANS)
    # the least Dice of a fold alone with the result
    both, *single = (labels_in(tmp_path / name / "one.nii.gz") for name in ("both", "0", "1"))
    for name, dice in agreement["both"].items():
        mask = both == ORGANS.index(name) + 1
        found = [of == ORGANS.index(name) + 1 for of in single]
        least = min(2 * (mask & of).sum() / (mask.sum() + of.sum()) for of in found)
        assert dice == pytest.approx(least, abs=1e-3)


# --- options ---


def test_small_components_are_dropped_and_nothing_else(model, folder, tmp_path):
    file = folder / "three.mha"
    for name, options in (("all", ()), ("large", ("--remove-small", 100))):
        assert predict("-i", file, "-o", tmp_path / name, "-m", model, "-f", 0, "-q", *options) == 0
    everything, large = (labels_in(tmp_path / name / "three.mha") for name in ("all", "large"))
    dropped = 0
    for label in range(1, len(ORGANS) + 1):
        # corners connect; a voxel has 12 mm3
        numbered, count = components(everything == label, np.ones((3, 3, 3)))
        for component in range(1, count + 1):
            mask = numbered == component
            assert np.all(large[mask] == (label if mask.sum() * 12 >= 100 else 0))
            dropped += mask.sum() * 12 < 100
    assert dropped and not large[everything == 0].any()


def test_postprocessing_is_what_the_plans_say_and_can_be_left_out(tmp_path):
    model = make_model(tmp_path, CascadePlan(**SMALL, postprocessing={organ: ("keep_largest",) for organ in ORGANS}))
    source = write(tmp_path / "in" / "ct.nrrd", 5)
    counts, manifests = {}, {}
    for name, options in (("with", ()), ("without", ("--disable_postprocessing",))):
        assert predict("-i", source, "-o", tmp_path / name, "-m", model, "-q", *options) == 0
        found = labels_in(tmp_path / name / "ct.nrrd")
        counts[name] = [components(found == label, np.ones((3, 3, 3)))[1] for label in range(1, 4)]
        manifests[name] = json.loads((tmp_path / name / "ct.json").read_text())
    assert max(counts["with"]) == 1 < max(counts["without"])
    assert manifests["with"]["postprocessing"] and not manifests["without"]["postprocessing"]
    assert [manifests[name]["options"]["postprocessing"] for name in ("with", "without")] == [True, False]


def test_organs_that_were_not_asked_for_are_not_missed(tmp_path, monkeypatch):
    """In training no CT reached more than 10 mm beyond the organs: that is said of all of them together."""

    def halves(self, volume, report):
        z, y, x = volume.shape
        logits = torch.full((2, 2, 2), 5.0)
        lower, upper = Box((0, 0, 0), (z // 2, y, x)), Box((z // 2, 0, 0), (z, y, x))
        return [Layer.of_box(label, box, (box, logits)) for label, box in ((1, lower), (2, upper))]

    monkeypatch.setattr(CascadeNetwork, "predict_layers", halves)
    model = make_model(tmp_path, CascadePlan(**SMALL, organ_free_mm=(10.0, 10.0)))
    image = sitk.GetImageFromArray(np.random.default_rng(0).integers(-200, 200, (60, 12, 14)).astype(np.int16))
    image.SetSpacing((2.0, 2.0, 3.0))
    sitk.WriteImage(image, str(tmp_path / "ct.nrrd"))
    for name, options in (("all", ()), ("some", ("--organs", "heart"))):
        assert predict("-i", tmp_path / "ct.nrrd", "-o", tmp_path / name, "-m", model, "-q", *options) == 0
    assert sorted(np.unique(labels_in(tmp_path / "all" / "ct.nrrd"))) == [1, 2]
    assert sorted(np.unique(labels_in(tmp_path / "some" / "ct.nrrd"))) == [0, 1]
    for name in ("all", "some"):
        assert json.loads((tmp_path / name / "ct.json").read_text())["warnings"] == []


def test_a_side_is_told_by_the_partner_that_was_not_asked_for(tmp_path, monkeypatch, caplog):
    """Arrays of the model grow towards the right: its left kidney lies there."""

    def swapped(self, volume, report):
        z, y, x = volume.shape
        logits = torch.full((2, 2, 2), 5.0)
        low, high = Box((0, 0, 0), (z, y, x // 2)), Box((0, 0, x // 2), (z, y, x))
        return [Layer.of_box(label, box, (box, logits)) for label, box in ((3, low), (2, high))]

    monkeypatch.setattr(CascadeNetwork, "predict_layers", swapped)
    model, words = make_model(tmp_path), "kidney_left lies to the right of kidney_right"
    for organs in (None, ["kidney_left"], ["kidney_right"], ["heart", "kidney_left"]):
        predictor = OARPredictor(model, "cpu", organs=organs)
        result = predictor.run(as_image(ct()))
        assert any(words in text for text in result.warnings), organs
        assert set(result.organs) == set(organs or ORGANS) - {"heart"}
        caplog.clear()
        labels = sitk.GetArrayFromImage(predictor.predict(ct()))
        assert words in caplog.text and np.array_equal(labels, result.labels)
    assert not any(words in text for text in OARPredictor(model, "cpu", organs=["heart"]).run(as_image(ct())).warnings)


def test_quiet_leaves_warnings_and_errors(model, folder, tmp_path, capsys):
    assert predict("-i", folder, "-o", tmp_path / "out", "-m", model, "-q") == 0
    printed = capsys.readouterr()
    warnings = [
        f"{case}: {text}"
        for case in ("any name", "one", "three")
        for text in json.loads((tmp_path / "out" / f"{case}.json").read_text())["warnings"]
    ]
    assert not printed.out and printed.err.splitlines() == warnings and warnings
    assert predict("-i", folder, "-o", tmp_path / "loud", "-m", model, "--disable_progress_bar") == 0
    printed = capsys.readouterr()
    assert [line.split(": ")[0] for line in printed.out.splitlines()] == ["any name", "one", "three"]
    assert printed.err.splitlines() == warnings


def test_parts_together_are_all_cases_and_none_twice(model, tmp_path, capsys):
    cases = [f"c{index}" for index in range(7)]
    for case in cases:
        write(tmp_path / "in" / f"{case}.nrrd")
    done = []
    for part in (2, 0, 1):
        options = ("-num_parts", 3, "-part_id", part, "-f", 0, "--disable_progress_bar")
        assert predict("-i", tmp_path / "in", "-o", tmp_path / "out", "-m", model, *options) == 0
        done += [line.split(": ")[0] for line in capsys.readouterr().out.splitlines()]
    assert sorted(done) == cases
    # more parts than cases: nothing to do is no mistake
    options = ("-num_parts", 20, "-part_id", 19, "-q")
    assert predict("-i", tmp_path / "in", "-o", tmp_path / "none", "-m", model, *options) == 0
    assert names(tmp_path / "none") == ["dataset.json", "plans.json"]


def test_what_is_done_is_not_touched_when_a_prediction_goes_on(model, folder, tmp_path, capsys):
    out = tmp_path / "out"
    command = ("-i", folder, "-o", out, "-m", model, "-f", 0, "--preview", "--statistics", "--disable_progress_bar")
    assert predict(*command) == 0
    before = {name: (out / name).stat().st_mtime_ns for name in names(out)}
    first_labels, statistics = labels_in(out / "one.nii.gz"), (out / "statistics.csv").read_text()
    (out / "one.nii.gz").unlink()
    capsys.readouterr()
    assert predict(*command, "--continue_prediction") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "2 of 3 cases are there already and stay as they are" and len(printed) == 2
    assert printed[1].startswith("one: ")
    for name, time in before.items():
        if name.startswith(("any name", "three")):
            assert (out / name).stat().st_mtime_ns == time, name
    assert np.array_equal(labels_in(out / "one.nii.gz"), first_labels)
    # of all cases, whoever made them
    assert (out / "statistics.csv").read_text() == statistics
    # labels without the probabilities that are wanted now are not done
    assert predict(*command, "--continue_prediction", "--save_probabilities") == 0
    assert sorted(path.stem for path in out.glob("*.npz")) == ["any name", "one", "three"]


def test_statistics_are_not_those_of_an_earlier_run(model, folder, tmp_path):
    command = ("-i", folder, "-o", tmp_path / "out", "-m", model, "-f", 0, "--statistics", "-q")
    assert predict(*command) == 0
    (folder / "three.mha").write_bytes(b"damaged since")
    assert predict(*command) == 1
    rows = list(csv.DictReader((tmp_path / "out" / "statistics.csv").read_text().splitlines()))
    assert {row["case"] for row in rows} == {"one", "any name"}


def test_the_model_by_number_name_trainer_plans_and_configuration(model, folder, tmp_path, monkeypatch, capsys):
    results = tmp_path / "results"
    (results / "Dataset055_Toy").mkdir(parents=True)
    (results / "Dataset055_Toy" / model.name).symlink_to(model)
    (results / "Dataset055_Toy" / "Mine__MyPlans__lowres").symlink_to(model)
    monkeypatch.setenv("nnUNet_results", str(results))
    own = ("-tr", "Mine", "-p", "MyPlans", "-c", "lowres")
    for index, options in enumerate((("-d", 55), ("-d", "055"), ("-d", "Dataset055_Toy"), ("-d", 55, *own))):
        out = tmp_path / f"out{index}"
        assert predict("-i", folder / "three.mha", "-o", out, *options, "-f", 0, "-q") == 0
        assert labels_in(out / "three.mha").any()
    command = ("-i", folder, "-o", tmp_path / "out")
    capsys.readouterr()
    error = refusal(capsys, *command, "-d", 55, "-c", "2d")
    assert "OARCascadeTrainer__nnUNetOARPlans__2d" in error and "Mine__MyPlans__lowres" in error and "-c" in error
    assert str(results) in refusal(capsys, *command, "-d", "Toy")
    monkeypatch.delenv("nnUNet_results")
    assert "nnUNet_results" in refusal(capsys, *command, "-d", 55)
    assert not (tmp_path / "out").exists()


def test_info_says_what_a_model_is_and_refuses_what_is_none(tmp_path, capsys):
    plan = CascadePlan(
        **SMALL, organ_volume_ml={"heart": (300.0, 900.0)}, organ_extent_vox={"heart": ((20, 30, 30), (40, 60, 60))},
        organ_free_mm=(120.0, 80.0), postprocessing={"heart": ("keep_largest",)},
    )  # fmt: skip
    model = make_model(tmp_path, plan)
    assert main(["info", str(model)]) == 0
    text = capsys.readouterr().out
    for words in (
        "OARCascadeTrainer", "Dataset055_Toy", "nnUNetOARPlans", "0 (1 epochs)", "5 training cases", "3.00 x 2.00 x 2.00 mm", "SAR",
        "SimpleITKIOWithReorient", "coarse_shape [16, 16, 16]", "floor -5.0", "120 mm", "80 mm",
        "1  heart: 300 to 900 ml, 60 x 60 x 60 to 120 x 120 x 120 mm, keep_largest", "2  kidney_left: not recorded",
    ):  # fmt: skip
        assert words in text, words
    assert main(["info", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and "holds no plans.json" in printed.err and not printed.out


# --- what is refused ---


def test_the_results_never_replace_the_cts(model, tmp_path, capsys):
    source = write(tmp_path / "in" / "ct.nrrd")
    write(tmp_path / "in" / "with_channel_0000.nrrd")
    before = source.read_bytes()
    # the folder itself, in other words, and that of a single file
    for given, out in (
        (tmp_path / "in", tmp_path / "in"),
        (tmp_path / "in", tmp_path / "other" / ".." / "in"),
        (source, tmp_path / "in"),
    ):
        error = refusal(capsys, "-i", given, "-o", out, "-m", model, "-f", 0, "-q")
        assert "would replace" in error and "choose another one" in error
        assert source.read_bytes() == before and names(tmp_path / "in") == ["ct.nrrd", "with_channel_0000.nrrd"]


def test_an_output_that_cannot_be_a_folder(model, folder, tmp_path, capsys):
    (tmp_path / "file").write_text("keep")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert str(tmp_path / "file") in refusal(capsys, "-i", folder, "-o", out, "-m", model, "-f", 0, "-q")
    assert (tmp_path / "file").read_text() == "keep"


@pytest.mark.parametrize("part", [(2, 2), (2, -1), (0, 0)])
def test_a_part_that_there_is_not(model, folder, tmp_path, capsys, part):
    parts = ("-num_parts", part[0], "-part_id", part[1])
    error = refusal(capsys, "-i", folder, "-o", tmp_path / "out", "-m", model, *parts)
    assert "-part_id" in error or "-num_parts" in error
    assert not (tmp_path / "out").exists()


def test_channels_that_do_not_fit(model, tmp_path, capsys):
    two = make_model(tmp_path / "two", channels=2)
    command = ("-o", tmp_path / "out", "-q")
    write(tmp_path / "in" / "a_0000.nrrd")
    first = tmp_path / "in" / "a_0000.nrrd"
    assert "a has the channels _0000, the model needs 2" in refusal(capsys, "-i", tmp_path / "in", *command, "-m", two)
    assert "is one file and the model needs 2" in refusal(capsys, "-i", first, *command, "-m", two)
    write(tmp_path / "in" / "a_0001.nrrd", 0, "RAS")
    error = refusal(capsys, "-i", tmp_path / "in", *command, "-m", model)
    assert "a has the channels _0000, _0001, the model needs 1" in error
    # on another grid: this case's problem, not the command's
    assert predict("-i", tmp_path / "in", *command, "-m", two) == 1
    error = capsys.readouterr().err
    assert "a_0001.nrrd" in error and "must lie on one grid" in error and "1 of 1 cases" in error


def test_a_folder_of_nothing_and_a_folder_of_damaged_dicom(model, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    command = ("-i", tmp_path / "in", "-o", tmp_path / "out", "-m", model)
    error = refusal(capsys, *command)
    assert str(tmp_path / "in") in error and ".nii.gz" in error and "DICOM" in error
    (tmp_path / "in" / "1.DCM").write_bytes(b"DICM")
    assert predict(*command) == 1 and "1.DCM is damaged" in capsys.readouterr().err
    assert "is one slice" in refusal(capsys, "-i", tmp_path / "in" / "1.DCM", "-o", tmp_path / "out", "-m", model)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has the device that must be missing")
def test_a_device_that_is_not_here(model, folder, tmp_path, capsys):
    for device in ("cuda", "cuda:7", "mps", "toaster", ""):
        error = refusal(capsys, "-i", folder, "-o", tmp_path / "out", "-m", model, "-device", device)
        assert f"device {device!r} cannot be used here" in error and "choose cpu or auto" in error


@pytest.mark.parametrize(
    "options", [("-num_parts", "two"), ("--remove-small", "much"), ("-f",), ("--organs",), ("-x",)]
)
def test_wrong_options_are_status_2(model, folder, tmp_path, capsys, options):
    with pytest.raises(SystemExit) as stopped:
        predict("-i", folder, "-o", tmp_path / "out", "-m", model, *options)
    assert stopped.value.code == 2 and options[0] in capsys.readouterr().err
