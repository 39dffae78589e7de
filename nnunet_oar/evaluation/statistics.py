"""Scores of many cases in a few numbers: spread, confidence intervals, and the paired comparison of two methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from nnunet_oar.evaluation.metrics import ABSENT, INVENTED, METRICS, MISSED

RESAMPLES, SEED, CONFIDENCE = 2000, 12345, 0.95
# an organ counts as better or worse where the corrected p value is below
SIGNIFICANT = 0.05
# case -> organ -> metric -> value
Scores = Mapping[str, Mapping[str, Mapping]]


@dataclass(frozen=True)
class Spread:
    """Of one metric over the `n` cases in which it is defined. bad_tail: the 5th percentile where more is better, else the 95th.
    low, high: percentile bootstrap interval of the mean; None below two cases."""

    n: int
    mean: float
    sd: float | None
    median: float
    bad_tail: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference:
    """second minus first over the `n` cases in which both are defined; where one invents an organ and the other rightly does not,
    that one has an overlap of 1. more: 1 where it is the larger one by the sum of ranks, -1
    where the smaller one. p: of Wilcoxon's signed-rank test, two-sided; corrected: for
    the number of organs, by Benjamini and Hochberg's false discovery rate. None where the test has nothing to say (fewer than two
    cases, or all equal)."""

    n: int
    mean: float
    median: float
    more: int
    p: float | None
    corrected: float | None = None


def values_of(scores: Scores, organ: str, metric: str) -> dict[str, float]:
    """Case -> value, of the cases in which the organ is scored and the metric is defined."""
    return {case: of[organ][metric] for case, of in scores.items() if organ in of and of[organ][metric] is not None}


def spread(values: Sequence[float], up: bool | None = True) -> Spread | None:
    """None for no values."""
    if len(values) == 0:
        return None
    array = np.array(values, np.float64)
    low = high = sd = None
    if len(array) > 1:
        sd = float(array.std(ddof=1))
        rng = np.random.default_rng(SEED)
        means = array[rng.integers(0, len(array), (RESAMPLES, len(array)))].mean(axis=1)
        low, high = (float(q) for q in np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]))
    tail = float(np.percentile(array, 5 if up else 95))
    return Spread(len(array), float(array.mean()), sd, float(np.median(array)), tail, low, high)


def organ_spreads(scores: Scores, organs: Sequence[str]) -> dict[str, dict[str, Spread | None]]:
    """organ -> metric -> spread over the cases."""
    return {
        organ: {
            metric: spread(list(values_of(scores, organ, metric).values()), of.up) for metric, of in METRICS.items()
        }
        for organ in organs
    }


def counts(scores: Scores, organ: str) -> dict[str, int]:
    """`annotated`: cases in which the organ is scored, present or not; `missed` and `invented` of these."""
    states = [of[organ]["state"] for of in scores.values() if organ in of]
    return {
        "annotated": len(states),
        "missed": states.count(MISSED),
        "invented": states.count(INVENTED),
    }


def mean_of_organs(spreads: Mapping[str, Mapping[str, Spread | None]], metric: str) -> tuple[float | None, int]:
    """(mean of the organs' means, number of organs that have one): organs weigh equally, however many cases show them."""
    means = [of[metric].mean for of in spreads.values() if of[metric] is not None]
    return (float(np.mean(means)) if means else None), len(means)


def compared(first: Scores, second: Scores, organs: Sequence[str], metric: str) -> dict[str, Difference]:
    """organ -> difference on the cases that both have."""
    found: dict[str, Difference] = {}
    for organ in organs:
        a, b = values_of(first, organ, metric), values_of(second, organ, metric)
        if METRICS[metric].up:
            a |= _rightly_absent(first, second, organ)
            b |= _rightly_absent(second, first, organ)
        differences = np.array([b[case] - a[case] for case in a if case in b])
        if len(differences):
            testable = len(differences) > 1 and differences.any()
            p = float(stats.wilcoxon(differences).pvalue) if testable else None
            changed = differences[differences != 0]
            more = int(np.sign(np.sum(np.sign(changed) * stats.rankdata(np.abs(changed)))))
            mean, median = float(differences.mean()), float(np.median(differences))
            found[organ] = Difference(len(differences), mean, median, more, p)
    tested = [organ for organ in found if found[organ].p is not None]
    corrected = stats.false_discovery_control([found[organ].p for organ in tested]) if tested else ()
    for organ, p in zip(tested, corrected, strict=True):
        found[organ] = replace(found[organ], corrected=float(p))
    return found


def _rightly_absent(scores: Scores, others: Scores, organ: str) -> dict[str, float]:
    """Case -> overlap of nothing with nothing, of the cases in which the others invent the organ."""
    return {
        case: 1.0
        for case, of in scores.items()
        if (of.get(organ, {}).get("state"), others.get(case, {}).get(organ, {}).get("state")) == (ABSENT, INVENTED)
    }


def verdict(difference: Difference, up: bool) -> str:
    """better, worse, or no difference that the cases show. The test looks at ranks: where most cases go one way and the mean, by
    a few, the other, neither is said."""
    if difference.corrected is None or difference.corrected >= SIGNIFICANT:
        return "-"
    if difference.more != np.sign(difference.mean):
        return "-"
    return "better" if (difference.mean > 0) == up else "worse"
