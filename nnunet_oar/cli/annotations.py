"""nnunet_oar annotations: which organs each source of a data set annotates."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_oar.annotations import Annotations, read_dataset_json
from nnunet_oar.cli.plan import DEFAULT_PROCESSES, dataset_argument

HELP = (
    "show which organs each source of a data set annotates (`annotations` in dataset.json) and what its label maps hold"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-d", required=True, metavar="DATASET", help="data set id or name")
    parser.add_argument(
        "--update",
        action="store_true",
        help="copy `annotations` and `body_regions` from the raw dataset.json to the preprocessed copy, which training reads",
    )
    parser.add_argument("-np", type=int, default=DEFAULT_PROCESSES, help="label maps that are read at once")
    parser.add_argument("--disable_progress_bar", action="store_true", help="no progress bar, for log files")


def run(args: argparse.Namespace) -> None:
    from nnunet_oar.environment import require_folders

    require_folders("nnUNet_raw", *["nnUNet_preprocessed"] * args.update)
    if args.np < 1:
        raise ValueError(f"-np must be positive, got {args.np}")

    from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    from nnunet_oar.annotation_table import examine_labels, format_table, update_preprocessed, warnings

    name = maybe_convert_to_dataset_name(dataset_argument(args.d))
    raw = Path(nnUNet_raw) / name
    dataset_json = read_dataset_json(raw)
    files = get_filenames_of_train_images_and_targets(str(raw), dataset_json)
    labels = {case: entry["label"] for case, entry in files.items()}
    # before the label maps are read: training waits for it
    if args.update:
        Annotations.from_dataset_json(dataset_json).check(labels)
        changed = update_preprocessed(raw, Path(nnUNet_preprocessed) / name)
        if changed:
            print(
                f"updated in the preprocessed copy: {', '.join(changed)}; plans that were made before should be made again"
            )
        else:
            print("the preprocessed copy is up to date")
    rows = examine_labels(dataset_json, labels, args.np, args.disable_progress_bar)
    print(format_table(rows))
    for warning in warnings(rows):
        print(f"WARNING: {warning}")
