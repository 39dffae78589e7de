"""What about a prediction should make somebody look twice. Ranges are those of the training data, in the plans."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nnunet_oar.plan import OARPlan
from nnunet_oar.sides import side_pairs

# Beyond the range seen in training by these parts of it: patients vary more than a data set shows
EXTENT_TOLERANCE = 0.2
VOLUME_TOLERANCE = 0.5
# and by this: contrast media differ
HU_TOLERANCE = 80.0
FREE_TOLERANCE_MM = 50.0
# Folds that agree less than this with their mean (Dice) have learnt different things, or see what none of them knows
LEAST_AGREEMENT = 0.8


def implausible(
    plan: OARPlan,
    organs: Mapping[str, Mapping[str, Any]],
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    letters: str,
    agreement: Mapping[str, float] | None,
    asked: Sequence[str],
) -> list[str]:
    """One sentence for each thing. organs: as `measured` gives them, of all that were found, with `box` in voxels of an image of
    `shape` and `spacing_mm` whose axes grow towards `letters`, and `extent_vox` in voxels of the working spacing; agreement: as
    Prediction.agreement. asked: the organs that were asked for."""
    texts = []
    wanted = {name: organ for name, organ in organs.items() if name in asked}
    for name, organ in wanted.items():
        texts += _size(plan, name, organ)
    texts += _intensities(plan, wanted)
    absent = [name for name in asked if name in plan.always_present and name not in organs] if organs else []
    if absent:
        texts.append(f"{', '.join(absent)}: not in the result, and in all training cases")
    texts += _sides(organs, letters, asked)
    if not organs:
        texts.append("no organ was found")
    elif not wanted and not absent:
        texts.append("none of the organs that were asked for was found")
    if organs and plan.organ_free_mm is not None and letters == plan.array_orientation:
        texts += _organ_free(plan, organs, shape, spacing_mm, letters)
    for name, dice in (agreement or {}).items():
        if name in asked and dice < LEAST_AGREEMENT:
            texts.append(f"{name}: the folds disagree (a fold's Dice with the result is {dice:.2f})")
    return texts


def _size(plan: OARPlan, name: str, organ: Mapping[str, Any]) -> list[str]:
    texts = []
    if name in plan.organ_volume_ml:
        low, high = plan.organ_volume_ml[name]
        if not low * (1 - VOLUME_TOLERANCE) <= organ["ml"] <= high * (1 + VOLUME_TOLERANCE):
            found, least, most = (f"{ml:.0f}" if ml >= 100 else f"{ml:.3g}" for ml in (organ["ml"], low, high))
            texts.append(f"{name} has {found} ml, in training it had {least} to {most}")
    if name in plan.organ_extent_vox:
        for size, low, high in zip(organ["extent_vox"], *plan.organ_extent_vox[name], strict=True):
            # a voxel more or less at each end is no other organ
            if not low * (1 - EXTENT_TOLERANCE) - 2 <= size <= high * (1 + EXTENT_TOLERANCE) + 2:
                extents = " x ".join(f"{value:.0f}" for value in organ["extent_mm"])
                texts.append(f"{name} reaches over {extents} mm, which is outside of the range in training")
                break
    return texts


def _intensities(plan: OARPlan, organs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One sentence for all organs: values that are no HU make contours that look right."""
    odd = []
    for name, organ in organs.items():
        low, high = plan.organ_mean_hu.get(name, (-math.inf, math.inf))
        if not low - HU_TOLERANCE <= organ["mean_hu"] <= high + HU_TOLERANCE:
            odd.append(f"{name} {organ['mean_hu']:.0f} (in training {low:.0f} to {high:.0f})")
    return [f"mean HU unlike in training: {', '.join(odd)}; are the CT's values HU?"] if odd else []


def _sides(organs: Mapping[str, Mapping[str, Any]], letters: str, asked: Sequence[str]) -> list[str]:
    """Left organs lie to the left of right ones in every patient with organs at their usual sides; of pairs one of which was asked
    for."""
    names = list(organs)
    axis = next(index for index, letter in enumerate(letters) if letter in "LR")
    sign = 1 if letters[axis] == "L" else -1
    texts = []
    for left, right in side_pairs({name: label for label, name in enumerate(names)})[0]:
        left, right = names[left], names[right]
        if {left, right} & set(asked) and sign * (
            organs[left]["box"].centre[axis] - organs[right]["box"].centre[axis]
        ) < 0:
            texts.append(f"{left} lies to the right of {right}; is the CT's orientation right?")
    return texts


def _organ_free(
    plan: OARPlan,
    organs: Mapping[str, Mapping[str, Any]],
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    letters: str,
) -> list[str]:
    axis = next(index for index, letter in enumerate(letters) if letter in "SI")
    first = min(organ["box"].start[axis] for organ in organs.values())
    last = max(organ["box"].stop[axis] for organ in organs.values())
    ends = ("feet", "head") if letters[axis] == "S" else ("head", "feet")
    texts = []
    for end, gap, known in zip(ends, (first, shape[axis] - last), plan.organ_free_mm, strict=True):
        gap_mm = gap * spacing_mm[axis]
        if gap_mm > known + FREE_TOLERANCE_MM:
            texts.append(
                f"no organ was found in the {gap_mm:.0f} mm of the CT nearest to the {end}; in training there were {known:.0f} mm "
                f"at most"
            )
    return texts
