"""What OARHeatmapCascadeTrainer learns of its cases: sizes and margins, with a localiser whose errors are known."""

import json

import numpy as np
import pytest
import torch
from nnunet_oar.trainers.heatmap import OARHeatmapCascadeTrainer

from nnunet_oar.plan import SECTION


def make(workspace, **section) -> OARHeatmapCascadeTrainer:
    plans = json.loads((workspace.preprocessed / "nnUNetOARPlans.json").read_text()) | {"continue_training": False}
    plans["configurations"]["3d_fullres"][SECTION] |= section
    dataset_json = json.loads((workspace.preprocessed / "dataset.json").read_text())
    trainer = OARHeatmapCascadeTrainer(plans, "3d_fullres", 0, dataset_json, torch.device("cpu"))
    trainer.initialize()
    trainer.prepare_data(trainer.dataset_class(trainer.preprocessed_dataset_folder))
    return trainer


@pytest.fixture
def inside(heatmaps, monkeypatch, tmp_path):
    return heatmaps.entered(monkeypatch, tmp_path)


def cases_of(trainer):
    return trainer.get_tr_and_val_datasets()[0].identifiers


def with_known_errors(trainer, offset_mm, never=()):
    """The localiser gives the true centre, off by the same on each case; labels in `never` it does not find."""
    offset = np.divide(offset_mm, trainer.plan.spacing_mm)
    # in the order in which the cases are measured
    boxes = [trainer.cache.read(name).organs for name in cases_of(trainer)]
    turn = iter(boxes)

    def localise(coarse, shape):
        organs = next(turn)
        return [
            tuple(np.add(organs[label].centre, offset)) if label in organs and label not in never else None
            for label in range(1, len(trainer.plan.organs) + 1)
        ]

    trainer.network.localise = localise
    return boxes


def ranges(trainer, label):
    """The least and the largest margin that training shows of an organ."""
    return trainer.plan.margin_range_mm(
        trainer.plan.organs[label - 1], trainer.network.organ_size_mm[label - 1].tolist()
    )


def test_margins_hold_the_training_organs_and_are_bounded(inside):
    trainer = make(inside)
    trainer.learn_from_cases(cases_of(trainer))
    offset = np.array((12.0, -5.0, 0.0))
    boxes = with_known_errors(trainer, offset, never={2})
    said = []
    trainer.print_to_log_file = lambda *args, **_: said.append(args[0])
    before = trainer.network.margin_mm.clone()
    trainer.measure_margins()
    network, spacing = trainer.network, trainer.plan.spacing_mm
    for label in (1, 3, 4, 5):
        size, margin = network.organ_size_mm[label - 1].numpy(), network.margin_mm[label - 1].numpy()
        assert network.centre_error_mm[label - 1] == pytest.approx(13.0, abs=0.01)
        reach = [np.multiply(organs[label].shape, spacing) / 2 + np.abs(offset) for organs in boxes if label in organs]
        needed = np.max(reach, axis=0) - size / 2
        assert (margin >= needed - 1e-3).all()
        # a localiser that is hardly off does not choose less than crops of training showed
        least, _ = ranges(trainer, label)
        wanted = np.maximum(needed + trainer.plan.localizer_spacing_mm, least)
        np.testing.assert_allclose(margin, wanted, atol=0.01)
        for organs in boxes:
            if label in organs:
                centre = np.add(organs[label].centre, offset / spacing)
                assert network.organ_box(label - 1, centre, (400, 400, 400)).contains(organs[label])
    # an organ that is never found keeps the plan's margin, and the log says so
    assert torch.equal(network.margin_mm[1], before[1]) and network.centre_error_mm[1].isnan()
    assert any("spleen: found in 0 of" in line and "absent from all results" in line for line in said)
    # a localiser that is lost makes no box without bounds
    with_known_errors(trainer, (4000.0, 0.0, 0.0))
    trainer.measure_margins()
    margin, (_, most) = network.margin_mm[0].numpy(), ranges(trainer, 1)
    assert margin[0] == pytest.approx(most[0], rel=1e-5) and (margin <= most + 1e-3).all()
    # and one that is never off none with less around it than any crop had
    with_known_errors(trainer, (0.0, 0.0, 0.0))
    trainer.network.organ_size_mm.mul_(3)
    trainer.measure_margins()
    np.testing.assert_allclose(network.margin_mm[0].numpy(), ranges(trainer, 1)[0], rtol=1e-5)


def test_the_target_is_as_wide_in_mm_as_the_plans_say_where_the_grid_is_not_quite_the_wanted_one(inside):
    """Seven slices of 4 mm on a localiser's grid of about 10 mm make three slices of 9.3 mm."""
    trainer = make(inside, spacing_mm=[4.0, 3.0, 3.0], localizer_spacing_mm=[10.0, 10.0, 10.0])
    shape, targets = (7, 40, 40), []
    trainer.loss = {"coarse": lambda heat, target, annotated: targets.append(target) or heat.sum()}
    organs = len(trainer.plan.organs)
    grid = trainer.plan.localizer_shape(shape)
    centres = torch.full((1, organs, 3), torch.nan)
    centres[0, 0] = torch.tensor([1.0, 5.0, 6.0])
    batch = {"centres": centres, "image_shape": [shape], "annotated": torch.ones(1, organs, dtype=torch.bool)}
    trainer._heat_loss(torch.zeros(1, organs, *grid), batch)
    step = np.array(shape) * (4.0, 3.0, 3.0) / grid
    away = (np.indices(grid).reshape(3, -1).T + 0.5 - (1.0, 5.0, 6.0)) * step
    expected = np.exp(-(away**2).sum(1) / (2 * trainer.plan.sigma2_mm2)).reshape(grid)
    np.testing.assert_allclose(targets[0][0, 0].numpy(), expected, atol=1e-6)
    assert not targets[0][0, 1:].any()


def test_an_order_of_sides_that_a_training_case_contradicts_is_refused(inside):
    trainer = make(inside)
    (pair,) = trainer.plan.low_high_pairs
    trainer.learn_from_cases(cases_of(trainer))
    turned = make(inside, low_high_pairs=[list(pair[::-1])])
    with pytest.raises(
        ValueError, match=r"low_high_pairs has \[\d, \d\], but in training case \S+ kidney_\w+ lies beyond kidney_"
    ):
        turned.learn_from_cases(cases_of(turned))


def test_fixed_margins_stay(inside):
    trainer = make(inside, measured_margin=False)
    trainer.learn_from_cases(cases_of(trainer))
    before = trainer.network.margin_mm.clone()
    with_known_errors(trainer, (12.0, -5.0, 0.0))
    trainer.measure_margins()
    assert torch.equal(trainer.network.margin_mm, before) and trainer.network.centre_error_mm[0] > 0


def test_what_another_training_left_in_the_buffers_is_forgotten(inside):
    """As -pretrained_weights brings it."""
    trainer = make(inside)
    expected = make(inside).network.margin_mm
    trainer.network.margin_mm.fill_(77.0)
    trainer.network.organ_size_mm.fill_(99.0)
    trainer.network.centre_error_mm.fill_(1.0)
    trainer.learn_from_cases(cases_of(trainer))
    assert torch.equal(trainer.network.margin_mm, expected) and trainer.network.centre_error_mm.isnan().all()
    assert not (trainer.network.organ_size_mm == 99).any()
