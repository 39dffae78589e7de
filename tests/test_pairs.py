"""Organs of two sides keep their order."""

import pytest

from nnunet_oar.components import Region
from nnunet_oar.pairs import choose_sides
from nnunet_oar.roi import Box


def regions(*of):
    return [Region(voxels, Box.full((1, 1, 1)), (5.0, 5.0, x)) for voxels, x in of]


@pytest.mark.parametrize(
    "low, high, chosen",
    [
        # each in its own place; both maps show both, in whatever order; the same place, the surer one stays
        (((90, 10),), ((80, 40),), (10, 40)), (((90, 40), (85, 10)), ((80, 10), (75, 40)), (10, 40)),
        (((90, 10), (85, 40)), ((80, 10), (75, 40)), (10, 40)), (((90, 10), (40, 40)), ((80, 10),), (10, None)),
        (((20, 10),), ((80, 11),), (None, 11)), (((90, 40),), ((80, 10),), (40, None)),
        # a speck beside does not outweigh the organ; one side alone may lie anywhere
        (((90, 10), (2, 1)), ((80, 40), (3, 50)), (10, 40)), (((90, 40),), (), (40, None)), ((), ((9, 3),), (None, 3)),
        # nor does it make an order of two regions that are the same organ
        (((80, 40),), ((90, 40), (5, 50)), (None, 40)), (((80, 40), (9, 1)), ((90, 40),), (None, 40)),
        ((), (), (None, None)),
    ],
)  # fmt: skip
def test_organs_of_two_sides_are_found_in_their_order(low, high, chosen):
    found = choose_sides(regions(*low), regions(*high), axis=2, apart=8.0)
    assert tuple(region and region.centre[2] for region in found) == chosen
