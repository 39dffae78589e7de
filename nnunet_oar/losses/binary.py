"""Loss of a network for one organ: paper 001 (VISCERAL), equation (2)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_oar.losses.dice import SMOOTH_VOX, mean_of


class DiceCELoss(nn.Module):
    """Binary cross-entropy + 1 - Dice with squared denominator, of the sigmoid, mean over samples.

    The cross-entropy has both terms and is the mean over voxels; printed is the sum of the foreground's term. One voxel is added
    above and below the fraction, so that an organ that is absent and not found costs nothing.
    """

    def forward(self, logits: Tensor, target: Tensor, annotated: Tensor | None = None) -> Tensor:
        """A scalar of at least float32; 0 with a gradient where nothing is annotated.

        logits: (B, 1, *spatial); target: the same shape, 0 or 1; annotated: bool (B, 1), None for all. Raises ValueError for shapes
        that do not fit.
        """
        if logits.shape != target.shape or logits.shape[1] != 1:
            raise ValueError(
                f"logits and target must be (B, 1, *spatial), got {tuple(logits.shape)} and {tuple(target.shape)}"
            )
        logits, target = logits.float().flatten(1), target.float().flatten(1)
        cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1)
        probability = logits.sigmoid()
        overlap = (probability * target).sum(1)
        size = probability.square().sum(1) + target.square().sum(1)
        loss = cross_entropy + 1 - (2 * overlap + SMOOTH_VOX) / (size + SMOOTH_VOX)
        return mean_of(loss, None if annotated is None else annotated[:, 0])
