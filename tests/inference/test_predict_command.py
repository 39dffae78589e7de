"""The command in process, on a model without training: what it reads, writes, leaves alone and refuses."""

import csv
import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from toy_model import ORGANS, make_model

from nnunet_oar.cli import main
from nnunet_oar.inference import batch
from nnunet_oar.inference.model import load_model


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
    ):  # fmt: skip
        assert predict(*options, "--list-organs") == 1
        assert words in capsys.readouterr().err


def test_wrong_usage_is_answered_by_one_sentence(model, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(batch, "CONNECT_SECONDS", 1)
    out, empty = tmp_path / "out", tmp_path / "empty"
    empty.mkdir()
    (empty / "slice.dcm").write_bytes(b"")
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
        (("-i", folder, "-o", folder, "-m", model), "would replace the CTs"),
        (("-i", tmp_path / "nowhere", "-o", out, "-m", model), "nowhere does not exist"),
        (("-i", empty, "-o", out, "-m", model), "holds no image"),
        (("-i", empty, "-o", out, "-m", model), "DICOM is not read yet"),
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
