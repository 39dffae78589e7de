"""What fits the section "oar" and the canvas to a data set. Planner and trainer (on stock plans) both call `fit_cascade`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from nnunet_oar.axes import AnatomicalAxes
from nnunet_oar.plan import CascadePlan, OARPlan, Triple
from nnunet_oar.roi import Box
from nnunet_oar.sides import side_pairs

# Measured on a CPU in float32 (docs/benchmarks.md): peak memory of one training step per sample, voxel of the grid and feature of
# the first level was 128 to 205 bytes; mixed precision needs less.
TRAINING_BYTES_PER_VOXEL_AND_FEATURE = 180
# The second stage gets what the memory target allows, the first one this share of its voxels: it need not be precise.
COARSE_SHARE = 0.2
# Soft tissue and the border of bone and air: the air around the patient and dense bone would otherwise fill the variance that the
# image is divided by. Organs in training may narrow it (their 0.5 and 99.5 percentiles), not widen it.
FITTED_WINDOW_HU = (-400.0, 600.0)
# nnU-Net's predictor holds about 6 bytes per class and voxel of the canvas, each export worker about 12.
CANVAS_BYTES_PER_CLASS_AND_VOXEL = 18
CANVAS_MEMORY_BYTES = 16e9
CANVAS_HEADROOM = 1.25
OESOPHAGUS = re.compile(r"o?esophag", re.IGNORECASE)
HEART = re.compile(r"heart", re.IGNORECASE)

P = TypeVar("P", bound=OARPlan)


@dataclass(frozen=True)
class CaseFacts:
    """Shape of one preprocessed case and the box of each organ that it annotates, in voxels of the working spacing.

    complete: the case annotates every organ, so that what is missing is absent. instances: box of each, for trainers that ask for
    them. volumes_ml: of each organ in the label map. mean_hu: in each organ, of the first channel, where the images were read.
    """

    shape: Triple
    organs: Mapping[int, Box]
    complete: bool = True
    instances: Sequence[Box] = ()
    volumes_ml: Mapping[int, float] = field(default_factory=dict)
    mean_hu: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class DatasetFacts:
    """What the plan depends on, over all training cases.

    spacing_mm and shapes are in the axis order of the preprocessed data. labels: organ -> label, without background.
    axes: None where they are not known. window: the foreground's 0.5 and 99.5 percentiles in HU; None with several channels or
    where the HU are lost. regions: names of the body regions, where dataset.json gives them.
    """

    spacing_mm: tuple[float, float, float]
    cases: Sequence[CaseFacts]
    labels: Mapping[str, int]
    axes: AnatomicalAxes | None
    window: tuple[float, float] | None
    intensity_from_hu: tuple[float, float] | None
    regions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Budget:
    """What the user allows: memory of the training device in GB, epochs and iterations per epoch (None: the recipe's)."""

    memory_gb: float = 8.0
    epochs: int | None = None
    iterations: int | None = None


def axis_across_slices(facts: DatasetFacts) -> int:
    """The body axis; where that is not known, that of the largest spacing."""
    return facts.axes.inferior_superior if facts.axes else int(np.argmax(facts.spacing_mm))


def fit_canvas(facts: DatasetFacts) -> Triple:
    """nnU-Net's patch size: holds every training case whole, with headroom along the body axis, within a bound of memory.

    Two voxels more than the largest case on each axis, so that an image that fills the canvas is known to be larger than any in
    training.
    """
    largest = np.max([case.shape for case in facts.cases], axis=0) + 2
    # where the body axis is not known any may be it
    body_axes = [facts.axes.inferior_superior] if facts.axes else [0, 1, 2]
    affordable = CANVAS_MEMORY_BYTES / (CANVAS_BYTES_PER_CLASS_AND_VOXEL * (len(facts.labels) + 1))
    factor = min(CANVAS_HEADROOM, (affordable / np.prod(largest, dtype=float)) ** (1 / len(body_axes)))
    canvas = [int(size) for size in largest]
    for axis in body_axes:
        canvas[axis] = max(1, math.floor(canvas[axis] * factor))
    return tuple(canvas)


def flip_rules(labels: Mapping[str, int], axes: AnatomicalAxes | None, wanted: Sequence[int]) -> tuple[tuple, tuple]:
    """Axes along which training may mirror, and the label pairs that change places when the left-right axis is mirrored.

    Labels with a side forbid mirroring left-right unless each has its counterpart; where the axis is not known, they forbid
    mirroring at all.
    """
    pairs, single = side_pairs(labels)
    if not pairs and not single:
        return tuple(wanted), ()
    if axes is None:
        return (), ()
    if single:
        return tuple(axis for axis in wanted if axis != axes.left_right), ()
    return tuple(wanted), tuple(pairs)


def fit_cascade(facts: DatasetFacts, recipe: str, budget: Budget) -> CascadePlan:
    """The section of OARCascadeTrainer. `paper`: the paper's numbers; `fitted`: grids from the organs' size and the budget."""
    wanted: tuple[int, ...] = (0, 1, 2)
    if recipe == "fitted":
        wanted = plausible_flips(facts)
    plan = CascadePlan(
        **common_fields(facts, recipe, wanted),
        test_time={name: ("boxes",) for name in facts.labels if OESOPHAGUS.search(name)},
    )
    if recipe == "fitted":
        plan = _fitted(plan, facts, budget.memory_gb)
    return within_budget(plan, budget)


def common_fields(facts: DatasetFacts, recipe: str, wanted_flips: Sequence[int]) -> dict:
    """What every trainer's plan takes from the data set. Raises ValueError where no case holds an organ."""
    if not any(case.organs for case in facts.cases):
        raise ValueError(
            f"no training case holds a voxel of {', '.join(facts.labels)}; check the label maps and dataset.json"
        )
    flips, swaps = flip_rules(facts.labels, facts.axes, wanted_flips)
    return {
        "organs": tuple(facts.labels),
        "recipe": recipe,
        "flip_axes": flips,
        "swap_on_flip": swaps,
        "left_right_axis": facts.axes.left_right if facts.axes else None,
        "intensity_from_hu": facts.intensity_from_hu,
        "unannotated_may_rise": recipe == "paper",
        "postprocessing": postprocessing_of(facts.labels),
        **ranges(facts),
    }


def postprocessing_of(organs: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Components under 5% of the largest are dropped (paper 000, section 2.1.4), a heart is one, an oesophagus has no gaps."""
    steps = {}
    for organ in organs:
        steps[organ] = ("keep_largest",) if HEART.fullmatch(organ) else ("drop_small",)
        if OESOPHAGUS.search(organ):
            steps[organ] = ("bridge_slices", *steps[organ])
    return steps


def ranges(facts: DatasetFacts) -> dict:
    """How large and how bright organs are in the data set, how far its CTs reach beyond them, and which organs none lacks."""
    extents, volumes, intensities = {}, {}, {}
    for name, label in facts.labels.items():
        shapes = [case.organs[label].shape for case in facts.cases if label in case.organs]
        if shapes:
            extents[name] = (tuple(map(min, zip(*shapes, strict=True))), tuple(map(max, zip(*shapes, strict=True))))
        ml = [case.volumes_ml[label] for case in facts.cases if label in case.volumes_ml]
        if ml:
            volumes[name] = (round(min(ml), 3), round(max(ml), 3))
        hu = [case.mean_hu[label] for case in facts.cases if label in case.mean_hu]
        if hu:
            intensities[name] = (round(min(hu), 1), round(max(hu), 1))
    letters = facts.axes.letters if facts.axes else None
    # what a case does not annotate may lie anywhere
    complete = [case for case in facts.cases if case.complete]
    free = []
    for case in complete:
        if letters is not None and case.organs:
            axis = facts.axes.inferior_superior
            organs = Box.around(case.organs.values())
            gaps = organs.start[axis], case.shape[axis] - organs.stop[axis]
            free.append([gap * facts.spacing_mm[axis] for gap in gaps])
    return {
        "organ_extent_vox": extents,
        "organ_volume_ml": volumes,
        "organ_mean_hu": intensities,
        "organ_free_mm": tuple(np.max(free, axis=0).round(1).tolist()) if free else None,
        "always_present": tuple(
            name for name, label in facts.labels.items() if complete and all(label in case.organs for case in complete)
        ),
        "array_orientation": letters,
    }


def plausible_flips(facts: DatasetFacts) -> tuple[int, ...]:
    """A mirrored patient is a plausible one only where organs come in pairs: hearts on the right need not be learnt."""
    return (facts.axes.left_right,) if facts.axes and side_pairs(facts.labels)[0] else ()


def ordered_pairs(facts: DatasetFacts) -> tuple[tuple[int, int], ...]:
    """Labels of organs of two sides, first the one that lies at the low end of the left-right axis in all cases that hold both.

    Only of organs that lie beside each other, not of halves of one, such as the ventricles of the heart: those do not look alike.
    """
    pairs = []
    for pair in side_pairs(facts.labels)[0] if facts.axes else ():
        axis = facts.axes.left_right
        both = [[case.organs[label] for label in pair] for case in facts.cases if set(pair) <= set(case.organs)]
        # from the first to the second one, in their mean lengths
        away = [(b.centre[axis] - a.centre[axis]) / ((a.shape[axis] + b.shape[axis]) / 2) for a, b in both]
        if away and min(map(abs, away)) >= 1 and len(set(np.sign(away))) == 1:
            pairs.append(pair if away[0] > 0 else pair[::-1])
    return tuple(pairs)


def within_budget(plan: P, budget: Budget) -> P:
    """The plan with the user's number of epochs and iterations, where given."""
    if budget.epochs is not None:
        plan = replace(plan, epochs=budget.epochs)
    if budget.iterations is not None:
        plan = replace(plan, iterations_per_epoch=budget.iterations)
    return plan


def _fitted(plan: CascadePlan, facts: DatasetFacts, memory_gb: float) -> CascadePlan:
    fields, boxes = two_stage_fields(facts, memory_gb, _boxes_of_all_organs(facts))
    median = np.median(boxes, axis=0)
    complete = [case.complete for case in facts.cases]
    # a guess at where the rest lies may be wrong; what other cases show is not
    reach = 0.0 if all(complete) else 1.0 if any(complete) else 0.5
    return replace(
        plan,
        **fields,
        margin_jitter=0.5,
        reach_unannotated=reach,
        extra_box_vox=tuple(tuple(math.ceil(size * factor) for size in median) for factor in (1.15, 1.3)),
        hu_window=narrowed_window(facts.window),
        fallback_whole=True,
    )


def fitted_features(memory_gb: float) -> int:
    """Width of the first level; 8 or 16: convolutions of other widths are padded to these and cost the same."""
    return 16 if memory_gb >= 2 else 8


def two_stage_fields(
    facts: DatasetFacts, memory_gb: float, boxes: Sequence[tuple[Box, Triple]]
) -> tuple[dict, np.ndarray]:
    """The fitted recipe's fields of a TwoStagePlan, and the sizes (n, 3) of the boxes with their margin.

    boxes: what the second stage segments at once, without margin, and the shape of the image that it lies in.
    """
    spacing = np.asarray(facts.spacing_mm)
    features, batch_size = fitted_features(memory_gb), 2
    voxels = memory_gb * 1e9 / (TRAINING_BYTES_PER_VOXEL_AND_FEATURE * features * batch_size)

    shapes = np.array([case.shape for case in facts.cases])
    image_mm = np.percentile(shapes, 95, axis=0) * spacing
    coarse_shape = fit_grid(image_mm, spacing, voxels * COARSE_SHARE)
    coarse_spacing = image_mm / coarse_shape
    # a localiser is off by a voxel or so of its own grid
    margin = np.maximum(np.ceil(1.5 * coarse_spacing / spacing), np.ceil(10 / spacing)).astype(int)

    sizes = np.array([np.minimum(box.grow(margin.tolist()).shape, shape) for box, shape in boxes])
    fine_mm = np.percentile(sizes, 90, axis=0) * spacing
    fine_shape = fit_grid(fine_mm, spacing / 2, voxels)
    return {
        "coarse_shape": coarse_shape,
        "fine_shape": fine_shape,
        "batch_size": batch_size,
        "coarse_features": 8,
        "fine_features": features,
        "coarse_strides": fit_strides(coarse_shape, coarse_spacing),
        "fine_strides": fit_strides(fine_shape, fine_mm / fine_shape),
        "margin_vox": tuple(margin.tolist()),
        "coarse_labels": "covering",
        # never finer than half the working spacing
        "min_box_vox": tuple(math.ceil(size / 2) for size in fine_shape),
        "augmentation": "nnunet",
        "cross_entropy_weight": 1.0,
        "learning_rate": 1e-3,
        "lr_decay": None,
        "dropout": 0.0,
        "epochs": 250,
        "iterations_per_epoch": 100,
        "grow_attempts": 2,
    }, sizes


def _boxes_of_all_organs(facts: DatasetFacts) -> list[tuple[Box, Triple]]:
    """Box of all organs and shape of the image, of the cases that annotate everything.

    Where each case leaves something out, what is left out may lie anywhere: the box of an image is then the image.
    """
    complete = [(Box.around(case.organs.values()), case.shape) for case in facts.cases if case.complete and case.organs]
    return complete or [(Box.full(case.shape), case.shape) for case in facts.cases if case.organs]


def fit_grid(size_mm: np.ndarray, finest_mm: np.ndarray, voxels: float) -> Triple:
    """Shape of a grid over `size_mm` with at most about `voxels` voxels, as isotropic as `finest_mm` (per axis) allows.

    Sizes are multiples of 8, at least 16.
    """
    size_mm, finest_mm = np.asarray(size_mm, dtype=float), np.asarray(finest_mm, dtype=float)
    low, high = 1e-3, float(size_mm.max())
    for _ in range(60):  # bisection: the number of voxels falls with the spacing
        middle = math.sqrt(low * high)
        if np.prod(size_mm / np.maximum(middle, finest_mm)) > voxels:
            low = middle
        else:
            high = middle
    shape = size_mm / np.maximum(high, finest_mm)
    return tuple(max(16, 8 * round(size / 8)) for size in shape)


def fit_strides(
    shape: Sequence[int], spacing_mm: Sequence[float], levels: int = 4, coarsest_mm: float = math.inf
) -> tuple[Triple, ...]:
    """Strides per level and axis: 2 while 8 voxels or more remain, the axis is not much coarser than the rest and would not exceed
    `coarsest_mm`, else 1.

    Always `levels` of them, so that networks for other grids have the same weights (-pretrained_weights).
    """
    size, spacing = np.array(shape, dtype=float), np.array(spacing_mm, dtype=float)
    strides = []
    for _ in range(levels):
        halve = (size >= 8) & (spacing <= 2 * spacing.min()) & (2 * spacing <= coarsest_mm)
        step = np.where(halve, 2, 1)
        size, spacing = np.ceil(size / step), spacing * step
        strides.append(tuple(step.tolist()))
    return tuple(strides)


def narrowed_window(window: tuple[float, float] | None) -> tuple[float, float] | None:
    if window is None:
        return None
    low, high = max(window[0], FITTED_WINDOW_HU[0]), min(window[1], FITTED_WINDOW_HU[1])
    return (low, high) if low < high else window
