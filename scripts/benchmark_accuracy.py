"""Stock nnU-Net and our trainers beside each other: the same data, the same time for training, the same machine.

    OAR_REAL_DATA=FOLDER python scripts/benchmark_accuracy.py -o OUT --data openkbp --minutes 10
    python scripts/benchmark_accuracy.py -o OUT --data thorax
    python scripts/benchmark_accuracy.py -o OUT --data kidneys --methods OARInstanceCascadeTrainer OARCascadeTrainer --seeds 12345 2

First the steps of short trainings are timed for each method, and the number of its iterations set so that its schedule ends
within the time: leave the machine alone until all have been timed, in one go where they are to be compared. Stock nnU-Net
trains with a sub-class of nnUNetTrainer that changes the length of the training (scripts/timed_trainers), by its own plan and
by plans for less memory, and predicts with mirroring and without; ours predict through stock nnUNetv2_predict and through
nnunet_oar predict. What OUT holds already is not run again: add methods or seeds later. The table is printed at the end, and
with --table alone.

openkbp: head-and-neck patients of whom most lack one or two contours. thorax: synthetic CTs. kidneys: tumours of 1 to 40 ml in
synthetic CTs. abdomen: five organs of different size in synthetic CTs. three-sources: synthetic CTs of which each source annotates
its own organs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
from arms import Data, load_results, make_openkbp, save_results
from pipeline import Pipeline, best_device, stock_prediction

from nnunet_oar.datasets.phantom import write_dataset
from nnunet_oar.environment import EXT_TRAINER
from nnunet_oar.evaluation.folders import Task, evaluate
from nnunet_oar.evaluation.statistics import counts, mean_of_organs, organ_spreads
from nnunet_oar.evaluation.tables import aligned
from nnunet_oar.plan import SECTION

CASCADE, INSTANCES, HEATMAPS = "OARCascadeTrainer", "OARInstanceCascadeTrainer", "OARHeatmapCascadeTrainer"
SHARED, ATTENTION = "OARSharedEncoderTrainer", "OARAttentionTrainer"
TIMED_TRAINERS = Path(__file__).resolve().parent / "timed_trainers"
# stock nnU-Net: name -> planner, GB (None: its own)
STOCK = {
    f"nnUNet{variant}{'' if gigabytes is None else f'-{gigabytes:g}GB'}": (planner, gigabytes)
    for variant, planner in (("", "ExperimentPlanner"), ("-ResEncM", "nnUNetPlannerResEncM"))
    for gigabytes in (None, 1.0, 0.5)
}
# a method that differs from its trainer's plan: name -> trainer, changes of the section "oar"
WITHOUT_HARD_VOXELS = "OARSharedEncoderTrainer-plain"
VARIANTS = {WITHOUT_HARD_VOXELS: (SHARED, {"hard_voxel_weight": 0.0})}
EPOCHS = 10
# of a training that is timed before; fewer where they see more voxels than this
PROBE_ITERATIONS, PROBE_VOXELS = 20, 8e6
# how often each is timed, in turns; the least counts: what else shares the machine slows one at a time
PROBES = 2
# trained on the cases that annotate everything alone: what the others lack is background to stock nnU-Net
COMPLETE = "-complete"
TABLE = ("dice", "surface_dice", "hd95_mm")
HEADING = [
    "method", "predictor", "Dice", "surface Dice", "HD95 mm", "missed", "invented", "budget min", "updates", "fine Mvoxels", "it/s",
    "waiting", "train min", "train GB", "GPU GB", "s a CT", "GB",
]  # fmt: skip


def make_phantoms(region: str, spacing_mm: tuple[float, float, float]):
    return lambda folder: write_dataset(folder, region, 24, 8, spacing_mm=spacing_mm, processes=2)


# all five, also where the organs are no instances of one kind
CONTEST = (CASCADE, HEATMAPS, SHARED, ATTENTION, INSTANCES, *STOCK)
PARTIAL = (*CONTEST, *(f"{name}{COMPLETE}" for name in STOCK))
DATA = {
    "openkbp": ("Dataset501_OpenKBP", make_openkbp, PARTIAL),
    "thorax": ("Dataset055_PhantomThorax", make_phantoms("thorax", (3.0, 2.0, 2.0)), CONTEST),
    "kidneys": ("Dataset057_PhantomKidneys", make_phantoms("kidneys", (3.0, 2.0, 2.0)), (INSTANCES, CASCADE)),
    "abdomen": (
        "Dataset058_PhantomAbdomen",
        make_phantoms("abdomen", (4.0, 3.0, 3.0)),
        (HEATMAPS, SHARED, WITHOUT_HARD_VOXELS, CASCADE),
    ),
    "three-sources": (
        "Dataset056_PhantomThreeSources",
        make_phantoms("three-sources", (6.0, 5.0, 5.0)),
        (CASCADE, ATTENTION, *STOCK),
    ),
}


class Method:
    """One method on one data set: how it is trained for some iterations, and what its model predicts with."""

    def __init__(self, data: Data, name: str, memory_gb: float):
        self.data, self.name = data, name
        stock = name.removesuffix(COMPLETE)
        self.is_stock = stock in STOCK
        self.cases = [case for case in data.cases if stock == name or data.annotations.annotated(case).all()]
        if self.is_stock:
            self.plans_name = data.stock_plan(*STOCK[stock])
            self.plans = json.loads((data.preprocessed / f"{self.plans_name}.json").read_text())
        else:
            trainer, self.changes = VARIANTS.get(name, (name, {}))
            self.plans = data.plan(trainer, f"-gpu_memory_target {memory_gb:g} --epochs {EPOCHS}")
        self.configuration = self.plans["configurations"]["3d_fullres"]

    def train(self, key: str, seed: int, epochs: int, iterations: int, changes: dict) -> Path:
        """Stock nnU-Net has no seed: another one is another run."""
        if not self.is_stock:
            changes = (
                {"seed": seed, "epochs": epochs, "iterations_per_epoch": iterations, "val_iterations": 2}
                | self.changes
                | changes
            )
            return self.data.train(self.plans, key, changes, self.cases, suffix="_timed")
        self.data.pipeline.environment |= {
            "OAR_BENCHMARK_EPOCHS": str(epochs),
            "OAR_BENCHMARK_ITERATIONS": str(iterations),
        }
        self.data.split(self.cases)
        # nnU-Net names the model's folder by what the plans call themselves
        (self.data.preprocessed / f"{key}.json").write_text(json.dumps(self.plans | {"plans_name": key}))
        return self.data.train_by_plans("nnUNetTrainer_timed", key)

    def seconds_per_iteration(self) -> float:
        # of large patches, whose steps take long, one that is not timed and two that are
        epochs, changes = 1, {}
        iterations = max(3, min(PROBE_ITERATIONS, int(PROBE_VOXELS / max(1, self.voxels_per_update))))
        phases = None if self.is_stock else self.configuration[SECTION].get("phases")
        if phases:
            # some of each, as they share the training, which takes more to warm up; an untrained coarse branch would find organs
            # everywhere
            epochs, iterations = EPOCHS, PROBE_ITERATIONS // 2
            changes = {"phases": [{key: value for key, value in phase.items() if key != "boxes"} for phase in phases]}
        times = times_of(self.train(f"probe-{self.name}", 1, epochs, iterations, changes))
        return (times["seconds in steps"] + times["seconds of waiting"]) / times["steps"]

    @property
    def voxels_per_update(self) -> int:
        """That a step sees, at the network's finest grid; of ours in the second stage alone. 0: not known."""
        if self.is_stock:
            return int(np.prod(self.configuration["patch_size"])) * self.configuration["batch_size"]
        section = self.configuration[SECTION]
        # slabs of five slices; organs of a heat-map cascade have grids of their own, which are not counted
        shape = section.get("fine_shape") or section.get("crop_shape") or (5, *section.get("slice_shape", (0, 0)))
        return int(np.prod(shape)) * section["batch_size"]

    def predictors(self, model: Path, images: Path, output: Path, mirroring: bool) -> dict[str, str]:
        """Name -> command."""
        stock = stock_prediction(model, images, output / "stock")
        if self.is_stock:
            plain = f"{stock_prediction(model, images, output / 'plain')} --disable_tta"
            return {"stock": stock, "plain": plain} if mirroring else {"plain": plain}
        ours = f"nnunet_oar predict -i {images} -o {output}/ours -m {model} -f 0 -device {best_device()} --disable_progress_bar"
        return {"stock": stock, "ours": ours}


def times_of(model: Path) -> dict[str, float]:
    """What the timed trainer logged."""
    log = max((model / "fold_0").glob("training_log_*.txt")).read_text()
    line = re.search(r"timed: (\d+) steps, ([\d.]+) s in steps, ([\d.]+) s waited for data, ([\d.]+) GB", log)
    names = ("steps", "seconds in steps", "seconds of waiting", "GPU GB")
    return dict(zip(names, map(float, line.groups()), strict=True))


def seconds_per_iteration(data: Data, names: Sequence[str], memory_gb: float) -> dict[str, float]:
    """Name -> seconds, kept; a variant differs in what it learns and not in what it costs, as do other cases."""
    file = data.preprocessed / f"seconds-per-iteration-{memory_gb:g}GB.json"
    seconds = load_results(file)
    trainers = {name: VARIANTS.get(name, (name,))[0].removesuffix(COMPLETE) for name in names}
    methods = [
        Method(data, trainer, memory_gb) for trainer in dict.fromkeys(trainers.values()) if trainer not in seconds
    ]
    for method in methods * PROBES:
        seconds[method.name] = min(method.seconds_per_iteration(), seconds.get(method.name, np.inf))
    save_results(file, seconds)
    return {name: seconds[trainer] for name, trainer in trainers.items()}


def run(data: Data, name: str, seed: int, minutes: float, memory_gb: float, seconds: float, mirroring: bool) -> dict:
    """One method: training of as many iterations as the minutes hold, predictions, scores. seconds: an iteration's; mirroring:
    whether stock nnU-Net predicts with it, too."""
    # nnU-Net reads its folders and finds our trainers by variables that are set by now
    from localiser_scores import score_localiser

    method, key = Method(data, name, memory_gb), f"{name}-{seed}"
    iterations = max(1, int(minutes * 60 / EPOCHS / seconds))
    model = method.train(key, seed, EPOCHS, iterations, {})
    result = {
        "minutes": minutes,
        "memory_gb": memory_gb,
        "iterations": iterations,
        "voxels": method.voxels_per_update * iterations * EPOCHS,
        "training": times_of(model)
        | {"seconds": data.pipeline.seconds[f"{key}-train"], "GB": data.peak_gb[f"{key}-train"]},
        "predictions": {},
    }
    output = data.predictions(key)
    shutil.rmtree(output, ignore_errors=True)
    for predictor, command in method.predictors(model, data.raw / "imagesTs", output, mirroring).items():
        lines, memory = data.pipeline.timed(f"{key}-{predictor}", command)
        task = Task.of(output / predictor, data.raw / "labelsTs", data.raw / "dataset.json", {})
        result["predictions"][predictor] = {
            "seconds a CT": lines[-1][0] / len(data.held),
            "GB": memory,
            "scores": dict(evaluate(task, 2)),
            "swapped": data.swapped(output / predictor),
        }
    if not method.is_stock and name != ATTENTION:
        result["localiser"] = score_localiser(model, data.raw / "imagesTs", data.raw / "labelsTs")
    return result


def shown(data: Data, scores: dict) -> dict:
    """Without organs of which a CT shows less than arms.LEAST_ML, or nothing."""
    held = {case: dict(zip(data.annotations.organs, of, strict=True)) for case, of in data.held.items()}
    return {case: {organ: of for organ, of in organs.items() if held[case][organ]} for case, organs in scores.items()}


def print_table(data: Data, results: dict) -> None:
    print(f"\n{data.name}: {len(data.cases)} training and {len(data.held)} test cases; means of the organs' means")
    print(f"{best_device()}, {os.cpu_count()} cores, {date.today()}; fine Mvoxels: seen in patches or second stages")
    rows, per_organ = [HEADING], []
    for key, result in sorted(results.items()):
        training, updates = result["training"], EPOCHS * result["iterations"]
        seconds = training["seconds in steps"] + training["seconds of waiting"]
        of_training = [
            f"{result['minutes']:g}", str(updates), f"{result['voxels'] / 1e6:.0f}", f"{training['steps'] / seconds:.2f}",
            f"{training['seconds of waiting'] / seconds:.1%}", f"{training['seconds'] / 60:.1f}", f"{training['GB']:.1f}",
            f"{training['GPU GB']:.1f}",
        ]  # fmt: skip
        for predictor, prediction in result["predictions"].items():
            scores = shown(data, prediction["scores"])
            spreads = organ_spreads(scores, data.annotations.organs)
            means = [mean_of_organs(spreads, metric)[0] for metric in TABLE]
            accuracy = ["-" if mean is None else f"{mean:.3f}" for mean in means]
            # whoever invents an organ does so where there is none
            for what, of in (("missed", scores), ("invented", prediction["scores"])):
                accuracy.append(str(sum(counts(of, organ)[what] for organ in data.annotations.organs)))
            cost = [f"{prediction['seconds a CT']:.1f}", f"{prediction['GB']:.1f}"]
            rows.append([key, predictor, *accuracy, *of_training, *cost])
            dice = [f"{organ} {of['dice'].mean:.3f}" for organ, of in spreads.items() if of["dice"]]
            per_organ.append(f"{key} {predictor}: {'  '.join(dice)}")
            if any(prediction["swapped"].values()):
                sides = ", ".join(f"{organ} {voxels}" for organ, voxels in prediction["swapped"].items() if voxels)
                per_organ.append(f"  voxels in the partner of the other side: {sides}")
        per_organ += [f"  {line}" for line in localiser_lines(result.get("localiser", {}))]
    print(aligned(rows))
    print("\nDice per organ\n" + "\n".join(per_organ))


def localiser_lines(localiser: dict) -> list[str]:
    lines = []
    for organ, found in localiser.items():
        errors = [error for error in found.get("error_mm", []) if np.isfinite(error)]
        of = len(found.get("error_mm", []))
        centre = f", centre {np.mean(errors):.1f} mm off, found in {len(errors)} of {of}" if errors else ""
        lines.append(f"{organ}: wholly in its box in {np.mean(found['inside']):.2f} of the cases{centre}")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", type=Path, default=Path("accuracy_output"), help="folder, kept between runs")
    parser.add_argument("--data", choices=tuple(DATA), required=True)
    parser.add_argument(
        "--methods", nargs="+", metavar="NAME", help="trainers, their variants, stock nnU-Net; default: all of the data"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[12345])
    parser.add_argument("--minutes", type=float, default=5, help="time for the updates of one training")
    parser.add_argument("-gpu_memory_target", type=float, default=0.3, help="GB, for our planners")
    parser.add_argument(
        "--disable_tta", action="store_true", help="stock nnU-Net predicts only without mirroring, now and later"
    )
    parser.add_argument("--table", action="store_true", help="print the table of what is there, run nothing")
    args = parser.parse_args()
    name, make, methods = DATA[args.data]
    chosen = args.methods or list(methods)
    unknown = [method for method in chosen if method not in methods]
    if unknown:
        parser.error(f"--methods: {unknown[0]!r} is none of {', '.join(methods)}")
    pipeline = Pipeline(args.o)
    pipeline.environment[EXT_TRAINER] += f"{os.pathsep}{TIMED_TRAINERS}"
    os.environ.update(pipeline.environment)
    file = args.o / f"accuracy-{args.data}.json"
    if args.table and not file.is_file():
        parser.error(f"--table: there is no {file} yet")
    data = Data(pipeline, name, make)
    results = load_results(file)
    wanted = {} if args.table else {f"{name}-{seed}": (name, seed) for seed in args.seeds for name in chosen}
    for key, result in results.items():
        of_other = (result["minutes"], result["memory_gb"]) != (args.minutes, args.gpu_memory_target)
        if of_other and key.rpartition("-")[0] in chosen and not args.table:
            parser.error(f"{file} holds {key} with another --minutes or -gpu_memory_target; choose another -o")
    missing = {key: of for key, of in wanted.items() if key not in results}
    seconds = seconds_per_iteration(data, [name for name, _ in missing.values()], args.gpu_memory_target)
    for key, (name, seed) in missing.items():
        results[key] = run(data, name, seed, args.minutes, args.gpu_memory_target, seconds[name], not args.disable_tta)
        save_results(file, results)
    print_table(data, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
