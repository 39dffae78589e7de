"""Loss of sigmoid outputs in which voxels that are wrong weigh more: paper 004, sections 2.2.1 and 2.2.2."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_oar.losses.dice import mean_of

# a probability of exactly 0 costs 69 and not infinitely much; a sigmoid that is nearly 0 everywhere still learns, and its gradient
# in float32 has room for the factor of float16's scaler
LEAST = 1e-30


class HardVoxelDiceLoss(nn.Module):
    """1 - 2 sum(w p g) / (sum(w p) + sum(w g)) per sample and channel, mean over those that are annotated and hold the organ.

    The paper exerts "higher weights to these error-prone voxels" without a formula. Ours: w = 1 + hard_weight * |p - g|, a constant
    for the gradient. hard_weight 0 is the plain Dice loss of section 2.2.1.

    cross_entropy_weight: of the mean binary cross-entropy, weighted by w likewise, that is added, of all that are annotated; 0 is
    the paper's loss.

    As printed, an organ that is absent has no gradient, which does no harm where each CT is seen whole and holds all organs. In
    parts of CTs something must contradict an organ that is invented: the cross-entropy or, without it, the mean of w p (over those
    that are annotated and do not hold it), which is added. A voxel added above and below the fraction, as in `soft_dice`, is not
    it: it pulls hardest on maps that are nearly 0, and parts without a small organ would extinguish its map before others can
    raise it.
    """

    def __init__(self, hard_weight: float = 1.0, cross_entropy_weight: float = 0.0):
        super().__init__()
        self.hard_weight, self.cross_entropy_weight = hard_weight, cross_entropy_weight

    def forward(self, probability: Tensor, target: Tensor, annotated: Tensor | None = None) -> Tensor:
        """A scalar of at least float32; 0 with a gradient where nothing is annotated.

        probability: (B, C, *spatial), each channel on its own; target: the same shape, 0 or 1; annotated: bool (B, C), None for
        all. Raises ValueError for shapes that do not fit.
        """
        return self._of(probability, None, target, annotated)

    def of_logits(self, logits: Tensor, target: Tensor, annotated: Tensor | None = None) -> Tensor:
        """As forward, of the sigmoid of `logits`, whose cross-entropy has a gradient also where the sigmoid rounds to 0 or 1."""
        return self._of(logits.sigmoid(), logits, target, annotated)

    def _of(self, probability: Tensor, logits: Tensor | None, target: Tensor, annotated: Tensor | None) -> Tensor:
        if probability.shape != target.shape or (annotated is not None and annotated.shape != probability.shape[:2]):
            raise ValueError(
                f"probability and target must be (B, C, *spatial) and annotated (B, C), got {tuple(probability.shape)}, "
                f"{tuple(target.shape)} and {None if annotated is None else tuple(annotated.shape)}"
            )
        probability = probability if probability.dtype.itemsize >= 4 else probability.float()
        target = target.to(probability)
        annotated = target.new_ones(target.shape[:2]) if annotated is None else annotated.to(target)
        weight = 1 + self.hard_weight * (probability.detach() - target).abs()
        overlap = (weight * probability * target).flatten(2).sum(-1)
        # 1 or more where the organ is there
        size = (weight * (probability + target)).flatten(2).sum(-1).clamp_min(1)
        there = target.flatten(2).amax(-1)
        dice = mean_of(1 - 2 * overlap / size, annotated * there)
        if not self.cross_entropy_weight:
            return dice + mean_of((weight * probability).flatten(2).mean(-1), annotated * (1 - there))
        if logits is None:
            # torch's own raises for NaN, which the scaler of float16 must see to leave the step out; next to 1 numbers are
            # coarser than next to 0
            right = probability.clamp_min(LEAST).log()
            wrong = (1 - probability).clamp_min(torch.finfo(probability.dtype).eps / 2).log()
        else:
            right, wrong = F.logsigmoid(logits.to(probability)), F.logsigmoid(-logits.to(probability))
        cross_entropy = -weight * (target * right + (1 - target) * wrong)
        return dice + self.cross_entropy_weight * mean_of(cross_entropy.flatten(2).mean(-1), annotated)
