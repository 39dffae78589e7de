"""Scores that count an organ only where it is annotated: nnU-Net's own know nothing of partial annotation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from nnunetv2.evaluation.evaluate_predictions import load_summary_json, save_summary_json
from torch import Tensor

from nnunet_oar.annotations import Annotations
from nnunet_oar.files import written_whole


def count_voxels(prediction: Tensor, target: Tensor, annotated: Tensor) -> dict[str, np.ndarray]:
    """True positive, false positive and false negative voxels of each organ over the samples that annotate it.

    prediction, target: (B, *spatial) labels; annotated: bool (B, K - 1). Returns tp_hard, fp_hard, fn_hard, (K - 1,) each, and
    samples, (K - 1,): how many samples annotate the organ.
    """
    annotated = annotated.to(target.device)
    batch, classes = annotated.shape[0], annotated.shape[1] + 1
    sample = torch.arange(batch, device=target.device).view(-1, *[1] * (target.ndim - 1))
    # K^2 bins a sample instead of one-hot volumes
    joint = torch.bincount(
        ((sample * classes + target.long()) * classes + prediction.long()).flatten(), minlength=batch * classes**2
    ).view(batch, classes, classes)
    hits = joint.diagonal(dim1=1, dim2=2)
    counts = {"tp_hard": hits, "fp_hard": joint.sum(1) - hits, "fn_hard": joint.sum(2) - hits}
    return {name: (count[:, 1:] * annotated).sum(0).cpu().numpy() for name, count in counts.items()} | {
        "samples": annotated.sum(0).cpu().numpy()
    }


def dice_of_counts(outputs: Sequence[Mapping]) -> np.ndarray:
    """(K - 1,) Dice of each organ over all batches of `count_voxels`; NaN where there is nothing to score."""
    tp, fp, fn = (np.sum([output[key] for output in outputs], axis=0) for key in ("tp_hard", "fp_hard", "fn_hard"))
    with np.errstate(invalid="ignore"):
        return 2 * tp / (2 * tp + fp + fn)


def rescore_summary(
    file: Path, annotations: Annotations, file_ending: str
) -> tuple[dict[int | str, float], dict[str, int]]:
    """Take out of nnU-Net's summary.json what cases do not annotate, and average again; the layout stays nnU-Net's.

    Returns the Dice by label, under "foreground" their mean, and by organ the number of cases that its Dice is the mean of:
    annotated, and in the reference or the prediction (nnU-Net scores what is in neither as NaN). An organ with no such case is
    NaN and left out of the mean; that is NaN where nothing is left.
    """
    summary = load_summary_json(str(file))
    cases = summary["metric_per_case"]
    for case in cases:
        annotated = annotations.annotated(Path(case["prediction_file"]).name[: -len(file_ending)])
        for label in np.flatnonzero(~annotated) + 1:
            case["metrics"][label] = dict.fromkeys(case["metrics"][label], float("nan"))
    summary["mean"] = {
        label: {metric: _mean([case["metrics"][label][metric] for case in cases]) for metric in metrics}
        for label, metrics in summary["mean"].items()
    }
    summary["foreground_mean"] = {
        metric: _mean([metrics[metric] for metrics in summary["mean"].values()])
        for metric in summary["foreground_mean"]
    }
    with written_whole(file) as temporary:
        save_summary_json(summary, str(temporary))
    counts = {
        organ: sum(np.isfinite(case["metrics"][label]["Dice"]) for case in cases)
        for label, organ in enumerate(annotations.organs, start=1)
    }
    dice = {label: metrics["Dice"] for label, metrics in summary["mean"].items()}
    dice["foreground"] = summary["foreground_mean"]["Dice"]
    return dice, {organ: int(count) for organ, count in counts.items()}


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")
