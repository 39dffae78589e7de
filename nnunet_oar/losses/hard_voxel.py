"""Loss of sigmoid outputs in which voxels that are wrong weigh more: paper 004, sections 2.2.1 and 2.2.2."""

from __future__ import annotations

from torch import Tensor, nn

from nnunet_oar.losses.dice import SMOOTH_VOX

# a probability of exactly 0 or 1 costs 28 and not infinitely much
LEAST = 1e-12


class HardVoxelDiceLoss(nn.Module):
    """1 - 2 sum(w p g) / (sum(w p) + sum(w g)) per sample and channel, mean over those that are annotated.

    The paper exerts "higher weights to these error-prone voxels" without a formula. Ours: w = 1 + hard_weight * |p - g|, a constant
    for the gradient. hard_weight 0 is the plain Dice loss of section 2.2.1. As in `soft_dice` one voxel is added above and below
    the fraction. cross_entropy_weight: of the mean binary cross-entropy, weighted by w likewise, that is added; 0 is the paper's
    loss.
    """

    def __init__(self, hard_weight: float = 1.0, cross_entropy_weight: float = 0.0):
        super().__init__()
        self.hard_weight, self.cross_entropy_weight = hard_weight, cross_entropy_weight

    def forward(self, probability: Tensor, target: Tensor, annotated: Tensor | None = None) -> Tensor:
        """A scalar of at least float32; 0 with a gradient where nothing is annotated.

        probability: (B, C, *spatial), each channel on its own; target: the same shape, 0 or 1; annotated: bool (B, C), None for
        all. Raises ValueError for shapes that do not fit.
        """
        if probability.shape != target.shape or (annotated is not None and annotated.shape != probability.shape[:2]):
            raise ValueError(
                f"probability and target must be (B, C, *spatial) and annotated (B, C), got {tuple(probability.shape)}, "
                f"{tuple(target.shape)} and {None if annotated is None else tuple(annotated.shape)}"
            )
        probability = probability if probability.dtype.itemsize >= 4 else probability.float()
        target = target.to(probability)
        weight = 1 + self.hard_weight * (probability.detach() - target).abs()
        overlap = (weight * probability * target).flatten(2).sum(-1)
        size = (weight * (probability + target)).flatten(2).sum(-1)
        loss = 1 - (2 * overlap + SMOOTH_VOX) / (size + SMOOTH_VOX)
        if self.cross_entropy_weight:
            # torch's own raises for NaN, which the scaler of float16 must see to leave the step out
            right, wrong = (p.clamp_min(LEAST).log() for p in (probability, 1 - probability))
            cross_entropy = -weight * (target * right + (1 - target) * wrong)
            loss = loss + self.cross_entropy_weight * cross_entropy.flatten(2).mean(-1)
        if annotated is None:
            return loss.mean()
        counts = annotated.to(loss)
        return (loss * counts).sum() / counts.sum().clamp_min(1)
