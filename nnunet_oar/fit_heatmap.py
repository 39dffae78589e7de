"""What fits the section of OARHeatmapCascadeTrainer to a data set."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nnunet_oar.fit import (
    Budget,
    DatasetFacts,
    common_fields,
    fit_grid,
    fit_strides,
    fitted_features,
    narrowed_window,
    ordered_pairs,
    plausible_flips,
    within_budget,
)
from nnunet_oar.plan import HeatmapPlan

# Measured on a CPU in float32 with 8 and 16 features at 64^3 and 96 x 80^2: peak memory of one training step per voxel of the grid
# and feature of the first level was 78 to 134 bytes; mixed precision needs less.
TRAINING_BYTES_PER_VOXEL_AND_FEATURE = 140
# The localiser works at 3 mm or coarser and gets this share of what the memory target allows the organs' networks
LOCALIZER_SHARE = 0.2
# Least standard deviation of the heat in voxels of the localiser
SIGMA_VOXELS = 1.6


def fit_heatmap_cascade(facts: DatasetFacts, recipe: str, budget: Budget) -> HeatmapPlan:
    """`paper`: the paper's numbers, and grids of the organs at the working spacing where the memory target allows it; `fitted`:
    also the localiser's spacing, widths and rates from the budget."""
    fields = common_fields(facts, recipe, plausible_flips(facts) if recipe == "fitted" else ())
    fields |= {
        "spacing_mm": facts.spacing_mm,
        "organ_features": HeatmapPlan.organ_features,
        "margin_vox": HeatmapPlan.margin_vox,
    }
    if recipe == "fitted":
        features = fitted_features(budget.memory_gb)
        fields |= {
            "localizer_features": features,
            "organ_features": features,
            "margin_vox": tuple(np.ceil(15 / np.asarray(facts.spacing_mm)).astype(int).tolist()),
            "measured_margin": True,
            "centre": "weighted",
            "hu_window": narrowed_window(facts.window),
            "augmentation": "nnunet",
            "localizer_learning_rate": 3e-3,
            "organ_learning_rate": 3e-3,
            "lr_decay": None,
            "heat_weight": 5.0,
            "epochs": 250,
            "iterations_per_epoch": 100,
            "grow_attempts": 2,
            "low_high_pairs": ordered_pairs(facts),
        }
    # a plan has a grid for each organ; they are fitted once the localiser's voxels are known, which boxes depend on
    fields["organ_step_vox"] = dict.fromkeys(facts.labels, (1, 1, 1))
    fields["organ_strides"] = dict.fromkeys(facts.labels, HeatmapPlan.localizer_strides)
    plan = _with_localizer(HeatmapPlan(**fields), facts, budget.memory_gb)
    return within_budget(_with_organ_grids(plan, facts, budget.memory_gb), budget)


def _with_organ_grids(plan: HeatmapPlan, facts: DatasetFacts, memory_gb: float) -> HeatmapPlan:
    """Each organ's spacing and strides, for its boxes in training: "customise the networks" (section II.B)."""
    # an iteration's crops together, although they are trained one by one: it takes as long as a cascade's batch
    voxels = memory_gb * 1e9 / (TRAINING_BYTES_PER_VOXEL_AND_FEATURE * plan.organ_features * plan.organs_per_iteration)
    spacing = np.asarray(facts.spacing_mm)
    steps, strides = {}, {}
    for organ, label in facts.labels.items():
        sizes = [case.organs[label].shape for case in facts.cases if label in case.organs]
        # an organ that no case holds has a network that is never trained
        organ_mm = np.mean(sizes or [(1, 1, 1)], axis=0) * spacing
        least, most = plan.margin_range_mm(organ, organ_mm)
        size_mm, largest_mm = organ_mm + least + most, organ_mm + 2 * most
        # the mean box among the crops of an iteration, but the largest one must fit by itself
        size_mm *= max(1.0, np.prod(largest_mm / size_mm) / plan.organs_per_iteration) ** (1 / 3)
        fits = np.prod(size_mm / spacing) <= voxels
        grid = np.ceil(size_mm / spacing).astype(int) if fits else fit_grid(size_mm, spacing, voxels)
        # the grid's least sizes and multiples of 8 may be finer than half the working spacing
        step = np.ones(3) if fits else np.maximum(size_mm / grid / spacing, 0.5)
        steps[organ] = tuple(float(value) for value in step.round(4))
        strides[organ] = fit_strides(grid, step * spacing)
    return replace(plan, organ_step_vox=steps, organ_strides=strides)


def _with_localizer(plan: HeatmapPlan, facts: DatasetFacts, memory_gb: float) -> HeatmapPlan:
    """The localiser's spacing (fitted) or the part of a case that it is trained on at once (paper), and its strides."""
    spacing = np.asarray(facts.spacing_mm)
    bound = LOCALIZER_SHARE * memory_gb * 1e9 / (TRAINING_BYTES_PER_VOXEL_AND_FEATURE * plan.localizer_features)
    image_mm = np.percentile([case.shape for case in facts.cases], 95, axis=0) * spacing
    if plan.recipe == "fitted":
        finest = np.maximum(plan.localizer_spacing_mm, spacing)
        wanted = np.maximum(image_mm / fit_grid(image_mm, finest, bound), finest).round(4)
        # heat that is narrower than the grid's voxels is hardly learnt
        sigma2 = max(plan.sigma2_mm2, float((SIGMA_VOXELS * wanted.max()) ** 2))
        plan = replace(plan, localizer_spacing_mm=tuple(wanted.tolist()), sigma2_mm2=round(sigma2, 1))
    largest = np.max([plan.localizer_shape(case.shape) for case in facts.cases], axis=0)
    share = bound / np.prod(largest, dtype=float)
    if share < 0.7:
        largest = np.maximum(16 * np.round(largest * share ** (1 / 3) / 16), 16).astype(int)
        plan = replace(plan, localizer_crop=tuple(largest.tolist()))
    return replace(plan, localizer_strides=fit_strides(largest, plan.localizer_spacing_mm))
