"""Sizes that a network's strides divide."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def padded_shape(shape: Sequence[int], total_stride: Sequence[int]) -> tuple[int, ...]:
    """The least multiples of `total_stride` that hold `shape`, and more than one voxel at the deepest level: one voxel has no
    variance to normalise by."""
    wanted = [-(-size // step) * step for size, step in zip(shape, total_stride, strict=True)]
    if wanted == list(total_stride):
        wanted[0] *= 2
    return tuple(wanted)


def pad_to(x: Tensor, shape: Sequence[int], mode: str = "replicate") -> Tensor:
    """x (B, C, *spatial) enlarged to `shape` at the end of each axis. mode: as torch.nn.functional.pad's; "constant" is zeros."""
    pad = [more for have, want in zip(x.shape[:1:-1], shape[::-1], strict=True) for more in (0, want - have)]
    return F.pad(x, pad, mode=mode) if any(pad) else x
