"""What fits the section of OARSharedEncoderTrainer to a data set."""

from __future__ import annotations

import math
from dataclasses import replace

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
    plausible_flips,
    within_budget,
)
from nnunet_oar.plan import SHARED_PHASES, SharedEncoderPlan, SharedPhase, scaled_phases

# Measured on a CPU in float32 with 8 and 16 features, 150,000 and 200,000 voxels: peak memory of one training step with 4 decoders
# that see 0.3 of the volume each was 269 to 421 bytes per voxel of the grid and feature of the first level, and what the layers
# keep grows by 1.2 where they see all of it; mixed precision needs less.
ENCODER_BYTES_PER_VOXEL_AND_FEATURE = 240
DECODER_BYTES_PER_VOXEL_AND_FEATURE = 150
# Training sees this share of a CT at once at least: for a small device the grid becomes coarser instead
LEAST_SHARE = 1 / 16
# The paper's deepest voxels are 8 mm long (6 mm across the slices)
COARSEST_MM = 12.0
# but fine grids of coarse data are worth two levels
COARSEST_VOXELS = 4
MARGIN_MM, JITTER_MM = 10.0, 5.0
DECODERS_AT_ONCE = 4
# of the part of the CT that training sees at once: what an organ's box fills of it, on average
DECODER_SHARE = 0.5


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
    features = fitted_features(budget.memory_gb) if recipe == "fitted" else plan.features
    decoders = min(len(facts.labels), DECODERS_AT_ONCE) if recipe == "fitted" else len(facts.labels)
    per_voxel = ENCODER_BYTES_PER_VOXEL_AND_FEATURE + decoders * DECODER_SHARE * DECODER_BYTES_PER_VOXEL_AND_FEATURE
    voxels = budget.memory_gb * 1e9 / (per_voxel * features)
    image_mm = np.percentile([case.shape for case in facts.cases], 95, axis=0) * facts.spacing_mm
    if recipe == "fitted":
        plan = _fitted(plan, facts, image_mm, np.maximum(finest, facts.spacing_mm), voxels, features)
    plan = within_budget(plan, budget)
    return replace(
        plan,
        crop_shape=_crop_shape(image_mm / plan.grid_spacing_mm, plan.total_stride, voxels),
        phases=scaled_phases(SHARED_PHASES, SharedEncoderPlan.epochs, plan.epochs),
    )


def _fitted(
    plan: SharedEncoderPlan,
    facts: DatasetFacts,
    image_mm: np.ndarray,
    finest_mm: np.ndarray,
    voxels: float,
    features: int,
) -> SharedEncoderPlan:
    spacing = finest_mm
    if np.prod(image_mm / spacing) * LEAST_SHARE > voxels:
        spacing = np.maximum(image_mm / fit_grid(image_mm, finest_mm, voxels / LEAST_SHARE), finest_mm).round(4)
    coarsest = max(COARSEST_MM, COARSEST_VOXELS * float(spacing.min()))
    strides = fit_strides(image_mm / spacing, spacing, len(plan.strides) - 1, coarsest)
    return replace(
        plan,
        grid_spacing_mm=tuple(spacing.tolist()),
        strides=(*strides, (1, 1, 1)),
        features=features,
        coarse_labels="covering",
        margin_vox=tuple(np.ceil(MARGIN_MM / spacing).astype(int).tolist()),
        jitter_vox=tuple(np.ceil(JITTER_MM / spacing).astype(int).tolist()),
        organs_per_iteration=DECODERS_AT_ONCE,
        hu_window=narrowed_window(facts.window),
        augmentation="nnunet",
        cross_entropy_weight=1.0,
        learning_rate=1e-3,
        lr_decay=None,
        epochs=250,
        iterations_per_epoch=100,
        grow_attempts=2,
    )


def _crop_shape(image_shape: np.ndarray, step: tuple[int, int, int], voxels: float) -> tuple[int, int, int]:
    """The whole image or a part of the same proportions with about `voxels` voxels, in multiples of `step`."""
    share = min(1.0, voxels / np.prod(image_shape))
    wanted = image_shape * share ** (1 / 3)
    return tuple(
        max(1, math.ceil(size / s) if share == 1 else round(size / s)) * s for size, s in zip(wanted, step, strict=True)
    )
