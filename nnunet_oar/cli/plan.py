"""nnunet_oar plan: plans for an OAR trainer on a data set that has a fingerprint."""

from __future__ import annotations

import argparse
import os

from nnunet_oar.plan import RECIPES

HELP = "make plans for an OAR trainer (needs nnUNetv2_extract_fingerprint; `prepare` does everything)"
DEFAULT_PROCESSES = min(4, os.cpu_count() or 1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-d", nargs="+", required=True, metavar="DATASET", help="data set ids or names")
    parser.add_argument("-tr", default="OARCascadeTrainer", help="trainer to plan for")
    parser.add_argument(
        "--recipe",
        choices=RECIPES,
        default="fitted",
        help="paper: its numbers; fitted: fitted to the data and the memory target",
    )
    parser.add_argument(
        "-gpu_memory_target",
        type=float,
        default=8.0,
        help="memory of the training device in GB; grids and width follow (fitted)",
    )
    parser.add_argument(
        "--epochs", type=int, default=None, help="number of epochs; the learning rate follows (default: the recipe's)"
    )
    parser.add_argument("--iterations", type=int, default=None, help="iterations per epoch (default: the recipe's)")
    parser.add_argument(
        "-overwrite_target_spacing",
        type=float,
        nargs=3,
        default=None,
        metavar=("Z", "Y", "X"),
        help="working spacing in mm",
    )
    parser.add_argument(
        "-overwrite_plans_name", default="nnUNetOARPlans", help="name of the plans and of the preprocessed data"
    )
    parser.add_argument("-np", type=int, default=DEFAULT_PROCESSES, help="processes")
    parser.add_argument("--disable_progress_bar", action="store_true")


def make_plans(args: argparse.Namespace, dataset: str) -> str:
    """Plan one data set; returns what was written, for printing."""
    from nnunet_oar.planners import find_planner

    planner = find_planner(args.tr)(
        dataset, args.gpu_memory_target, plans_name=args.overwrite_plans_name,
        overwrite_target_spacing=args.overwrite_target_spacing, recipe=args.recipe, epochs=args.epochs,
        iterations=args.iterations, processes=args.np, disable_progress_bar=args.disable_progress_bar,
    )  # fmt: skip
    planner.plan_experiment()
    return str(planner.plans_file)


def check(args: argparse.Namespace) -> None:
    from nnunet_oar.environment import require_folders

    require_folders("nnUNet_raw", "nnUNet_preprocessed")
    for name, value in (
        ("-gpu_memory_target", args.gpu_memory_target),
        ("-np", args.np),
        ("--epochs", args.epochs),
        ("--iterations", args.iterations),
    ):
        if value is not None and value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")


def dataset_argument(value: str) -> str | int:
    return int(value) if value.isdigit() else value


def run(args: argparse.Namespace) -> None:
    check(args)
    for dataset in args.d:
        print(f"wrote {make_plans(args, dataset_argument(dataset))}")
