"""Spatially balanced focal loss.

Source: paper 003 (AttentionAnatomy), section 2.3.2, equation (3).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nnunet_oar.losses.recalibration import recalibrate_both

NORMALISERS = ("voxels", "classes")


class SpatiallyBalancedFocalLoss(nn.Module):
    """-1/N sum over classes c of w_c sum over the batch's voxels of class c of (1 - p(c))^2 ln p(c), w_c = 1 / voxels of class c.

    The background is a class; a class without a voxel in the batch adds 0. normaliser: what N is. "voxels": those of one
    sample, as equation (3) is printed, which makes the loss about 1e-5 of the Dice loss at 320 x 320; "classes": the classes that
    are in the batch, ours: the loss is then the mean over classes of the mean over their voxels.
    """

    def __init__(self, normaliser: str = "classes"):
        super().__init__()
        if normaliser not in NORMALISERS:
            raise ValueError(f"normaliser must be one of {', '.join(NORMALISERS)}, got {normaliser!r}")
        self.normaliser = normaliser

    def forward(self, logits: Tensor, target: Tensor, annotated: Tensor | None = None) -> Tensor:
        """The loss, a scalar of at least float32; arguments and errors as MulticlassDiceLoss.forward."""
        return self.of_log_probabilities(*recalibrate_both(logits, target, annotated))

    def of_log_probabilities(self, log_probability: Tensor, target: Tensor) -> Tensor:
        """As forward, of log-probabilities (B, K, *spatial) and a target (B, 1, *spatial) that are re-calibrated already."""
        classes = log_probability.shape[1]
        log_p = log_probability.gather(1, target.long()).flatten()
        focal = -((1 - log_p.exp()) ** 2) * log_p
        labels = target.flatten().long()
        volumes = torch.bincount(labels, minlength=classes).to(focal)
        per_class = torch.zeros_like(volumes).index_add(0, labels, focal) / volumes.clamp_min(1)
        count = target[0].numel() if self.normaliser == "voxels" else (volumes > 0).sum()
        return per_class.sum() / count
