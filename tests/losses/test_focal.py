"""Spatially balanced focal loss, equation (3) of paper 003, against a loop over voxels."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_oar.losses import SpatiallyBalancedFocalLoss


def reference(logits, target, annotated, normaliser):
    batch, classes = logits.shape[:2]
    voxels, sums, volumes = target[0].size, [0.0] * classes, [0] * classes
    for b in range(batch):
        flat_logits, flat_target = logits[b].reshape(classes, -1), target[b].ravel()
        for i in range(voxels):
            e = [math.exp(value) for value in flat_logits[:, i] - flat_logits[:, i].max()]
            p, label = [value / sum(e) for value in e], int(flat_target[i])
            for organ in range(1, classes):
                if not annotated[b, organ - 1]:
                    p[0], p[organ] = p[0] + p[organ], 0.0
                    label = 0 if label == organ else label
            sums[label] += (1 - p[label]) ** 2 * math.log(p[label])
            volumes[label] += 1
    total = sum(value / volume for value, volume in zip(sums, volumes, strict=True) if volume)
    return -total / (voxels if normaliser == "voxels" else sum(volume > 0 for volume in volumes))


@pytest.mark.parametrize("normaliser", ["voxels", "classes"])
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), partial=st.booleans())
def test_against_a_loop_over_voxels(seed, normaliser, partial):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (3, 4, 5, 6))
    target = rng.integers(0, rng.integers(1, 5), (3, 1, 5, 6))
    annotated = rng.random((3, 3)) < 0.5 if partial else np.ones((3, 3), bool)
    found = SpatiallyBalancedFocalLoss(normaliser)(
        torch.from_numpy(logits), torch.from_numpy(target), torch.from_numpy(annotated) if partial else None
    )
    assert found.item() == pytest.approx(reference(logits, target, annotated, normaliser), rel=1e-9, abs=1e-12)


def test_by_hand():
    """Two pixels, one of each class, p = 1/2 everywhere: each class adds 1/4 ln 2."""
    logits, target = torch.zeros(1, 2, 1, 2), torch.tensor([[[[0, 1]]]])
    expected = 2 * 0.25 * math.log(2)
    assert SpatiallyBalancedFocalLoss("voxels")(logits, target).item() == pytest.approx(expected / 2)
    assert SpatiallyBalancedFocalLoss("classes")(logits, target).item() == pytest.approx(expected / 2)
    wide, labels = torch.zeros(1, 2, 1, 8), torch.tensor([[[[0] * 7 + [1]]]])
    assert SpatiallyBalancedFocalLoss("voxels")(wide, labels).item() == pytest.approx(expected / 8)
    assert SpatiallyBalancedFocalLoss("classes")(wide, labels).item() == pytest.approx(expected / 2)


def test_extreme_logits_stay_finite():
    logits = (torch.randint(0, 2, (2, 3, 4, 4)) * 160.0 - 80).requires_grad_()
    loss = SpatiallyBalancedFocalLoss()(logits, torch.randint(0, 3, (2, 1, 4, 4)), torch.tensor([[True, False]] * 2))
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()


def test_another_normaliser_is_refused():
    with pytest.raises(ValueError, match="normaliser must be one of voxels, classes, got 'mean'"):
        SpatiallyBalancedFocalLoss("mean")
