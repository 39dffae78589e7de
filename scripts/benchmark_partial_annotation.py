"""What re-calibration and attention are worth on partly annotated data, everything else equal, through the stock commands.

    python scripts/benchmark_partial_annotation.py -o OUT --data phantoms
    OAR_REAL_DATA=FOLDER python scripts/benchmark_partial_annotation.py -o OUT --data openkbp

phantoms: synthetic CTs of three sources, each annotated with its own organs, scored on the full truth. openkbp: head-and-neck
patients of whom most lack one or two contours, scored on fully contoured ones. An arm that OUT holds already is not run again:
add seeds or arms later. The table is printed at the end and with --table alone.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from arms import LEAST_ML, Data, load_results, make_openkbp, save_results
from pipeline import Pipeline

from nnunet_oar.datasets.phantom import write_dataset

CASCADE, ATTENTION = "OARCascadeTrainer", "OARAttentionTrainer"


@dataclass(frozen=True)
class Arm:
    """changes: of the section "oar"; complete: train on the fully annotated cases only."""

    trainer: str
    changes: dict
    complete: bool = False


# equation (4) with the gradient it has; what is not annotated taken for background, as stock nnU-Net does
LITERAL, BACKGROUND = {"unannotated_may_rise": True}, {"recalibration": False}
ARMS = {
    "phantoms": {
        "cascade": Arm(CASCADE, {}),
        "cascade-literal": Arm(CASCADE, LITERAL),
        "cascade-background": Arm(CASCADE, BACKGROUND),
        "attention": Arm(ATTENTION, {}),
        "attention-literal": Arm(ATTENTION, LITERAL),
        "attention-background": Arm(ATTENTION, BACKGROUND),
        "no-attention": Arm(ATTENTION, {"attention": False}),
        "no-attention-literal": Arm(ATTENTION, {"attention": False, **LITERAL}),
        "no-attention-background": Arm(ATTENTION, {"attention": False, **BACKGROUND}),
    },
    "openkbp": {
        "a-complete": Arm(CASCADE, {}, complete=True),
        "b-background": Arm(CASCADE, BACKGROUND),
        "c-recalibrated": Arm(CASCADE, {}),
        "c-literal": Arm(CASCADE, LITERAL),
    },
}


def run_arm(data: Data, name: str, arm: Arm, seed: int, options: str) -> dict:
    """Train, predict and score one arm; everything of an earlier attempt that was cut off is removed first."""
    plans = data.plan(arm.trainer, options)
    train = [case for case in data.cases if not arm.complete or data.annotations.annotated(case).all()]
    model = data.train(plans, f"{name}-{seed}", {"seed": seed, **arm.changes}, train)
    return {
        "training cases": len(train),
        "options": options,
        "seconds": data.pipeline.seconds[f"{name}-{seed}-train"],
        "dice": data.predict(model),
    }


def left_out_organs(data: Data, share: float = 0.1) -> list[str]:
    """The organs that at least this share of the training cases does not annotate."""
    missing = 1 - np.mean([data.annotations.annotated(case) for case in data.cases], axis=0)
    return [organ for organ, part in zip(data.annotations.organs, missing, strict=True) if part >= share]


def means(data: Data, kind: str, dice: dict[str, dict[str, float | None]]) -> dict[str, float]:
    """Mean Dice over organs, each the mean over the test cases that show it: of all, and of what is left out.

    phantoms: an organ in CTs of sources that leave it out, or annotate it; openkbp: organs that a tenth of the patients lacks.
    """

    def mean(wanted) -> float:
        return float(np.mean(list(data.dice_per_organ(dice, wanted).values())))

    if kind == "openkbp":
        left_out = left_out_organs(data)
        inside = {index for index, organ in enumerate(data.annotations.organs) if organ in left_out}
        return {"all": mean(lambda *_: True), "left out": mean(lambda _, index: index in inside)}
    annotated = {case: data.annotations.annotated(case) for case in dice}
    return {
        "all": mean(lambda *_: True),
        "left out": mean(lambda case, index: not annotated[case][index]),
        "annotated": mean(lambda case, index: annotated[case][index]),
    }


def print_table(data: Data, kind: str, results: dict) -> None:
    print(f"\n{data.name}: organs left out: {', '.join(left_out_organs(data))}")
    for key, result in sorted(results.items()):
        values = "  ".join(f"{name} {value:.3f}" for name, value in means(data, kind, result["dice"]).items())
        print(f"{key:32s} {result['training cases']:3d} cases  {result['seconds'] / 60:5.1f} min  {values}")
    print(f"\nDice per organ, mean over the test cases that show {LEAST_ML:g} ml or more of it")
    for key, result in sorted(results.items()):
        cells = [f"{organ} {value:.2f}" for organ, value in data.dice_per_organ(result["dice"]).items()]
        print(f"{key:32s} {'  '.join(cells)}")


def make_phantoms(folder: Path) -> None:
    write_dataset(folder, "three-sources", 24, 9, spacing_mm=(6.0, 5.0, 5.0), processes=2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", type=Path, default=Path("partial_annotation_output"), help="folder, kept between runs")
    parser.add_argument("--data", choices=tuple(ARMS), required=True)
    parser.add_argument("--arms", nargs="+", help="default: all of the data set")
    parser.add_argument("--seeds", type=int, nargs="+", default=[12345])
    parser.add_argument(
        "--cascade", default="--epochs 10 --iterations 25 -gpu_memory_target 0.25", help="options of nnunet_oar plan"
    )
    parser.add_argument(
        "--attention", default="--epochs 10 --iterations 25 -gpu_memory_target 0.5", help="options of nnunet_oar plan"
    )
    parser.add_argument("--table", action="store_true", help="print the table of what is there, run nothing")
    args = parser.parse_args()
    arms = ARMS[args.data]
    chosen = args.arms or list(arms)
    unknown = [name for name in chosen if name not in arms]
    if unknown:
        parser.error(f"--arms: {unknown[0]!r} is none of {', '.join(arms)}")
    make, name = {
        "phantoms": (make_phantoms, "Dataset056_PhantomThreeSources"),
        "openkbp": (make_openkbp, "Dataset501_OpenKBP"),
    }[args.data]
    data = Data(Pipeline(args.o), name, make)
    file = args.o / f"{args.data}.json"
    results = load_results(file)
    if not args.table:
        options = {CASCADE: args.cascade, ATTENTION: args.attention}
        for seed in args.seeds:
            for arm in chosen:
                key, wanted = f"{arm}-{seed}", options[arms[arm].trainer]
                if key in results and results[key]["options"] != wanted:
                    parser.error(f"{file} holds {key} with the options {results[key]['options']!r}; choose another -o")
                if key not in results:
                    results[key] = run_arm(data, arm, arms[arm], seed, wanted)
                    save_results(file, results)
    print_table(data, args.data, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
