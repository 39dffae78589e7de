"""Segmenting a box of a volume on a network's own grid, and growing a box that cuts what it should hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nnunet_oar.components import keep_largest
from nnunet_oar.networks.volume import PredictionReport
from nnunet_oar.roi import Box


def segment_growing(
    segment: Callable[[Box], Tensor],
    box: Box,
    image_shape: Sequence[int],
    step: Sequence[int],
    attempts: int,
    report: PredictionReport,
    largest_only: bool = False,
    name: str = "an organ",
) -> tuple[Box, Tensor]:
    """Segment; where an organ touches a side of the box that is no face of the image, grow that side and try again.

    segment: box -> logits (1, K, *grid) of it, the background first; step: voxels to grow a side by; largest_only: only the largest
    component of the foreground counts, whatever else reaches into the box; name: of what is segmented, for the report.
    Returns the last box and its logits.
    """
    logits = segment(box)
    for _ in range(attempts):
        bigger = _grown(box, logits, image_shape, step, largest_only)
        if bigger == box:
            return box, logits
        report.warn(
            f"{name} reaches the side of its box, {box.shape} voxels large; segmented again in {bigger.shape} voxels"
        )
        box, logits = bigger, segment(bigger)
    if attempts and _grown(box, logits, image_shape, step, largest_only) != box:
        report.warn(f"{name} still reaches the side of its box and may be cut there; look at it")
    return box, logits


def _grown(box: Box, logits: Tensor, image_shape: Sequence[int], step: Sequence[int], largest_only: bool) -> Box:
    foreground = (logits.argmax(1)[0] > 0).cpu().numpy()
    if largest_only:
        foreground = keep_largest(foreground)
    start, stop = list(box.start), list(box.stop)
    for axis in range(3):
        more = max(1, step[axis])
        if foreground.take(0, axis).any():
            start[axis] = max(0, start[axis] - more)
        if foreground.take(-1, axis).any():
            stop[axis] = min(image_shape[axis], stop[axis] + more)
    return Box(tuple(start), tuple(stop))


def with_background(logits: Tensor) -> Tensor:
    """One organ's log-odds (B, 1, ...) -> logits of background, which is 0, and organ (B, 2, ...)."""
    return torch.cat((torch.zeros_like(logits), logits), 1)
