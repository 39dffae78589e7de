"""Dice of organs: one case, a folder of cases, a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import SimpleITK as sitk

# Largest difference between two headers of the same grid, in mm (spacing, origin) or as a cosine: formats round.
GRID_TOLERANCE = 1e-3


def dice_per_organ(prediction: np.ndarray, reference: np.ndarray, labels: Mapping[str, int]) -> dict[str, float | None]:
    """Dice of each organ, 0 to 1. Absent in both arrays: None, which no mean counts. Absent in one: 0.0.

    prediction, reference: label maps of the same shape. labels: organ -> value; the background (0) is left out.
    Raises ValueError where the shapes differ.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction and reference must have one shape, got {prediction.shape} and {reference.shape}")
    scores: dict[str, float | None] = {}
    for organ, label in labels.items():
        if label == 0:
            continue
        predicted, true = prediction == label, reference == label
        volume = np.count_nonzero(predicted) + np.count_nonzero(true)
        scores[organ] = 2 * np.count_nonzero(predicted & true) / volume if volume else None
    return scores


def score_folder(
    predictions: Path, references: Path, labels: Mapping[str, int], file_ending: str
) -> dict[str, dict[str, float | None]]:
    """Case -> organ -> Dice, for the label maps `<case><file_ending>` of two folders; cases in alphabetical order.

    Raises ValueError before anything is scored where a case lies in one folder only, and where the two files of a case
    are not on the same voxel grid: nothing is resampled.
    """
    scores = {}
    for case in common_cases(predictions, references, file_ending):
        prediction = sitk.ReadImage(str(Path(predictions) / f"{case}{file_ending}"))
        reference = sitk.ReadImage(str(Path(references) / f"{case}{file_ending}"))
        require_same_grid(case, prediction, reference)
        arrays = (sitk.GetArrayViewFromImage(image) for image in (prediction, reference))
        scores[case] = dice_per_organ(*arrays, labels)
    return scores


def summary(scores: Mapping[str, Mapping[str, float | None]]) -> dict[str, float | None]:
    """Mean of each organ over the cases in which it is scored, and under "mean" the mean of these means.

    None: scored in no case. The mean weighs organs equally, however many cases show them.
    """
    means = {organ: _mean(case[organ] for case in scores.values()) for organ in _organs(scores)}
    return {**means, "mean": _mean(means.values())}


def format_table(scores: Mapping[str, Mapping[str, float | None]]) -> str:
    """Plain text: a row per case, a column per organ, the means, the number of scored cases; - is "not scored"."""
    organs = _organs(scores)
    means = summary(scores)
    rows = [["case", *organs]]
    rows += [[case, *(_cell(of_case[organ]) for organ in organs)] for case, of_case in scores.items()]
    rows.append(["mean", *(_cell(means[organ]) for organ in organs)])
    rows.append(["cases", *(str(sum(case[organ] is not None for case in scores.values())) for organ in organs)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    rule = "-" * len(lines[0])
    body = [lines[0], rule, *lines[1:-2], rule, *lines[-2:], "", f"mean of the organs: {_cell(means['mean'])}"]
    return "\n".join(line.rstrip() for line in body)


def common_cases(predictions: Path, references: Path, file_ending: str) -> list[str]:
    """In alphabetical order. Raises ValueError where a case lies in one folder only, or there is none."""
    cases, true_cases = _cases(predictions, file_ending), _cases(references, file_ending)
    for missing, folder in ((true_cases - cases, predictions), (cases - true_cases, references)):
        if missing:
            raise ValueError(f"{folder} lacks {len(missing)} of the cases to score: {', '.join(sorted(missing))}")
    if not cases:
        raise ValueError(f"neither {predictions} nor {references} holds a file that ends in {file_ending}")
    return sorted(cases)


def _cases(folder: Path, file_ending: str) -> set[str]:
    if not Path(folder).is_dir():
        raise ValueError(f"{folder} is not a folder")
    names = (path.name for path in Path(folder).iterdir())
    # a killed process leaves .tmp.CASE.nii.gz, macOS ._CASE.nii.gz
    return {name[: -len(file_ending)] for name in names if name.endswith(file_ending) and not name.startswith(".")}


def require_same_grid(
    case: str, prediction: sitk.Image | sitk.ImageFileReader, reference: sitk.Image | sitk.ImageFileReader
) -> None:
    """Raise ValueError unless size, spacing, origin and direction are the same."""
    # The size first: images of two and three dimensions have spacings that cannot be compared.
    for what in ("size", "spacing", "origin", "direction"):
        of_prediction, of_reference = (getattr(of, f"Get{what.capitalize()}")() for of in (prediction, reference))
        if len(of_prediction) != len(of_reference) or not np.allclose(
            of_prediction, of_reference, rtol=0, atol=GRID_TOLERANCE
        ):
            raise ValueError(
                f"{case}: prediction and reference must lie on the same grid, but their {what} (x, y, z) is "
                f"{of_prediction} and {of_reference}"
            )


def _organs(scores: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    return list(next(iter(scores.values()), {}))


def _mean(values) -> float | None:
    scored = [value for value in values if value is not None]
    return sum(scored) / len(scored) if scored else None


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
