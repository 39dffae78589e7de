"""Trainings that are broken off and continued equal those that are not, for every trainer that keeps numbers of its own."""

import json

import pytest
import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunet_oar.plan import SECTION


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("kind", ["instances", "heatmaps", "shared"])
def test_two_epochs_are_one_and_one(request, kind, monkeypatch, tmp_path):
    workspace = request.getfixturevalue(kind).entered(monkeypatch, tmp_path)
    plans = json.loads((workspace.preprocessed / "nnUNetOARPlans.json").read_text()) | {"continue_training": False}
    plans["configurations"]["3d_fullres"][SECTION] |= {"epochs": 2, "iterations_per_epoch": 3, "val_iterations": 2}
    if kind == "shared":  # broken off where the decoders begin to be trained
        phases = [{"start": 0, "fine": False}, {"start": 1, "boxes": "coarse"}]
        plans["configurations"]["3d_fullres"][SECTION] |= {"phases": phases}
    dataset_json = json.loads((workspace.preprocessed / "dataset.json").read_text())
    trainer_class = recursive_find_trainer_class_by_name(workspace.trainer)

    def trainer(results):
        monkeypatch.setenv("nnUNet_results", str(tmp_path / results))
        return trainer_class(json.loads(json.dumps(plans)), "3d_fullres", 0, dataset_json, torch.device("cpu"))

    whole = trainer("whole")
    whole.initialize()
    whole.run_training()

    first = trainer("broken")
    end = first.on_epoch_end

    def broken_off():
        end()
        raise Interrupted

    first.on_epoch_end = broken_off
    first.initialize()
    with pytest.raises(Interrupted):
        first.run_training()
    second = trainer("broken")
    second.initialize()
    second.load_checkpoint(f"{second.output_folder}/checkpoint_latest.pth")
    assert second.current_epoch == 1
    second.run_training()
    a, b = whole.network.state_dict(), second.network.state_dict()
    assert all(torch.equal(a[key].nan_to_num(-1), b[key].nan_to_num(-1)) for key in a)
