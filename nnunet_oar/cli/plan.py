"""nnunet_oar plan: plans for an OAR trainer on a data set that has a fingerprint."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

HELP = "make plans for an OAR trainer (needs nnUNetv2_extract_fingerprint; `prepare` does everything)"
DEFAULT_PROCESSES = min(4, os.cpu_count() or 1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-d", nargs="+", required=True, metavar="DATASET", help="data set ids or names")
    parser.add_argument("-tr", default="OARCascadeTrainer", help="trainer to plan for")
    parser.add_argument(
        "--recipe",
        default="fitted",
        help="fitted: grids from the organs' size and the memory target; paper: the paper's numbers",
    )
    parser.add_argument(
        "-gpu_memory_target",
        type=float,
        default=8.0,
        metavar="GB",
        help="memory of the training device; grids and width of the fitted recipe follow (about 1 for training on a CPU)",
    )
    parser.add_argument(
        "--epochs", type=int, help="number of epochs, the learning rate follows; without it the recipe's"
    )
    parser.add_argument("--iterations", type=int, help="iterations per epoch; without it the recipe's")
    parser.add_argument(
        "-overwrite_target_spacing",
        type=float,
        nargs=3,
        metavar=("Z", "Y", "X"),
        help="working spacing in mm; without it as nnU-Net chooses it",
    )
    parser.add_argument(
        "-overwrite_plans_name",
        default="nnUNetOARPlans",
        metavar="NAME",
        help="name of the plans and of the preprocessed data",
    )
    parser.add_argument("-np", type=int, default=DEFAULT_PROCESSES, help="processes")
    parser.add_argument("--disable_progress_bar", action="store_true", help="no progress bars, for log files")


def make_plans(args: argparse.Namespace, dataset: str) -> str:
    """Plan one data set; returns what was written, for printing."""
    from nnunet_oar.plan import SECTION
    from nnunet_oar.planners import find_planner
    from nnunet_oar.planners.base import CONFIGURATION
    from nnunet_oar.sides import describe_sides

    planner = find_planner(args.tr)(
        dataset, args.gpu_memory_target, plans_name=args.overwrite_plans_name,
        overwrite_target_spacing=args.overwrite_target_spacing, recipe=args.recipe, epochs=args.epochs,
        iterations=args.iterations, processes=args.np, disable_progress_bar=args.disable_progress_bar,
    )  # fmt: skip
    if planner.plans_file.exists():
        print(f"replacing {planner.plans_file} of an earlier run; models trained with it keep their own copy")
    plans = planner.plan_experiment()
    section = plans["configurations"][CONFIGURATION][SECTION]
    print(describe_sides(section["organs"]))
    if "low_high_pairs" in section:
        names = [" / ".join(section["organs"][label - 1] for label in pair) for pair in section["low_high_pairs"]]
        print(
            f"Pairs that are always found in this order along the axis: {', '.join(names) or 'none'} (low_high_pairs)"
        )
    if "instance_labels" in section:
        parts = " + ".join(section["organs"][label - 1] for label in section["instance_labels"])
        print(
            f"One instance: {parts}, at most {section['max_instances']} of them in a CT (instance_labels and max_instances)"
        )
    return str(planner.plans_file)


def check(args: argparse.Namespace) -> None:
    from nnunet_oar.annotations import read_dataset_json
    from nnunet_oar.environment import dataset_folder, require_folders
    from nnunet_oar.plan import RECIPES
    from nnunet_oar.planners import find_planner

    require_folders("nnUNet_raw", "nnUNet_preprocessed")
    if args.recipe not in RECIPES:
        raise ValueError(f"--recipe must be one of {', '.join(RECIPES)}, got {args.recipe!r}")
    find_planner(args.tr)
    if Path(args.overwrite_plans_name).name != args.overwrite_plans_name or not args.overwrite_plans_name:
        raise ValueError(f"-overwrite_plans_name must be a name and no path, got {args.overwrite_plans_name!r}")
    for option in ("-gpu_memory_target", "-np", "--epochs", "--iterations"):
        value = getattr(args, option.lstrip("-"))
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{option} must be positive, got {value}")
    for dataset in args.d:
        read_dataset_json(dataset_folder("nnUNet_raw", dataset, "", "is -d right?"))
    spacing = args.overwrite_target_spacing or ()
    if not all(value > 0 and math.isfinite(value) for value in spacing):
        raise ValueError(f"-overwrite_target_spacing must be mm above 0, got {' '.join(map(str, spacing))}")


def dataset_argument(value: str) -> str | int:
    return int(value) if value.isdigit() else value


def run(args: argparse.Namespace) -> None:
    check(args)
    from nnunetv2.utilities.dataset_name_id_conversion import convert_dataset_name_to_id

    from nnunet_oar.planners.base import CONFIGURATION

    for dataset in args.d:
        file = Path(make_plans(args, dataset_argument(dataset)))
        print(f"wrote {file}")
        if not file.with_name(f"{file.stem}_{CONFIGURATION}").is_dir():
            # -d of nnU-Net's command takes numbers alone
            number = convert_dataset_name_to_id(file.parent.name)
            print(f"not preprocessed yet: nnUNetv2_preprocess -d {number} -plans_name {file.stem} -c {CONFIGURATION}")
