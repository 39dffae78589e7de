"""Dice loss plus cross-entropy, the sum that nnU-Net trains with."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_oar.losses.dice import MulticlassDiceLoss
from nnunet_oar.losses.recalibration import recalibrate_both


class DiceCrossEntropyLoss(nn.Module):
    """MulticlassDiceLoss + `cross_entropy_weight` * cross-entropy, both with re-calibration (see MulticlassDiceLoss.forward).

    weights, include_background: of the Dice loss alone. A cross-entropy weight of 0 is the papers' loss (000, section 2.1.3; with
    weights 002, sections 2.1 and 2.2). Cross-entropy has a gradient where an organ's probability is near 0 everywhere, which Dice
    alone has hardly: small organs appear earlier.
    """

    def __init__(
        self, cross_entropy_weight: float, weights: Sequence[float] | None = None, include_background: bool = False
    ):
        super().__init__()
        self.dice = MulticlassDiceLoss(weights, include_background)
        self.cross_entropy_weight = cross_entropy_weight

    def forward(self, logits: Tensor, target: Tensor, annotated: Tensor | None = None) -> Tensor:
        log_probability, target = recalibrate_both(logits, target, annotated)
        loss = self.dice.of_probabilities(log_probability.exp(), target, annotated)
        if self.cross_entropy_weight == 0:
            return loss
        return loss + self.cross_entropy_weight * F.nll_loss(log_probability, target[:, 0].long())
