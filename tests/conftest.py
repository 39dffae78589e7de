"""A small nnU-Net of its own for the tests that go through the front door: one phantom data set, one trained model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from nnunet_oar.datasets.phantom import write_dataset
from nnunet_oar.environment import EXT_TRAINER, FOLDERS, plugin_folder

DATASET = "Dataset055_PhantomThorax"
SPACING_MM = (8.0, 8.0, 8.0)
TRAINER = "OARCascadeTrainer"
TRAINING_CASES, TEST_CASES = 5, 2
# One epoch that is long enough for the large organs to be found: tests on orientation or padding need something to compare.
PREPARE = "-gpu_memory_target 0.06 --epochs 1 --iterations 120 --disable_progress_bar -np 2"


@dataclass(frozen=True)
class Workspace:
    """nnU-Net's folders and how to run commands in them."""

    folder: Path
    variables: dict = field(default_factory=dict)
    dataset: str = DATASET
    trainer: str = TRAINER

    @property
    def environment(self) -> dict:
        own = {name: str(self.folder / name) for name in FOLDERS}
        own |= {EXT_TRAINER: str(plugin_folder()), "nnUNet_def_n_proc": "2", "nnUNet_n_proc_DA": "2"}
        own["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return os.environ | own | self.variables

    def with_variables(self, **variables) -> Workspace:
        return replace(self, variables=self.variables | {key: str(value) for key, value in variables.items()})

    def entered(self, monkeypatch, results: Path) -> Workspace:
        """With nnU-Net's variables set for this process too, which gets results of its own."""
        for name in ("nnUNet_raw", "nnUNet_preprocessed", EXT_TRAINER):
            monkeypatch.setenv(name, self.environment[name])
        monkeypatch.setenv("nnUNet_results", str(results))
        monkeypatch.setenv("nnUNet_n_proc_DA", "0")
        return self

    def start(self, command: str) -> subprocess.Popen:
        return subprocess.Popen(
            command.split(), env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def run(self, command: str, fails: bool = False) -> str:
        """The command's output; asserts that it succeeded (or failed, as expected)."""
        result = subprocess.run(
            command.split(),
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
        )
        assert (result.returncode != 0) == fails, f"{command}\n{result.stdout[-6000:]}"
        return result.stdout

    def train(
        self, dataset: int | str | None = None, fold: int | str = 0, options: str = "", plans: str = "nnUNetOARPlans"
    ) -> str:
        dataset = dataset or self.dataset
        return self.run(
            f"nnUNetv2_train {dataset} 3d_fullres {fold} -tr {self.trainer} -p {plans} -device cpu {options}"
        )

    def predict(
        self, images: Path, output: Path, options: str = "-f 0", dataset=None, plans: str = "nnUNetOARPlans"
    ) -> str:
        return self.run(
            f"nnUNetv2_predict -d {dataset or self.dataset} -i {images} -o {output} -tr {self.trainer} -p {plans} "
            f"-c 3d_fullres -device cpu "
            f"-npp 1 -nps 1 {options}"
        )

    @property
    def raw(self) -> Path:
        return self.folder / "nnUNet_raw" / self.dataset

    @property
    def preprocessed(self) -> Path:
        return self.folder / "nnUNet_preprocessed" / self.dataset

    @property
    def model(self) -> Path:
        return self.folder / "nnUNet_results" / self.dataset / f"{self.trainer}__nnUNetOARPlans__3d_fullres"


def make_workspace(folder: Path, region: str, cases: int, test_cases: int, **names) -> Workspace:
    """Folders with a raw phantom data set."""
    workspace = Workspace(folder, **names)
    for name in FOLDERS:
        (workspace.folder / name).mkdir()
    write_dataset(workspace.raw, region, cases, test_cases, spacing_mm=SPACING_MM, disable_progress_bar=True)
    return workspace


@pytest.fixture(scope="session")
def raw_workspace(tmp_path_factory) -> Workspace:
    workspace = make_workspace(tmp_path_factory.mktemp("nnunet"), "thorax", TRAINING_CASES, TEST_CASES)
    # dataset.json may name the cases, as it did for nnU-Net v1
    description = json.loads((workspace.raw / "dataset.json").read_text())
    description["training"] = sorted(path.name for path in (workspace.raw / "labelsTr").iterdir())
    (workspace.raw / "dataset.json").write_text(json.dumps(description))
    return workspace


@pytest.fixture(scope="session")
def prepared(raw_workspace) -> Workspace:
    raw_workspace.run(f"nnunet_oar prepare -d 55 {PREPARE}")
    return raw_workspace


@pytest.fixture(scope="session")
def trained(prepared) -> Workspace:
    """Fold 0 of OARCascadeTrainer after one epoch; do not write into its model folder."""
    prepared.train()
    return prepared


@pytest.fixture(scope="session")
def predicted(trained) -> Path:
    """Labels of the test cases by the stock command."""
    folder = trained.folder / "predictions"
    log = trained.predict(trained.raw / "imagesTs", folder)
    (trained.folder / "predict.log").write_text(log)
    return folder


def trained_workspace(folder: Path, region: str, cases: tuple[int, int], options: str, **names) -> Workspace:
    """Fold 0 after one epoch; of the training and test cases, every other training case is for validation (fold 1: the others)."""
    workspace = make_workspace(folder, region, *cases, **names)
    workspace.run(
        f"nnunet_oar prepare -d {workspace.dataset[7:10]} -tr {workspace.trainer} {options} --epochs 1 --disable_progress_bar -np 2"
    )
    names = sorted(path.name.split(".")[0] for path in (workspace.raw / "labelsTr").iterdir())
    halves = names[0::2], names[1::2]
    split = [{"train": train, "val": val} for train, val in (halves, halves[::-1])]
    (workspace.preprocessed / "splits_final.json").write_text(json.dumps(split))
    workspace.train()
    return workspace


@pytest.fixture(scope="session")
def attention(tmp_path_factory) -> Workspace:
    """OARAttentionTrainer on three sources that annotate different organs, each in both folds."""
    return trained_workspace(
        tmp_path_factory.mktemp("attention"), "three-sources", (6, 3), "-gpu_memory_target 0.3 --iterations 60",
        dataset="Dataset056_PhantomThreeSources", trainer="OARAttentionTrainer",
    )  # fmt: skip


@pytest.fixture(scope="session")
def instances(tmp_path_factory) -> Workspace:
    """OARInstanceCascadeTrainer on kidneys."""
    return trained_workspace(
        tmp_path_factory.mktemp("instances"), "kidneys", (6, 2), "-gpu_memory_target 0.06 --iterations 70",
        dataset="Dataset057_PhantomKidneys", trainer="OARInstanceCascadeTrainer",
    )  # fmt: skip


@pytest.fixture(scope="session")
def heatmaps(tmp_path_factory) -> Workspace:
    """OARHeatmapCascadeTrainer on abdominal organs."""
    return trained_workspace(
        tmp_path_factory.mktemp("heatmaps"), "abdomen", (6, 2), "-gpu_memory_target 0.08 --iterations 130",
        dataset="Dataset058_PhantomAbdomen", trainer="OARHeatmapCascadeTrainer",
    )  # fmt: skip


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Workspace:
    """OARSharedEncoderTrainer on abdominal organs."""
    return trained_workspace(
        tmp_path_factory.mktemp("shared"), "abdomen", (6, 2), "-gpu_memory_target 0.15 --iterations 100",
        dataset="Dataset058_PhantomAbdomen", trainer="OARSharedEncoderTrainer",
    )  # fmt: skip
