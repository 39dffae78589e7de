"""Prediction re-calibration for partially annotated data.

Source: paper 003 (AttentionAnatomy), section 2.4, equation (4).
"""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_oar.losses.labels import check_annotated, check_labels, unannotated_to_background

UNANNOTATED_LOG_PROBABILITY = -1e4
"""Stands for log 0: exp of it is exactly 0 in every precision, but 0 times it is 0 and not NaN as 0 times -inf."""


def recalibrate(logits: Tensor, annotated: Tensor | None) -> Tensor:
    """Log-probabilities with the unannotated organs added to the background, equation (4) of paper 003.

    logits: (B, K, ...), channel 0 is the background; annotated: bool (B, K-1), or None where everything is annotated.
    Returns (B, K, ...), float32 (float64 for float64 logits), also under autocast. exp of it sums to 1 over the
    channels. Background: log of the sum of its own probability and those of the unannotated organs. Unannotated
    organs: the constant -1e4, without a gradient. Annotated organs: log_softmax, and so is everything where all organs
    are annotated.

    The sum is taken over log-probabilities: the 1 - sum of the paper would cancel to 0 where the organs are nearly
    certain. Raises ValueError if `annotated` is not bool (B, K-1).
    """
    check_annotated(logits, annotated)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    log_probability = logits.log_softmax(1)
    if annotated is None:
        return log_probability
    missing = ~annotated.to(logits.device).reshape(*annotated.shape, *[1] * (logits.ndim - 2))
    organs = log_probability[:, 1:]
    # -inf stays inside: the background's own finite term keeps both this sum and its gradient finite
    unannotated = organs.masked_fill(~missing, -torch.inf)
    background = torch.cat((log_probability[:, :1], unannotated), 1).logsumexp(1, keepdim=True)
    return torch.cat((background, organs.masked_fill(missing, UNANNOTATED_LOG_PROBABILITY)), 1)


class _NeverRaised(torch.autograd.Function):
    """Identity; gradients that would raise the masked values in a descent become 0."""

    @staticmethod
    def forward(ctx, logits: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return torch.where(mask, gradient.clamp_min(0), gradient), None


def never_raised(logits: Tensor, annotated: Tensor | None) -> Tensor:
    """The logits (B, K, ...), from which no gradient flows that would raise those of unannotated organs. Ours.

    A case that does not annotate an organ can tell where it is not, wherever it annotates another, and never where it is. Yet the
    gradient of equation (4) raises, in its background, the logits of all unannotated organs together with the background's own,
    each in proportion to its probability: what happens to be likely there at first is made likely, and nothing in the data
    contradicts. Values are unchanged. annotated: as `recalibrate`; raises ValueError as it does.
    """
    check_annotated(logits, annotated)
    if annotated is None or annotated.all():
        return logits
    missing = torch.cat((torch.zeros_like(annotated[:, :1]), ~annotated), 1).to(logits.device)
    return _NeverRaised.apply(logits, missing.reshape(*missing.shape, *[1] * (logits.ndim - 2)))


def recalibrate_both(logits: Tensor, target: Tensor, annotated: Tensor | None) -> tuple[Tensor, Tensor]:
    """`recalibrate` of the logits (B, K, *spatial), and the target (B, 1, *spatial) with what is not annotated as background.

    Raises ValueError for shapes or label values that do not fit.
    """
    check_labels(logits, target, annotated)
    return recalibrate(logits, annotated), unannotated_to_background(target, annotated)
