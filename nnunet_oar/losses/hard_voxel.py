"""Loss of sigmoid outputs in which voxels that are wrong weigh more: paper 004, sections 2.2.1 and 2.2.2."""

from __future__ import annotations

from torch import Tensor, nn

# a probability of exactly 0 or 1 costs 28 and not infinitely much
LEAST = 1e-12


class HardVoxelDiceLoss(nn.Module):
    """1 - 2 sum(w p g) / (sum(w p) + sum(w g)) per sample and channel, mean over those that are annotated and hold the organ.

    The paper exerts "higher weights to these error-prone voxels" without a formula. Ours: w = 1 + hard_weight * |p - g|, a constant
    for the gradient. hard_weight 0 is the plain Dice loss of section 2.2.1. An organ that is absent has no gradient in it, as
    printed: a term that lowers p there, such as a voxel added above and below the fraction, pulls hardest on maps that are nearly 0
    everywhere, and parts of CTs that lack a small organ would extinguish its map before those that hold it can raise it.
    cross_entropy_weight: of the mean binary cross-entropy, weighted by w likewise, that is added, of all that are annotated; 0 is
    the paper's loss.
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
        annotated = target.new_ones(target.shape[:2]) if annotated is None else annotated.to(target)
        weight = 1 + self.hard_weight * (probability.detach() - target).abs()
        overlap = (weight * probability * target).flatten(2).sum(-1)
        # 1 or more where the organ is there
        size = (weight * (probability + target)).flatten(2).sum(-1).clamp_min(1)
        loss = _mean(1 - 2 * overlap / size, annotated * target.flatten(2).amax(-1))
        if self.cross_entropy_weight:
            # torch's own raises for NaN, which the scaler of float16 must see to leave the step out
            right, wrong = (p.clamp_min(LEAST).log() for p in (probability, 1 - probability))
            cross_entropy = -weight * (target * right + (1 - target) * wrong)
            loss = loss + self.cross_entropy_weight * _mean(cross_entropy.flatten(2).mean(-1), annotated)
        return loss


def _mean(losses: Tensor, counts: Tensor) -> Tensor:
    """Of those that count (1, not 0); 0 with a gradient where none does."""
    return (losses * counts).sum() / counts.sum().clamp_min(1)
