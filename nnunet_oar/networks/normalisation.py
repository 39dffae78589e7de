"""Normalisation of images that are larger than what training saw at once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn


class WindowedInstanceNorm3d(nn.InstanceNorm3d):
    """Instance normalisation that treats a large image as training treated its parts: (B, C, Z, Y, X) -> the same.

    Training, and in evaluation inputs of at most `window` voxels: as nn.InstanceNorm3d, whose weights it has. Larger ones: with
    mean and variance of windows of that size, half a window apart at most, and between their middles with what is interpolated
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
        size = [min(w, whole) for w, whole in zip(self.window, shape, strict=True)]
        starts = [window_starts(whole, part) for whole, part in zip(shape, size, strict=True)]
        statistics = []
        for start in itertools.product(*starts):
            part = x[(..., *(slice(first, first + length) for first, length in zip(start, size, strict=True)))]
            statistics.append(torch.stack(torch.var_mean(part.float(), dim=(2, 3, 4), correction=0)))
        counts = [len(of_axis) for of_axis in starts]
        variance, mean = torch.stack(statistics, -1).unflatten(-1, counts)
        scale = self.weight.view(-1, 1, 1, 1) * (variance + self.eps).rsqrt()
        shift = self.bias.view(-1, 1, 1, 1) - mean * scale
        along = [
            _interpolation(whole, [first + length / 2 for first in of_axis], x.device)
            for whole, length, of_axis in zip(shape, size, starts, strict=True)
        ]
        out = torch.empty_like(x)
        # one by one: maps of all channels would double the memory of the finest level
        for channel in range(x.shape[1]):
            a, b = (torch.einsum("bijk,zi,yj,xk->bzyx", values[:, channel], *along) for values in (scale, shift))
            out[:, channel] = x[:, channel] * a + b
        return out


def window_starts(whole: int, part: int) -> list[int]:
    """Where windows of `part` voxels begin on an axis of `whole` voxels: at both ends and half a window apart at most."""
    count = 1 + math.ceil(2 * (whole - part) / part)
    return np.linspace(0, whole - part, count).round().astype(int).tolist()


def _interpolation(whole: int, middles: Sequence[float], device: torch.device) -> Tensor:
    """(whole, len(middles)) float32: each voxel's weights of the values at `middles`; beyond the outer ones, theirs alone."""
    centres = np.arange(whole) + 0.5
    weights = [np.interp(centres, middles, values) for values in np.eye(len(middles))]
    return torch.from_numpy(np.stack(weights, 1)).float().to(device)
