"""Multi-linear interpolation at any coordinates, one axis at a time. Coordinates are edge coordinates, see roi.py: where the new
positions are those of a whole grid, the result is that of `roi.resize`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Between(NamedTuple):
    """Positions on one axis: the voxels before and after, (n,) int64, and the weight of the latter, (n,) float32."""

    lower: np.ndarray
    upper: np.ndarray
    weight: np.ndarray

    def moved(self, offset: int) -> Between:
        return Between(self.lower + offset, self.upper + offset, self.weight)


def centres(first: int, last: int, size: int, extent: float) -> np.ndarray:
    """Coordinates of the centres of the voxels first, ..., last - 1 of a grid of `size` voxels that fills [0, extent)."""
    return (np.arange(first, last) + 0.5) * extent / size


def between(coordinates: np.ndarray, start: float, stop: float, size: int) -> Between:
    """Where these coordinates lie among the voxels of a grid of `size` voxels that fills [start, stop). Beyond the centre of the
    first and of the last voxel their values continue."""
    position = np.clip((coordinates - start) * size / (stop - start) - 0.5, 0, size - 1)
    lower = position.astype(np.int64)
    weight = (position - lower).astype(np.float32)
    return Between(lower, lower + (weight > 0), weight)


def interpolated_along(x: Tensor, axis: int, where: Between) -> Tensor:
    """x: float32 of any number of axes; the result is len(where.weight) long on that axis; a view of x where it is a part of x."""
    if not where.weight.any():
        first, count = int(where.lower[0]), len(where.lower)
        if np.array_equal(where.lower, np.arange(first, first + count)):
            return x.narrow(axis, first, count)
        return x.index_select(axis, torch.from_numpy(where.lower).to(x.device))
    low, high = (x.index_select(axis, torch.from_numpy(index).to(x.device)) for index in (where.lower, where.upper))
    weight = torch.from_numpy(where.weight).to(x.device)
    return low.lerp_(high, weight.view([-1 if other == axis % x.ndim else 1 for other in range(x.ndim)]))
