"""Normalisation of one image, the same for loader, network and predictor (paper 000, section 2.1.1)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Normalisation(NamedTuple):
    """Clip to `window` (in the image's own units; None: no clipping), subtract `mean`, divide by `std`; one number per channel."""

    mean: Tensor
    std: Tensor
    window: tuple[float, float] | None

    def apply(self, image: Tensor) -> Tensor:
        """image: (C, Z, Y, X) -> float32 tensor of the same shape; the input is not changed."""
        image = clip(image, self.window)
        return (image - self.mean.view(-1, 1, 1, 1)) / self.std.view(-1, 1, 1, 1)


def clip(image: Tensor, window: tuple[float, float] | None) -> Tensor:
    return image.float() if window is None else image.float().clamp(*window)


def measure(image: Tensor, window: tuple[float, float] | None) -> Normalisation:
    """Zero mean and unit variance over all voxels of each channel of `image` (C, Z, Y, X), after clipping.

    A constant channel is only shifted.
    """
    std, mean = torch.std_mean(clip(image, window).flatten(1), dim=1, correction=0)
    # a constant image has a variance of rounding errors, which must not be blown up
    std = torch.where(std > 1e-6 * mean.abs().clamp_min(1.0), std, torch.ones_like(std))
    return Normalisation(mean, std, window)


def replace_non_finite(image: Tensor) -> tuple[Tensor, int]:
    """NaN and infinite voxels become the smallest finite value; returns the image and their number.

    An exception would end nnU-Net's whole batch because of one case. An image without any finite voxel becomes 0.
    """
    finite = torch.isfinite(image)
    bad = image.numel() - int(finite.sum())
    if bad == 0:
        return image, 0
    smallest = image[finite].min() if bad < image.numel() else torch.zeros((), dtype=image.dtype, device=image.device)
    return torch.where(finite, image, smallest), bad
