"""nnunet_oar report: an evaluation as one HTML file."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

HELP = "turn the scores of nnunet_oar evaluate into one self-contained HTML file with tables, plots and pictures of the worst cases"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-i",
        type=Path,
        required=True,
        metavar="SCORES",
        help="folder that nnunet_oar evaluate wrote, or its scores.json",
    )
    parser.add_argument("-o", type=Path, required=True, metavar="FILE", help="the report, FILE.html")
    parser.add_argument(
        "--images", type=Path, metavar="FOLDER", help="the CTs, CASE_0000.nii.gz, for pictures; default: without"
    )
    parser.add_argument("--worst", type=int, default=10, metavar="N", help="how many cases are shown")
    parser.add_argument("--title", default="Evaluation of organ contours", help="of the report")
    parser.add_argument("--disable_progress_bar", action="store_true", help="no progress bar, for log files")


def run(args: argparse.Namespace) -> None:
    from nnunet_oar.evaluation.report import write_report

    file = args.i / "scores.json" if args.i.is_dir() else args.i
    try:
        scores = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as scores of nnunet_oar evaluate: {error}") from error
    if args.o.is_dir() or args.o.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"-o must be a file that ends in .html, got {args.o}")
    if args.worst < 0:
        raise ValueError(f"--worst must be 0 or more, got {args.worst}")
    if args.images is not None and not args.images.is_dir():
        raise ValueError(f"--images: {args.images} is not a folder")
    args.o.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_report(args.o, scores, args.images, args.worst, args.title, args.disable_progress_bar)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{file} does not hold scores of nnunet_oar evaluate: {error!r}") from error
    print(f"wrote {args.o}")
