"""The section "oar": round trip through JSON, and one clear sentence for each kind of nonsense."""

import dataclasses
import json

import pytest

from nnunet_oar.plan import CascadePlan
from nnunet_oar.roi import Box


def edited(**changes) -> dict:
    return CascadePlan(organs=("heart", "aorta")).to_section() | changes


def test_defaults_are_the_papers_numbers():
    plan = CascadePlan()
    assert plan.coarse_shape == plan.fine_shape == plan.min_box_vox == (128, 128, 128)
    assert plan.extra_box_vox == ((150, 200, 200), (200, 256, 256))
    assert (plan.margin_vox, plan.dropout, plan.component_fraction) == ((10, 10, 10), 0.3, 0.05)
    assert (plan.learning_rate, plan.lr_decay, plan.weight_decay, plan.batch_size) == (5e-4, 0.985, 1e-5, 1)
    assert plan.flip_axes == (0, 1, 2) and plan.cross_entropy_weight == 0
    assert plan.grow_attempts == 0 and not plan.fallback_whole


def test_round_trip_through_json():
    plan = CascadePlan(
        organs=("left_lung", "right_lung"), left_right_axis=2, swap_on_flip=((1, 2),), hu_window=(-100, 300),
        test_time={"left_lung": ("boxes", "flips")}, organ_extent_vox={"left_lung": ((1, 2, 3), (4, 5, 6))},
    )  # fmt: skip
    section = json.loads(json.dumps(plan.to_section()))
    assert CascadePlan.from_section(section) == plan
    assert CascadePlan.from_section(section).to_section() == section


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("coarse_shape", [128, 128], "a list of 3"),
        ("coarse_shape", [128, 128, 0], "integer from 1"),
        ("fine_strides", [[2, 2, 3]], "integer from 1 to 2"),
        ("fine_strides", [], "at least one triple"),
        ("dropout", 1.5, "a number from 0"),
        ("dropout", "0.3", "a number from 0"),
        ("epochs", 0, "integer from 1"),
        ("epochs", True, "integer from 1"),
        ("epochs", float("nan"), "integer from 1"),
        ("learning_rate", float("nan"), "a number from 0"),
        ("floor", 0, "a number from -1000"),
        ("hu_window", [300, -100], "low < high"),
        ("augmentation", "everything", "one of flips, rotation, nnunet"),
        ("test_time", {"heart": ["rotations"]}, "one of boxes, flips"),
        ("test_time", ["heart"], "an object"),
        ("fallback_whole", 1, "true or false"),
        ("flip_axes", [3], "integer from 0 to 2"),
        ("flip_axes", "012", "a list"),
        ("recipe", "mine", "one of paper, fitted"),
        ("organs", [1], "a string"),
    ],
)
def test_an_impossible_value_names_key_value_and_what_is_allowed(key, value, allowed):
    with pytest.raises(ValueError) as error:
        CascadePlan.from_section(edited(**{key: value}))
    assert key in str(error.value) and repr(value) in str(error.value) and allowed in str(error.value)


def test_an_unknown_key_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown key 'learning_rat'.*learning_rate"):
        CascadePlan.from_section(edited(learning_rat=1))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"intensity_from_hu": [0.0, 0.0]}, "intensity_from_hu is .* above 0"),
        ({"intensity_from_hu": [-1.0, 0.0]}, "intensity_from_hu is .* above 0"),
        ({"intensity_from_hu": [float("inf"), 0.0]}, "intensity_from_hu is .* finite"),
        ({"flip_axes": [0, 0]}, "flip_axes is .* once"),
    ],
)
def test_what_no_number_alone_can_tell(changes, words):
    with pytest.raises(ValueError, match=words):
        CascadePlan.from_section(edited(**changes))


def test_a_section_that_is_no_object():
    with pytest.raises(ValueError, match="must be an object, got 3"):
        CascadePlan.from_section(3)


@pytest.mark.parametrize("key", ["test_time", "organ_extent_vox"])
def test_organs_that_do_not_exist(key):
    value = {"liver": ["boxes"]} if key == "test_time" else {"liver": [[1, 1, 1], [2, 2, 2]]}
    with pytest.raises(ValueError, match="'liver', which is none of the organs heart, aorta"):
        CascadePlan.from_section(edited(**{key: value}))


@pytest.mark.parametrize("changes", [{"swap_on_flip": [[1, 2]]}, {"swap_on_flip": [[1, 3]], "left_right_axis": 2},
                                     {"swap_on_flip": [[1, 1]], "left_right_axis": 2}])  # fmt: skip
def test_swaps_need_an_axis_and_existing_labels(changes):
    with pytest.raises(ValueError, match="swap_on_flip"):
        CascadePlan.from_section(edited(**changes))


def test_a_grid_must_outlast_the_strides():
    with pytest.raises(ValueError, match="fine_shape is \\[16, 8, 8\\]; with fine_strides"):
        CascadePlan.from_section(edited(fine_shape=[16, 8, 8]))
    CascadePlan.from_section(edited(fine_shape=[17, 1, 1]))


def test_a_window_needs_hu():
    with pytest.raises(ValueError, match="has lost the HU"):
        CascadePlan(hu_window=(-100, 300), intensity_from_hu=None)


def test_the_window_in_units_of_the_data():
    plan = CascadePlan(hu_window=(-100, 300), intensity_from_hu=(0.01, -0.5))
    assert plan.data_window == pytest.approx((-1.5, 2.5))


def test_plans_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CascadePlan().epochs = 3


def test_fine_box_is_margin_then_least_size_then_inside():
    plan = CascadePlan(margin_vox=(1, 2, 3), min_box_vox=(10, 4, 4))
    box = plan.fine_box(Box((5, 5, 5), (7, 7, 7)), (20, 8, 30))
    # z: 2 + 2 = 4, at least 10: 1 .. 11; y: 3 .. 9 is shifted to 2 .. 8; x: 2 .. 10
    assert box == Box((1, 2, 2), (11, 8, 10))
    assert plan.fine_box(Box((5, 5, 5), (7, 7, 7)), (20, 8, 30), (12, 20, 4)) == Box((0, 0, 2), (12, 8, 10))


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({"flip_axes": (2,), "left_right_axis": 2}, False),
        ({"flip_axes": (2,), "left_right_axis": 2, "swap_on_flip": ((1, 2),)}, True),
        ({"flip_axes": (0, 1), "left_right_axis": 2}, True),
        ({"flip_axes": (0,)}, False),
        ({"flip_axes": ()}, True),
    ],
)
def test_left_is_never_mirrored_into_right_without_its_label(changes, allowed):
    for organs, single in ((("eye_left", "eye_right"), False), (("lens_left", "heart"), True)):
        expected = allowed and not (single and 2 in changes["flip_axes"])
        if expected:
            CascadePlan(organs=organs, **changes)
        else:
            with pytest.raises(ValueError, match="flip_axes is .*, which may mirror (eye|lens)_left to the other side"):
                CascadePlan(organs=organs, **changes)
