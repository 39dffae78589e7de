"""What re-calibration and attention are worth on partly annotated data, everything else equal, through the stock commands.

    python scripts/benchmark_partial_annotation.py -o OUT --data phantoms
    OAR_REAL_DATA=FOLDER python scripts/benchmark_partial_annotation.py -o OUT --data openkbp

phantoms: synthetic CTs of three sources, each annotated with its own organs, scored on the full truth. openkbp: head-and-neck
patients of whom most lack one or two contours, scored on fully contoured ones. An arm that OUT holds already is not run again:
add seeds or arms later. The table is printed at the end and with --table alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from pipeline import Pipeline, best_device

from nnunet_oar.annotations import Annotations, organ_labels
from nnunet_oar.datasets.phantom import write_dataset
from nnunet_oar.evaluation.dice import score_folder
from nnunet_oar.files import written_whole
from nnunet_oar.plan import SECTION

CASCADE, ATTENTION = "OARCascadeTrainer", "OARAttentionTrainer"
PLANS = {CASCADE: "nnUNetOARPlans", ATTENTION: "nnUNetOARAttentionPlans"}
TEST_PATIENTS = 8
# a sliver of an organ at the end of the field of view says nothing
LEAST_ML = 1.0


@dataclass(frozen=True)
class Arm:
    """changes: of the section "oar"; complete: train on the fully annotated cases only."""

    trainer: str
    changes: dict
    complete: bool = False


ARMS = {
    "phantoms": {
        "cascade": Arm(CASCADE, {}),
        "cascade-background": Arm(CASCADE, {"recalibration": False}),
        "attention": Arm(ATTENTION, {}),
        "attention-background": Arm(ATTENTION, {"recalibration": False}),
        "no-attention": Arm(ATTENTION, {"attention": False}),
        "no-attention-background": Arm(ATTENTION, {"attention": False, "recalibration": False}),
    },
    "openkbp": {
        "a-complete": Arm(CASCADE, {}, complete=True),
        "b-background": Arm(CASCADE, {"recalibration": False}),
        "c-recalibrated": Arm(CASCADE, {}),
    },
}


class Data:
    """One data set in the pipeline's folders: raw, planned for both trainers, preprocessed once."""

    def __init__(self, pipeline: Pipeline, name: str, make: Callable[[Path], None]):
        self.pipeline, self.name, self.number = pipeline, name, int(name[7:10])
        self.raw, self.preprocessed = pipeline.raw / name, pipeline.preprocessed / name
        if not self.raw.is_dir():
            make(self.raw)
        self.dataset_json = json.loads((self.raw / "dataset.json").read_text())
        self.annotations = Annotations.from_dataset_json(self.dataset_json)
        self.cases = sorted(path.name[: -len(".nii.gz")] for path in (self.raw / "labelsTr").iterdir())

    def plan(self, trainers: set[str], budgets: dict[str, str]) -> None:
        for trainer in sorted(trainers, reverse=True):
            if (self.preprocessed / f"{PLANS[trainer]}.json").is_file():
                continue
            verb = "prepare" if trainer == CASCADE else "plan"
            self.pipeline.run(
                f"{self.name}-{verb}",
                f"nnunet_oar {verb} -d {self.number} -tr {trainer} -overwrite_plans_name {PLANS[trainer]} {budgets[trainer]} "
                f"--disable_progress_bar",
            )

    @cached_property
    def held(self) -> dict[str, np.ndarray]:
        """Test case -> bool (K - 1,): whether the CT shows enough of an organ to score it."""
        held = {}
        for path in sorted((self.raw / "labelsTs").iterdir()):
            image = sitk.ReadImage(str(path))
            millilitres = np.prod(image.GetSpacing()) / 1000
            voxels = np.bincount(sitk.GetArrayFromImage(image).ravel(), minlength=len(self.annotations.organs) + 1)
            held[path.name[: -len(".nii.gz")]] = voxels[1:] * millilitres >= LEAST_ML
        return held

    def score(self, predictions: Path) -> dict[str, dict[str, float | None]]:
        return score_folder(predictions, self.raw / "labelsTs", organ_labels(self.dataset_json), ".nii.gz")


def run_arm(data: Data, name: str, arm: Arm, seed: int) -> dict:
    """Train, predict and score one arm; everything of an earlier attempt that was cut off is removed first."""
    plans_name = f"{name}-{seed}"
    plans = json.loads((data.preprocessed / f"{PLANS[arm.trainer]}.json").read_text()) | {"plans_name": plans_name}
    configuration = plans["configurations"]["3d_fullres"]
    configuration["data_identifier"] = f"{PLANS[CASCADE]}_3d_fullres"
    configuration[SECTION] |= {"seed": seed, **arm.changes}
    (data.preprocessed / f"{plans_name}.json").write_text(json.dumps(plans))
    train = [case for case in data.cases if not arm.complete or data.annotations.annotated(case).all()]
    # all are trained on; two stand in for the validation that nnU-Net insists on
    (data.preprocessed / "splits_final.json").write_text(json.dumps([{"train": train, "val": train[:2]}]))
    model = f"-tr {arm.trainer} -p {plans_name}"
    pipeline = data.pipeline
    results, predictions = pipeline.results / data.name, pipeline.folder / "predictions" / data.name / plans_name
    shutil.rmtree(results / f"{arm.trainer}__{plans_name}__3d_fullres", ignore_errors=True)
    shutil.rmtree(predictions, ignore_errors=True)
    device = best_device()
    pipeline.run(f"{plans_name}-train", f"nnUNetv2_train {data.number} 3d_fullres 0 {model} -device {device}")
    pipeline.run(
        f"{plans_name}-predict",
        f"nnUNetv2_predict -d {data.number} -i {data.raw / 'imagesTs'} -o {predictions} {model} -c 3d_fullres -f 0 "
        f"-device {device} -npp 1 -nps 1",
    )
    return {
        "training cases": len(train),
        "section": configuration[SECTION],
        "seconds": pipeline.seconds[f"{plans_name}-train"],
        "dice": data.score(predictions),
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
        per_organ = []
        for index, organ in enumerate(data.annotations.organs):
            values = [
                of_case[organ] for case, of_case in dice.items() if data.held[case][index] and wanted(case, index)
            ]
            per_organ += [float(np.mean(values))] if values else []
        return float(np.mean(per_organ))

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
    organs = data.annotations.organs
    print(f"\n{data.name}: organs left out: {', '.join(left_out_organs(data))}")
    for key, result in sorted(results.items()):
        values = "  ".join(f"{name} {value:.3f}" for name, value in means(data, kind, result["dice"]).items())
        print(f"{key:32s} {result['training cases']:3d} cases  {result['seconds'] / 60:5.1f} min  {values}")
    print(f"\nDice per organ, mean over the test cases that show {LEAST_ML:g} ml or more of it")
    for key, result in sorted(results.items()):
        cells = []
        for index, organ in enumerate(organs):
            known = [of_case[organ] for case, of_case in result["dice"].items() if data.held[case][index]]
            cells.append(f"{organ} {np.mean(known):.2f}" if known else f"{organ} -")
        print(f"{key:32s} {'  '.join(cells)}")


def make_phantoms(folder: Path) -> None:
    write_dataset(folder, "three-sources", 24, 9, spacing_mm=(4.0, 3.0, 3.0), processes=2)


def make_openkbp(folder: Path) -> None:
    """All patients; by name the first fully contoured ones are the test patients."""
    real = os.environ.get("OAR_REAL_DATA")
    source = Path(real or ".") / "Dataset501_OpenKBP"
    if not real or not source.is_dir():
        raise ValueError(f"OAR_REAL_DATA must name the folder that holds Dataset501_OpenKBP, got {real!r}")
    description = json.loads((source / "dataset.json").read_text())
    annotations = Annotations.from_dataset_json(description)
    cases = sorted(path.name[: -len(".nii.gz")] for path in (source / "labelsTr").iterdir())
    test = [case for case in cases if annotations.annotated(case).all()][:TEST_PATIENTS]
    for part in ("Tr", "Ts"):
        for kind in ("images", "labels"):
            (folder / f"{kind}{part}").mkdir(parents=True)
    for case in cases:
        part = "Ts" if case in test else "Tr"
        shutil.copy(source / "imagesTr" / f"{case}_0000.nii.gz", folder / f"images{part}")
        shutil.copy(source / "labelsTr" / f"{case}.nii.gz", folder / f"labels{part}")
    description["numTraining"] = len(cases) - len(test)
    (folder / "dataset.json").write_text(json.dumps(description, indent=1))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", type=Path, default=Path("partial_annotation_output"), help="folder, kept between runs")
    parser.add_argument("--data", choices=tuple(ARMS), required=True)
    parser.add_argument("--arms", nargs="+", help="default: all of the data set")
    parser.add_argument("--seeds", type=int, nargs="+", default=[12345])
    parser.add_argument(
        "--cascade", default="--epochs 10 --iterations 25 -gpu_memory_target 0.25", help="options of nnunet_oar prepare"
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
    results = json.loads(file.read_text()) if file.is_file() else {}
    if not args.table:
        data.plan({arm.trainer for arm in arms.values()}, {CASCADE: args.cascade, ATTENTION: args.attention})
        for seed in args.seeds:
            for arm in chosen:
                if f"{arm}-{seed}" in results:
                    continue
                results[f"{arm}-{seed}"] = run_arm(data, arm, arms[arm], seed)
                with written_whole(file) as temporary:
                    temporary.write_text(json.dumps(results, indent=1))
    print_table(data, args.data, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
