"""prepare, nnUNetv2_train and nnUNetv2_predict, as a user runs them."""

import json
import re

import SimpleITK as sitk
import torch

from nnunet_oar.evaluation.dice import score_folder
from nnunet_oar.plan import SECTION, CascadePlan

LABELS = {"esophagus": 1, "heart": 2, "trachea": 3, "aorta": 4}


def test_prepare_writes_valid_plans_and_keeps_hu(prepared):
    plans = json.loads((prepared.preprocessed / "nnUNetOARPlans.json").read_text())
    configuration = plans["configurations"]["3d_fullres"]
    plan = CascadePlan.from_section(configuration[SECTION])
    assert plan.recipe == "fitted" and plan.organs == tuple(LABELS) and plan.epochs == 1
    assert configuration["normalization_schemes"] == ["NoNormalization"]
    assert plans["image_reader_writer"] == "SimpleITKIOWithReorient" and plans["transpose_forward"] == [0, 1, 2]
    assert (prepared.preprocessed / "nnUNetOARPlans_3d_fullres").is_dir()
    assert not (prepared.preprocessed / "nnUNetPlans.json").exists()


def test_training_logs_the_localiser_and_ends_with_nnunets_own_validation(trained):
    log = next((trained.model / "fold_0").glob("training_log_*.txt")).read_text()
    assert re.search(r"Localiser: box recall [01]\.\d+ of \d+ organs, box volume relative to the needed one: \S+", log)
    assert "Pseudo dice" in log and "Mean Validation Dice" in log
    summary = json.loads((trained.model / "fold_0" / "validation" / "summary.json").read_text())
    assert summary["foreground_mean"]["Dice"] > 0.1


def test_the_model_folder_is_complete_without_preprocessed_data(trained):
    plans = json.loads((trained.model / "plans.json").read_text())
    prepared = json.loads((trained.preprocessed / "nnUNetOARPlans.json").read_text())
    assert plans["configurations"]["3d_fullres"][SECTION] == prepared["configurations"]["3d_fullres"][SECTION]
    checkpoint = torch.load(trained.model / "fold_0" / "checkpoint_final.pth", weights_only=False, map_location="cpu")
    assert checkpoint["trainer_name"] == "OARCascadeTrainer"
    assert checkpoint["inference_allowed_mirroring_axes"] is None
    assert not list((trained.model / "fold_0").glob("*.tmp"))


def test_no_case_name_leaves_the_preprocessed_folder(trained):
    """Case names may identify patients; validation/ and the raw data name them, what is shared must not."""
    assert "training" in json.loads((trained.raw / "dataset.json").read_text())
    names = [path.name.split(".")[0] for path in (trained.raw / "labelsTr").iterdir()]
    shared = [trained.model / "plans.json", trained.model / "dataset.json", trained.model / "fold_0" / "debug.json"]
    content = b"".join(path.read_bytes() for path in shared)
    content += (trained.model / "fold_0" / "checkpoint_final.pth").read_bytes()
    assert names and not any(name.encode() in content for name in names)


def test_predictions_lie_on_the_images_grid_and_find_the_large_organs(trained, predicted):
    scores = score_folder(predicted, trained.raw / "labelsTs", LABELS, ".nii.gz")
    assert len(scores) == 2
    for organs in scores.values():
        assert organs["heart"] > 0.5, scores
    for path in (trained.raw / "labelsTs").iterdir():
        image = sitk.ReadImage(str(trained.raw / "imagesTs" / path.name.replace(".nii.gz", "_0000.nii.gz")))
        found = sitk.ReadImage(str(predicted / path.name))
        assert found.GetSize() == image.GetSize() and found.GetDirection() == image.GetDirection()


def test_one_canvas_one_tile(trained, predicted):
    log = (trained.folder / "predict.log").read_text()
    assert "tiles" not in log
    bars = [line for line in re.split(r"[\r\n]", log) if "%|" in line and "Collecting" not in line]
    # a bar may be drawn more than once
    assert sum("| 1/1 " in bar for bar in bars) >= 2 and all("/1 " in bar for bar in bars), bars
