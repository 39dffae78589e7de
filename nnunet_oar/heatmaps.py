"""Gaussian heat maps of organs' centres, and the centres of heat maps.

Source: paper 001 (VISCERAL), sections II.A.1 and II.A.2. The sign of the printed Gaussian is a misprint. Centres are in edge
coordinates of the grid, see roi.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from nnunet_oar.components import split_instances
from nnunet_oar.roi import Box


def gaussian_heatmaps(centres: Tensor, shape: Sequence[int], spacing_mm: Sequence[float], sigma2_mm2: float) -> Tensor:
    """exp(-|x - mu|^2 / 2 sigma^2) of each centre, distances in mm.

    centres: (N, 3), voxels of a grid of `shape`; NaN for what is absent: its map is 0. Returns (N, *shape) float32.
    """
    maps = torch.ones((len(centres), 1, 1, 1), device=centres.device)
    for axis, (size, spacing) in enumerate(zip(shape, spacing_mm, strict=True)):
        position = torch.arange(size, device=centres.device) + 0.5
        distance_mm = (position - centres[:, axis, None].float()) * spacing
        profile = torch.exp(-(distance_mm**2) / (2 * sigma2_mm2))
        maps = maps * profile.view(len(centres), *[size if other == axis else 1 for other in range(3)])
    return torch.nan_to_num(maps, nan=0.0)


# Of the voxels of a map's largest region
LEAST_SHARE = 0.25


@dataclass(frozen=True)
class Region:
    """Part of a heat map that is above the threshold: how many voxels, and the centre in voxels of the grid (edge coordinates)."""

    voxels: int
    centre: tuple[float, float, float]


def find_centres(
    heat: np.ndarray,
    threshold: float,
    spacing_mm: Sequence[float],
    sigma2_mm2: float,
    method: str = "midpoint",
    most: int = 1,
) -> list[Region]:
    """Where the organ of one heat map (Z, Y, X) may have its centre: the components of what is above `threshold`, the largest
    first, at most `most`; none: the organ is absent.

    "midpoint": the centre of a component's bounding box, as the paper says. "weighted": of the Gaussian with that variance that
    fits the component best, each voxel weighted by its squared heat; where the image's border cuts the component off, its midpoint
    is up to 14 mm on each axis too far inside and this is not.
    """
    return [
        Region(int(np.count_nonzero(region)), _centre(heat, region, spacing_mm, sigma2_mm2, method))
        for region in split_instances(heat > threshold, most)
    ]


def _centre(
    heat: np.ndarray, region: np.ndarray, spacing_mm: Sequence[float], sigma2_mm2: float, method: str
) -> tuple[float, float, float]:
    bounds = Box.from_mask(region)
    midpoint = bounds.centre
    if method == "midpoint":
        return midpoint
    voxels = np.argwhere(region)
    value = heat[region].astype(np.float64)
    spacing = np.asarray(spacing_mm, dtype=float)
    offset = (voxels + 0.5 - midpoint) * spacing
    # ln y + |x|^2 / 2 sigma^2 is linear in x, with the slope mu / sigma^2; the weight makes up for the logarithm
    height = np.log(value) + (offset**2).sum(1) / (2 * sigma2_mm2)
    design = np.column_stack((np.ones(len(offset)), offset))
    slope = np.linalg.lstsq(design * value[:, None], height * value, rcond=1e-6)[0][1:]
    # a centre in the image lies in its own region; heat that is no Gaussian must not point anywhere else
    centre = np.clip(midpoint + slope * sigma2_mm2 / spacing, bounds.start, bounds.stop)
    return tuple(float(c) for c in centre)


def choose_sides(
    low: Sequence[Region], high: Sequence[Region], axis: int, apart: float
) -> tuple[Region | None, Region | None]:
    """Of the regions of two organs of a pair, of which `low` lies at the low end of an axis in every training case, the largest two
    whose centres are at least `apart` voxels from each other in that order.

    Both organs look alike, and a network that cannot tell them shows each of them in both maps. Where no two regions are in order,
    the larger one stays and the other organ is absent; where one has no region, there is nothing to choose.
    """
    if not low or not high:
        return (low[0] if low else None), (high[0] if high else None)
    # what is much smaller than its map's largest is noise, and must not lend its order to the others
    low, high = ([region for region in of if region.voxels >= LEAST_SHARE * of[0].voxels] for of in (low, high))
    pairs = [(a, b) for a, b in product(low, high) if b.centre[axis] - a.centre[axis] >= apart]
    if pairs:
        return max(pairs, key=lambda pair: pair[0].voxels + pair[1].voxels)
    return (low[0], None) if low[0].voxels >= high[0].voxels else (None, high[0])
