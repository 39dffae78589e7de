"""The scores of an evaluation as one HTML file that needs nothing else: no network, no script, no other file."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from tqdm import tqdm

from nnunet_oar.evaluation.dice import dice_per_organ, require_same_grid
from nnunet_oar.evaluation.folders import header_of
from nnunet_oar.evaluation.metrics import METRICS
from nnunet_oar.evaluation.picture import contour_picture, load_lps
from nnunet_oar.evaluation.statistics import Difference, verdict
from nnunet_oar.evaluation.tables import PRINTED, difference_cells
from nnunet_oar.files import written_whole
from nnunet_oar.version import __version__

PLOTTED = ("dice", "hd95_mm")
# Okabe and Ito's blue and vermilion
BOX, POINT = "#0072B2", "#D55E00"
PLOT_INCHES = 6.4
# what is read of a manifest of nnunet_oar predict
MANIFEST = {"warnings", "seconds", "model", "options", "device", "precision", "threads", "versions", "postprocessing"}


def write_report(
    path: Path,
    scores: Mapping[str, Any],
    images: Path | None = None,
    worst: int = 10,
    title: str = "Evaluation of organ contours",
    disable_progress_bar: bool = False,
) -> None:
    """scores: as `tables.as_json` makes them. images: folder of the CTs, CASE_0000.nii.gz, for pictures; None: without.

    Manifests of `nnunet_oar predict` beside the predictions give warnings and settings. worst: of how many cases. Raises
    ValueError for scores without cases, and for a CT or label map that is not where it is looked for.
    """
    if not scores["cases"]:
        raise ValueError("the scores are of no case: there is nothing to report")
    predictions = Path(scores["predictions"])
    ordered = sorted(scores["cases"], key=lambda case: (_mean_dice(scores["cases"][case]), case))
    manifests = {case: _manifest(predictions / f"{case}.json") for case in scores["cases"]}
    shown = ordered[:worst]
    bar = tqdm(shown, "pictures", unit="case", disable=disable_progress_bar or images is None)
    text = (
        Environment(loader=PackageLoader("nnunet_oar.evaluation"), autoescape=True, undefined=StrictUndefined)
        .get_template("report.html")
        .render(
            title=title,
            version=__version__,
            date=datetime.now().strftime("%Y-%m-%d %H:%M"),
            headline=_headline(scores, manifests),
            tolerances=_tolerances(scores["tolerance_mm"]),
            organ_heading=["organ", *(METRICS[name].title for name in PRINTED), "cases", "missed", "invented"],
            organ_rows=[_organ_row(organ, of) for organ, of in scores["organs"].items()],
            plots=list(_plots(scores)),
            against=_against(scores.get("against")),
            shown=f"{len(shown)} of {len(ordered)} cases are shown." if len(shown) < len(ordered) else "",
            case_heading=["organ", *(of.title for of in METRICS.values()), "state"],
            cases=[_case(case, scores, manifests[case], images) for case in bar],
            settings=_settings(scores, manifests),
        )
    )
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _mean_dice(of_case: Mapping[str, Mapping]) -> float:
    """2.0 where nothing is scored: such a case comes last."""
    values = [of["dice"] for of in of_case.values() if of["dice"] is not None]
    return float(np.mean(values)) if values else 2.0


def _manifest(path: Path) -> dict:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    whole = isinstance(found, dict) and set(found) >= MANIFEST and isinstance(found["warnings"], list)
    return found if whole else {}


def _headline(scores: Mapping, manifests: Mapping[str, Mapping]) -> list[tuple[str, str]]:
    found = [("cases", str(len(scores["cases"]))), ("organs", str(len(scores["organs"])))]
    for name in PRINTED:
        mean, metric = scores["mean_of_organs"][name]["mean"], METRICS[name]
        found.append((f"{metric.title}, mean of organs", "-" if mean is None else f"{mean:.{metric.decimals}f}"))
    for what in ("missed", "invented"):
        found.append((f"organs {what}", str(sum(of[what] for of in scores["organs"].values()))))
    warned = sum(bool(of.get("warnings")) for of in manifests.values())
    return [*found, ("cases with warnings", str(warned))] if any(manifests.values()) else found


def _tolerances(tolerances: Mapping[str, float]) -> str:
    values = set(tolerances.values())
    if len(values) == 1:
        return f"{values.pop():g} mm"
    return ", ".join(f"{value:g} mm for {organ}" for organ, value in tolerances.items())


def _organ_row(organ: str, of: Mapping) -> dict:
    cells = []
    for name in PRINTED:
        found, decimals = of[name], METRICS[name].decimals
        cell = {"mean": "-", "range": "", "n": ""}
        if found is not None:
            cell["mean"] = f"{found['mean']:.{decimals}f}"
            if found["low"] is not None:
                cell["range"] = f"{found['low']:.{decimals}f} to {found['high']:.{decimals}f}"
            cell["n"] = str(found["n"]) if found["n"] != of["annotated"] else ""
        cells.append(cell)
    return {
        "organ": organ,
        "cases": of["annotated"],
        "missed": of["missed"],
        "invented": of["invented"],
        "cells": cells,
    }


def _plots(scores: Mapping) -> Iterator[tuple[str, str]]:
    """(what it shows, SVG in base64)"""
    for name in PLOTTED:
        values = {
            organ: [of[organ][name] for of in scores["cases"].values() if organ in of and of[organ][name] is not None]
            for organ in scores["organs"]
        }
        values = {organ: found for organ, found in values.items() if found}
        if values:
            medians = ", ".join(f"{organ} {np.median(found):.3g}" for organ, found in values.items())
            yield f"{METRICS[name].title} of each organ; medians: {medians}", _box_plot(values, METRICS[name].title)


def _box_plot(values: Mapping[str, Sequence[float]], title: str) -> str:
    figure = Figure(figsize=(PLOT_INCHES, 1.0 + 0.32 * len(values)), layout="constrained")
    axis = figure.add_subplot()
    axis.boxplot(
        list(values.values()), orientation="horizontal", tick_labels=[organ.replace("$", r"\$") for organ in values],
        widths=0.6, showfliers=False,
        boxprops={"color": BOX}, whiskerprops={"color": BOX}, capprops={"color": BOX},
        medianprops={"color": BOX, "linewidth": 2.5},
    )  # fmt: skip
    for row, found in enumerate(values.values(), start=1):
        axis.plot(found, [row] * len(found), "o", color=POINT, markersize=3.5, alpha=0.6)
    axis.invert_yaxis()
    axis.set_xlabel(title)
    axis.grid(axis="x", color="#d0d0d0", linewidth=0.6)
    text = StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return base64.b64encode(text.getvalue().encode()).decode()


def _against(against: Mapping | None) -> dict | None:
    if against is None:
        return None
    tables = []
    for name in PRINTED:
        metric = METRICS[name]
        differences = {organ: Difference(**of) for organ, of in against["difference"][name].items()}
        rows = [[organ, *difference_cells(of, metric.decimals, bool(metric.up))] for organ, of in differences.items()]
        changed = {
            what: sum(verdict(of, bool(metric.up)) == what for of in differences.values())
            for what in ("better", "worse")
        }
        text = ", ".join(f"{count} organs {what}" for what, count in changed.items() if count) or "no organ differs"
        tables.append({"title": f"{metric.title}: {text}", "rows": rows})
    return {"name": Path(against["predictions"]).name, "tables": tables}


def _case(case: str, scores: Mapping, manifest: Mapping, images: Path | None) -> dict:
    of_case = scores["cases"][case]
    rows = []
    for organ, of in sorted(of_case.items(), key=lambda item: 2.0 if item[1]["dice"] is None else item[1]["dice"]):
        cells = ["-" if of[name] is None else f"{of[name]:.{metric.decimals}f}" for name, metric in METRICS.items()]
        rows.append([organ, *cells, "" if of["state"] == "found" else of["state"]])
    mean = _mean_dice(of_case)
    return {
        "name": case,
        "dice": "-" if mean > 1 else f"{mean:.3f}",
        "warnings": manifest.get("warnings", []),
        "postprocessed": ", ".join(
            f"{organ} {of['added']} voxels added, {of['removed']} removed"
            for organ, of in manifest.get("postprocessing", {}).items()
        ),
        "picture": None if images is None else _picture(case, scores, images),
        "rows": rows,
    }


def _picture(case: str, scores: Mapping, images: Path) -> str:
    ending = scores["file_ending"]
    files = [
        images / f"{case}_0000{ending}",
        *(Path(scores[of]) / f"{case}{ending}" for of in ("predictions", "references")),
    ]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise ValueError(f"{missing[0]} is not there: the picture of {case} needs CT, prediction and reference")
    require_same_grid(case, *(header_of(file) for file in (files[0], files[1])))
    try:
        (image, spacing_mm), (prediction, _), (reference, _) = map(load_lps, files)
    except RuntimeError as error:
        raise ValueError(f"{case}: a file of its picture cannot be read: {str(error).splitlines()[-1]}") from error
    of_case = scores["cases"][case]
    labels = {organ: label for organ, label in scores["labels"].items() if organ in of_case}
    for organ, dice in dice_per_organ(prediction, reference, labels).items():
        if abs((dice or 0.0) - (of_case[organ]["dice"] or 0.0)) > 1e-6 and "ignore" not in scores["labels"]:
            raise ValueError(f"{case}: its label maps have changed since they were scored; evaluate them again")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        contour_picture(image, prediction, reference, spacing_mm, labels, path)
        return base64.b64encode(path.read_bytes()).decode()


def _settings(scores: Mapping, manifests: Mapping[str, Mapping]) -> list[tuple[str, str]]:
    found = [("predictions", scores["predictions"]), ("references", scores["references"])]
    manifest = next((of for of in manifests.values() if of), None)
    if manifest is None:
        return found
    models = {json.dumps(of["model"], sort_keys=True) for of in manifests.values() if of}
    if len(models) > 1:
        return [*found, ("models", f"the predictions come from {len(models)} different models")]
    model, versions = manifest["model"], manifest["versions"]
    found += [
        ("trainer", model["trainer"]),
        ("data set, plans", f"{model['dataset']}, {model['plans']} ({model['recipe']} recipe)"),
        (
            "checkpoint",
            f"{model['checkpoint']}, " + ", ".join(f"fold {fold}: {of}" for fold, of in model["sha256"].items()),
        ),
        ("post-processing", "on" if manifest["options"]["postprocessing"] else "off"),
        ("device", f"{manifest['device']}, {manifest['precision']}, {manifest['threads']} threads"),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]
    seconds = [sum(of["seconds"].values()) for of in manifests.values() if of]
    return [*found, ("seconds per CT", f"{np.mean(seconds):.1f} on average of {len(seconds)}")]
