"""`nnunet_oar phantom`: a raw nnU-Net data set of synthetic CTs."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_oar.datasets.phantom import REGIONS, write_dataset

HELP = "Write a raw nnU-Net data set of synthetic CTs with known organs, for trying things out without patient data."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o",
        dest="folder",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="the raw data set itself, new or empty, e.g. $nnUNet_raw/Dataset055_PhantomThorax",
    )
    parser.add_argument(
        "--cases",
        type=int,
        required=True,
        metavar="N",
        help="number of training cases; three-sources deals them in turn to its sources headneck, thorax and abdomen",
    )
    parser.add_argument("--test-cases", type=int, default=0, metavar="N", help="number of cases in imagesTs, labelsTs")
    parser.add_argument(
        "--region",
        choices=tuple(REGIONS),
        default="thorax",
        help="what is drawn. " + ". ".join(f"{name}: {region.summary}" for name, region in REGIONS.items()),
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed, other patients")
    parser.add_argument(
        "--spacing",
        type=float,
        nargs=3,
        metavar=("Z", "Y", "X"),
        help="voxel size in mm for all cases; without it every case has its own, as in a clinic",
    )
    parser.add_argument("-np", dest="processes", type=int, default=1, metavar="N", help="number of processes")
    parser.add_argument("--disable_progress_bar", action="store_true", help="no progress bar, for log files")


def run(args: argparse.Namespace) -> None:
    names = write_dataset(
        args.folder,
        args.region,
        args.cases,
        args.test_cases,
        seed=args.seed,
        spacing_mm=args.spacing,
        processes=args.processes,
        disable_progress_bar=args.disable_progress_bar,
    )
    print(f"{len(names)} synthetic CTs ({args.cases} training, {args.test_cases} test) in {args.folder}")
