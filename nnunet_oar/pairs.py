"""Organs of two sides that look alike: which is which, from where they lie.

Pairs (low, high) are of labels: in every training case the first lies at the low end of the left-right axis (`low_high_pairs` of
the plans, which `fit.ordered_pairs` finds).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

from nnunet_oar.components import Region
from nnunet_oar.plan import SECTION, HeatmapPlan, SharedEncoderPlan
from nnunet_oar.plan.base import plain
from nnunet_oar.roi import Box

# of each organ's map: how many regions are looked at, and the least one, in voxels of the largest
MOST_REGIONS = 4
LEAST_REGION = 0.25


def choose_sides(
    low: Sequence[Region], high: Sequence[Region], axis: int, apart: float
) -> tuple[Region | None, Region | None]:
    """Of the regions of two organs of a pair, of which `low` lies at the low end of an axis in every training case, the largest two
    whose centres are at least `apart` voxels from each other in that order. Regions are given the largest first.

    Both organs look alike, and a network that cannot tell them shows each of them in both maps. Where no two regions are in order,
    the larger one stays and the other organ is absent; where one has no region, there is nothing to choose.
    """
    if not low or not high:
        return (low[0] if low else None), (high[0] if high else None)
    # what is much smaller than its map's largest is noise, and must not lend its order to the others
    low, high = ([region for region in of if region.voxels >= LEAST_REGION * of[0].voxels] for of in (low, high))
    pairs = [(a, b) for a, b in product(low, high) if b.centre[axis] - a.centre[axis] >= apart]
    if pairs:
        return max(pairs, key=lambda pair: pair[0].voxels + pair[1].voxels)
    return (low[0], None) if low[0].voxels >= high[0].voxels else (None, high[0])


def refuse_contradicted_pairs(plan: HeatmapPlan | SharedEncoderPlan, cases: Mapping[str, Mapping[int, Box]]) -> None:
    """Pairs in another order than the organs' would exchange left and right in every result.

    cases: of each training case, label -> box. Raises ValueError for a case in which the first organ of a pair lies beyond the
    second one, and where mirrored samples would show it there.
    """
    axis = plan.left_right_axis
    if axis in plan.flip_axes and not plan.swaps(plan.low_high_pairs):
        raise ValueError(
            f"plans, section {SECTION!r}: low_high_pairs is {plain(plan.low_high_pairs)} and training mirrors axis {axis} "
            f"(flip_axes), which contradicts pairs that are not in swap_on_flip ({plain(plan.swap_on_flip)}); add them there, or "
            f"do not mirror"
        )
    for case, of_case in cases.items():
        for pair in plan.low_high_pairs:
            if set(pair) <= set(of_case) and of_case[pair[0]].centre[axis] > of_case[pair[1]].centre[axis]:
                low, high = (plan.organs[label - 1] for label in pair)
                raise ValueError(
                    f"plans, section {SECTION!r}: low_high_pairs has {list(pair)}, but in training case {case} {low} lies "
                    f"beyond {high}; turn the pair round, leave it out, or correct the case's labels"
                )
