"""What the localiser's labels are worth on a coarse grid: nearest or covering, everything else equal.

    OAR_REAL_DATA=FOLDER python scripts/benchmark_localiser.py -o OUT

Trains the localiser of OARCascadeTrainer alone on five sixths of the OpenKBP patients and scores on the others how often the box
that prediction would crop holds an organ, and how large it is. OUT is the folder of benchmark_partial_annotation.py, or new.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from copy import deepcopy
from pathlib import Path

import torch
from arms import Data, make_openkbp
from pipeline import Pipeline

from nnunet_oar.plan import COARSE_LABELS, SECTION


def train_and_score(data: Data, plans: dict, labels: str, updates: int) -> dict[str, float]:
    """Box recall over all organs, and the box's volume relative to the needed one over the complete patients."""
    from nnunet_oar.trainers.cascade import OARCascadeTrainer

    plans = deepcopy(plans) | {"continue_training": False}
    plans["configurations"]["3d_fullres"][SECTION] |= {"coarse_labels": labels, "iterations_per_epoch": updates}
    split = [{"train": [case for i, case in enumerate(data.cases) if i % 6], "val": data.cases[::6]}]
    (data.preprocessed / "splits_final.json").write_text(json.dumps(split))
    dataset_json = json.loads((data.preprocessed / "dataset.json").read_text())
    trainer = OARCascadeTrainer(plans, "3d_fullres", 0, dataset_json, torch.device("cpu"))
    trainer.initialize()
    batches, _ = trainer.get_dataloaders()
    trainer.on_train_epoch_start()
    for update in range(updates):
        # the rate falls to 2%, as it did in fitted trainings when this was measured
        for group in trainer.optimizer.param_groups:
            group["lr"] = trainer.plan.learning_rate * 0.02 ** (update / updates)
        trainer.train_stage("coarse", next(batches))
        trainer._iteration += 1
    trainer.network.eval()
    held, present, sizes = 0, 0, []
    for name in data.cases[::6]:
        case, annotated = trainer.cache.read(name), trainer.annotations.labels(name)
        organs = {label: box for label, box in case.organs.items() if label in annotated}
        with torch.no_grad():
            found, size = trainer.score_boxes(
                torch.from_numpy(case.image).float()[None], case.shape, list(organs.values())
            )
        held, present = held + found, present + len(organs)
        if size is not None and len(annotated) == len(trainer.plan.organs):
            sizes.append(size)
    return {"box recall": held / present, "volume, relative": sum(sizes) / len(sizes) if sizes else float("nan")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", type=Path, default=Path("partial_annotation_output"), help="folder, kept between runs")
    parser.add_argument("--updates", type=int, default=320)
    parser.add_argument(
        "--cascade", default="--epochs 10 --iterations 32 -gpu_memory_target 0.4", help="options of nnunet_oar plan"
    )
    args = parser.parse_args()
    pipeline = Pipeline(args.o)
    # nnU-Net reads its folders when it is imported
    os.environ.update(
        pipeline.environment | {"nnUNet_results": str(pipeline.folder / "localiser"), "nnUNet_n_proc_DA": "0"}
    )
    data = Data(pipeline, "Dataset501_OpenKBP", make_openkbp)
    plans = data.plan("OARCascadeTrainer", args.cascade)
    for labels in COARSE_LABELS:
        scores = train_and_score(data, plans, labels, args.updates)
        print(
            f"{labels:9s} {args.updates} updates: " + ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
