"""OARInstanceCascadeTrainer in this process: the losses of its stages, how its boxes are scored, what it keeps of its cases."""

import json

import numpy as np
import pytest
import torch
from nnunet_oar.trainers.instances import LARGEST_PERCENTILE, OARInstanceCascadeTrainer

from nnunet_oar.losses import MulticlassDiceLoss
from nnunet_oar.plan import SECTION
from nnunet_oar.roi import Box


def make(workspace, **section) -> OARInstanceCascadeTrainer:
    plans = json.loads((workspace.preprocessed / "nnUNetOARPlans.json").read_text()) | {"continue_training": False}
    # Dice alone, so that the weights can be compared
    plans["configurations"]["3d_fullres"][SECTION] |= {"cross_entropy_weight": 0.0} | section
    dataset_json = json.loads((workspace.preprocessed / "dataset.json").read_text())
    trainer = OARInstanceCascadeTrainer(plans, "3d_fullres", 0, dataset_json, torch.device("cpu"))
    trainer.initialize()
    return trainer


@pytest.fixture
def trainer(instances, monkeypatch, tmp_path):
    return make(instances.entered(monkeypatch, tmp_path))


def sample(classes: int):
    torch.manual_seed(0)
    logits = torch.randn(1, classes, 6, 7, 8, requires_grad=True)
    return logits, torch.randint(0, 3, (1, 1, 6, 7, 8))


def test_the_localiser_tells_foreground_and_the_segmenter_organs_with_the_weights_of_the_paper(trainer):
    everything = torch.ones(1, 2, dtype=torch.bool)
    logits, target = sample(2)
    coarse = MulticlassDiceLoss((0.01, 0.99), include_background=True)(logits, (target > 0).long())
    assert trainer.stage_loss("coarse", logits, target, everything).item() == pytest.approx(coarse.item(), abs=1e-6)
    logits, target = sample(3)
    fine = MulticlassDiceLoss((0.01, 0.14, 0.85), include_background=True)(logits, target)
    assert trainer.stage_loss("fine", logits, target, everything).item() == pytest.approx(fine.item(), abs=1e-6)


def test_foreground_that_is_annotated_in_part_teaches_the_localiser_its_background_alone(trainer):
    """The tumour is not annotated: what is not kidney may be tumour."""
    logits, target = sample(2)
    target[target == 2] = 0
    trainer.stage_loss("coarse", logits, target, torch.tensor([[True, False]])).backward()
    # nothing is raised or lowered for a foreground that is not known, and the re-calibrated background is all there is
    assert logits.grad.abs().max() < 1e-6


@pytest.mark.parametrize("may_rise", [False, True])
def test_what_is_not_annotated_is_raised_only_where_the_plans_allow_it(instances, monkeypatch, tmp_path, may_rise):
    trainer = make(instances.entered(monkeypatch, tmp_path), unannotated_may_rise=may_rise)
    logits, target = sample(3)
    target[target == 2] = 0
    trainer.stage_loss("fine", logits, target, torch.tensor([[True, False]])).backward()
    # a descent raises what has a negative gradient
    assert bool((logits.grad[:, 2] < 0).any()) == may_rise
    assert bool((logits.grad[:, 1] < 0).any())


def test_the_largest_instance_is_a_percentile_of_the_training_cases_whatever_was_there_before(trainer):
    trainer.prepare_data(trainer.dataset_class(trainer.preprocessed_dataset_folder))
    cases = trainer.get_tr_and_val_datasets()[0].identifiers
    trainer.network.largest_instance_mm.fill_(999.0)
    trainer.learn_from_cases(cases)
    shapes = [box.shape for case in cases for box in trainer.cache.read(case).instances]
    assert len(shapes) >= len(cases)
    expected = np.percentile(shapes, LARGEST_PERCENTILE, axis=0, method="lower") * trainer.plan.spacing_mm
    np.testing.assert_allclose(trainer.network.largest_instance_mm.numpy(), expected, rtol=1e-6)
    trainer.learn_from_cases([])
    assert not trainer.network.largest_instance_mm.any()


def test_instances_count_that_lie_wholly_in_one_of_the_boxes(trainer):
    shape = (80, 120, 160)
    left, right = Box((20, 40, 100), (50, 60, 120)), Box((20, 40, 30), (50, 60, 50))
    grown = trainer.plan.fine_box(left, shape)

    def found(*boxes):
        trainer.network.localise = lambda coarse, image_shape: list(boxes)
        return trainer.score_boxes(torch.zeros(1, 1, 4, 4, 4), shape, [left, right])

    assert found(left, right) == (2, 1.0)
    inside, size = found(left)
    assert inside == 1 and size == pytest.approx(grown.volume / (2 * grown.volume), rel=0.2)
    assert found(Box((0, 0, 0), (2, 2, 2)))[0] == 0
    assert found() == (0, None)
    # nothing to find
    assert trainer.score_boxes(torch.zeros(1, 1, 4, 4, 4), shape, []) == (0, None)
