"""What is fitted to a data set for the instance and the heat-map cascade."""

from dataclasses import replace

import numpy as np
import pytest

from nnunet_oar.axes import AnatomicalAxes
from nnunet_oar.fit import Budget, CaseFacts, DatasetFacts
from nnunet_oar.fit_heatmap import TRAINING_BYTES_PER_VOXEL_AND_FEATURE, fit_heatmap_cascade
from nnunet_oar.fit_instances import fit_instance_cascade
from nnunet_oar.plan import InstancePlan
from nnunet_oar.roi import Box

CANONICAL = AnatomicalAxes(left_right=2, anterior_posterior=1, inferior_superior=0, sides_agree=True)
LEFT, RIGHT, SMALL = (
    Box((20, 50, 120), (60, 90, 160)),
    Box((20, 50, 40), (56, 90, 80)),
    Box((30, 60, 130), (36, 70, 140)),
)


def facts(**changes) -> DatasetFacts:
    case = CaseFacts((100, 150, 200), {1: LEFT.union(RIGHT), 2: SMALL}, True, (LEFT, RIGHT))
    base = DatasetFacts((3.0, 1.0, 1.0), [case] * 3, {"kidney": 1, "tumour": 2}, CANONICAL, (-150.0, 250.0), (1.0, 0.0))
    return replace(base, **changes)


def test_the_instance_grid_is_that_of_one_kidney_not_of_both():
    plan = fit_instance_cascade(facts(), "fitted", Budget(memory_gb=0.2))
    pairs = [replace(case, instances=(LEFT.union(RIGHT),)) for case in facts().cases]
    fused = fit_instance_cascade(facts(cases=pairs), "fitted", Budget(memory_gb=0.2))
    # one is 40 mm wide, both are 120 mm; from left to right the grid of both is longer, and that of one at least half as coarse
    assert plan.fine_shape[2] < fused.fine_shape[2]
    width = {name: np.prod(of.fine_shape[:2]) for name, of in (("one", plan), ("both", fused))}
    assert width["one"] > 1.5 * width["both"]
    assert plan.hu_window == (-150, 250) and plan.draw_by == "organ"
    assert plan.fine_weights == (0.01, 0.14, 0.85) and plan.instance_labels == (1, 2)
    assert plan.flip_axes == (2,) and plan.slice_axis == 0 and plan.spacing_mm == (3, 1, 1)


def test_the_smaller_organ_has_the_larger_weight_whatever_its_label():
    swapped = [replace(case, organs={2: case.organs[1], 1: case.organs[2]}) for case in facts().cases]
    plan = fit_instance_cascade(facts(cases=swapped, labels={"tumour": 1, "kidney": 2}), "paper", Budget())
    assert plan.fine_weights == (0.01, 0.85, 0.14)
    three = fit_instance_cascade(facts(labels={"kidney": 1, "tumour": 2, "cyst": 3}), "paper", Budget())
    assert three.fine_weights == (0.01, 0.33, 0.33, 0.33) and three.instance_labels == (1, 2, 3)
    # which side of a pair is a little larger says nothing
    pair = fit_instance_cascade(facts(labels={"kidney_left": 1, "kidney_right": 2}), "paper", Budget())
    assert pair.fine_weights == (0.01, 0.495, 0.495)


def test_sides_that_lie_in_one_order_in_all_cases_are_known():
    def pairs(*cases, **changes):
        given = [CaseFacts((100, 150, 200), dict(organs), True, ()) for organs in cases]
        changes = {"labels": {"kidney_right": 1, "kidney_left": 2, "liver": 3}} | changes
        return fit_heatmap_cascade(facts(cases=given, **changes), "fitted", Budget()).low_high_pairs

    usual, one = {1: LEFT, 2: RIGHT, 3: SMALL}, {1: LEFT, 3: SMALL}
    assert pairs(usual, usual, one) == ((2, 1),)
    assert pairs({1: RIGHT, 2: LEFT}, one) == ((1, 2),)
    # orders that differ, never both, axes that are not known
    assert pairs(usual, {1: RIGHT, 2: LEFT}) == pairs(one, one) == pairs(usual, axes=None) == ()
    # halves of one organ in one case: they need not be told by their order
    halves = {1: Box((20, 50, 100), (60, 90, 140)), 2: Box((20, 50, 70), (60, 90, 110)), 3: SMALL}
    assert pairs(usual, halves) == ()
    given = [CaseFacts((100, 150, 200), usual, True, ())]
    labels = {"kidney_right": 1, "kidney_left": 2, "liver": 3}
    assert fit_heatmap_cascade(facts(cases=given, labels=labels), "paper", Budget()).low_high_pairs == ()


def test_the_paper_recipe_is_the_paper():
    plan, paper = fit_instance_cascade(facts(), "paper", Budget()), InstancePlan(organs=("kidney", "tumour"))
    for name in (
        "coarse_shape",
        "fine_shape",
        "margin_vox",
        "min_box_vox",
        "hu_window",
        "draw_by",
        "augmentation",
        "flip_axes",
        "dropout",
    ):
        assert getattr(plan, name) == getattr(paper, name), name


def test_a_window_that_is_gone_narrower_or_lost():
    # CTNormalization has clipped to -50 .. 250
    clipped = facts(window=(-50.0, 250.0), intensity_from_hu=(0.01, 0.0))
    assert fit_instance_cascade(clipped, "paper", Budget()).hu_window == (-50, 155)
    assert fit_instance_cascade(clipped, "fitted", Budget()).hu_window == (-50, 250)
    lost = facts(window=None, intensity_from_hu=None)
    assert fit_instance_cascade(lost, "fitted", Budget()).hu_window is None
    with pytest.raises(ValueError, match="has lost the HU"):
        fit_instance_cascade(lost, "paper", Budget())


@pytest.mark.parametrize("memory_gb", [0.05, 0.3, 2.0])
def test_each_organ_has_a_spacing_of_its_own_under_the_memory_target(memory_gb):
    # one of three patients has a tumour four times as long
    given = facts().cases[:2]
    long = Box(SMALL.start, (SMALL.start[0] + 4 * SMALL.shape[0], *SMALL.stop[1:]))
    given.append(replace(given[0], organs=given[0].organs | {2: long}))
    plan = fit_heatmap_cascade(facts(cases=given), "fitted", Budget(memory_gb=memory_gb))
    spacing = {organ: np.multiply(step, plan.spacing_mm) for organ, step in plan.organ_step_vox.items()}
    assert np.prod(spacing["tumour"]) <= np.prod(spacing["kidney"])
    if memory_gb < 2:
        assert np.prod(spacing["tumour"]) < 0.8 * np.prod(spacing["kidney"])
    for organ, label in (("kidney", 1), ("tumour", 2)):
        size_mm = np.mean([case.organs[label].shape for case in given], axis=0) * plan.spacing_mm
        least, most = plan.margin_range_mm(organ, size_mm)
        for extent, share in ((size_mm + least + most, plan.organs_per_iteration), (size_mm + 2 * most, 1)):
            voxels = np.prod(plan.organ_shape(organ, extent / plan.spacing_mm), dtype=float)
            # grids are made of whole eights
            assert voxels * plan.organ_features * TRAINING_BYTES_PER_VOXEL_AND_FEATURE < memory_gb * 1e9 / share * 1.3
        # never finer than half the data's
        assert min(plan.organ_step_vox[organ]) >= 0.5
    assert plan.measured_margin and plan.centre == "weighted"


def test_the_localiser_is_as_coarse_as_it_must_be_and_never_finer_than_3_mm_or_the_data():
    rich = fit_heatmap_cascade(facts(), "fitted", Budget(memory_gb=20))
    assert (
        all(value == pytest.approx(3, rel=0.1) for value in rich.localizer_spacing_mm) and rich.localizer_crop is None
    )
    coarse = facts(spacing_mm=(8.0, 4.0, 4.0))
    assert min(fit_heatmap_cascade(coarse, "fitted", Budget(memory_gb=20)).localizer_spacing_mm[1:]) >= 4
    poor = fit_heatmap_cascade(facts(), "fitted", Budget(memory_gb=0.1))
    assert min(poor.localizer_spacing_mm) > 4 and poor.localizer_crop is None


def test_the_papers_localiser_keeps_3_mm_and_is_trained_on_parts():
    plan = fit_heatmap_cascade(facts(), "paper", Budget(memory_gb=0.5))
    assert plan.localizer_spacing_mm == (3, 3, 3) and plan.localizer_crop is not None
    assert np.prod(plan.localizer_crop) < np.prod(plan.localizer_shape((100, 150, 200)))
    assert fit_heatmap_cascade(facts(), "paper", Budget(memory_gb=50)).localizer_crop is None
    assert plan.centre == "midpoint" and not plan.measured_margin and plan.flip_axes == ()


def test_an_organ_that_no_case_holds_has_a_network_all_the_same():
    plan = fit_heatmap_cascade(facts(labels={"kidney": 1, "tumour": 2, "cyst": 3}), "fitted", Budget(memory_gb=1))
    assert set(plan.organ_strides) == {"kidney", "tumour", "cyst"}
