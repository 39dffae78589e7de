"""nnunet_oar convert: a published data set into nnU-Net's raw format."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from nnunet_oar.datasets.convert.layout import Collection, counted
from nnunet_oar.environment import FOLDERS, require_folders

HELP = "convert a published data set, or clinical patients, to nnU-Net's raw format: $nnUNet_raw/DatasetXXX_NAME"
# modules of nnunet_oar.datasets.convert with NAME, HELP and find(folder)
DATASETS = ("kits19", "visceral", "segthor", "totalsegmentator", "rtstruct")
# of these, the ones with a mask per organ: find(folder, organs), or gathered(folder, organs, names) as a context
MASKS = ("visceral", "totalsegmentator", "rtstruct")
# trainers for what other ones treat less well
MADE_FOR = {"kits19": "OARInstanceCascadeTrainer"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="format", required=True, metavar="DATASET")
    for name in DATASETS:
        module = importlib.import_module(f"nnunet_oar.datasets.convert.{name}")
        sub = commands.add_parser(
            name, help=module.HELP, description=module.HELP, formatter_class=parser.formatter_class
        )
        sub.add_argument("source", type=Path, metavar="SRC", help="folder of what to convert; nothing is changed there")
        sub.add_argument("-d", type=int, required=True, metavar="ID", help="number of the new data set, 1 to 999")
        sub.add_argument("--name", default=module.NAME, help="name of the new data set, after DatasetXXX_")
        if name in MASKS:
            sub.add_argument(
                "--organs",
                nargs="+",
                metavar="NAME",
                help="organs to convert, in the order of their labels"
                + ("" if name == "totalsegmentator" else "; without it all that occur"),
            )
        if name == "rtstruct":
            sub.add_argument("--names", type=Path, metavar="FILE", help='JSON {"ORGAN": ["OTHER NAME", ...], ...}')
        sub.add_argument("--disable_progress_bar", action="store_true", help="no progress bars, for log files")
        sub.set_defaults(module=module)


def run(args: argparse.Namespace) -> None:
    from nnunet_oar.datasets.convert.raw import write_raw

    require_folders("nnUNet_raw")
    folder = new_folder(args.d, args.name)
    with _terminated_as_interrupted(), collected(args, folder.parent) as collection:
        overlap = write_raw(folder, collection, args.name, disable_progress_bar=args.disable_progress_bar)
    for remark in collection.remarks:
        print(remark)
    if overlap.voxels:
        where = f"{counted(overlap.voxels, 'voxel')} in {counted(overlap.cases, 'case')}"
        print(f"in several organs at once: {where}; the smallest organ has them")
    if any(len(case.annotated(collection.organs)) < len(collection.organs) for case in collection.training):
        print(f"not every case annotates every organ; nnunet_oar annotations -d {args.d} shows which")
    cases = counted(len(collection.training), "training case")
    cases += f" and {counted(len(collection.test), 'test case')}" if collection.test else ""
    print(f"{cases}, {counted(len(collection.organs), 'organ')} ({', '.join(collection.organs)}) in {folder}")
    trainer = f" -tr {MADE_FOR[args.format]}" if args.format in MADE_FOR else ""
    print(f"next: nnunet_oar prepare -d {args.d}{trainer}")


def collected(args: argparse.Namespace, work: Path) -> AbstractContextManager[Collection]:
    if args.format == "rtstruct":
        return args.module.gathered(
            args.source, work, args.organs, args.names, disable_progress_bar=args.disable_progress_bar
        )
    return nullcontext(args.module.find(args.source, *([args.organs] if args.format in MASKS else [])))


def new_folder(number: int, name: str) -> Path:
    """$nnUNet_raw/DatasetXXX_NAME. Raises ValueError where one of nnU-Net's folders already has a data set of that number."""
    if not 1 <= number <= 999:
        raise ValueError(f"-d must be a number from 1 to 999, got {number}")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise ValueError(f"--name may hold letters, digits, - and _, got {name!r}")
    for variable in FOLDERS:
        root = Path(os.environ.get(variable) or "")
        taken = sorted(root.glob(f"Dataset{number:03d}*")) if os.environ.get(variable) else []
        if taken:
            raise ValueError(f"the number {number} is taken by {taken[0]}; choose another -d or remove that folder")
    return Path(os.environ["nnUNet_raw"]).resolve() / f"Dataset{number:03d}_{name}"


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """A cluster ends a job with SIGTERM, which by default leaves no time to clean up."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
