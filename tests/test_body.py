"""The box of the body: found where there is a body in air, refused where the threshold can be no such thing."""

import numpy as np
import pytest

from nnunet_oar.body import find_body
from nnunet_oar.roi import Box

SHAPE = (20, 60, 80)
BODY = Box((0, 12, 20), (20, 48, 64))
HU = (1.0, 0.0)


def ct(rng, body=BODY, air=-1000.0, tissue=40.0):
    image = rng.normal(air, 15, SHAPE)
    image[body.slices] = rng.normal(tissue, 30, body.shape)
    return image.astype(np.float32)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def within(found: Box, body: Box) -> bool:
    return found.contains(body) and body.grow(3).contains(found)


def test_a_body_in_air(rng):
    assert within(find_body(ct(rng), 0, HU), BODY)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_whichever_axis_the_slices_are_along(rng, axis):
    image = np.moveaxis(ct(rng), 0, axis)
    found = find_body(image, axis, HU)
    order = [0, 1, 2]
    order.insert(axis, order.pop(0))
    expected = Box(tuple(BODY.start[i] for i in order), tuple(BODY.stop[i] for i in order))
    assert within(found, expected)


def test_lungs_a_table_and_padding_of_scanners(rng):
    image = ct(rng)
    image[5:15, 20:40, 26:38] = -850  # lung
    image[:, 55, 10:70] = -300  # table, apart from the body and small
    assert within(find_body(image, 0, HU), BODY)
    image[:, :4], image[:, -2:] = -3024, -3024  # outside of the field of view
    image[10, 20:22, 40:43] = 30000  # an implant
    assert within(find_body(image, 0, HU), BODY)


def test_intensities_that_are_not_hu(rng):
    scaled = ct(rng) * 0.01 + 3
    assert within(find_body(scaled, 0, (0.01, 3.0)), BODY)
    assert find_body(scaled, 0, None) is None


def test_refused_where_nothing_can_be_told(rng):
    no_air = ct(rng, air=-100.0)  # fat and muscle
    assert find_body(no_air, 0, HU) is None
    assert find_body(np.zeros(SHAPE, np.float32), 0, HU) is None
    assert find_body(np.full((1, 1, 1), -1000, np.float32), 0, HU) is None
    air_alone = rng.normal(-1000, 10, SHAPE).astype(np.float32)
    assert find_body(air_alone, 0, HU) is None


def test_one_slice_and_a_middle_slice_unlike_the_others(rng):
    image = ct(rng)
    assert find_body(image[:1], 0, HU).contains(BODY.within((1, 60, 80)))
    image[10] = rng.normal(-1000, 10, SHAPE[1:])
    assert find_body(image, 0, HU) is None
    image[10, 55:57] = -300  # a table alone: the threshold serves all the same
    assert find_body(image, 0, HU).contains(BODY)
