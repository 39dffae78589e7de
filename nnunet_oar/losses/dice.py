"""Multi-class Dice loss, the mean over organs.

Sources: paper 000 (SegTHOR), section 2.1.3: the average of the organs' Dice losses; paper 002 (KiTS19): the same with
weights for background and foreground classes. Partial annotation: paper 003, equation (4), see recalibration.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnunet_oar.losses.recalibration import recalibrate_both

SMOOTH_VOX = 1.0
"""Added to numerator and denominator: an absent organ that is not predicted scores 1 and keeps a gradient if it is."""


def soft_dice(probability: Tensor, target: Tensor) -> Tensor:
    """(2 sum(p g) + 1) / (sum p + sum g + 1) over space, un-squared, for each sample and channel.

    probability: (B, C, *spatial), float32 or float64, because the sums exceed what half precision can hold; target:
    bool, the same shape. Returns (B, C). 1 is the best value; an absent organ that is nowhere predicted scores 1.
    """
    # masked_fill keeps a mask of one byte a voxel for the backward pass, a product would keep the target as floats
    overlap = probability.masked_fill(~target, 0).flatten(2).sum(-1)
    size = probability.flatten(2).sum(-1) + target.flatten(2).sum(-1)
    return (2 * overlap + SMOOTH_VOX) / (size + SMOOTH_VOX)


class MulticlassDiceLoss(nn.Module):
    """1 - (weighted) mean of `soft_dice` of the softmax over all annotated pairs of sample and organ.

    weights: one non-negative number per organ, background first with `include_background`; they need not sum to 1.
    include_background: the background counts as a class, in every sample.

    Raises ValueError for weights that are negative, not finite or all zero.
    """

    def __init__(self, weights: Sequence[float] | None = None, include_background: bool = False):
        super().__init__()
        self.include_background = include_background
        if weights is not None:
            weights = torch.tensor([float(weight) for weight in weights])
            if weights.numel() == 0 or not weights.isfinite().all() or weights.min() < 0 or weights.sum() == 0:
                raise ValueError(f"weights must be finite, non-negative and not all zero, got {weights.tolist()}")
        # no part of a checkpoint: weights come from the plans
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, logits: Tensor, target: Tensor, annotated: Tensor | None = None) -> Tensor:
        """The loss, a scalar of at least float32.

        logits: (B, K, *spatial); target: (B, 1, *spatial), integers in [0, K); annotated: bool (B, K-1), None for all.
        A target voxel of an unannotated organ counts as background. Where nothing is annotated (and the background is
        not included) the loss is 0 and its gradient zeros. Raises ValueError for shapes, label values or weights that
        do not fit.
        """
        log_probability, target = recalibrate_both(logits, target, annotated)
        return self.of_probabilities(log_probability.exp(), target, annotated)

    def of_probabilities(self, probability: Tensor, target: Tensor, annotated: Tensor | None) -> Tensor:
        """As forward, of probabilities and a target that are re-calibrated already."""
        batch, classes = probability.shape[:2]
        first = 0 if self.include_background else 1
        if self.weights is not None and len(self.weights) != classes - first:
            raise ValueError(
                f"weights must have {classes - first} entries for {classes} classes with "
                f"include_background={self.include_background}, got {len(self.weights)}"
            )

        # class by class: no one-hot target of all classes ever exists
        dice = torch.cat([soft_dice(probability[:, c : c + 1], target == c) for c in range(first, classes)], 1)

        weights = torch.ones_like(dice) if self.weights is None else self.weights.to(dice).expand_as(dice)
        if annotated is not None:
            counts = annotated.to(dice.device)
            if self.include_background:
                counts = torch.cat((counts.new_ones(batch, 1), counts), 1)
            weights = weights * counts
        # the bound only matters where no pair counts: 0 / tiny is 0, and so is its gradient
        return (weights * (1 - dice)).sum() / weights.sum().clamp_min(torch.finfo(dice.dtype).tiny)


class BatchDiceLoss(nn.Module):
    """1 - mean over organs of the Dice of the whole batch: sums run over samples and space (paper 003, section 2.3.1).

    An organ counts over the samples that annotate it, where one of them holds it: the section counts how often an organ
    "participates" by the slices that show it. Would its Dice count in other batches, with the voxel that `soft_dice` adds, its
    gradient were largest where it is nearly 0 already, and the many batches without a small organ would extinguish it. What
    contradicts an organ there is its mean probability (the mean over those organs), which is added: ours.
    """

    def forward(self, logits: Tensor, target: Tensor, annotated: Tensor | None = None) -> Tensor:
        """The loss, a scalar of at least float32; arguments and errors as MulticlassDiceLoss.forward."""
        log_probability, target = recalibrate_both(logits, target, annotated)
        return self.of_probabilities(log_probability.exp(), target, annotated)

    def of_probabilities(self, probability: Tensor, target: Tensor, annotated: Tensor | None) -> Tensor:
        """As forward, of probabilities and a target that are re-calibrated already: both are 0 where nothing is annotated."""
        losses, invented, there = [], [], []
        for c in range(1, probability.shape[1]):
            # the whole batch as one sample
            p, organ = probability[:, c].reshape(1, 1, -1), (target == c).reshape(1, 1, -1)
            losses.append(1 - soft_dice(p, organ)[0, 0])
            invented.append(p.mean())
            there.append(organ.any())
        there = torch.stack(there)
        absent = ~there if annotated is None else ~there & annotated.to(there.device).any(0)
        return mean_of(torch.stack(losses), there) + mean_of(torch.stack(invented), absent)


def mean_of(losses: Tensor, counts: Tensor | None) -> Tensor:
    """The mean of those that count, a mask of the same shape, None for all; 0 with a gradient where none does."""
    if counts is None:
        return losses.mean()
    counts = counts.to(losses)
    return (losses * counts).sum() / counts.sum().clamp_min(1)
