"""nnunet_oar info: what a trained model is."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "what a model folder holds: organs, grids, recipe, guards, versions, what it was trained on"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model_folder", type=Path, help="TRAINER__PLANS__CONFIGURATION, as nnUNetv2_train made it")
    parser.add_argument("-chk", default="checkpoint_final.pth", metavar="FILE", help="checkpoint in fold_X")
    parser.add_argument(
        "--trust-checkpoint", action="store_true", help="load a checkpoint that holds more than weights and numbers"
    )


def run(args: argparse.Namespace) -> None:
    from nnunet_oar.inference.info import describe
    from nnunet_oar.inference.model import load_model

    print(describe(load_model(args.model_folder, None, args.chk, args.trust_checkpoint)))
