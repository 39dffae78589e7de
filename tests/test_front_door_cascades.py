"""The instance cascade, the heat-map cascade and the shared encoder through nnU-Net's commands."""

import json
import re

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_oar.annotations import organ_labels
from nnunet_oar.evaluation.dice import score_folder
from nnunet_oar.plan import SECTION, HeatmapPlan, InstancePlan, SharedEncoderPlan

TRAINED = pytest.mark.parametrize("kind", ["instances", "heatmaps", "shared"])


@pytest.fixture
def workspace(request, kind):
    return request.getfixturevalue(kind)


def training_log(workspace) -> str:
    return next((workspace.model / "fold_0").glob("training_log_*.txt")).read_text()


def buffers(workspace, fold=0) -> dict[str, torch.Tensor]:
    checkpoint = workspace.model / f"fold_{fold}" / "checkpoint_final.pth"
    return torch.load(checkpoint, weights_only=False, map_location="cpu")["network_weights"]


def test_the_plan_of_the_instances(instances):
    section = json.loads((instances.model / "plans.json").read_text())["configurations"]["3d_fullres"][SECTION]
    plan = InstancePlan.from_section(section)
    assert plan.instance_labels == (1, 2) and plan.fine_weights == (0.01, 0.14, 0.85) and plan.draw_by == "organ"
    # the organs' own, not the paper's
    assert -95 < plan.hu_window[0] < plan.hu_window[1] and plan.hu_window[1] > 155
    assert plan.spacing_mm == (8.0, 8.0, 8.0) and plan.slice_axis == 0 and plan.flip_axes == (2,)


def test_planning_says_which_pairs_have_an_order(heatmaps):
    said = heatmaps.run(
        f"nnunet_oar plan -d {heatmaps.dataset} -tr {heatmaps.trainer} -overwrite_plans_name said --disable_progress_bar"
    )
    # x grows towards the right
    assert "Pairs that are always found in this order along the axis: kidney_left / kidney_right" in said


def test_planning_says_what_an_instance_is(instances):
    said = instances.run(
        f"nnunet_oar plan -d {instances.dataset} -tr {instances.trainer} -overwrite_plans_name said --disable_progress_bar"
    )
    assert "One instance: kidney + tumour, at most 2 of them in a CT" in said


def test_the_plan_of_the_heat_maps(heatmaps):
    section = json.loads((heatmaps.model / "plans.json").read_text())["configurations"]["3d_fullres"][SECTION]
    plan = HeatmapPlan.from_section(section)
    assert plan.swap_on_flip == ((4, 5),) and plan.measured_margin and plan.batch_size == 1
    assert set(plan.organ_step_vox) == {"liver", "spleen", "stomach", "kidney_left", "kidney_right"}


def test_the_plan_of_the_shared_encoder(shared):
    section = json.loads((shared.model / "plans.json").read_text())["configurations"]["3d_fullres"][SECTION]
    plan = SharedEncoderPlan.from_section(section)
    assert plan.spacing_mm == plan.grid_spacing_mm == (8.0, 8.0, 8.0) and plan.slice_axis == 0
    assert [phase.start for phase in plan.phases] == [0, 0, 1] and plan.phase(0).fine


@TRAINED
def test_training_says_what_the_localiser_does(workspace, kind):
    log = training_log(workspace)
    if kind == "instances":
        assert re.search(r"Localiser: box recall [01]\.\d+ of \d+ instances, box volume", log)
        assert re.search(r"\d instances in 3 training cases, the largest \[", log)
        assert (buffers(workspace)["largest_instance_mm"] > 50).any()
    elif kind == "shared":
        assert re.search(r"Coarse branch: box recall [01]\.\d+ of \d+ organs", log)
        assert buffers(workspace)["decoders_trained"] and buffers(workspace)["organ_known"].all()
    else:
        assert re.search(
            r"Localiser: \d+ of \d+ organs found, (mean error of their centres \d\S* mm, )?box recall [01]\.\d+; the pseudo",
            log,
        )
        assert "The localiser on the training cases" in log
        sizes = buffers(workspace)["organ_size_mm"]
        # the liver is the largest, the left kidney about as large as the right one
        assert (sizes > 20).all() and sizes[0].prod() == sizes.prod(1).max()
        assert 0.5 < float(sizes[3].prod() / sizes[4].prod()) < 2
    assert "Mean Validation Dice" in log and (workspace.model / "fold_0" / "validation" / "summary.json").is_file()


@TRAINED
def test_no_case_name_leaves_the_preprocessed_folder(workspace):
    fold = workspace.model / "fold_0"
    shared = [workspace.model / "plans.json", fold / "debug.json", fold / "checkpoint_final.pth"]
    content = b"".join(path.read_bytes() for path in shared)
    names = [path.name.split(".")[0] for path in (workspace.raw / "labelsTr").iterdir()]
    assert names and not any(name.encode() in content for name in names)


@TRAINED
def test_predictions_lie_on_the_images_grid_and_find_something(workspace, kind, tmp_path):
    workspace.predict(workspace.raw / "imagesTs", tmp_path)
    labels = organ_labels(json.loads((workspace.raw / "dataset.json").read_text()))
    scores = score_folder(tmp_path, workspace.raw / "labelsTs", labels, ".nii.gz")
    large = "kidney" if kind == "instances" else "liver"
    assert len(scores) == 2 and np.mean([of_case[large] for of_case in scores.values()]) > 0.3, scores
    for path in (workspace.raw / "labelsTs").iterdir():
        image = sitk.ReadImage(str(workspace.raw / "imagesTs" / path.name.replace(".nii.gz", "_0000.nii.gz")))
        found = sitk.ReadImage(str(tmp_path / path.name))
        assert found.GetSize() == image.GetSize() and found.GetOrigin() == image.GetOrigin()


@pytest.mark.slow
@TRAINED
def test_validate_alone_continue_and_two_folds(workspace, kind, tmp_path):
    workspace.train(fold=1)
    # a training that is over has nothing left but its validation; tests/trainers/test_resume.py breaks one off
    trained = buffers(workspace, 1)
    (workspace.model / "fold_1" / "validation" / "summary.json").unlink()
    assert "Mean Validation Dice" in workspace.train(fold=1, options="--c")
    again = buffers(workspace, 1)
    assert all(torch.equal(trained[key].nan_to_num(-1), again[key].nan_to_num(-1)) for key in trained)
    summary = workspace.model / "fold_0" / "validation" / "summary.json"
    before = json.loads(summary.read_text())["foreground_mean"]
    workspace.train(options="--val")
    assert json.loads(summary.read_text())["foreground_mean"] == before
    # numbers that are learnt differ by fold and travel with the checkpoint
    learnt = {"instances": "largest_instance_mm", "heatmaps": "organ_size_mm"}
    if kind in learnt:
        assert not torch.equal(buffers(workspace)[learnt[kind]], buffers(workspace, 1)[learnt[kind]])
    workspace.predict(workspace.raw / "imagesTs", tmp_path, "-f 0 1")
    assert len(list(tmp_path.glob("*.nii.gz"))) == 2
