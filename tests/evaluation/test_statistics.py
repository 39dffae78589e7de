"""Spreads, intervals and paired comparisons, against scipy and by hand."""

import numpy as np
import pytest
from scipy import stats

from nnunet_oar.evaluation.metrics import METRICS
from nnunet_oar.evaluation.statistics import (
    Difference,
    compared,
    counts,
    mean_of_organs,
    organ_spreads,
    spread,
    verdict,
)


def made(**dice):
    """case -> organ -> scores, of organ -> list of Dice by case; None: absent in both; "-": not annotated."""
    cases = max(map(len, dice.values()))

    def scores(value):
        state = "absent" if value is None else "found" if value else "missed"
        return dict.fromkeys(METRICS) | {"dice": value, "state": state}

    result = {}
    for index in range(cases):
        of_case = {organ: values[index] for organ, values in dice.items() if values[index] != "-"}
        result[f"c{index}"] = {organ: scores(value) for organ, value in of_case.items()}
    return result


def test_numbers_of_a_spread():
    values = np.random.default_rng(0).normal(0.8, 0.1, 40)
    found = spread(list(values))
    assert (
        found.n == 40 and found.mean == pytest.approx(values.mean()) and found.sd == pytest.approx(values.std(ddof=1))
    )
    assert found.median == pytest.approx(np.median(values)) and found.bad_tail == pytest.approx(
        np.percentile(values, 5)
    )
    theirs = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20000, random_state=0
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.004)
    assert spread(list(values)) == found
    assert spread(list(values), up=False).bad_tail == pytest.approx(np.percentile(values, 95))


def test_one_value_and_none():
    assert spread([]) is None
    one = spread([0.5])
    assert (one.mean, one.sd, one.low) == (0.5, None, None)


def test_what_is_not_defined_is_in_no_mean():
    scores = made(a=[0.9, None, "-", 0.0], b=[None, None, None, None])
    spreads = organ_spreads(scores, ["a", "b"])
    assert spreads["a"]["dice"].n == 2 and spreads["a"]["dice"].mean == pytest.approx(0.45)
    assert spreads["b"]["dice"] is None and mean_of_organs(spreads, "dice") == (pytest.approx(0.45), 1)
    assert counts(scores, "a") == {"annotated": 3, "missed": 1, "invented": 0}
    assert mean_of_organs(spreads, "hd_mm") == (None, 0)


def test_paired_differences():
    rng = np.random.default_rng(1)
    a = rng.uniform(0.6, 0.9, 12)
    first = made(better=list(a), same=list(a), noise=list(a), short=[0.5, *["-"] * 11])
    second = made(
        better=list(a + 0.05), same=list(a), noise=list(a + rng.normal(0, 0.01, 12)), short=[0.6, *["-"] * 11]
    )
    found = compared(first, second, ["better", "same", "noise", "short"], "dice")
    expected = {
        name: stats.wilcoxon([second[c][name]["dice"] - first[c][name]["dice"] for c in first]).pvalue
        for name in ("better", "noise")
    }
    assert found["better"].p == pytest.approx(expected["better"]) and found["noise"].p == pytest.approx(
        expected["noise"]
    )
    # Benjamini and Hochberg: two organs are tested
    assert found["noise"].corrected == pytest.approx(expected["noise"])
    assert found["better"].corrected == pytest.approx(min(2 * expected["better"], expected["noise"]))
    assert found["same"].p is None and found["short"] == Difference(1, pytest.approx(0.1), pytest.approx(0.1), 1, None)
    assert [verdict(found[name], True) for name in ("better", "same", "short")] == ["better", "-", "-"]
    assert verdict(found["better"], False) == "worse"


def test_one_case_does_not_turn_the_verdict():
    """13 cases better, one much worse: the test looks at ranks, the mean at one case."""
    first = made(a=[5.0] * 14)
    second = made(a=[5.0 - 0.1 * index for index in range(1, 14)] + [65.0])
    found = compared(first, second, ["a"], "dice")["a"]
    assert found.corrected < 0.05 and found.mean > 0 and found.median < 0 and found.more == -1
    assert verdict(found, True) == verdict(found, False) == "-"


def test_an_organ_that_is_invented_is_worse_than_one_that_is_rightly_absent():
    """10 cases show it: the first is perfect there and invents it in 20 others, the second is a little worse and does not."""
    first, second = made(a=[1.0] * 10 + [0.0] * 20), made(a=[0.9] * 10 + [None] * 20)
    for scores in list(first.values())[10:]:
        scores["a"]["state"] = "invented"
    found = compared(first, second, ["a"], "dice")["a"]
    assert found.n == 30 and found.mean == pytest.approx((20 - 1) / 30) and verdict(found, True) == "better"
    assert verdict(compared(second, first, ["a"], "dice")["a"], True) == "worse"
    # distances have no value for what is not there, and where neither has the organ nothing is compared
    assert compared(first, second, ["a"], "hd95_mm") == {}
    assert compared(made(a=[None, 0.5]), made(a=[None, 0.6]), ["a"], "dice")["a"].n == 1


def test_cases_that_one_lacks_are_left_out():
    found = compared(made(a=[0.5, None, 0.7]), made(a=[0.6, 0.9, None]), ["a"], "dice")
    assert found["a"].n == 1
