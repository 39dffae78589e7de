"""OARAttentionTrainer on partly annotated data through nnU-Net's commands."""

import json
import math
import re

import numpy as np
import SimpleITK as sitk

from nnunet_oar.annotations import Annotations
from nnunet_oar.evaluation.dice import score_folder
from nnunet_oar.plan import SECTION, AttentionPlan


def test_the_plans_know_the_regions_and_the_phases(attention):
    plans = json.loads((attention.preprocessed / "nnUNetOARPlans.json").read_text())
    plan = AttentionPlan.from_section(plans["configurations"]["3d_fullres"][SECTION])
    assert plan.regions == ("head", "upper chest", "chest", "upper abdomen", "abdomen") and not plan.region_organs
    assert plan.epochs == 1 and plan.phase(0).dice == 1


def test_training_scores_organs_on_the_cases_that_annotate_them(attention):
    log = next((attention.model / "fold_0").glob("training_log_*.txt")).read_text()
    assert re.search(r"Samples that the pseudo dice is of: brainstem \d+", log)
    assert re.search(r"Body region: [01]\.\d+ of \d+ slices right", log)
    assert re.search(r"Organs are scored on the cases that annotate them: brainstem 1,.* spinal_cord 2,", log)
    assert len(re.findall("Mean Validation Dice", log)) == 1
    summary = json.loads((attention.model / "fold_0" / "validation" / "summary.json").read_text())
    annotations = Annotations.from_dataset_json(json.loads((attention.raw / "dataset.json").read_text()))
    scored = []
    for case in summary["metric_per_case"]:
        name = case["prediction_file"].split("/")[-1].split(".")[0]
        for label, annotated in enumerate(annotations.annotated(name), start=1):
            if not annotated:
                assert math.isnan(case["metrics"][str(label)]["Dice"])
            else:
                scored.append(case["metrics"][str(label)]["Dice"])
    assert len(summary["metric_per_case"]) == 3 and np.isfinite(scored).any()
    assert f"{summary['foreground_mean']['Dice']}" in log


def test_no_case_name_leaves_the_preprocessed_folder(attention):
    """Neither names nor patterns of `annotations` and `body_regions`."""
    fold = attention.model / "fold_0"
    shared = [
        attention.model / "plans.json",
        attention.model / "dataset.json",
        fold / "debug.json",
        fold / "checkpoint_final.pth",
    ]
    content = b"".join(path.read_bytes() for path in shared)
    for name in ("headneck_0", "thorax_0", "abdomen_0", "headneck_*"):
        assert name.encode() not in content, name


def test_predictions_lie_on_the_images_grid(attention):
    folder = attention.folder / "predictions"
    attention.predict(attention.raw / "imagesTs", folder)
    labels = json.loads((attention.raw / "dataset.json").read_text())["labels"]
    scores = score_folder(folder, attention.raw / "labelsTs", {k: v for k, v in labels.items() if v}, ".nii.gz")
    assert len(scores) == 3
    # lungs are dark: they are learnt first, also in the head and neck CT whose source leaves them out
    lungs = [of_case[organ] for of_case in scores.values() for organ in ("lung_left", "lung_right")]
    assert np.mean([score for score in lungs if score is not None]) > 0.2, scores
    for path in (attention.raw / "labelsTs").iterdir():
        image = sitk.ReadImage(str(attention.raw / "imagesTs" / path.name.replace(".nii.gz", "_0000.nii.gz")))
        found = sitk.ReadImage(str(folder / path.name))
        assert found.GetSize() == image.GetSize() and found.GetOrigin() == image.GetOrigin()


def test_annotations_are_shown_and_a_change_stops_training_until_it_is_copied(attention):
    table = attention.run("nnunet_oar annotations -d 56 --disable_progress_bar")
    assert re.search(r"headneck +brainstem +2 +yes +2 +\d+", table) and re.search(r"abdomen +heart +2 +no +0 +0", table)
    assert "WARNING" not in table
    raw = attention.raw / "dataset.json"
    original = raw.read_text()
    changed = json.loads(original)
    changed["annotations"]["thorax"]["labels"].remove("trachea")
    try:
        raw.write_text(json.dumps(changed))
        output = attention.run(
            "nnUNetv2_train 56 3d_fullres 0 -tr OARAttentionTrainer -p nnUNetOARPlans -device cpu --val", fails=True
        )
        assert "annotations differ" in output and "nnunet_oar annotations -d 56 --update" in output
        warned = attention.run("nnunet_oar annotations -d 56 --update --disable_progress_bar")
        assert (
            "source thorax does not declare trachea" in warned
            and "updated in the preprocessed copy: annotations" in warned
        )
        assert (
            json.loads((attention.preprocessed / "dataset.json").read_text())["annotations"] == changed["annotations"]
        )
    finally:
        raw.write_text(original)
        attention.run("nnunet_oar annotations -d 56 --update --disable_progress_bar")
