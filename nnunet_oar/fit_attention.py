"""What fits the section of OARAttentionTrainer to a data set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from nnunet_oar.body_regions import derive_regions
from nnunet_oar.fit import (
    Budget,
    DatasetFacts,
    axis_across_slices,
    common_fields,
    narrowed_window,
    plausible_flips,
    within_budget,
)
from nnunet_oar.plan import ATTENTION_PHASES, AttentionPlan, Phase, scaled_phases

# Measured on a CPU in float32 with 8 and 18 classes, 8 and 16 slices of 128 x 128 and 128 x 160: peak memory of one training
# step per slice, pixel and feature of the first level was 164 to 229 bytes; mixed precision needs less.
TRAINING_BYTES_PER_PIXEL_AND_FEATURE = 220


def fit_attention(facts: DatasetFacts, recipe: str, budget: Budget) -> AttentionPlan:
    """`paper`: the paper's numbers; `fitted`: whole slices, width and batch from the memory target, phases from the epochs."""
    slice_axis = axis_across_slices(facts)
    regions, region_organs = _regions(facts, slice_axis)
    flips = () if recipe == "paper" else tuple(axis for axis in plausible_flips(facts) if axis != slice_axis)
    plan = AttentionPlan(
        **common_fields(facts, recipe, flips),
        slice_axis=slice_axis,
        regions=regions,
        region_organs=region_organs,
        # until the number of epochs is known
        phases=(Phase(),),
    )
    if recipe == "fitted":
        plan = _fitted(plan, facts, budget.memory_gb)
    plan = within_budget(plan, budget)
    phases = scaled_phases(ATTENTION_PHASES, AttentionPlan.epochs, plan.epochs)
    return replace(plan, phases=phases if regions else without_regions(phases))


def without_regions(phases: Sequence[Phase]) -> tuple[Phase, ...]:
    """The phases where nothing is known of the body region: gamma is 0, and the phase that trains nothing else is left out."""
    kept = [replace(phase, region=0.0) for phase in phases if phase.dice or phase.focal]
    return (replace(kept[0], start=0), *kept[1:])


def _regions(facts: DatasetFacts, slice_axis: int) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """Names of the regions and, where they are derived, the organs in each."""
    if facts.axes is None or facts.regions:
        return facts.regions if facts.axes else (), ()
    if not all(case.complete for case in facts.cases):
        return (), ()
    slices = []
    for case in facts.cases:
        for position in range(case.shape[slice_axis]):
            slices.append(
                frozenset(
                    label
                    for label, box in case.organs.items()
                    if box.start[slice_axis] <= position < box.stop[slice_axis]
                )
            )
    organs = derive_regions(slices)
    return tuple(f"derived {index}" for index in range(1, len(organs) + 1)), organs


def _fitted(plan: AttentionPlan, facts: DatasetFacts, memory_gb: float) -> AttentionPlan:
    features = 32 if memory_gb >= 4 else 16
    in_plane = np.max([[case.shape[axis] for axis in plan.in_plane_axes] for case in facts.cases], axis=0)
    stages = int(np.clip(math.floor(math.log2(in_plane.min() / 4)), 2, plan.stages))
    step = 2 ** (stages - 1)
    slice_shape = tuple(max(2, math.ceil(size / step)) * step for size in in_plane.tolist())
    affordable = memory_gb * 1e9 / (TRAINING_BYTES_PER_PIXEL_AND_FEATURE * features * math.prod(slice_shape))
    return replace(
        plan,
        slice_shape=slice_shape,
        stages=stages,
        features=features,
        batch_size=int(np.clip(affordable, 2, 16)),
        hu_window=narrowed_window(facts.window),
        augmentation="nnunet",
        iterations_per_epoch=250,
        val_iterations=10,
    )
