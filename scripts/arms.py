"""What the benchmarks share: a data set in nnU-Net's folders, and one arm of a comparison trained, predicted and scored on it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cached_property
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from pipeline import Pipeline, best_device, stock_prediction

from nnunet_oar.annotations import Annotations, organ_labels
from nnunet_oar.evaluation.dice import score_folder
from nnunet_oar.files import written_whole
from nnunet_oar.plan import SECTION
from nnunet_oar.sides import side_pairs

# one preprocessed copy serves all plans: they differ in the section "oar" alone
PREPARED = "nnUNetOARPlans"
OUR_PLANNER = "OARCascadeTrainer"
TEST_PATIENTS = 8
# a sliver of an organ at the end of the field of view says nothing
LEAST_ML = 1.0


class Data:
    """One data set in the pipeline's folders: raw with test cases in imagesTs and labelsTs, preprocessed once."""

    def __init__(self, pipeline: Pipeline, name: str, make: Callable[[Path], None]):
        self.pipeline, self.name, self.number = pipeline, name, int(name[7:10])
        self.raw, self.preprocessed = pipeline.raw / name, pipeline.preprocessed / name
        self.peak_gb: dict[str, float] = {}
        if not self.raw.is_dir():
            # an attempt that was cut off is not taken for the data set
            partial = self.raw.with_name(f".partial-{name}")
            shutil.rmtree(partial, ignore_errors=True)
            make(partial)
            partial.rename(self.raw)
        self.dataset_json = json.loads((self.raw / "dataset.json").read_text())
        self.annotations = Annotations.from_dataset_json(self.dataset_json)
        self.cases = sorted(path.name[: -len(".nii.gz")] for path in (self.raw / "labelsTr").iterdir())

    def plan(self, trainer: str, options: str) -> dict:
        """The plans of a trainer for these options of nnunet_oar plan, made once."""
        plans_name = f"{trainer}-{hashlib.sha256(options.encode()).hexdigest()[:8]}"
        if not (self.preprocessed / f"{PREPARED}.json").is_file():
            self.pipeline.run(f"{self.name}-prepare", f"nnunet_oar prepare -d {self.number} --disable_progress_bar")
        file = self.preprocessed / f"{plans_name}.json"
        if not file.is_file():
            self.pipeline.run(
                f"{self.name}-plan-{plans_name}",
                f"nnunet_oar plan -d {self.number} -tr {trainer} -overwrite_plans_name {plans_name} {options} "
                f"--disable_progress_bar",
            )
        plans = json.loads(file.read_text())
        prepared = json.loads((self.preprocessed / f"{PREPARED}.json").read_text())
        spacings = [of["configurations"]["3d_fullres"]["spacing"] for of in (plans, prepared)]
        if not np.allclose(*spacings):
            raise ValueError(f"{file} has a spacing of its own, {spacings[0]}; the data is prepared at {spacings[1]}")
        plans["configurations"]["3d_fullres"]["data_identifier"] = f"{PREPARED}_3d_fullres"
        return plans

    def train(self, plans: dict, name: str, changes: dict, cases: Sequence[str], suffix: str = "") -> Path:
        """Train fold 0 from scratch with a changed section under the name; returns the model folder.

        suffix: of the trainer's class, where not the trainer itself but a variant of it is to train.
        """
        plans = deepcopy(plans) | {"plans_name": name}
        configuration = plans["configurations"]["3d_fullres"]
        configuration[SECTION] |= changes
        (self.preprocessed / f"{name}.json").write_text(json.dumps(plans))
        self.split(cases)
        return self.train_by_plans(f"{configuration[SECTION]['trainer']}{suffix}", name)

    def split(self, cases: Sequence[str]) -> None:
        """All are trained on; two stand in for the validation that nnU-Net insists on."""
        split = [{"train": list(cases), "val": list(cases[:2])}]
        (self.preprocessed / "splits_final.json").write_text(json.dumps(split))

    def stock_plan(self, planner: str, memory_gb: float | None) -> str:
        """Name of the plans of a planner of nnU-Net's, for its own memory target or another one, with data to train on."""
        memory = "" if memory_gb is None else f" -gpu_memory_target {memory_gb:g}"
        name = f"stock-{planner}{'' if memory_gb is None else f'-{memory_gb:g}GB'}"
        file = self.preprocessed / f"{name}.json"
        if not file.is_file():
            self.plan(OUR_PLANNER, "")  # for the fingerprint
            self.pipeline.run(
                f"{self.name}-{name}",
                f"nnUNetv2_plan_experiment -d {self.number} -pl {planner}{memory} -overwrite_plans_name {name}",
            )
        plans = json.loads(file.read_text())
        configuration = plans["configurations"]["3d_fullres"]
        # the same data serves all plans of one spacing
        shared = "stock_" + "_".join(f"{spacing:.4f}" for spacing in configuration["spacing"])
        if configuration["data_identifier"] != shared:
            configuration["data_identifier"] = shared
            file.write_text(json.dumps(plans, indent=1))
        done = self.preprocessed / f"{shared}.done"
        if not done.is_file():
            self.pipeline.run(
                f"{self.name}-{name}-preprocess",
                f"nnUNetv2_preprocess -d {self.number} -plans_name {name} -c 3d_fullres -np 2",
            )
            done.touch()
        return name

    def train_by_plans(self, trainer: str, name: str) -> Path:
        """Train fold 0 from scratch by plans that are there, on the split that is; returns the model folder."""
        model = self.pipeline.results / self.name / f"{trainer}__{name}__3d_fullres"
        shutil.rmtree(model, ignore_errors=True)
        command = f"nnUNetv2_train {self.number} 3d_fullres 0 -tr {trainer} -p {name} -device {best_device()}"
        _, self.peak_gb[f"{name}-train"] = self.pipeline.timed(f"{name}-train", command)
        return model

    def predict(self, model: Path) -> dict[str, dict[str, float | None]]:
        """Test case -> organ -> Dice, predicted with the stock command."""
        name = model.name.split("__")[1]
        folder = self.predictions(name)
        shutil.rmtree(folder, ignore_errors=True)
        self.pipeline.run(f"{name}-predict", stock_prediction(model, self.raw / "imagesTs", folder))
        return score_folder(folder, self.raw / "labelsTs", organ_labels(self.dataset_json), ".nii.gz")

    def predictions(self, name: str) -> Path:
        return self.pipeline.folder / "predictions" / self.name / name

    def swapped(self, folder: Path) -> dict[str, int]:
        """Organ with a side -> voxels of it in the predictions in `folder` that lie in its partner of the other side."""
        counts: dict[str, int] = {}
        for path in sorted((self.raw / "labelsTs").iterdir()):
            truth, found = (sitk.GetArrayFromImage(sitk.ReadImage(str(file))) for file in (path, folder / path.name))
            for pair in side_pairs(organ_labels(self.dataset_json))[0]:
                for label, partner in (pair, pair[::-1]):
                    organ = self.annotations.organs[label - 1]
                    counts[organ] = counts.get(organ, 0) + int(((found == label) & (truth == partner)).sum())
        return counts

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

    def dice_per_organ(
        self, dice: dict[str, dict[str, float | None]], wanted=lambda case, index: True
    ) -> dict[str, float]:
        """Organ -> mean over the test cases that show it and are `wanted`; organs without such a case are left out."""
        means = {}
        for index, organ in enumerate(self.annotations.organs):
            values = [
                of_case[organ] or 0.0
                for case, of_case in dice.items()
                if self.held[case][index] and wanted(case, index)
            ]
            if values:
                means[organ] = float(np.mean(values))
        return means


def load_results(file: Path) -> dict:
    return json.loads(file.read_text()) if file.is_file() else {}


def save_results(file: Path, results: dict) -> None:
    with written_whole(file) as temporary:
        temporary.write_text(json.dumps(results, indent=1))


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
