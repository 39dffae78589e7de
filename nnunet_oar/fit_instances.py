"""What fits the section of OARInstanceCascadeTrainer to a data set."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nnunet_oar.fit import Budget, DatasetFacts, common_fields, narrowed_window, two_stage_fields, within_budget
from nnunet_oar.plan import InstancePlan
from nnunet_oar.sides import side_pairs


def fit_instance_cascade(facts: DatasetFacts, recipe: str, budget: Budget) -> InstancePlan:
    """The section of OARInstanceCascadeTrainer. `paper`: the paper's numbers; `fitted`: grids from the instances' size and the
    budget. All labels together make an instance."""
    wanted: tuple[int, ...] = (0, 1, 2)
    window = narrowed_window(facts.window) if recipe == "fitted" else _paper_window(facts)
    if recipe == "fitted":
        # a mirrored left kidney is much like a right one
        wanted = (facts.axes.left_right,) if facts.axes else ()
    plan = InstancePlan(
        **common_fields(facts, recipe, wanted),
        spacing_mm=facts.spacing_mm,
        slice_axis=facts.axes.inferior_superior if facts.axes else 0,
        hu_window=window,
        instance_labels=tuple(facts.labels.values()),
        fine_weights=_weights(facts),
    )
    if recipe == "fitted":
        boxes = [(box, case.shape) for case in facts.cases for box in case.instances]
        fields, _ = two_stage_fields(facts, budget.memory_gb, boxes)
        plan = replace(plan, **fields, draw_by="organ")
    return within_budget(plan, budget)


def _paper_window(facts: DatasetFacts) -> tuple[float, float]:
    """The paper's window within what the preprocessed data still holds; the plan refuses it where the HU are lost."""
    window = InstancePlan.hu_window
    if facts.window is None or facts.intensity_from_hu == (1.0, 0.0):
        return window
    # CTNormalization has clipped to the foreground's percentiles
    low, high = max(window[0], facts.window[0]), min(window[1], facts.window[1])
    return (low, high) if low < high else facts.window


def _weights(facts: DatasetFacts) -> tuple[float, ...]:
    """0.01 for the background; of two organs 0.14 for the larger and 0.85 for the smaller one; the same for all organs where there
    are more or fewer, or where the two are the sides of a pair."""
    background, larger, smaller = InstancePlan.fine_weights
    labels = list(facts.labels.values())
    if len(labels) != 2 or side_pairs(facts.labels)[0]:
        return (background, *[round((1 - background) / len(labels), 6)] * len(labels))
    volumes = [
        np.mean([case.organs[label].volume for case in facts.cases if label in case.organs] or [0.0])
        for label in labels
    ]
    return (background, larger, smaller) if volumes[0] >= volumes[1] else (background, smaller, larger)
