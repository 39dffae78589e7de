"""Normalisation of images that are larger than what training saw at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

VOXELS_AT_ONCE = 4_000_000


class WindowedInstanceNorm3d(nn.InstanceNorm3d):
    """Instance normalisation that treats a large image as training treated its parts: (B, C, Z, Y, X) -> the same.

    Training, and in evaluation inputs of at most `window` voxels: as nn.InstanceNorm3d, whose weights it has. Larger ones: with
    mean and variance of windows of that size, about half a window apart, and between their middles with what is interpolated
    (trilinear). The statistics of a whole body, most of it lung and limbs, are none that a network has seen that was trained on
    parts about organs.
    """

    def __init__(self, channels: int, window: Sequence[int] | None, eps: float = 1e-5):
        super().__init__(channels, eps=eps, affine=True)
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape[2:]
        if self.training or self.window is None or all(size <= w for size, w in zip(shape, self.window, strict=True)):
            return super().forward(x)
        # bfloat16 has too few digits for a variance
        with torch.autocast(x.device.type, enabled=False):
            return self._by_windows(x)

    def _by_windows(self, x: Tensor) -> Tensor:
        shape = x.shape[2:]
        parts = [min(w, whole) for w, whole in zip(self.window, shape, strict=True)]
        average, interpolate = zip(*map(_window_matrices, shape, parts), strict=True)
        average, interpolate = ([matrix.to(x.device) for matrix in matrices] for matrices in (average, interpolate))
        out = torch.empty_like(x)
        # a few channels at once: float32 copies of all of them would be the largest thing in memory
        step = max(1, VOXELS_AT_ONCE // math.prod(shape))
        for first in range(0, x.shape[1], step):
            channels = slice(first, first + step)
            values = x[:, channels].float()
            # squares of what is far from 0 have few digits left for the variance
            values = values - values.mean((2, 3, 4), keepdim=True)
            mean = _along_axes(values, average, (4, 3, 2))
            variance = (_along_axes(values.square(), average, (4, 3, 2)) - mean.square()).clamp(min=0)
            scale = self.weight[channels].view(-1, 1, 1, 1) * (variance + self.eps).rsqrt()
            shift = self.bias[channels].view(-1, 1, 1, 1) - mean * scale
            scale, shift = (_along_axes(of_windows, interpolate, (2, 3, 4)) for of_windows in (scale, shift))
            out[:, channels] = torch.addcmul(shift, values, scale)
        return out


def window_starts(whole: int, part: int) -> list[int]:
    """Where windows of `part` voxels begin on an axis of `whole` voxels: at both ends and about half a window apart."""
    count = 1 + math.ceil(2 * (whole - part) / part)
    return np.linspace(0, whole - part, count).round().astype(int).tolist()


def _window_matrices(whole: int, part: int) -> tuple[Tensor, Tensor]:
    """Of one axis: (windows, whole), which averages over each window, and (whole, windows), which interpolates between the windows'
    middles; beyond the outer ones their values stay."""
    starts = np.array(window_starts(whole, part))
    voxels = np.arange(whole)
    average = (voxels >= starts[:, None]) & (voxels < starts[:, None] + part)
    interpolate = [np.interp(voxels + 0.5, starts + part / 2, values) for values in np.eye(len(starts))]
    return torch.from_numpy(average / part).float(), torch.from_numpy(np.stack(interpolate, 1)).float()


def _along_axes(x: Tensor, matrices: Sequence[Tensor], order: Sequence[int]) -> Tensor:
    """x (B, C, Z, Y, X), of which each axis is multiplied by its matrix (new size, size), one after the other in this order."""
    for axis in order:
        x = torch.tensordot(x, matrices[axis - 2], dims=([axis], [1])).movedim(-1, axis)
    return x
