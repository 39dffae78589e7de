"""Batch Dice against slow loops in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_oar.losses import BatchDiceLoss


def reference(logits, target, annotated=None):
    """Sums over samples and voxels, organ by organ."""
    batch, classes = logits.shape[:2]
    annotated = np.ones((batch, classes - 1), bool) if annotated is None else annotated
    terms, invented = [], []
    for organ in range(1, classes):
        if not annotated[:, organ - 1].any():
            continue
        overlap = size = found = 0.0
        for b in range(batch):
            if not annotated[b, organ - 1]:
                continue
            e = np.exp(logits[b].astype(np.float64) - logits[b].max(0))
            p, g = e[organ] / e.sum(0), target[b, 0] == organ
            overlap, size, found = overlap + (p * g).sum(), size + p.sum() + g.sum(), found + p.mean() / batch
        if (target[annotated[:, organ - 1]] == organ).any():
            terms.append((2 * overlap + 1) / (size + 1))
        else:
            invented.append(found)
    return (1 - np.mean(terms) if terms else 0.0) + (np.mean(invented) if invented else 0.0)


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from([(3, 4, 6, 5), (1, 2, 7, 3), (4, 3, 2, 3, 4)]),
    partial=st.booleans(),
)
def test_against_loops(seed, shape, partial):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, shape)
    target = rng.integers(0, shape[1], (shape[0], 1, *shape[2:]))
    annotated = rng.random((shape[0], shape[1] - 1)) < 0.6 if partial else None
    mask = None if annotated is None else torch.from_numpy(annotated)
    found = BatchDiceLoss()(torch.from_numpy(logits), torch.from_numpy(target), mask)
    assert found.item() == pytest.approx(reference(logits, target, annotated), abs=1e-10)


def test_an_organ_in_one_sample_of_many_counts_once():
    """What sets it apart from a mean over samples: three samples without the organ do not dilute the fourth."""
    logits = torch.zeros(4, 2, 1, 4)
    logits[:, 0] = 40
    logits[3, :, 0, :2] = torch.tensor([[0.0], [40.0]])
    target = torch.zeros(4, 1, 1, 4, dtype=torch.long)
    target[3, 0, 0, :] = 1
    assert BatchDiceLoss()(logits, target).item() == pytest.approx(1 - (2 * 2 + 1) / (2 + 4 + 1), abs=1e-6)


def test_batches_without_an_organ_contradict_it_and_do_not_extinguish_it():
    """In proportion to what there is of it."""
    logits = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 2, (2, 1, 4, 4))
    target[0, 0, 0, 0] = 1
    BatchDiceLoss()(logits, target).backward()
    again = logits.detach().requires_grad_()
    p, g = again.softmax(1), target[:, 0]
    (1 - (2 * (p[:, 1] * g).sum() + 1) / (p[:, 1].sum() + g.sum() + 1) + p[:, 2].mean()).backward()
    torch.testing.assert_close(logits.grad, again.grad)
    # an organ that is likely everywhere falls, whatever is there of the others
    wrong = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
    wrong[:, 2] = 1.0
    wrong.requires_grad_()
    BatchDiceLoss()(wrong, torch.ones(1, 1, 8, 8, dtype=torch.long)).backward()
    assert (wrong.grad[:, 2] > 1e-3).all()


def test_nothing_annotated_is_zero_with_a_gradient():
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = BatchDiceLoss()(logits, torch.zeros(2, 1, 4, 4, dtype=torch.long), torch.zeros(2, 2, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_an_organ_that_a_sample_does_not_annotate_is_pushed_like_its_background():
    """Equation (4) adds them up: their logits' gradients are in proportion to their probabilities."""
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    annotated = torch.tensor([[True, True], [True, False]])
    BatchDiceLoss()(logits, torch.randint(0, 3, (2, 1, 5, 5)), annotated).backward()
    p, gradient = logits.detach().softmax(1), logits.grad
    torch.testing.assert_close(gradient[1, 2] * p[1, 0], gradient[1, 0] * p[1, 2])
    assert not torch.allclose(gradient[0, 2] * p[0, 0], gradient[0, 0] * p[0, 2]) and gradient[1, 2].abs().max() > 0
