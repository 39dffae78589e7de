"""Train and test OARCascadeTrainer on synthetic chest CTs through the stock nnU-Net commands."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from pipeline import Pipeline, best_device

from nnunet_oar.datasets.phantom_thorax import LABELS
from nnunet_oar.evaluation.picture import contour_picture, load_lps

DATASET = "Dataset055_PhantomThorax"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("-o", type=Path, default=Path("demo_output"), help="new folder for everything that is made")
    parser.add_argument("--cases", type=int, default=16, help="training cases")
    parser.add_argument("--test-cases", type=int, default=4, help="cases that are predicted and scored")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=45, help="per epoch")
    parser.add_argument("-gpu_memory_target", type=float, default=0.6, help="GB; grids and width follow")
    args = parser.parse_args()
    if args.o.exists():
        print(f"{args.o} exists already; remove it or choose another folder with -o", file=sys.stderr)
        return 1
    start = time.perf_counter()
    pipeline = Pipeline(args.o)
    raw, predictions = pipeline.raw / DATASET, pipeline.folder / "predictions"
    model = "-tr OARCascadeTrainer -p nnUNetOARPlans"
    pipeline.run("phantom", f"nnunet_oar phantom -o {raw} --cases {args.cases} --test-cases {args.test_cases} -np 2")
    pipeline.run(
        "prepare",
        f"nnunet_oar prepare -d 55 --epochs {args.epochs} --iterations {args.iterations} "
        f"-gpu_memory_target {args.gpu_memory_target}",
    )
    pipeline.run("train", f"nnUNetv2_train 55 3d_fullres 0 {model} -device {best_device()}")
    pipeline.run(
        "predict",
        f"nnunet_oar predict -d 55 -i {raw / 'imagesTs'} -o {predictions} {model} -f 0 -device {best_device()} "
        f"--disable_progress_bar",
    )
    scores = pipeline.folder / "scores"
    pipeline.run(
        "evaluate",
        f"nnunet_oar evaluate -i {predictions} -ref {raw / 'labelsTs'} --dataset-json {raw / 'dataset.json'} -o {scores} "
        f"--disable_progress_bar",
    )
    report = pipeline.folder / "report.html"
    pipeline.run(
        "report", f"nnunet_oar report -i {scores} -o {report} --images {raw / 'imagesTs'} --disable_progress_bar"
    )
    print(f"\nCTs that were not trained on:\n{(pipeline.folder / 'evaluate.log').read_text()}")
    result = json.loads((scores / "scores.json").read_text())
    case = sorted(result["cases"])[0]
    image, spacing_mm = load_lps(raw / "imagesTs" / f"{case}_0000.nii.gz")
    prediction, _ = load_lps(predictions / f"{case}.nii.gz")
    reference, _ = load_lps(raw / "labelsTs" / f"{case}.nii.gz")
    picture = pipeline.folder / "contours.png"
    contour_picture(image, prediction, reference, spacing_mm, LABELS, picture, title=f"{case} (synthetic)")
    print(
        f"contours: {picture}\nlabels:   {predictions}\nreport:   {report}\n{time.perf_counter() - start:.0f} s in all"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
