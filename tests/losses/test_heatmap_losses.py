"""The losses of paper 001 against loops in float64."""

import math

import numpy as np
import pytest
import torch

from nnunet_oar.losses import DiceCELoss, HeatmapL2Loss


def test_l2_is_the_mean_over_voxels_and_annotated_organs():
    rng = np.random.default_rng(0)
    heat, target = rng.normal(size=(2, 3, 4, 5, 2)), rng.normal(size=(2, 3, 4, 5, 2))
    annotated = np.array([[True, False, True], [False, True, True]])
    pairs = [(b, c) for b in range(2) for c in range(3)]
    every = np.mean([(heat[p] - target[p]) ** 2 for p in pairs])
    some = np.mean([(heat[p] - target[p]) ** 2 for p in pairs if annotated[p]])
    weighted = np.mean([(1 + 4 * target[p]) * (heat[p] - target[p]) ** 2 for p in pairs])
    loss = HeatmapL2Loss()
    a, b = torch.tensor(heat, dtype=torch.float32), torch.tensor(target, dtype=torch.float32)
    assert float(loss(a, b)) == pytest.approx(every, rel=1e-5)
    assert float(loss(a, b, torch.tensor(annotated))) == pytest.approx(some, rel=1e-5)
    assert float(HeatmapL2Loss(4.0)(a, b)) == pytest.approx(weighted, rel=1e-5)


def test_l2_ignores_what_is_not_annotated_and_has_a_gradient_without_any():
    heat = torch.randn(1, 2, 3, 3, 3, requires_grad=True)
    HeatmapL2Loss()(heat, torch.zeros(1, 2, 3, 3, 3), torch.tensor([[True, False]])).backward()
    assert heat.grad[0, 0].any() and not heat.grad[0, 1].any()
    heat.grad = None
    loss = HeatmapL2Loss()(heat, torch.zeros(1, 2, 3, 3, 3), torch.tensor([[False, False]]))
    loss.backward()
    assert loss.item() == 0 and not heat.grad.any()


def dice_ce(logits: np.ndarray, target: np.ndarray) -> float:
    ce = overlap = squares = 0.0
    for x, g in zip(logits.ravel(), target.ravel(), strict=True):
        p = 1 / (1 + math.exp(-x))
        ce -= g * math.log(p) + (1 - g) * math.log(1 - p)
        overlap, squares = overlap + p * g, squares + p * p + g * g
    return ce / logits.size + 1 - (2 * overlap + 1) / (squares + 1)


def test_dice_ce_against_a_loop_over_voxels():
    rng = np.random.default_rng(1)
    logits, target = rng.normal(size=(2, 1, 3, 4, 5)), rng.integers(0, 2, (2, 1, 3, 4, 5))
    expected = [dice_ce(logits[b], target[b]) for b in range(2)]
    loss, x, g = DiceCELoss(), torch.tensor(logits), torch.tensor(target)
    assert float(loss(x, g)) == pytest.approx(np.mean(expected), rel=1e-5)
    assert float(loss(x, g, torch.tensor([[False], [True]]))) == pytest.approx(expected[1], rel=1e-5)


def test_dice_ce_with_extreme_logits_an_absent_organ_and_nothing_annotated():
    x = torch.full((1, 1, 4, 4, 4), -80.0, requires_grad=True)
    assert DiceCELoss()(x, torch.zeros_like(x)).item() == pytest.approx(0, abs=1e-6)
    wrong = DiceCELoss()(x, torch.ones_like(x))
    wrong.backward()
    assert wrong.item() == pytest.approx(81, rel=0.01) and x.grad.isfinite().all() and x.grad.any()
    x.grad = None
    nothing = DiceCELoss()(x, torch.ones_like(x), torch.tensor([[False]]))
    nothing.backward()
    assert nothing.item() == 0 and not x.grad.any()


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="heat and target must be"):
        HeatmapL2Loss()(torch.zeros(1, 2, 3, 3, 3), torch.zeros(1, 3, 3, 3, 3))
    with pytest.raises(ValueError, match="logits and target must be"):
        DiceCELoss()(torch.zeros(1, 2, 3, 3, 3), torch.zeros(1, 2, 3, 3, 3))
