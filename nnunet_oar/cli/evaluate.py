"""nnunet_oar evaluate: predictions against references, organ by organ."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from nnunet_oar.environment import require_folders

HELP = "score label maps against references: Dice, surface Dice, Hausdorff and mean surface distance, added path length, volume"
DEFAULT_PROCESSES = os.cpu_count() or 1


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
    from nnunet_oar.evaluation.folders import Task
    from nnunet_oar.evaluation.metrics import DEFAULT_TOLERANCE_MM
    from nnunet_oar.evaluation.tables import as_json, comparison_as_json, format_comparison, format_scores, write_csv
    from nnunet_oar.files import written_whole

    if args.np < 1:
        raise ValueError(f"-np must be at least 1, got {args.np}")
    if args.o.exists() and not args.o.is_dir():
        raise ValueError(f"-o: {args.o} is a file; name a folder")
    file = dataset_json(args)
    tolerances = tolerances_mm(args.tolerance, file)
    task = Task.of(args.i, args.ref, file, tolerances)
    organs = list(task.labels)
    scores = scored(task, args, "scoring")
    about = {
        "predictions": str(args.i.resolve()),
        "references": str(args.ref.resolve()),
        "file_ending": task.file_ending,
        "labels": dict(task.labels),
        "tolerance_mm": {organ: tolerances.get(organ, DEFAULT_TOLERANCE_MM) for organ in organs},
    }
    result = as_json(scores, organs, about)
    print(format_scores(scores, organs))
    if args.against is not None:
        other = scored(Task.of(args.against, args.ref, file, tolerances), args, "scoring the others")
        result["against"] = {"predictions": str(args.against), "difference": comparison_as_json(other, scores, organs)}
        print(f"\n{format_comparison(other, scores, organs, short_names(args.against, args.i))}")
    args.o.mkdir(parents=True, exist_ok=True)
    write_summary(task, args.o / "summary.json", args.np)
    write_csv(scores, args.o / "scores.csv")
    with written_whole(args.o / "scores.json") as temporary:
        temporary.write_text(json.dumps(result, indent=1))
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
    require_folders("nnUNet_raw")
    pattern = f"Dataset{int(args.d):03d}_*" if args.d.isdigit() else args.d
    found = sorted(Path(os.environ["nnUNet_raw"]).glob(f"{pattern}/dataset.json"))
    if not found:
        raise ValueError(
            f"{os.environ['nnUNet_raw']} holds no {pattern}/dataset.json; or name the file with --dataset-json"
        )
    return found[0]


def tolerances_mm(given: list[str], file: Path) -> dict[str, float]:
    """Organ -> mm. Raises ValueError for what is no number above 0."""
    from nnunet_oar.evaluation.folders import Task

    tolerances: dict[str, float] = {}
    for text in given:
        organ, _, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = 0.0
        if not 0 < value < float("inf"):
            raise ValueError(f"--tolerance: {text!r} must be mm above 0, or ORGAN=MM")
        if organ:
            tolerances[organ] = value
        else:
            every = Task.of(Path(), Path(), file, {}).labels
            tolerances = dict.fromkeys(every, value) | tolerances
    return tolerances


def write_summary(task, path: Path, processes: int) -> None:
    """nnU-Net's own metrics in its own layout, without what cases do not annotate."""
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    from nnunet_oar.files import written_whole
    from nnunet_oar.trainers.validation import rescore_summary

    with written_whole(path, keep_ending=True) as temporary:
        compute_metrics_on_folder(
            str(task.references), str(task.predictions), str(temporary), SimpleITKIO(), task.file_ending,
            list(task.labels.values()), num_processes=processes,
        )  # fmt: skip
        rescore_summary(temporary, task.annotations, task.file_ending)
