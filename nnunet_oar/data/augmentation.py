"""Augmentation of a crop and its labels. Flips are the papers' (000, section 2.1.3; 002, section 2.1), the rest are
batchgeneratorsv2's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from batchgeneratorsv2.helpers.scalar_type import RandomScalar
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from torch import Tensor

from nnunet_oar.plan import OARPlan

# radius of the widest blur's kernel
BLUR_REACH_VOX = 3
_ROTATION: RandomScalar = (-15 * math.pi / 180, 15 * math.pi / 180)


def flip(image: Tensor, labels: Tensor, axes: Sequence[int], plan: OARPlan) -> tuple[Tensor, Tensor]:
    """Mirror image (C, Z, Y, X) and labels (1, Z, Y, X) along `axes`; left and right labels change places where the plan's
    left-right axis is among them."""
    if not axes:
        return image, labels
    dims = [axis + 1 for axis in axes]
    image, labels = image.flip(dims), labels.flip(dims)
    if plan.left_right_axis in axes:
        swapped = labels.clone()
        for left, right in plan.swap_on_flip:
            swapped[labels == left] = right
            swapped[labels == right] = left
        labels = swapped
    return image, labels


def swap_organs(per_organ: Tensor, axes: Sequence[int], plan: OARPlan) -> Tensor:
    """(K - 1, ...), something of each organ, as whether a case annotates it: after `flip` has given left and right organs each
    other's labels."""
    if plan.left_right_axis not in axes:
        return per_organ
    swapped = per_organ.clone()
    for left, right in plan.swap_on_flip:
        swapped[left - 1], swapped[right - 1] = per_organ[right - 1], per_organ[left - 1]
    return swapped


def draw_axes(rng: np.random.Generator, plan: OARPlan) -> tuple[int, ...]:
    """Each of the plan's `flip_axes`, or not."""
    return tuple(axis for axis in plan.flip_axes if rng.random() < 0.5)


def flip_at_random(
    image: Tensor, labels: Tensor, annotated: Tensor, rng: np.random.Generator, plan: OARPlan
) -> tuple[Tensor, Tensor, Tensor]:
    """Image, labels and what is annotated, mirrored along each of the plan's `flip_axes` in half of the samples."""
    axes = draw_axes(rng, plan)
    return *flip(image, labels, axes, plan), swap_organs(annotated, axes, plan)


def nnunet_transforms(shape: Sequence[int], *, elastic: bool = False, slab: bool = False) -> BasicTransform:
    """Rotation, scaling and intensity changes with nnU-Net's own transforms, milder than its defaults: +-15 degrees, because
    the crop has nothing beyond its sides to rotate in, and no simulated low resolution.

    elastic: also elastic deformation; slab: channels are neighbouring slices of one CT, whose contrast and sharpness change alike.
    """
    return ComposeTransforms(
        [spatial_transform(shape, affine=True, elastic=elastic), intensity_transforms(shape, slab=slab)]
    )


def intensity_transforms(shape: Sequence[int], *, slab: bool = False) -> BasicTransform:
    """The part of `nnunet_transforms` that moves nothing."""
    # its kernel is padded by reflection, for which an axis must be long enough
    blur = [] if min(shape) <= BLUR_REACH_VOX else [_blur(slab)]
    return ComposeTransforms(
        [
            RandomTransform(GaussianNoiseTransform(noise_variance=(0, 0.1), p_per_channel=1), apply_probability=0.1),
            *blur,
            RandomTransform(
                MultiplicativeBrightnessTransform(multiplier_range=BGContrast((0.75, 1.25)), synchronize_channels=slab),
                apply_probability=0.15,
            ),
            RandomTransform(
                ContrastTransform(
                    contrast_range=BGContrast((0.75, 1.25)), preserve_range=True, synchronize_channels=slab
                ),
                apply_probability=0.15,
            ),
            RandomTransform(
                GammaTransform(
                    gamma=BGContrast((0.7, 1.5)),
                    p_invert_image=0,
                    synchronize_channels=slab,
                    p_per_channel=1,
                    p_retain_stats=1,
                ),
                apply_probability=0.2,
            ),
        ]
    )


def _blur(slab: bool) -> BasicTransform:
    blur = GaussianBlurTransform(blur_sigma=(0.5, 1.0), synchronize_channels=slab, p_per_channel=1)
    return RandomTransform(blur, apply_probability=0.1)


def in_plane_rotation(shape: Sequence[int], slice_axis: int) -> SpatialTransform:
    """Rotation of the slices by up to 15 degrees (paper 002, section 2.1, which gives no angle), in half of the samples."""
    return spatial_transform(shape, affine=True, elastic=False, rotation=_AboutAxis(slice_axis), p_scaling=0)


@dataclass(frozen=True)
class _AboutAxis:
    """BGv2's angle about each array axis: 0 but for one."""

    axis: int

    def __call__(self, image: Tensor, dim: int) -> float:
        return np.random.uniform(*_ROTATION) if dim == self.axis else 0.0


def spatial_transform(
    shape: Sequence[int], *, affine: bool, elastic: bool, rotation: RandomScalar = _ROTATION, p_scaling: float = 0.5
) -> SpatialTransform:
    """Rotation and scaling, elastic deformation (in half of the samples, by up to 8 pixels), or both."""
    return SpatialTransform(
        tuple(shape),
        patch_center_dist_from_border=0,
        random_crop=False,
        p_elastic_deform=0.5 if elastic else 0,
        elastic_deform_scale=(0.1, 0.2),
        elastic_deform_magnitude=(2, 8),
        p_rotation=0.5 if affine else 0,
        rotation=rotation,
        p_scaling=p_scaling if affine else 0,
        scaling=(0.85, 1.15),
        p_synchronize_scaling_across_axes=0.5,
        bg_style_seg_sampling=False,
        mode_seg="nearest",
        border_mode_seg="zeros",
        padding_mode_image="border",
    )


class seeded_globals:
    """Context in which NumPy's and torch's global generators are seeded, and after which they are as before.

    batchgeneratorsv2 draws from both; a sample must be a function of its number whatever was drawn before.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def __enter__(self) -> None:
        self._numpy, self._torch = np.random.get_state(), torch.get_rng_state()
        np.random.seed(self.seed % 2**32)
        torch.random.default_generator.manual_seed(self.seed)

    def __exit__(self, *_) -> None:
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._torch)
