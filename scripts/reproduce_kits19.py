"""The KiTS19 network at the paper's numbers, beside the Dice that the paper prints.

    python scripts/reproduce_kits19.py SRC -o OUT

SRC: the KiTS19 data (case_00000 to case_00209 with imaging.nii.gz and segmentation.nii.gz; https://github.com/neheller/kits19, its
download takes about 30 GB). What a comparison takes:

- The paper trains on 200 of these CTs and validates on 10, and does not say which: here the last 10 by number. A different draw of
  10 moves a mean tumour Dice by more than any detail of the network.
- The working spacing is the data set's median (about 3 mm slices of 0.8 mm pixels); the paper works on the original voxels.
- The number of epochs is not given: 300 here, of 200 updates of each stage at 128^3. In float32 on 2 CPU cores an update of both
  stages took about 67 s (docs/benchmarks.md), 46 days in all: a GPU is needed.
- The printed figures (kidney .95 and tumour .80 in training; kidney .80 and tumour .92 in validation) have kidney and tumour
  swapped in one of the two lines, it seems: a tumour Dice above a kidney Dice is unheard of on this data.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from pipeline import Pipeline, best_device

NUMBER, NAME, TRAINER = 40, "Dataset040_KiTS19", "OARInstanceCascadeTrainer"
VALIDATION_CASES = 10
PRINTED = {"training": {"kidney": 0.95, "tumor": 0.80}, "validation": {"kidney": 0.80, "tumor": 0.92}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SRC", help="folder with case_00000, case_00001, ...")
    parser.add_argument(
        "-o", type=Path, default=Path("reproduce_kits19_output"), help="folder for everything that is made"
    )
    parser.add_argument("--epochs", type=int, default=300, help="the paper gives none")
    args = parser.parse_args()
    if not args.source.is_dir():
        parser.error(f"{args.source} is no folder; download KiTS19 as https://github.com/neheller/kits19 says")
    pipeline = Pipeline(args.o)
    preprocessed = pipeline.preprocessed / NAME
    if not (pipeline.raw / NAME).is_dir():
        pipeline.run("convert", f"nnunet_oar convert kits19 {args.source.resolve()} -d {NUMBER}")
    if not (preprocessed / "nnUNetOARPlans_3d_fullres").is_dir():
        pipeline.run("prepare", f"nnunet_oar prepare -d {NUMBER} -tr {TRAINER} --recipe paper --epochs {args.epochs}")
    cases = sorted(path.name[: -len(".nii.gz")] for path in (pipeline.raw / NAME / "labelsTr").iterdir())
    split = [{"train": cases[:-VALIDATION_CASES], "val": cases[-VALIDATION_CASES:]}]
    (preprocessed / "splits_final.json").write_text(json.dumps(split))
    model = pipeline.results / NAME / f"{TRAINER}__nnUNetOARPlans__3d_fullres" / "fold_0"
    # after the last epoch nnU-Net keeps the final one alone, and --c goes on with the validation
    resume = " --c" if any((model / f"checkpoint_{which}.pth").is_file() for which in ("latest", "final")) else ""
    if not (model / "validation" / "summary.json").is_file():
        pipeline.run(
            "train",
            f"nnUNetv2_train {NUMBER} 3d_fullres 0 -tr {TRAINER} -p nnUNetOARPlans -device {best_device()}{resume}",
        )
    mean = json.loads((model / "validation" / "summary.json").read_text())["mean"]
    print(
        f"{'validation of ' + str(VALIDATION_CASES) + ' CTs':28s} {'ours':>8s} {'printed':>8s} {'printed, training':>18s}"
    )
    for label, organ in (("1", "kidney"), ("2", "tumor")):
        printed = [PRINTED[part][organ] for part in ("validation", "training")]
        print(f"{organ:28s} {mean[label]['Dice']:8.3f} {printed[0]:8.2f} {printed[1]:18.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
