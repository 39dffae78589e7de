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

    @property
    def environment(self) -> dict:
        own = {name: str(self.folder / name) for name in FOLDERS}
        own |= {EXT_TRAINER: str(plugin_folder()), "nnUNet_def_n_proc": "2", "nnUNet_n_proc_DA": "2"}
        own["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return os.environ | own | self.variables

    def with_variables(self, **variables) -> Workspace:
        return replace(self, variables=self.variables | {key: str(value) for key, value in variables.items()})

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
        self, dataset: int | str = 55, fold: int | str = 0, options: str = "", plans: str = "nnUNetOARPlans"
    ) -> str:
        return self.run(f"nnUNetv2_train {dataset} 3d_fullres {fold} -tr {TRAINER} -p {plans} -device cpu {options}")

    def predict(
        self, images: Path, output: Path, options: str = "-f 0", dataset=55, plans: str = "nnUNetOARPlans"
    ) -> str:
        return self.run(
            f"nnUNetv2_predict -d {dataset} -i {images} -o {output} -tr {TRAINER} -p {plans} -c 3d_fullres -device cpu "
            f"-npp 1 -nps 1 {options}"
        )

    @property
    def raw(self) -> Path:
        return self.folder / "nnUNet_raw" / DATASET

    @property
    def preprocessed(self) -> Path:
        return self.folder / "nnUNet_preprocessed" / DATASET

    @property
    def model(self) -> Path:
        return self.folder / "nnUNet_results" / DATASET / f"{TRAINER}__nnUNetOARPlans__3d_fullres"


@pytest.fixture(scope="session")
def raw_workspace(tmp_path_factory) -> Workspace:
    """Folders with a raw phantom data set."""
    workspace = Workspace(tmp_path_factory.mktemp("nnunet"))
    for name in FOLDERS:
        (workspace.folder / name).mkdir()
    write_dataset(workspace.raw, "thorax", TRAINING_CASES, TEST_CASES, spacing_mm=SPACING_MM, disable_progress_bar=True)
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
