from dataclasses import replace

import pytest

from nnunet_oar.inference.plausibility import implausible
from nnunet_oar.plan import CascadePlan
from nnunet_oar.roi import Box

PLAN = CascadePlan(
    organs=("kidney_left", "kidney_right"), flip_axes=(), array_orientation="SAR", organ_free_mm=(20.0, 100.0),
    organ_volume_ml={"kidney_left": (100.0, 200.0)}, organ_mean_hu={"kidney_left": (20.0, 180.0)},
    organ_extent_vox={"kidney_left": ((20, 20, 20), (30, 30, 30))},
)  # fmt: skip
SHAPE, SPACING = (60, 100, 100), (3.0, 2.0, 2.0)


def organ(box, ml=150.0, extent=(25, 25, 25), hu=100.0):
    return {"box": box, "ml": ml, "extent_vox": list(extent), "extent_mm": [75.0, 50.0, 50.0], "mean_hu": hu}


# arrays grow towards the patient's right
LEFT, RIGHT = Box((10, 40, 20), (35, 60, 40)), Box((10, 40, 60), (35, 60, 80))


def said(left=LEFT, right=RIGHT, letters="SAR", agreement=None, shape=SHAPE, **changes):
    organs = {"kidney_left": organ(left, **changes), "kidney_right": organ(right)}
    return implausible(PLAN, organs, shape, SPACING, letters, agreement, PLAN.organs)


def test_what_is_as_in_training_says_nothing():
    assert said() == [] and said(agreement={"kidney_left": 0.9}) == []


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"ml": 40.0}, "kidney_left has 40 ml, in training it had 100 to 200"),
        ({"ml": 310.0}, "kidney_left has 310 ml"),
        ({"hu": 1100.0}, "kidney_left 1100 (in training 20 to 180); are the CT's values HU?"),
        ({"hu": -70.0}, "kidney_left -70 (in training 20 to 180)"),
        ({"extent": (25, 60, 25)}, "kidney_left reaches over 75 x 50 x 50 mm"),
        ({"left": RIGHT, "right": LEFT}, "kidney_left lies to the right of kidney_right"),
        ({"letters": "SAL"}, "kidney_left lies to the right of kidney_right"),
        ({"shape": (110, 100, 100)}, "no organ was found in the 225 mm of the CT nearest to the head"),
        ({"left": Box((50, 40, 20), (59, 60, 40)), "right": Box((50, 40, 60), (59, 60, 80))}, "nearest to the feet"),
        ({"agreement": {"kidney_left": 0.5}}, "kidney_left: the folds disagree"),
    ],
)
def test_one_sentence_for_what_is_not(changes, words):
    texts = said(**changes)
    assert len(texts) == 1 and words in texts[0]


def test_nothing_found():
    assert implausible(PLAN, {}, SHAPE, SPACING, "SAR", None, PLAN.organs) == ["no organ was found"]


def test_of_organs_that_were_not_asked_for_only_the_sides_are_told():
    organs = {"kidney_left": organ(RIGHT, ml=20.0), "kidney_right": organ(LEFT)}
    (text,) = implausible(PLAN, organs, SHAPE, SPACING, "SAR", {"kidney_left": 0.1}, ("kidney_right",))
    assert "kidney_left lies to the right of kidney_right" in text
    (text,) = implausible(PLAN, {"kidney_left": organ(LEFT)}, SHAPE, SPACING, "SAR", None, ("kidney_right",))
    assert text == "none of the organs that were asked for was found"


def test_an_organ_that_all_training_cases_hold_is_missed():
    plan = replace(PLAN, always_present=("kidney_right",))
    for missing, asked, words in (
        ("kidney_right", PLAN.organs, ["kidney_right: not in the result, and in all training cases"]),
        ("kidney_left", PLAN.organs, []),
        ("kidney_right", ("kidney_left",), []),
    ):
        organs = {name: organ(LEFT) for name in PLAN.organs if name != missing}
        assert implausible(plan, organs, SHAPE, SPACING, "SAR", None, asked) == words
