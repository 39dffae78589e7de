"""Scores over annotated organs alone: counted by hand, and nnU-Net's summary.json averaged again."""

import json
import math

import numpy as np
import pytest
import torch
from nnunet_oar.trainers.validation import count_voxels, dice_of_counts, rescore_summary
from nnunetv2.evaluation.evaluate_predictions import save_summary_json

from nnunet_oar.annotations import Annotations, Source


def test_counts_by_hand():
    target = torch.tensor([[0, 1, 1, 2, 3, 4, 0, 1]])
    guess = torch.tensor([[0, 1, 2, 2, 3, 0, 4, 1]])
    found = count_voxels(guess, target, torch.ones(1, 4, dtype=torch.bool))
    assert found["tp_hard"].tolist() == [2, 1, 1, 0]
    assert found["fp_hard"].tolist() == [0, 1, 0, 1]
    assert found["fn_hard"].tolist() == [1, 0, 0, 1]
    assert found["samples"].tolist() == [1, 1, 1, 1]


def test_counts_against_a_loop_over_samples_and_organs():
    generator = torch.Generator().manual_seed(0)
    target, guess = (torch.randint(0, 4, (5, 6, 7, 3), generator=generator) for _ in range(2))
    annotated = torch.rand(5, 3, generator=generator) < 0.5
    found = count_voxels(guess, target.short(), annotated)
    for organ in range(1, 4):
        samples = [b for b in range(5) if annotated[b, organ - 1]]
        a, b = guess[samples] == organ, target[samples] == organ
        for name, mask in (("tp_hard", a & b), ("fp_hard", a & ~b), ("fn_hard", ~a & b)):
            assert found[name][organ - 1] == mask.sum()
        assert found["samples"][organ - 1] == len(samples)


def test_nothing_to_score_is_nan():
    output = {name: np.zeros(2, int) for name in ("tp_hard", "fp_hard", "fn_hard")}
    assert np.isnan(dice_of_counts([output])).all()
    assert dice_of_counts([output, output | {"tp_hard": np.array([3, 0]), "fn_hard": np.array([2, 0])}])[0] == 6 / 8


@pytest.fixture
def summary(tmp_path):
    """Two cases and two organs, as nnU-Net writes them: case a annotates both, case b only the first."""

    def metrics(dice):
        return {"Dice": dice, "IoU": dice / 2, "TP": 5, "FP": 3}

    cases = [
        {
            "prediction_file": "/x/a.nii.gz",
            "reference_file": "/r/a.nii.gz",
            "metrics": {1: metrics(0.8), 2: metrics(0.6)},
        },
        {
            "prediction_file": "/x/b.nii.gz",
            "reference_file": "/r/b.nii.gz",
            "metrics": {1: metrics(0.4), 2: metrics(0.0)},
        },
    ]
    mean = {1: metrics(0.6), 2: metrics(0.3)}
    save_summary_json(
        {"metric_per_case": cases, "mean": mean, "foreground_mean": metrics(0.45)}, str(tmp_path / "summary.json")
    )
    return tmp_path / "summary.json"


def test_an_organ_is_averaged_over_the_cases_that_annotate_it(summary):
    sources = (Source("both", ("a",), frozenset({"one", "two"})), Source("first", ("b",), frozenset({"one"})))
    dice, counts = rescore_summary(summary, Annotations(("one", "two"), sources), ".nii.gz")
    assert dice == pytest.approx({1: 0.6, 2: 0.6, "foreground": 0.6}) and counts == {"one": 2, "two": 1}
    written = json.loads(summary.read_text())
    assert written["mean"]["2"]["Dice"] == pytest.approx(0.6) and written["mean"]["1"]["Dice"] == pytest.approx(0.6)
    assert written["foreground_mean"]["IoU"] == pytest.approx(0.3)
    assert math.isnan(written["metric_per_case"][1]["metrics"]["2"]["Dice"])
    assert written["metric_per_case"][1]["metrics"]["1"]["Dice"] == 0.4
    assert list(summary.parent.iterdir()) == [summary]


def test_an_organ_that_no_case_annotates_does_not_spoil_the_mean(summary):
    sources = (Source("first", ("*",), frozenset({"one"})),)
    dice, counts = rescore_summary(summary, Annotations(("one", "two"), sources), ".nii.gz")
    assert dice["foreground"] == pytest.approx(0.6) and math.isnan(dice[2]) and counts == {"one": 2, "two": 0}
