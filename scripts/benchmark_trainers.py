"""Our trainers beside each other on the same data for the same time on this machine, through the stock commands.

    python scripts/benchmark_trainers.py -o OUT --data kidneys
    python scripts/benchmark_trainers.py -o OUT --data abdomen
    OAR_REAL_DATA=FOLDER python scripts/benchmark_trainers.py -o OUT --data openkbp --minutes 10

The first short training of each trainer is timed, and the number of its iterations set so that its schedule ends within the time.
kidneys: tumours of 1 to 40 ml in synthetic CTs, as a measure of small structures. abdomen: five organs of different size in
synthetic CTs. openkbp: head-and-neck patients of whom most lack one or two contours. What OUT holds already is not run again: add
trainers or seeds later. The table is printed at the end and with --table alone.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np
from arms import Data, last_seconds_per_epoch, load_results, make_openkbp, save_results
from pipeline import Pipeline

from nnunet_oar.datasets.phantom import write_dataset
from nnunet_oar.plan import SECTION

CASCADE, INSTANCES, HEATMAPS = "OARCascadeTrainer", "OARInstanceCascadeTrainer", "OARHeatmapCascadeTrainer"
SHARED = "OARSharedEncoderTrainer"
# an arm that differs from its trainer's plan: name -> trainer, changes of the section "oar"
WITHOUT_HARD_VOXELS = "OARSharedEncoderTrainer-plain"
VARIANTS = {WITHOUT_HARD_VOXELS: (SHARED, {"hard_voxel_weight": 0.0})}
EPOCHS = 10
PROBE = {"epochs": 2, "iterations_per_epoch": 20, "val_iterations": 1}


def make_phantoms(region: str, spacing_mm: tuple[float, float, float]):
    return lambda folder: write_dataset(folder, region, 24, 8, spacing_mm=spacing_mm, processes=2)


DATA = {
    "kidneys": ("Dataset057_PhantomKidneys", make_phantoms("kidneys", (3.0, 2.0, 2.0)), (INSTANCES, CASCADE)),
    "abdomen": (
        "Dataset058_PhantomAbdomen",
        make_phantoms("abdomen", (4.0, 3.0, 3.0)),
        (HEATMAPS, SHARED, WITHOUT_HARD_VOXELS, CASCADE),
    ),
    "openkbp": ("Dataset501_OpenKBP", make_openkbp, (HEATMAPS, SHARED, CASCADE)),
}


def run(data: Data, arm: str, seed: int, minutes: float, memory_gb: float, iterations: int | None) -> dict:
    """One arm: iterations per epoch from a timed probe (or as given), training, prediction, scores."""
    # nnU-Net reads its folders and finds our trainers by variables that are set by now
    from localiser_scores import score_localiser

    trainer, changes = VARIANTS.get(arm, (arm, {}))
    plans = data.plan(trainer, f"-gpu_memory_target {memory_gb:g} --epochs {EPOCHS}")
    if iterations is None:
        # where there are phases, the last is the slowest; an untrained coarse branch would find organs everywhere
        phases = plans["configurations"]["3d_fullres"][SECTION].get("phases")
        last = {"phases": [phases[-1] | {"start": 0, "boxes": "truth"}]} if phases else {}
        probe = data.train(plans, f"probe-{arm}", PROBE | last, data.cases)
        iterations = int(minutes * 60 / EPOCHS / (last_seconds_per_epoch(probe) / PROBE["iterations_per_epoch"]))
    changes = {"seed": seed, "iterations_per_epoch": max(1, iterations), "val_iterations": 2, **changes}
    name = f"{arm}-{seed}"
    model = data.train(plans, name, changes, data.cases)
    return {
        "minutes": minutes,
        "memory_gb": memory_gb,
        "iterations": changes["iterations_per_epoch"],
        "seconds": data.pipeline.seconds[f"{name}-train"],
        "dice": data.predict(model),
        "swapped": data.swapped(data.predictions(name)),
        "prediction seconds": data.pipeline.seconds[f"{name}-predict"] / len(data.held),
        "localiser": score_localiser(model, data.raw / "imagesTs", data.raw / "labelsTs"),
    }


def print_table(data: Data, results: dict) -> None:
    print(f"\n{data.name}: {len(data.cases)} training and {len(data.held)} test cases")
    for key, result in sorted(results.items()):
        dice = data.dice_per_organ(result["dice"])
        inside = np.concatenate([of_organ["inside"] for of_organ in result["localiser"].values()])
        print(
            f"\n{key}: {EPOCHS * result['iterations']} updates, {result['seconds'] / 60:.1f} min of training in all, "
            f"{result['prediction seconds']:.1f} s a CT; mean Dice {np.mean(list(dice.values())):.3f}, "
            f"box recall {inside.mean():.3f}"
        )
        if result["swapped"]:
            sides = ", ".join(f"{organ} {voxels}" for organ, voxels in result["swapped"].items())
            print(f"  voxels in the partner of the other side: {sides}")
        for organ, value in dice.items():
            errors = result["localiser"].get(organ, {}).get("error_mm", [])
            found = [error for error in errors if np.isfinite(error)]
            centre = f"  centre {np.mean(found):5.1f} mm, found in {len(found)} of {len(errors)}" if found else ""
            recall = result["localiser"].get(organ, result["localiser"].get("instance", {})).get("inside", [np.nan])
            print(f"  {organ:20s} Dice {value:.3f}  in its box {np.mean(recall):.2f}{centre}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", type=Path, default=Path("trainers_output"), help="folder, kept between runs")
    parser.add_argument("--data", choices=tuple(DATA), required=True)
    parser.add_argument("--trainers", nargs="+", help="or their variants; default: all of the data set")
    parser.add_argument("--seeds", type=int, nargs="+", default=[12345])
    parser.add_argument("--minutes", type=float, default=5, help="time for the updates of one training")
    parser.add_argument("-gpu_memory_target", type=float, default=0.3, help="GB, for the planner")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, run nothing")
    args = parser.parse_args()
    name, make, trainers = DATA[args.data]
    chosen = args.trainers or list(trainers)
    unknown = [trainer for trainer in chosen if trainer not in trainers]
    if unknown:
        parser.error(f"--trainers: {unknown[0]!r} is none of {', '.join(trainers)}")
    pipeline = Pipeline(args.o)
    os.environ.update(pipeline.environment)
    data = Data(pipeline, name, make)
    file = args.o / f"trainers-{args.data}.json"
    results = load_results(file)
    for seed in [] if args.table else args.seeds:
        for trainer in chosen:
            key = f"{trainer}-{seed}"
            same = [result for other, result in results.items() if other.rpartition("-")[0] == trainer]
            if any((r["minutes"], r["memory_gb"]) != (args.minutes, args.gpu_memory_target) for r in same):
                parser.error(f"{file} holds {trainer} with another --minutes or -gpu_memory_target; choose another -o")
            if key not in results:
                # a further seed gets as many updates as the first one
                known = same[0]["iterations"] if same else None
                # and so does a variant, which differs in what it learns and not in what it costs
                twin = VARIANTS.get(trainer, (trainer,))[0]
                known = known or results.get(f"{twin}-{seed}", {}).get("iterations")
                results[key] = run(data, trainer, seed, args.minutes, args.gpu_memory_target, known)
                save_results(file, results)
    print_table(data, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
