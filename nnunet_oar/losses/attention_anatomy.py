"""The hybrid loss of AttentionAnatomy: paper 003, section 2.3, equation (2)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_oar.body_regions import NO_REGION
from nnunet_oar.losses.dice import BatchDiceLoss
from nnunet_oar.losses.focal import SpatiallyBalancedFocalLoss
from nnunet_oar.losses.recalibration import recalibrate_both
from nnunet_oar.plan import Phase


class AttentionAnatomyLoss(nn.Module):
    """alpha * batch Dice + beta * spatially balanced focal + gamma * cross-entropy of the region: `dice`, `focal` and `region` of
    the phase that the training is in."""

    def __init__(self):
        super().__init__()
        self.dice, self.focal = BatchDiceLoss(), SpatiallyBalancedFocalLoss()

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        annotated: Tensor | None,
        region_logits: Tensor,
        region: Tensor,
        phase: Phase,
    ) -> Tensor:
        """The loss, a scalar of at least float32.

        logits (B, K, H, W), target (B, 1, H, W), annotated bool (B, K - 1) or None: as MulticlassDiceLoss.forward;
        region_logits (B, R); region (B,) integers in [0, R), or NO_REGION, which adds nothing.
        """
        log_probability, target = recalibrate_both(logits, target, annotated)
        # a scalar with a gradient, whatever is left out
        loss = 0 * log_probability[:1, 0].mean()
        if phase.dice:
            loss = loss + phase.dice * self.dice.of_probabilities(log_probability.exp(), target, annotated)
        if phase.focal:
            loss = loss + phase.focal * self.focal.of_log_probabilities(log_probability, target)
        known = region != NO_REGION
        if phase.region and bool(known.any()):
            loss = loss + phase.region * F.cross_entropy(region_logits[known].float(), region[known].long())
        return loss
