"""Where a slice's neighbours are and how a slice is framed: the same for loader and network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nnunet_oar.roi import Box


def neighbours(centres: Sequence[int], slices: int, count: int) -> Tensor:
    """Indices (len(centres), slices) of the slices around each of `centres`; the edges of the `count` slices are repeated."""
    reach = torch.arange(slices) - slices // 2
    return (torch.tensor(list(centres))[:, None] + reach).clamp(0, count - 1)


def centre_boxes(shape: Sequence[int], frame: Sequence[int]) -> tuple[Box, Box]:
    """What of an image lies in a frame about its centre, and where in the frame; two boxes of one shape."""
    starts = [(size - want) // 2 for size, want in zip(shape, frame, strict=True)]
    crop = Box(
        tuple(max(0, start) for start in starts),
        tuple(min(size, start + want) for start, size, want in zip(starts, shape, frame, strict=True)),
    )
    place = Box(
        tuple(a - start for a, start in zip(crop.start, starts, strict=True)),
        tuple(b - start for b, start in zip(crop.stop, starts, strict=True)),
    )
    return crop, place


def framed(planes: Tensor, fill: Tensor, frame: Sequence[int]) -> Tensor:
    """The centre of each slice, (S, C, H, W) -> (S, C, *frame); fill: (C,), where a slice is smaller than the frame."""
    crop, place = centre_boxes(tuple(planes.shape[2:]), frame)
    out = fill.view(1, -1, 1, 1).expand(len(planes), -1, *frame).clone()
    out[(..., *place.slices)] = planes[(..., *crop.slices)]
    return out
