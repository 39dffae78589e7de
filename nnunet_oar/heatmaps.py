"""Gaussian heat maps of organs' centres, and the centres of heat maps.

Source: paper 001 (VISCERAL), sections II.A.1 and II.A.2. The sign of the printed Gaussian is a misprint. Centres are in edge
coordinates of the grid, see roi.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from nnunet_oar.components import Region, split_instances
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
    found = []
    for component in split_instances(heat > threshold, most):
        region = Region.of(component)
        if method == "weighted":
            region = replace(region, centre=_weighted_centre(heat, component, region.box, spacing_mm, sigma2_mm2))
        found.append(region)
    return found


def _weighted_centre(
    heat: np.ndarray, region: np.ndarray, bounds: Box, spacing_mm: Sequence[float], sigma2_mm2: float
) -> tuple[float, float, float]:
    midpoint = bounds.centre
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
