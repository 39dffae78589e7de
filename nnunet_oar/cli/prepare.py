"""nnunet_oar prepare: verify, fingerprint, plan and preprocess a data set for an OAR trainer."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_oar.cli import plan

HELP = "verify, fingerprint, plan and preprocess a data set for an OAR trainer; stock plans and data are left alone"

NNUNET_FOLDS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    plan.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    plan.check(args)

    import torch
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprint_dataset, preprocess_dataset
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
    from nnunetv2.paths import nnUNet_raw
    from nnunetv2.utilities.dataset_name_id_conversion import convert_dataset_name_to_id, maybe_convert_to_dataset_name

    from nnunet_oar.planners.base import CONFIGURATION

    for dataset in args.d:
        name = maybe_convert_to_dataset_name(plan.dataset_argument(dataset))
        number = convert_dataset_name_to_id(name)
        progress = not args.disable_progress_bar
        verify_dataset_integrity(f"{nnUNet_raw}/{name}", args.np)
        extract_fingerprint_dataset(number, num_processes=args.np, clean=False, show_progress_bar=progress)
        print(f"wrote {plan.make_plans(args, name)}")
        preprocess_dataset(number, args.overwrite_plans_name, [CONFIGURATION], [args.np], show_progress_bar=progress)
        # nnU-Net's default device is cuda
        device = "" if torch.cuda.is_available() else " -device cpu"
        fold = first_fold(name)
        if fold == "all":
            print(
                f"fewer than {NNUNET_FOLDS} cases: nnU-Net makes no folds of them, all are trained on and none is left to score"
            )
        print(
            f"ready: nnUNetv2_train {number} {CONFIGURATION} {fold} -tr {args.tr} -p {args.overwrite_plans_name}{device}"
        )


def first_fold(dataset: str) -> str:
    """0, or all where nnU-Net's own five folds would not each have a case and there are no others."""
    from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    if (Path(nnUNet_preprocessed) / dataset / "splits_final.json").is_file():
        return "0"
    cases = get_filenames_of_train_images_and_targets(str(Path(nnUNet_raw) / dataset))
    return "0" if len(cases) >= NNUNET_FOLDS else "all"
