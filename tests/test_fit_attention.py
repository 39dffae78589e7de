"""What is fitted to a data set for OARAttentionTrainer: slices, phases, body regions, mirroring."""

import dataclasses

import pytest

from nnunet_oar.axes import AnatomicalAxes
from nnunet_oar.fit import Budget, CaseFacts, DatasetFacts
from nnunet_oar.fit_attention import fit_attention
from nnunet_oar.plan import ATTENTION_PHASES, AttentionPlan
from nnunet_oar.roi import Box

CANONICAL = AnatomicalAxes(left_right=2, anterior_posterior=1, inferior_superior=0, sides_agree=True)
LABELS = {"lung_left": 1, "lung_right": 2, "cord": 3}
CASES = [
    CaseFacts((60, 100, 130), {1: Box((10, 20, 20), (40, 60, 60)), 3: Box((0, 40, 40), (60, 50, 50))}),
    CaseFacts((50, 90, 120), {3: Box((0, 40, 40), (50, 50, 50))}),
]


def facts(**changes) -> DatasetFacts:
    return dataclasses.replace(
        DatasetFacts((3.0, 2.0, 2.0), CASES, LABELS, CANONICAL, (-900.0, 250.0), (1.0, 0.0)), **changes
    )


def test_the_paper_recipe_is_the_paper():
    plan = fit_attention(facts(regions=("head", "chest")), "paper", Budget())
    expected = AttentionPlan(organs=tuple(LABELS), regions=("head", "chest"), left_right_axis=2, swap_on_flip=((1, 2),))
    ranges = ("postprocessing", "organ_extent_vox", "always_present")
    expected = dataclasses.replace(expected, **{name: getattr(plan, name) for name in ranges})
    assert plan == expected and plan.flip_axes == () and plan.phases == ATTENTION_PHASES


def test_whole_slices_in_the_fitted_recipe():
    plan = fit_attention(facts(), "fitted", Budget(memory_gb=8))
    step = 2 ** (plan.stages - 1)
    assert all(size <= framed < size + step for size, framed in zip((100, 130), plan.slice_shape, strict=True))
    assert plan.batch_size == 16 and plan.hu_window == (-400.0, 250.0) and plan.features == 32
    small = fit_attention(facts(), "fitted", Budget(memory_gb=0.3))
    assert small.batch_size < 16 and small.features == 16


def test_slices_lie_across_the_body_whatever_the_array():
    axes = AnatomicalAxes(left_right=2, anterior_posterior=0, inferior_superior=1, sides_agree=True)
    plan = fit_attention(facts(axes=axes), "fitted", Budget())
    assert plan.slice_axis == 1 and plan.in_plane_axes == (0, 2)
    # not known: the axis of the largest voxels, and no mirroring of organs with sides
    unknown = fit_attention(facts(axes=None, regions=("head",)), "fitted", Budget())
    assert unknown.slice_axis == 0 and unknown.flip_axes == () and unknown.regions == ()


def test_left_and_right_are_mirrored_with_their_labels_only():
    plan = fit_attention(facts(), "fitted", Budget())
    assert plan.flip_axes == (2,) and plan.swap_on_flip == ((1, 2),)
    lone = fit_attention(facts(labels={"lung_left": 1, "heart": 2, "cord": 3}), "fitted", Budget())
    assert lone.flip_axes == ()


def test_given_regions_come_first():
    plan = fit_attention(facts(regions=("head", "chest")), "fitted", Budget())
    assert plan.regions == ("head", "chest") and plan.region_organs == () and plan.phases[0].region == 1


def test_regions_are_derived_where_all_annotate_the_same():
    """110 slices: 80 with the cord alone, 30 with the left lung as well."""
    plan = fit_attention(facts(), "fitted", Budget())
    assert plan.region_organs == ((3,), (1, 3)) and plan.regions == ("derived 1", "derived 2")


def test_regions_are_not_derived_where_sources_differ():
    """They would tell the source and not the region: gamma is 0, and there is no phase for the classification alone."""
    cases = [CASES[0], dataclasses.replace(CASES[1], complete=False)]
    plan = fit_attention(facts(cases=cases), "fitted", Budget())
    assert plan.regions == () and plan.region_organs == ()
    assert [phase.start for phase in plan.phases] == [0, 50, 70] and not any(phase.region for phase in plan.phases)
    assert plan.phases[0].dice == plan.phases[0].focal == 1 and plan.phases[-1].elastic


@pytest.mark.parametrize(("epochs", "starts"), [(100, [0, 20, 50, 70]), (10, [0, 2, 5, 7]), (1, [0, 0, 0, 1])])
def test_phases_keep_their_proportions(epochs, starts):
    plan = fit_attention(facts(), "fitted", Budget(epochs=epochs, iterations=7))
    assert [phase.start for phase in plan.phases] == starts and plan.iterations_per_epoch == 7
    # however short, the last epoch trains the segmentation
    assert plan.phase(epochs - 1).dice == 1


def test_data_without_any_organ_is_one_sentence():
    with pytest.raises(ValueError, match="no training case holds a voxel of lung_left"):
        fit_attention(facts(cases=[CaseFacts((9, 9, 9), {})]), "fitted", Budget())
