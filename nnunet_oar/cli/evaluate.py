"""nnunet_oar evaluate: predictions against references, organ by organ."""

from __future__ import annotations

import argparse
import json
import math
import os
from pathlib import Path

from nnunet_oar.environment import dataset_folder

HELP = "score label maps against references: Dice, surface Dice, Hausdorff and mean surface distance, added path length, volume"
# of those that this process may use: a cluster's job has a few of the machine's
DEFAULT_PROCESSES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-i", type=Path, required=True, metavar="PREDICTIONS", help="folder of label maps, CASE.nii.gz")
    parser.add_argument(
        "-ref", type=Path, required=True, metavar="REFERENCES", help="folder of label maps of the same names"
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "-d", metavar="ID", help="data set, number or name, in $nnUNet_raw: its dataset.json names the organs"
    )
    which.add_argument("--dataset-json", type=Path, metavar="FILE", help="or this file")
    parser.add_argument(
        "-o", type=Path, required=True, metavar="OUT", help="folder for scores.json, scores.csv and summary.json"
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="PREDICTIONS",
        help="other label maps of the same cases: is -i better than these?",
    )
    parser.add_argument(
        "--tolerance",
        nargs="+",
        default=[],
        metavar="MM|ORGAN=MM",
        help="of surface Dice, for all organs or for one; default: 2",
    )
    parser.add_argument("-np", type=int, default=DEFAULT_PROCESSES, help="processes")
    parser.add_argument("--disable_progress_bar", action="store_true", help="no progress bar, for log files")


def run(args: argparse.Namespace) -> None:
    from nnunet_oar.evaluation.folders import Task, files_of, header_of
    from nnunet_oar.evaluation.metrics import DEFAULT_TOLERANCE_MM
    from nnunet_oar.evaluation.tables import (
        as_json,
        comparison_as_json,
        format_comparison,
        format_scores,
        nnunet_summary,
        write_csv,
    )
    from nnunet_oar.files import written_whole

    if args.np < 1:
        raise ValueError(f"-np must be at least 1, got {args.np}")
    if args.o.exists() and not args.o.is_dir():
        raise ValueError(f"-o: {args.o} is a file; name a folder")
    file = dataset_json(args)
    tolerances = tolerances_mm(args.tolerance)
    others_mm = tolerances.pop("", DEFAULT_TOLERANCE_MM)
    task = Task.of(args.i, args.ref, file, tolerances, others_mm)
    organs = list(task.labels)
    other_task = args.against and Task.of(args.against, args.ref, file, tolerances, others_mm)
    if other_task:
        other_task.cases  # noqa: B018  (what is missing is said before anything is scored)
    scores = scored(task, args, "scoring")
    about = {
        "predictions": str(args.i.resolve()),
        "references": str(args.ref.resolve()),
        "file_ending": task.file_ending,
        "labels": dict(task.labels),
        "tolerance_mm": {organ: task.tolerance_mm(organ) for organ in organs},
    }
    result = as_json(scores, organs, about)
    print(format_scores(scores, organs))
    if args.against is not None:
        other = scored(other_task, args, "scoring the others")
        result["against"] = {
            "predictions": str(args.against.resolve()),
            "difference": comparison_as_json(other, scores, organs),
        }
        print(f"\n{format_comparison(other, scores, organs, short_names(args.against, args.i))}")
    args.o.mkdir(parents=True, exist_ok=True)
    files = {case: files_of(task, case) for case in scores}
    voxels = {case: math.prod(header_of(paths[0]).GetSize()) for case, paths in files.items()}
    summary = nnunet_summary(scores, task.labels, files, voxels)
    write_csv(scores, args.o / "scores.csv")
    for name, content in (("summary.json", summary), ("scores.json", result)):
        with written_whole(args.o / name) as temporary:
            temporary.write_text(json.dumps(content, indent=1))
    print(
        f"\nscores of {len(scores)} cases in {args.o}: scores.json, scores.csv, and summary.json as nnU-Net writes it"
    )


def short_names(*folders: Path) -> tuple[str, ...]:
    names = tuple(folder.resolve().name for folder in folders)
    return names if len(set(names)) == len(names) else tuple(map(str, folders))


def scored(task, args: argparse.Namespace, text: str) -> dict:
    from tqdm import tqdm

    from nnunet_oar.evaluation.folders import evaluate

    total = len(task.cases)
    return dict(tqdm(evaluate(task, args.np), text, total, unit="case", disable=args.disable_progress_bar))


def dataset_json(args: argparse.Namespace) -> Path:
    if args.dataset_json is not None:
        return args.dataset_json
    hint = "or name the file with --dataset-json"
    return dataset_folder("nnUNet_raw", args.d, "dataset.json", hint) / "dataset.json"


def tolerances_mm(given: list[str]) -> dict[str, float]:
    """Organ -> mm, under "" that of all others where it is given. Raises ValueError for what is no number above 0."""
    tolerances: dict[str, float] = {}
    for text in given:
        organ, separator, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = 0.0
        if not 0 < value < float("inf") or (separator and not organ):
            raise ValueError(f"--tolerance: {text!r} must be mm above 0, or ORGAN=MM")
        if organ in tolerances:
            raise ValueError(f"--tolerance: two values for {organ or 'all organs'}")
        tolerances[organ] = value
    return tolerances
