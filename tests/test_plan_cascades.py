"""The sections of the instance and the heat-map cascade: the papers' numbers, and what is refused."""

import json

import pytest

from nnunet_oar.plan import HeatmapPlan, InstancePlan
from nnunet_oar.roi import Box

ORGANS = ("liver", "spleen")


def heatmap(**changes) -> HeatmapPlan:
    values = dict(
        organs=ORGANS, organ_step_vox=dict.fromkeys(ORGANS, (1.0, 1.0, 1.0)), organ_strides=dict.fromkeys(ORGANS, ((2, 2, 2),))
    )  # fmt: skip
    return HeatmapPlan(**(values | changes))


def test_the_instances_defaults_are_the_papers_numbers():
    plan = InstancePlan(organs=("kidney", "tumour"))
    assert plan.coarse_shape == plan.fine_shape == (128, 128, 128) and plan.min_box_vox == (64, 64, 64)
    assert plan.margin_vox == (10, 10, 10) and plan.hu_window == (-95, 155) and plan.augmentation == "rotation"
    assert plan.coarse_weights == (0.01, 0.99) and plan.fine_weights == (0.01, 0.14, 0.85)
    assert (plan.learning_rate, plan.lr_decay, plan.weight_decay, plan.dropout) == (5e-4, 0.985, 1e-5, 0.3)
    assert plan.flip_axes == (0, 1, 2) and plan.max_instances == 2 and plan.grow_attempts == 0


def test_the_heat_maps_defaults_are_the_papers_numbers():
    plan = heatmap()
    assert plan.spacing_mm == (1, 1, 1) and plan.localizer_spacing_mm == (3, 3, 3)
    assert (plan.sigma2_mm2, plan.threshold, plan.centre, plan.measured_margin) == (150, 0.1, "midpoint", False)
    assert (plan.localizer_learning_rate, plan.organ_learning_rate, plan.batch_size) == (1e-3, 1e-5, 1)


@pytest.mark.parametrize("plan", [InstancePlan(organs=("kidney", "tumour")), heatmap()])
def test_round_trip_through_json(plan):
    section = json.loads(json.dumps(plan.to_section()))
    assert type(plan).from_section(section) == plan and type(plan).from_section(section).to_section() == section


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"fine_weights": [0.1, 0.9]},
            "fine_weights is .*; allowed are 3 numbers, of the background and of kidney, tumour",
        ),
        ({"instance_labels": [3]}, "instance_labels is .*; allowed are labels from 1 to 2"),
        ({"instance_labels": []}, "instance_labels is .*; allowed are labels from 1 to 2"),
        ({"max_instances": 0}, "max_instances is 0; allowed is an integer from 1"),
        ({"coarse_weights": [1]}, "coarse_weights is .*; allowed is a list of 2, each a number from 0 up"),
        ({"margin_vox": 3}, "margin_vox is 3; allowed is a list of 3, each an integer from 0 up"),
        ({"fine_shape": [8, 8, 8]}, "fine_shape is .*; with fine_strides"),
    ],
)
def test_impossible_instances(changes, message):
    with pytest.raises(ValueError, match=message):
        InstancePlan.from_section(InstancePlan(organs=("kidney", "tumour")).to_section() | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 2}, "batch_size is 2; allowed is an integer from 1 to 1"),
        (
            {"organ_strides": {"liver": [[2, 2, 2]]}},
            "organ_strides has the organs liver; allowed are liver, spleen, each once",
        ),
        ({"organ_step_vox": {"liver": [1, 1, 0], "spleen": [1, 1, 1]}}, "organ_step_vox is .*; allowed is"),
        ({"low_high_pairs": [[1, 2]]}, r"low_high_pairs is \[\[1, 2\]\]; it needs left_right_axis"),
        ({"low_high_pairs": [[1, 3]], "left_right_axis": 2}, "labels from 1 to 2"),
        ({"low_high_pairs": [[1, 1]], "left_right_axis": 2}, "each once"),
        ({"centre": "brightest"}, "centre is 'brightest'; allowed is one of midpoint, weighted"),
        ({"sigma2_mm2": 0}, "sigma2_mm2 is 0; allowed is a number from 0.001"),
    ],
)
def test_impossible_heat_maps(changes, message):
    with pytest.raises(ValueError, match=message):
        HeatmapPlan.from_section(heatmap().to_section() | changes)


def test_an_organs_box_is_size_and_margin_about_its_centre_cut_at_the_faces():
    plan = heatmap(spacing_mm=(2.0, 1.0, 1.0))
    # z: (20 / 2 + 4) / 2 = 7 voxels each way; y: 10 + 3; x: 10 + 0.5, outwards
    box = plan.organ_box((20.0, 5.0, 30.5), (20, 20, 20), (4, 3, 0.5), (40, 40, 40))
    assert box == Box((13, 0, 20), (27, 18, 40))
    assert plan.organ_box((0.0, 39.9, 20.0), (0, 0, 0), (0, 0, 0), (40, 40, 40)).volume == 1


def test_grids_follow_their_spacing():
    plan = heatmap(spacing_mm=(2.0, 1.0, 1.0), organ_step_vox={"liver": (1.0, 2.0, 3.0), "spleen": (1.0, 1.0, 1.0)})
    assert plan.localizer_shape((30, 60, 1)) == (20, 20, 1)
    assert plan.organ_shape("liver", (10, 10, 10)) == (10, 5, 3) and plan.organ_shape("liver", (1, 1, 1)) == (1, 1, 1)
