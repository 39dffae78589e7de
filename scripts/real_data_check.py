"""Train and test on real CTs: the fully contoured head-and-neck patients of OpenKBP, with the stock nnU-Net commands.

    OAR_REAL_DATA=FOLDER python scripts/real_data_check.py -o real_data_output

FOLDER holds Dataset501_OpenKBP in nnU-Net's raw layout with `annotations` in its dataset.json. The first 18 of the fully contoured
patients (by name) are trained on, the next 6 are predicted and scored.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

from pipeline import Pipeline, best_device, stock_prediction

from nnunet_oar.evaluation.dice import format_table, score_folder, summary
from nnunet_oar.evaluation.picture import contour_picture, load_lps

DATASET, TRAINING_CASES, TEST_CASES = "Dataset501_OpenKBP", 18, 6


def select_cases(source: Path, target: Path) -> tuple[list[str], list[str]]:
    """Copy the fully annotated patients into an nnU-Net raw data set; returns training and test cases."""
    description = json.loads((source / "dataset.json").read_text())
    organs = set(description["labels"]) - {"background"}
    full = [
        case
        for entry in description.pop("annotations").values()
        if set(entry["labels"]) == organs
        for case in entry["cases"]
    ]
    cases = sorted(full)[: TRAINING_CASES + TEST_CASES]
    train, test = cases[:TRAINING_CASES], cases[TRAINING_CASES:]
    for part, names in (("Tr", train), ("Ts", test)):
        for kind in ("images", "labels"):
            (target / f"{kind}{part}").mkdir(parents=True, exist_ok=True)
        for name in names:
            shutil.copy(source / "imagesTr" / f"{name}_0000.nii.gz", target / f"images{part}")
            shutil.copy(source / "labelsTr" / f"{name}.nii.gz", target / f"labels{part}")
    description["numTraining"] = len(train)
    (target / "dataset.json").write_text(json.dumps(description, indent=1))
    return train, test


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "-o", type=Path, default=Path("real_data_output"), help="new folder for everything that is made"
    )
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("-gpu_memory_target", type=float, default=0.7, help="GB; grids and width follow")
    args = parser.parse_args()
    real = os.environ.get("OAR_REAL_DATA")
    source = Path(real or ".") / DATASET
    if not real or not source.is_dir():
        print(f"OAR_REAL_DATA must name the folder that holds {DATASET}, got {real!r}", file=sys.stderr)
        return 1
    if args.o.exists():
        print(f"{args.o} exists already; choose another -o or remove it", file=sys.stderr)
        return 1
    pipeline = Pipeline(args.o)
    raw = pipeline.raw / DATASET
    train, test = select_cases(source, raw)
    preprocessed = pipeline.preprocessed / DATASET
    preprocessed.mkdir()
    # all 18 are trained on; two of them stand in for the online validation that nnU-Net insists on
    (preprocessed / "splits_final.json").write_text(json.dumps([{"train": train, "val": train[:2]}]))

    pipeline.run(
        "prepare",
        f"nnunet_oar prepare -d 501 --epochs {args.epochs} --iterations {args.iterations} "
        f"-gpu_memory_target {args.gpu_memory_target}",
    )
    model = "501 3d_fullres 0 -tr OARCascadeTrainer -p nnUNetOARPlans"
    pipeline.run("train", f"nnUNetv2_train {model} -device {best_device()}")
    predictions = pipeline.folder / "predictions"
    trained = pipeline.results / DATASET / "OARCascadeTrainer__nnUNetOARPlans__3d_fullres"
    pipeline.run("predict", stock_prediction(trained, raw / "imagesTs", predictions))
    labels = {name: label for name, label in json.loads((raw / "dataset.json").read_text())["labels"].items() if label}
    scores = score_folder(predictions, raw / "labelsTs", labels, ".nii.gz")
    print(format_table(scores))
    print(f"{pipeline.seconds['predict'] / len(test):.1f} s a CT, the command's start included")
    for case in test:
        image, spacing = load_lps(raw / "imagesTs" / f"{case}_0000.nii.gz")
        prediction, _ = load_lps(predictions / f"{case}.nii.gz")
        reference, _ = load_lps(raw / "labelsTs" / f"{case}.nii.gz")
        contour_picture(image, prediction, reference, spacing, labels, pipeline.folder / f"{case}.png", title=case)
    (pipeline.folder / "result.json").write_text(
        json.dumps(
            {
                "arguments": vars(args) | {"o": str(args.o)},
                "seconds": pipeline.seconds,
                "dice": scores,
                **summary(scores),
            },
            indent=1,
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
