"""nnunet_oar postprocessing: the pickle that nnUNetv2_apply_postprocessing runs."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "write a pickle for nnUNetv2_apply_postprocessing that drops small components of each organ"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-i", type=Path, required=True, metavar="FOLDER", help="folder that nnUNetv2_predict wrote")
    parser.add_argument("-o", type=Path, required=True, metavar="FILE", help="the pickle, for -pp_pkl_file")
    parser.add_argument(
        "--fraction",
        type=float,
        default=0.05,
        help="components smaller than this part of the organ's largest one are dropped",
    )


def run(args: argparse.Namespace) -> None:
    from nnunet_oar.inference.postprocessing import write_pickle

    write_pickle(args.i, args.o, args.fraction)
    print(f"wrote {args.o}; nnUNetv2_apply_postprocessing -i {args.i} -o NEW_FOLDER -pp_pkl_file {args.o}")
