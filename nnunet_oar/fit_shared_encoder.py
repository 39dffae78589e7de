"""What fits the section of OARSharedEncoderTrainer to a data set."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from nnunet_oar.fit import (
    Budget,
    DatasetFacts,
    axis_across_slices,
    common_fields,
    fit_grid,
    fit_strides,
    fitted_features,
    narrowed_window,
    ordered_pairs,
    plausible_flips,
    within_budget,
)
from nnunet_oar.plan import SHARED_PHASES, SharedEncoderPlan, SharedPhase, Triple, scaled_phases

# Measured on a CPU in float32 with 8 and 16 features, 150,000 and 200,000 voxels: peak memory of one training step with 4 decoders
# that see 0.3 of the volume each was 269 to 421 bytes per voxel of the grid and feature of the first level; mixed precision needs
# less.
ENCODER_BYTES_PER_VOXEL_AND_FEATURE = 240
DECODER_BYTES_PER_VOXEL_AND_FEATURE = 150
# Training sees this share of a CT at once at least: for a small device the grid becomes coarser instead
LEAST_SHARE = 0.25
# The paper's voxels are 4 mm long in the coarse segmentation, 8 mm in the deepest features; on coarse grids each is worth a level
COARSE_MM = 10.0
MARGIN_MM, JITTER_MM = 10.0, 5.0
DECODERS_AT_ONCE = 4


def fit_shared_encoder(facts: DatasetFacts, recipe: str, budget: Budget) -> SharedEncoderPlan:
    """`paper`: the paper's numbers, and as much of a CT at once as the memory target allows; `fitted`: also grid, strides, width
    and margins from the data and the budget."""
    slice_axis = axis_across_slices(facts)
    # the paper's 1 x 1 x 3 mm, wherever the slices are
    finest = np.where(np.arange(3) == slice_axis, 3.0, 1.0)
    plan = SharedEncoderPlan(
        **common_fields(facts, recipe, (0, 1, 2) if recipe == "paper" else plausible_flips(facts)),
        spacing_mm=facts.spacing_mm,
        grid_spacing_mm=tuple(finest.tolist()),
        slice_axis=slice_axis,
        # scaled below, when the number of epochs is known
        phases=(SharedPhase(0),),
    )
    image_mm = np.percentile([case.shape for case in facts.cases], 95, axis=0) * facts.spacing_mm
    if recipe == "fitted":
        plan = replace(plan, features=fitted_features(budget.memory_gb), organs_per_iteration=DECODERS_AT_ONCE)
    memory = _Memory.of(plan, facts, image_mm)
    if recipe == "fitted":
        plan = _fitted(plan, facts, image_mm, np.maximum(finest, facts.spacing_mm), memory.voxels(budget.memory_gb))
    plan = within_budget(plan, budget)
    grid = image_mm / plan.grid_spacing_mm
    return replace(
        plan,
        crop_shape=_crop_shape(grid, plan.total_stride, memory.share(budget.memory_gb, float(np.prod(grid)))),
        phases=scaled_phases(SHARED_PHASES, SharedEncoderPlan.epochs, plan.epochs),
    )


@dataclass(frozen=True)
class _Memory:
    """What a training step takes: knots and, for each, bytes per voxel of the whole CT's grid where training sees that share of it
    at once."""

    shares: np.ndarray
    bytes_per_voxel: np.ndarray

    @classmethod
    def of(cls, plan: SharedEncoderPlan, facts: DatasetFacts, image_mm: np.ndarray) -> _Memory:
        """With as many decoders as an iteration trains, those of the largest organs, each in a box as large as its part of the CT
        at most. Where all boxes of a step happen to be moved, grown and snapped to the utmost, it takes a fifth more from 4 GB on,
        and up to twice as much at 0.1 GB."""
        around = 2 * (MARGIN_MM + JITTER_MM)
        boxes = []
        for label in facts.labels.values():
            sizes = [case.organs[label].shape for case in facts.cases if label in case.organs]
            if sizes:
                size_mm = np.max(sizes, axis=0) * facts.spacing_mm + around
                boxes.append(float(np.prod(np.minimum(size_mm / image_mm, 1))))
        boxes = sorted(boxes, reverse=True)[: plan.organs_per_iteration]
        # bytes grow linearly between the shares at which a decoder sees its whole box
        shares = np.unique([0.0, *boxes, 1.0])
        decoders = np.minimum(shares[:, None], boxes).sum(1)
        per_feature = ENCODER_BYTES_PER_VOXEL_AND_FEATURE * shares + DECODER_BYTES_PER_VOXEL_AND_FEATURE * decoders
        return cls(shares, per_feature * plan.features)

    def voxels(self, gigabytes: float) -> float:
        """Of the grid of a whole CT that is fine enough for training to see `LEAST_SHARE` of it."""
        return gigabytes * 1e9 / float(np.interp(LEAST_SHARE, self.shares, self.bytes_per_voxel))

    def share(self, gigabytes: float, voxels: float) -> float:
        """Of a CT with a grid of so many voxels that training can see at once."""
        return float(np.interp(gigabytes * 1e9 / voxels, self.bytes_per_voxel, self.shares))


def _fitted(
    plan: SharedEncoderPlan, facts: DatasetFacts, image_mm: np.ndarray, finest_mm: np.ndarray, voxels: float
) -> SharedEncoderPlan:
    spacing = finest_mm
    if np.prod(image_mm / spacing) > voxels:
        spacing = np.maximum(image_mm / fit_grid(image_mm, finest_mm, voxels), finest_mm).round(4)
    plan = replace(plan, grid_spacing_mm=tuple(spacing.tolist()), strides=_strides(image_mm / spacing, spacing))
    # the coarse branch is off by a voxel of its own or so, and what a decoder says depends on how much it sees around its organ
    margin, jitter = (
        np.maximum(np.ceil(reach_mm / spacing).astype(int), plan.coarse_stride).tolist()
        for reach_mm in (MARGIN_MM, JITTER_MM)
    )
    return replace(
        plan,
        margin_vox=tuple(margin),
        jitter_vox=tuple(jitter),
        coarse_labels="covering",
        each_map=True,
        low_high_pairs=ordered_pairs(facts),
        hu_window=narrowed_window(facts.window),
        augmentation="nnunet",
        cross_entropy_weight=1.0,
        learning_rate=1e-3,
        lr_decay=None,
        epochs=250,
        iterations_per_epoch=100,
        grow_attempts=2,
    )


def _strides(shape: np.ndarray, spacing: np.ndarray) -> tuple[Triple, ...]:
    """Two blocks to the voxels of the coarse segmentation, one to twice as large ones, one that keeps them."""
    coarsest = max(COARSE_MM, 2 * float(spacing.max()))
    first = fit_strides(shape, spacing, 2, coarsest)
    step = np.prod(first, axis=0)
    return (*first, *fit_strides(np.ceil(shape / step), spacing * step, 1, 2 * coarsest), (1, 1, 1))


def _crop_shape(image_shape: np.ndarray, step: tuple[int, int, int], share: float) -> tuple[int, int, int]:
    """The whole image or a part of the same proportions with about this share of its voxels, in multiples of `step`."""
    wanted = image_shape * share ** (1 / 3)
    return tuple(
        max(1, math.ceil(size / s) if share == 1 else round(size / s)) * s for size, s in zip(wanted, step, strict=True)
    )
