"""The rest of the life cycle through the stock nnU-Net commands, each on the small phantom data set."""

from __future__ import annotations

import hashlib
import itertools
import json
import pickle
import re
import shutil
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import SimpleITK as sitk
import torch

from nnunet_oar.datasets.phantom import make_phantom
from nnunet_oar.evaluation.dice import dice_per_organ
from nnunet_oar.plan import SECTION, CascadePlan
from nnunet_oar.roi import Box

pytestmark = pytest.mark.slow

LABELS = {"esophagus": 1, "heart": 2, "trachea": 3, "aorta": 4}


def labels_of(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def same_labels(a: Path, b: Path) -> bool:
    names = sorted(path.name for path in a.glob("*.nii.gz"))
    assert names and names == sorted(path.name for path in b.glob("*.nii.gz"))
    return all(np.array_equal(labels_of(a / name), labels_of(b / name)) for name in names)


def clone(workspace, tmp_path, *, results: bool = False):
    """The same raw and preprocessed data with results of its own."""
    folder = tmp_path / "results"
    if results:
        shutil.copytree(workspace.folder / "nnUNet_results", folder)
    else:
        folder.mkdir()
    return workspace.with_variables(nnUNet_results=folder)


def weights(folder: Path, name: str = "checkpoint_final.pth") -> dict[str, torch.Tensor]:
    return torch.load(folder / name, weights_only=False, map_location="cpu")["network_weights"]


def model_of(workspace) -> Path:
    return Path(workspace.environment["nnUNet_results"]) / workspace.model.relative_to(
        workspace.folder / "nnUNet_results"
    )


# --- prediction ---


def test_from_model_folder_with_probabilities(trained, predicted, tmp_path):
    trained.run(
        f"nnUNetv2_predict_from_modelfolder -i {trained.raw / 'imagesTs'} -o {tmp_path} -m {trained.model} -f 0 -device cpu "
        f"-npp 1 -nps 1 --save_probabilities"
    )
    assert same_labels(tmp_path, predicted)
    assert len(list(tmp_path.glob("*.npz"))) == 2
    for path in tmp_path.glob("*.npz"):
        probabilities = np.load(path)["probabilities"]
        assert probabilities.shape[0] == 5
        np.testing.assert_allclose(probabilities.astype(np.float32).sum(0), 1, atol=2e-3)


def test_python_api(trained, predicted, tmp_path, monkeypatch):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    for name in ("nnUNet_extTrainer", "nnUNet_def_n_proc"):
        monkeypatch.setenv(name, trained.environment[name])
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    monkeypatch.delenv("nnUNet_results", raising=False)
    predictor = nnUNetPredictor(device=torch.device("cpu"))
    predictor.initialize_from_trained_model_folder(str(trained.model), use_folds=(0,))
    predictor.predict_from_files_sequential(str(trained.raw / "imagesTs"), str(tmp_path))
    # not to the last voxel: the number of threads differs, and with it the order of sums
    for path in predicted.glob("*.nii.gz"):
        assert np.mean(labels_of(path) == labels_of(tmp_path / path.name)) > 0.9999


def predictor_of(trained, monkeypatch):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    monkeypatch.setenv("nnUNet_extTrainer", trained.environment["nnUNet_extTrainer"])
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(trained.model), use_folds=(0,))
    case = sorted((trained.raw / "imagesTs").iterdir())[0]
    reader = predictor.plans_manager.image_reader_writer_class()
    data, properties = reader.read_images([str(case)])
    preprocessor = predictor.configuration_manager.preprocessor_class(verbose=False)
    data, _, _ = preprocessor.run_case_npy(
        data, None, properties, predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json
    )
    return predictor, torch.from_numpy(data)


def test_one_fold_of_five_whose_box_is_short_does_not_cut_an_organ(trained, monkeypatch):
    predictor, data = predictor_of(trained, monkeypatch)
    # the guard would mend it: the cut must reach the logits
    plan = predictor.network.plan
    predictor.network.plan = plan.from_section(plan.to_section() | {"grow_attempts": 0})
    whole = predictor.predict_logits_from_preprocessed_data(data).argmax(0) == LABELS["heart"]
    heart = Box.from_mask(whole)
    middle = round(heart.centre[0])
    fine_box, calls = CascadePlan.fine_box, itertools.count()

    def short_once(self, *args):
        box = fine_box(self, *args)
        return Box((middle, *box.start[1:]), box.stop) if next(calls) == 0 else box

    monkeypatch.setattr(CascadePlan, "fine_box", short_once)
    cut = predictor.predict_logits_from_preprocessed_data(data).argmax(0) == LABELS["heart"]
    assert whole[:middle].any() and not cut[:middle].any()

    calls = itertools.count()
    predictor.list_of_parameters = predictor.list_of_parameters * 5
    ensemble = predictor.predict_logits_from_preprocessed_data(data).argmax(0) == LABELS["heart"]
    # not cut flat: only voxels of which the other four are hardly sure are lost
    assert Box.from_mask(ensemble).start[0] <= heart.start[0] + 1
    assert (ensemble & whole)[:middle].sum() > 0.75 * whole[:middle].sum()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_larger_canvas_changes_nothing(trained, monkeypatch, axis):
    predictor, data = predictor_of(trained, monkeypatch)
    plain = predictor.predict_logits_from_preprocessed_data(data).argmax(0)
    size = list(predictor.configuration_manager.configuration["patch_size"])
    size[axis] += 40
    monkeypatch.setitem(predictor.configuration_manager.configuration, "patch_size", size)
    larger = predictor.predict_logits_from_preprocessed_data(data).argmax(0)
    assert (plain > 0).any()
    assert (plain == larger).float().mean() > 0.999


ORIENTATIONS = ["LPS", "RAS", "PIR", "SLA", "ASL", "IRP", "LIP", "RSA"]


def test_eight_orientations_and_an_oblique_one(trained, tmp_path):
    """One phantom stored in many ways: the same organs at the same place in the patient, each in its file's own orientation."""
    images, output = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    case = sitk.ReadImage(str(sorted((trained.raw / "imagesTs").iterdir())[0]))
    for code in ORIENTATIONS:
        sitk.WriteImage(sitk.DICOMOrient(case, code), str(images / f"case_{code}_0000.nii.gz"))
    oblique = sitk.Image(case)
    angle = np.deg2rad(7)
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    oblique.SetDirection(rotation.ravel())
    sitk.WriteImage(oblique, str(images / "case_oblique_0000.nii.gz"))
    trained.predict(images, output)
    reference = sitk.ReadImage(str(output / "case_LPS.nii.gz"))
    assert (sitk.GetArrayFromImage(reference) == LABELS["heart"]).sum() > 100
    for code in ORIENTATIONS:
        found = sitk.ReadImage(str(output / f"case_{code}.nii.gz"))
        assert sitk.DICOMOrientImageFilter_GetOrientationFromDirectionCosines(found.GetDirection()) == code
        back = sitk.DICOMOrient(found, "LPS")
        np.testing.assert_allclose(back.GetOrigin(), reference.GetOrigin(), atol=1e-3)
        a, b = sitk.GetArrayFromImage(back), sitk.GetArrayFromImage(reference)
        assert np.mean(a == b) > 0.9995, code
    turned = sitk.ReadImage(str(output / "case_oblique.nii.gz"))
    np.testing.assert_allclose(turned.GetDirection(), rotation.ravel(), atol=1e-5)
    assert np.array_equal(sitk.GetArrayFromImage(turned), sitk.GetArrayFromImage(reference))


def test_bad_images_are_reported_after_their_name_and_do_not_stop_the_others(trained, predicted, tmp_path):
    images, output = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    good = sorted((trained.raw / "imagesTs").iterdir())[0]
    image = sitk.ReadImage(str(good))
    array = sitk.GetArrayFromImage(image).astype(np.float32)
    for name, values in (
        ("air", np.full_like(array, -1000)),
        ("oneslice", array[20:21]),
        ("tall", np.concatenate([array] * 3)),
        ("tiny", array[18:22, 20:25, 24:27]),
        ("zero", np.zeros_like(array)),
    ):
        bad = sitk.GetImageFromArray(values)
        bad.SetSpacing(image.GetSpacing())
        sitk.WriteImage(bad, str(images / f"{name}_0000.nii.gz"))
    shutil.copy(good, images / "whole_0000.nii.gz")
    log = trained.predict(images, output)
    assert np.array_equal(labels_of(output / "whole.nii.gz"), labels_of(predicted / good.name.replace("_0000", "")))
    said = dict(re.findall(r"Predicting (\w+):\n(.*?)(?=\nPredicting|\Z)", log, flags=re.DOTALL))
    assert len(said) == 6  # NaN does not get this far: ITK reads it as 0 from NIfTI
    assert "0 everywhere" in said["zero"] and not labels_of(output / "zero.nii.gz").any()
    assert "tiles" in said["tall"] and "tiles" not in said["whole"]
    for name in ("air", "oneslice", "tiny"):
        assert (output / f"{name}.nii.gz").exists()


# --- training ---


def train_and_kill(workspace, fold, epoch: int) -> None:
    """Start training and SIGKILL it once checkpoint_latest is in `epoch`."""
    process = workspace.start(
        f"nnUNetv2_train 55 3d_fullres {fold} -tr OARCascadeTrainer -p nnUNetOARPlans -device cpu"
    )
    checkpoint = model_of(workspace) / f"fold_{fold}" / "checkpoint_latest.pth"
    try:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and process.poll() is None:
            if checkpoint.exists():
                current = torch.load(checkpoint, weights_only=False, map_location="cpu")["current_epoch"]
                if current >= epoch:
                    return
            time.sleep(0.2)
        raise AssertionError(f"training ended before epoch {epoch}:\n{process.communicate()[0][-3000:]}")
    finally:
        # the workers, too: they hold the pipe open
        for worker in psutil.Process(process.pid).children(recursive=True):
            worker.kill()
        process.kill()
        process.communicate()


def edited_plans(workspace, tmp_path, **section) -> object:
    """A workspace whose preprocessed folder is a copy with another section."""
    folder = tmp_path / "preprocessed"
    shutil.copytree(workspace.folder / "nnUNet_preprocessed", folder)
    path = folder / workspace.preprocessed.name / "nnUNetOARPlans.json"
    plans = json.loads(path.read_text())
    plans["configurations"]["3d_fullres"][SECTION] |= section
    path.write_text(json.dumps(plans))
    return clone(workspace, tmp_path).with_variables(nnUNet_preprocessed=folder)


def test_killed_and_continued_is_as_never_interrupted(prepared, tmp_path):
    settings = dict(epochs=3, iterations_per_epoch=8, dropout=0.3)
    whole = edited_plans(prepared, tmp_path / "whole", **settings)
    whole.train(fold="all")
    broken = edited_plans(prepared, tmp_path / "broken", **settings)
    train_and_kill(broken, "all", epoch=1)
    log = broken.train(fold="all", options="--c")
    assert "Epoch 2" in log and "Epoch 0" not in log
    a, b = weights(model_of(whole) / "fold_all"), weights(model_of(broken) / "fold_all")
    difference = max((a[key] - b[key]).abs().max().item() for key in a)
    print(f"largest difference of any weight: {difference:.2e}")
    # the same sums in another order would differ by about 1e-6 a step; a lost epoch by about the learning rate, 1e-3
    assert difference < 1e-5


def test_val_alone_repeats_the_validation(trained, tmp_path):
    workspace = clone(trained, tmp_path, results=True)
    summary = model_of(workspace) / "fold_0" / "validation" / "summary.json"
    before = json.loads(summary.read_text())["foreground_mean"]
    summary.unlink()
    log = workspace.train(options="--val")
    assert "Epoch 0" not in log
    assert json.loads(summary.read_text())["foreground_mean"]["Dice"] == pytest.approx(before["Dice"], abs=1e-3)


def test_val_uses_the_section_beside_the_checkpoint_and_reports_a_difference(trained, tmp_path):
    workspace = edited_plans(trained, tmp_path, fine_shape=[16, 16, 24])
    shutil.copytree(trained.model, model_of(workspace))
    log = workspace.train(options="--val")
    assert "The plans have changed since this training began" in log
    scores = [
        json.loads((model / "fold_0" / "validation" / "summary.json").read_text())["foreground_mean"]["Dice"]
        for model in (trained.model, model_of(workspace))
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)


def test_a_fold_with_another_section_than_its_siblings_is_refused(trained, tmp_path):
    workspace = edited_plans(trained, tmp_path, component_fraction=0.5)
    shutil.copytree(trained.model, model_of(workspace))
    output = workspace.run(
        "nnUNetv2_train 55 3d_fullres 1 -tr OARCascadeTrainer -p nnUNetOARPlans -device cpu", fails=True
    )
    assert "with which fold_0 was trained, holds another section" in output
    assert not list((model_of(workspace) / "fold_1").glob("checkpoint*"))


def test_pretrained_weights_onto_other_organs(trained, tmp_path):
    """Fine-tuning as the README describes it: another data set with other organs starts from the trained weights."""
    raw, preprocessed = tmp_path / "raw", tmp_path / "preprocessed"
    target = raw / "Dataset056_Other"
    shutil.copytree(trained.raw, target)
    preprocessed.mkdir()
    for path in (target / "labelsTr").iterdir():
        image = sitk.ReadImage(str(path))
        labels = sitk.GetArrayFromImage(image)
        other = sitk.GetImageFromArray((labels == LABELS["heart"]).astype(np.uint8))
        other.CopyInformation(image)
        sitk.WriteImage(other, str(path))
    description = json.loads((target / "dataset.json").read_text()) | {"labels": {"background": 0, "heart": 1}}
    (target / "dataset.json").write_text(json.dumps(description))
    workspace = clone(trained, tmp_path).with_variables(nnUNet_raw=raw, nnUNet_preprocessed=preprocessed)
    workspace.run(
        "nnunet_oar prepare -d 56 -gpu_memory_target 0.06 --epochs 1 --iterations 1 --disable_progress_bar -np 2"
    )
    log = workspace.train(
        dataset=56, options=f"-pretrained_weights {trained.model / 'fold_0' / 'checkpoint_final.pth'}"
    )
    assert "Loading pretrained weights" in log
    folder = model_of(workspace).parent.with_name("Dataset056_Other") / model_of(workspace).name / "fold_0"
    before, after = weights(trained.model / "fold_0"), weights(folder)
    assert set(before) == set(after)
    shared = [key for key in before if ".seg_layers." not in key]
    # one update of 1e-3 at most from where fold 0 ended
    assert max((before[key] - after[key]).abs().max().item() for key in shared) < 5e-3


def test_two_folds_best_configuration_postprocessing_and_export(trained, predicted, tmp_path):
    workspace = clone(trained, tmp_path, results=True)
    workspace.train(fold=1)
    ensemble = tmp_path / "ensemble"
    workspace.predict(workspace.raw / "imagesTs", ensemble, "-f 0 1")
    truth = {path.name: labels_of(path) for path in (workspace.raw / "labelsTs").iterdir()}
    for name, labels in truth.items():
        assert dice_per_organ(labels_of(ensemble / name), labels, LABELS)["heart"] > 0.5

    workspace.run(
        "nnUNetv2_find_best_configuration 55 -p nnUNetOARPlans -c 3d_fullres -tr OARCascadeTrainer -f 0 1 --disable_ensembling"
        " -np 2"
    )
    information = model_of(workspace).parent / "inference_information.json"
    assert "OARCascadeTrainer" in information.read_text()

    log = workspace.run(f"nnunet_oar postprocessing -i {ensemble} -o {tmp_path / 'pp.pkl'}")
    assert "nnUNetv2_apply_postprocessing" in log
    assert pickle.loads((tmp_path / "pp.pkl").read_bytes())
    workspace.run(
        f"nnUNetv2_apply_postprocessing -i {ensemble} -o {tmp_path / 'pp'} -pp_pkl_file {tmp_path / 'pp.pkl'} -np 1"
    )
    from nnunet_oar.inference.postprocessing import drop_small_components

    for name in truth:
        expected = drop_small_components(labels_of(ensemble / name), [1, 2, 3, 4])
        assert np.array_equal(labels_of(tmp_path / "pp" / name), expected)

    workspace.run(
        f"nnUNetv2_export_model_to_zip -d 55 -o {tmp_path / 'model.zip'} -c 3d_fullres -tr OARCascadeTrainer -p nnUNetOARPlans -f 0"
    )
    elsewhere = workspace.with_variables(
        nnUNet_results=tmp_path / "elsewhere", nnUNet_preprocessed=tmp_path / "nothing"
    )
    (tmp_path / "elsewhere").mkdir()
    elsewhere.run(f"nnUNetv2_install_pretrained_model_from_zip {tmp_path / 'model.zip'}")
    elsewhere.predict(workspace.raw / "imagesTs", tmp_path / "again")
    assert same_labels(tmp_path / "again", predicted)


# --- stock plans, other axes ---


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*")) if path.is_file()
    }  # fmt: skip


@pytest.fixture(scope="module")
def stock(raw_workspace, tmp_path_factory):
    """The phantoms as stock nnU-Net plans them, the first one stored sagittally; results of their own."""
    folder = tmp_path_factory.mktemp("stock")
    for name in ("raw", "preprocessed", "results"):
        (folder / name).mkdir()
    target = folder / "raw" / raw_workspace.raw.name
    shutil.copytree(raw_workspace.raw, target)
    for kind in ("imagesTr", "labelsTr"):
        path = sorted((target / kind).iterdir())[0]
        sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(path)), "PSL"), str(path))
    workspace = raw_workspace.with_variables(
        nnUNet_raw=folder / "raw", nnUNet_preprocessed=folder / "preprocessed", nnUNet_results=folder / "results"
    )
    workspace.run("nnUNetv2_plan_and_preprocess -d 55 -c 3d_fullres -np 2 --verify_dataset_integrity")
    return workspace


def test_stock_plans_transposed_and_one_case_sagittal(stock, raw_workspace):
    """The trainer derives its section; nnU-Net's transposition [1, 0, 2] and a case whose axes differ change nothing in how."""
    preprocessed = Path(stock.environment["nnUNet_preprocessed"]) / stock.raw.name
    path = preprocessed / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    plans["transpose_forward"], plans["transpose_backward"] = [1, 0, 2], [1, 0, 2]
    path.write_text(json.dumps(plans))
    shutil.rmtree(preprocessed / "nnUNetPlans_3d_fullres")
    stock.run("nnUNetv2_preprocess -d 55 -c 3d_fullres -np 2")
    # the derived section asks for 250 epochs: a sub-class in the user's own trainer folder is how nnU-Net users change that
    own = preprocessed.parent / "own_trainers"
    own.mkdir()
    short = (
        "class {name}_short({name}):\n"
        "    @classmethod\n"
        "    def fit_plan(cls, facts, recipe, budget):\n"
        "        return super().fit_plan(facts, recipe, Budget(0.06, 1, {iterations}))\n"
    )
    others = ("OARInstanceCascadeTrainer", "OARHeatmapCascadeTrainer", "OARSharedEncoderTrainer", "OARAttentionTrainer")
    (own / "short.py").write_text(
        "from nnunet_oar.fit import Budget\nfrom nnunet_oar.plugin.oar_trainers import *\n"
        + short.format(name="OARCascadeTrainer", iterations=120)
        + "".join(short.format(name=name, iterations=5) for name in others)
    )
    workspace = stock.with_variables(nnUNet_extTrainer=f"{stock.environment['nnUNet_extTrainer']}:{own}")
    log = workspace.run("nnUNetv2_train 55 3d_fullres 0 -tr OARCascadeTrainer_short -device cpu")
    assert "The plans hold no section 'oar' for OARCascadeTrainer: fitted to the 5 preprocessed cases" in log
    assert "left and right are never mirrored" in log  # one case is sagittal: the axes differ
    output = preprocessed.parent / "predictions"
    workspace.run(
        f"nnUNetv2_predict -d 55 -i {raw_workspace.raw / 'imagesTs'} -o {output} -tr OARCascadeTrainer_short -c 3d_fullres -f 0 "
        f"-device cpu -npp 1 -nps 1"
    )
    scores = [
        dice_per_organ(labels_of(output / path.name), labels_of(path), LABELS)["heart"]
        for path in (raw_workspace.raw / "labelsTs").iterdir()
    ]
    assert np.mean(scores) > 0.4, scores
    for trainer in others:
        log = workspace.run(f"nnUNetv2_train 55 3d_fullres 0 -tr {trainer}_short -device cpu")
        assert f"The plans hold no section 'oar' for {trainer}: fitted to the 5 preprocessed cases" in log
        assert "Mean Validation Dice" in log


def test_prepare_leaves_every_byte_of_stock_plans_and_data_alone(stock):
    folder = Path(stock.environment["nnUNet_preprocessed"]) / stock.raw.name
    before = hashes(folder)
    assert any(name.startswith("nnUNetPlans_3d_fullres/") for name in before)
    stock.run(
        "nnunet_oar prepare -d 55 -gpu_memory_target 0.06 --epochs 1 --iterations 120 --disable_progress_bar -np 2"
    )
    after = hashes(folder)
    assert {name: after.get(name) for name in before} == before
    new = {name.split("/")[0] for name in set(after) - set(before)}
    assert new == {"nnUNetOARPlans.json", "nnUNetOARPlans_3d_fullres"}


def test_our_plans_read_the_sagittal_case_canonically(stock):
    """After `prepare`, the sagittal case has its slices on the first axis like all others."""
    folder = Path(stock.environment["nnUNet_preprocessed"]) / stock.raw.name / "nnUNetOARPlans_3d_fullres"
    import blosc2

    shapes = [
        blosc2.open(str(path)).shape[1:] for path in sorted(folder.glob("*.b2nd")) if not path.stem.endswith("_seg")
    ]
    expected = [make_phantom("thorax", 0, case, (8.0, 8.0, 8.0)).labels.shape for case in range(len(shapes))]
    # a wall of air may have been cropped, so no axis may be longer than drawn, and few voxels shorter
    for found, drawn in zip(shapes, expected, strict=True):
        assert all(0 <= d - f <= 4 for f, d in zip(found, drawn, strict=True)), (found, drawn)
