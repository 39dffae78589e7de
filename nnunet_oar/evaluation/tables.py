"""Results of an evaluation as text, CSV and JSON."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nnunet_oar.evaluation.metrics import METRICS
from nnunet_oar.evaluation.statistics import (
    Difference,
    Scores,
    Spread,
    compared,
    counts,
    mean_of_organs,
    organ_spreads,
    verdict,
)
from nnunet_oar.files import written_whole

PRINTED = ("dice", "surface_dice", "hd95_mm", "msd_mm")
NNUNET_METRICS = ("Dice", "FN", "FP", "IoU", "TN", "TP", "n_pred", "n_ref")
COLUMNS = ("mean", "SD", "median", "bad 5 %", "95 % interval")


def as_json(scores: Scores, organs: Sequence[str], about: Mapping[str, Any]) -> dict:
    """about: what the scores are of. `organs` holds the numbers of `statistics.organ_spreads` and `counts`."""
    spreads = organ_spreads(scores, organs)
    return {
        **about,
        "mean_of_organs": {
            metric: dict(zip(("mean", "organs"), mean_of_organs(spreads, metric), strict=True)) for metric in METRICS
        },
        "organs": {
            organ: counts(scores, organ) | {metric: of and asdict(of) for metric, of in spreads[organ].items()}
            for organ in organs
        },
        "cases": scores,
    }


def write_csv(scores: Scores, path: Path) -> None:
    """A row for each organ of each case that annotates it; empty: not defined."""
    with written_whole(path) as temporary, open(temporary, "w", newline="") as file:
        table = csv.DictWriter(
            file, ("case", "organ", "state", *METRICS, "volume_ml", "reference_ml", "tp", "fp", "fn")
        )
        table.writeheader()
        for case, of_case in scores.items():
            table.writerows({"case": case, "organ": organ, **values} for organ, values in of_case.items())


def nnunet_summary(
    scores: Scores, labels: Mapping[str, int], files: Mapping[str, Sequence[Path]], voxels: Mapping[str, int]
) -> dict:
    """summary.json as nnU-Net lays it out, from the same voxels. files: case -> prediction and reference; voxels: of its image.

    As there, what is not defined is NaN, and left out of the means; so is what a case does not annotate.
    """
    cases = []
    for case, of_case in scores.items():
        metrics = {}
        for organ, label in labels.items():
            of = of_case.get(organ)
            metrics[str(label)] = dict.fromkeys(NNUNET_METRICS, float("nan"))
            if of is not None:
                tp, fp, fn = of["tp"], of["fp"], of["fn"]
                found = {
                    "FN": fn,
                    "FP": fp,
                    "TN": voxels[case] - tp - fp - fn,
                    "TP": tp,
                    "n_pred": tp + fp,
                    "n_ref": tp + fn,
                }
                if tp + fp + fn:
                    found |= {"Dice": 2 * tp / (2 * tp + fp + fn), "IoU": tp / (tp + fp + fn)}
                metrics[str(label)] |= found
        prediction, reference = files[case]
        cases.append({"metrics": metrics, "prediction_file": str(prediction), "reference_file": str(reference)})
    mean = {
        str(label): {name: _mean([of["metrics"][str(label)][name] for of in cases]) for name in NNUNET_METRICS}
        for label in labels.values()
    }
    foreground = {name: _mean([of[name] for of in mean.values()]) for name in NNUNET_METRICS}
    return {"foreground_mean": foreground, "mean": mean, "metric_per_case": cases}


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else float("nan")


def format_scores(scores: Scores, organs: Sequence[str]) -> str:
    """For each of PRINTED a table: a row per organ, and the mean of the organs."""
    spreads = organ_spreads(scores, organs)
    parts = []
    for metric in PRINTED:
        of_metric = METRICS[metric]
        rows = [["organ", *COLUMNS, "n", "missed", "invented"]]
        for organ in organs:
            count = counts(scores, organ)
            found = spreads[organ][metric]
            rows.append(
                [
                    organ,
                    *_cells(found, of_metric.decimals),
                    str(found.n if found else 0),
                    str(count["missed"]),
                    str(count["invented"]),
                ]
            )
        mean, number = mean_of_organs(spreads, metric)
        text = "-" if mean is None else f"{mean:.{of_metric.decimals}f}"
        parts.append(f"{of_metric.title}\n{aligned(rows)}\nmean of {number} organs: {text}")
    return "\n\n".join(parts)


def format_comparison(first: Scores, second: Scores, organs: Sequence[str], names: tuple[str, str]) -> str:
    """Second against first: for each of PRINTED a table of the paired differences."""
    parts = []
    for metric in PRINTED:
        of_metric, found = METRICS[metric], compared(first, second, organs, metric)
        rows = [["organ", "difference", "median", "p", "corrected", "", "cases"]]
        rows += [[organ, *difference_cells(of, of_metric.decimals, bool(of_metric.up))] for organ, of in found.items()]
        parts.append(
            f"{of_metric.title}, {names[1]} minus {names[0]} on the cases where both have one\n{aligned(rows)}"
        )
    return "\n\n".join(parts)


def comparison_as_json(first: Scores, second: Scores, organs: Sequence[str]) -> dict:
    return {
        metric: {organ: asdict(of) for organ, of in compared(first, second, organs, metric).items()}
        for metric in METRICS
    }


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Plain text; the first row is the heading, the first column is aligned to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _cells(of: Spread | None, decimals: int) -> list[str]:
    if of is None:
        return ["-"] * len(COLUMNS)
    values = [of.mean, of.sd, of.median, of.bad_tail]
    cells = ["-" if value is None else f"{value:.{decimals}f}" for value in values]
    return [*cells, "-" if of.low is None else f"{of.low:.{decimals}f} to {of.high:.{decimals}f}"]


def difference_cells(of: Difference, decimals: int, up: bool) -> list[str]:
    """Mean and median difference, p, corrected p, verdict, number of cases. up: whether more is better."""
    p = ["-" if value is None else f"{value:.3f}" for value in (of.p, of.corrected)]
    return [f"{of.mean:+.{decimals}f}", f"{of.median:+.{decimals}f}", *p, verdict(of, up), str(of.n)]
