"""The loss of paper 004 against a loop in float64."""

import math

import numpy as np
import pytest
import torch

from nnunet_oar.losses import HardVoxelDiceLoss


def reference(p: np.ndarray, g: np.ndarray, hard: float) -> tuple[float, float]:
    """Dice loss and cross-entropy."""
    overlap = size = ce = 0.0
    for a, b in zip(p.ravel(), g.ravel(), strict=True):
        w = 1 + hard * abs(a - b)
        overlap, size = overlap + w * a * b, size + w * (a + b)
        ce -= w * (b * math.log(a) + (1 - b) * math.log(1 - a))
    return 1 - 2 * overlap / size, ce / p.size


@pytest.mark.parametrize(("hard", "cross_entropy"), [(0, 0), (1, 0), (2.5, 1), (0, 0.5)])
def test_against_a_loop_over_voxels(hard, cross_entropy):
    rng = np.random.default_rng(0)
    p, g = rng.uniform(0.01, 0.99, (2, 3, 4, 5, 2)), rng.integers(0, 2, (2, 3, 4, 5, 2))
    g[0, 2] = 0
    annotated = np.array([[True, False, True], [False, False, True]])
    each = [[reference(p[b, c], g[b, c], hard) for c in range(3)] for b in range(2)]
    dice, ce = np.moveaxis(each, 2, 0)
    there = np.array([[True, True, False], [True, True, True]])
    # of what is absent: the mean of w p, where there is no cross-entropy
    invented = 0 if cross_entropy else ((1 + hard * p[0, 2]) * p[0, 2]).mean()
    loss = HardVoxelDiceLoss(hard, cross_entropy)
    wanted = dice[there].mean() + cross_entropy * ce.mean() + invented
    assert float(loss(torch.tensor(p), torch.tensor(g))) == pytest.approx(wanted, rel=1e-9)
    assert float(loss(torch.tensor(p).float(), torch.tensor(g))) == pytest.approx(wanted, rel=1e-4)
    wanted = dice[annotated & there].mean() + cross_entropy * ce[annotated].mean() + invented
    assert float(loss(torch.tensor(p), torch.tensor(g), torch.tensor(annotated))) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("cross_entropy", [0.0, 1.0])
def test_samples_without_the_organ_contradict_its_map_and_do_not_extinguish_it(cross_entropy):
    """What lowers it, the cross-entropy or the mean of p, is in proportion to what is there."""
    logits = torch.linspace(-8, -2, 8**3).view(1, 1, 8, 8, 8).requires_grad_()
    HardVoxelDiceLoss(0.0, cross_entropy)(logits.sigmoid(), torch.zeros(1, 1, 8, 8, 8)).backward()
    p = logits.detach().sigmoid()
    assert torch.allclose(logits.grad, (p if cross_entropy else p * (1 - p)) / 8**3, rtol=1e-3)
    wrong = torch.full((1, 1, 8, 8, 8), 2.0, requires_grad=True)
    HardVoxelDiceLoss(1.0, cross_entropy)(wrong.sigmoid(), torch.zeros(1, 1, 8, 8, 8)).backward()
    assert (wrong.grad > 1e-4).all()


@pytest.mark.parametrize("hard", [0.0, 2.0])
def test_of_logits(hard):
    """The same, and voxels that are certain and wrong learn."""
    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64), torch.randint(0, 2, (2, 3, 4, 5, 6))
    loss, annotated = HardVoxelDiceLoss(hard, 0.7), torch.tensor([[True, False, True]] * 2)
    torch.testing.assert_close(loss.of_logits(logits, target, annotated), loss(logits.sigmoid(), target, annotated))
    certain = torch.tensor([-60.0, 60.0]).view(1, 1, 2, 1, 1).requires_grad_()
    loss.of_logits(certain, torch.tensor([1, 0]).view(1, 1, 2, 1, 1)).backward()
    gradient = certain.grad.flatten() / (1 + hard)
    assert torch.allclose(gradient, torch.tensor([-0.35, 0.35]))


def test_voxels_that_are_wrong_pull_harder_and_weights_are_constants():
    g = torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 1, 4, 1, 1)
    p = torch.tensor([0.9, 0.1, 0.1, 0.9]).view(1, 1, 4, 1, 1)
    plain, hard = (p.clone().requires_grad_() for _ in range(2))
    HardVoxelDiceLoss(0.0)(plain, g).backward()
    HardVoxelDiceLoss(3.0)(hard, g).backward()
    a, b = plain.grad.flatten(), hard.grad.flatten()
    assert (a[:2] < 0).all() and (a[2:] > 0).all() and a[0] == a[1]
    assert b[1] / b[0] > 1.5 and b[3] / b[2] > 1.5
    # w constant: the derivative of the quotient by hand
    w = 1 + 3 * (p - g).abs()
    n, d = 2 * (w * p * g).sum(), (w * (p + g)).sum()
    assert torch.allclose(hard.grad, -(2 * w * g * d - n * w) / d**2, atol=1e-6)


def test_nothing_annotated_absent_and_certain():
    p = torch.rand(1, 2, 3, 3, 3, requires_grad=True)
    loss = HardVoxelDiceLoss(1.0, 1.0)(p, torch.zeros(1, 2, 3, 3, 3), torch.zeros(1, 2, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0 and not p.grad.any()
    zero = torch.zeros(1, 1, 3, 3, 3)
    assert HardVoxelDiceLoss()(zero, zero).item() == 0
    extreme = torch.tensor([0.0, 1.0]).view(1, 1, 2, 1, 1).requires_grad_()
    loss = HardVoxelDiceLoss(1.0, 1.0)(extreme, 1 - extreme.detach())
    loss.backward()
    assert loss.isfinite() and extreme.grad.isfinite().all()


def test_half_precision_is_summed_in_float32():
    p = torch.full((1, 1, 64, 64, 64), 0.5, dtype=torch.bfloat16)
    loss = HardVoxelDiceLoss(0.0)(p, torch.ones_like(p))
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(1 / 3, abs=1e-4)


def test_shapes_that_do_not_fit():
    p = torch.rand(1, 2, 3, 3, 3)
    with pytest.raises(ValueError, match="probability and target"):
        HardVoxelDiceLoss()(p, p[:, :1])
    with pytest.raises(ValueError, match="annotated"):
        HardVoxelDiceLoss()(p, p, torch.ones(1, 3, dtype=torch.bool))
