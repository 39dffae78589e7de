"""Equation (2) of paper 003: the sum of its parts."""

import pytest
import torch
import torch.nn.functional as F

from nnunet_oar.body_regions import NO_REGION
from nnunet_oar.losses import AttentionAnatomyLoss, BatchDiceLoss, SpatiallyBalancedFocalLoss
from nnunet_oar.plan import Phase


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return {
        "logits": torch.randn(3, 4, 6, 5, requires_grad=True),
        "target": torch.randint(0, 4, (3, 1, 6, 5)),
        "annotated": torch.tensor([[True, True, False], [True, False, True], [True, True, True]]),
        "region_logits": torch.randn(3, 5, requires_grad=True),
        "region": torch.tensor([2, NO_REGION, 4]),
    }


def test_the_weighted_sum(batch):
    args = batch["logits"], batch["target"], batch["annotated"]
    region = F.cross_entropy(batch["region_logits"][[0, 2]], torch.tensor([2, 4]))
    expected = 0.5 * BatchDiceLoss()(*args) + 2 * SpatiallyBalancedFocalLoss()(*args) + 3 * region
    found = AttentionAnatomyLoss()(**batch, phase=Phase(0, 1e-3, dice=0.5, focal=2.0, region=3.0))
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_first_phase_trains_the_classification_alone(batch):
    AttentionAnatomyLoss()(**batch, phase=Phase(0, 1e-3, dice=0.0, focal=0.0, region=1.0)).backward()
    assert not batch["logits"].grad.any() and batch["region_logits"].grad[0].any()
    assert not batch["region_logits"].grad[1].any()


def test_without_any_region_it_is_still_a_loss(batch):
    batch |= {"region_logits": torch.zeros(3, 0), "region": torch.full((3,), NO_REGION)}
    loss = AttentionAnatomyLoss()(**batch, phase=Phase(0, 1e-3, dice=0.0, focal=0.0))
    loss.backward()
    assert loss.item() == 0
    loss = AttentionAnatomyLoss()(**batch, phase=Phase(0, 1e-3, focal=0.0))
    assert loss.item() == pytest.approx(BatchDiceLoss()(batch["logits"], batch["target"], batch["annotated"]).item())
