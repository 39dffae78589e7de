"""Paper scale on one machine: a training step of the 128^3 recipe, and a 512 x 512 x 180 CT through stock nnUNetv2_predict.

    python scripts/benchmark_speed.py -o benchmark_output

The model is trained for a few steps only, so its localiser is then set by hand to call the whole image an organ: the largest box
there is, and with it the longest time and most memory that a prediction can take.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import torch
from pipeline import Pipeline, best_device, stock_prediction

from nnunet_oar.datasets.phantom import write_dataset

DATASET = "Dataset055_PhantomThorax"
SHAPE = (180, 512, 512)


def fit_to_shape(folder: Path, spacing_mm: tuple[float, float, float]) -> None:
    """Crop or pad (with air, or no label) every phantom to SHAPE, so that all CTs of the benchmark are one size."""
    import numpy as np
    import SimpleITK as sitk

    for path in folder.glob("*/*.nii.gz"):
        array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        fill = -1000 if path.parent.name.startswith("images") else 0
        for axis, size in enumerate(SHAPE):
            extra = size - array.shape[axis]
            if extra > 0:
                widths = [(0, 0)] * 3
                widths[axis] = (extra // 2, extra - extra // 2)
                array = np.pad(array, widths, constant_values=fill)
            elif extra < 0:
                array = array.take(range(-extra // 2, -extra // 2 + size), axis)
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(spacing_mm[::-1])
        sitk.WriteImage(image, str(path))


def call_everything_an_organ(checkpoint: Path) -> None:
    stored = torch.load(checkpoint, weights_only=False, map_location="cpu")
    for name, value in stored["network_weights"].items():
        if name.startswith("localizer.seg_layers.") and name.endswith(".bias"):
            value[1] += 1000
    torch.save(stored, checkpoint)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "-o", type=Path, default=Path("benchmark_output"), help="new folder for everything that is made"
    )
    parser.add_argument("--steps", type=int, default=4, help="training steps")
    args = parser.parse_args()
    if args.o.exists():
        print(f"{args.o} exists already; choose another -o or remove it", file=sys.stderr)
        return 1
    pipeline = Pipeline(args.o)
    raw, spacing_mm = pipeline.raw / DATASET, (2.0, 0.8, 0.8)
    write_dataset(raw, "thorax", 2, 2, spacing_mm=spacing_mm, processes=2)
    fit_to_shape(raw, spacing_mm)
    pipeline.run("prepare", f"nnunet_oar prepare -d 55 --recipe paper --epochs 1 --iterations {args.steps}")
    cases = sorted(path.name[: -len(".nii.gz")] for path in (raw / "labelsTr").iterdir())
    splits = pipeline.preprocessed / DATASET / "splits_final.json"
    splits.write_text(json.dumps([{"train": cases[:1], "val": cases[1:]}]))
    model = "-tr OARCascadeTrainer -p nnUNetOARPlans"
    lines, training_gb = pipeline.timed("train", f"nnUNetv2_train 55 3d_fullres 0 {model} -device {best_device()}")
    epoch = next(float(re.search(r"([\d.]+) s$", line).group(1)) for _, line in lines if "Epoch time" in line)
    fold = next(pipeline.results.glob("*/*/fold_0"))
    call_everything_an_organ(fold / "checkpoint_final.pth")
    lines, prediction_gb = pipeline.timed(
        "predict", stock_prediction(fold.parent, raw / "imagesTs", pipeline.folder / "predictions")
    )
    begins = [seconds for seconds, line in lines if line.startswith("Predicting ")]
    result = {
        "threads": torch.get_num_threads(),
        "seconds per training step, both stages, validation of one case included": round(epoch / args.steps, 1),
        "peak memory of training, GB": round(training_gb, 1),
        "seconds of the second CT, from its turn to the end of the command": round(lines[-1][0] - begins[1], 1),
        "peak memory of prediction, GB": round(prediction_gb, 1),
    }
    (pipeline.folder / "result.json").write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
