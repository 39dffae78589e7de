"""Sizes that a network's strides divide."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def padded_shape(shape: Sequence[int], total_stride: Sequence[int]) -> tuple[int, ...]:
    """The least multiples of `total_stride` that hold `shape`, and more than one voxel at the deepest level: one voxel has no
    variance to normalise by."""
    wanted = [-(-size // step) * step for size, step in zip(shape, total_stride, strict=True)]
    if wanted == list(total_stride):
        wanted[0] *= 2
    return tuple(wanted)


def pad_to(x: Tensor, shape: Sequence[int]) -> Tensor:
    """x (B, C, *spatial), of any type, enlarged to `shape` by repeating the last voxels of each axis."""
    for axis, (have, want) in enumerate(zip(x.shape[2:], shape, strict=True), start=2):
        if want > have:
            x = x.index_select(axis, torch.arange(want, device=x.device).clamp_max(have - 1))
    return x
