"""Polygons of masks: exact both ways, whoever fills them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from matplotlib.path import Path
from skimage.draw import polygon2mask
from skimage.measure import label

from nnunet_oar.dicom.outlines import filled, outlines


def area(polygon):
    rows, columns = polygon.T
    return abs(columns @ np.roll(rows, -1) - rows @ np.roll(columns, -1)) / 2


def centres(shape):
    return np.stack(np.mgrid[: shape[0], : shape[1]], axis=-1).reshape(-1, 2) + 0.5


MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12), elements=st.booleans())


@settings(max_examples=300, deadline=None)
@given(MASKS)
def test_there_and_back(mask):
    polygons = outlines(mask)
    assert (filled(polygons, mask.shape) == mask).all()
    # one per component, exact in area, each complete by itself
    assert len(polygons) == label(mask, connectivity=1).max()
    assert sum(map(area, polygons)) == mask.sum()
    alone = [filled([polygon], mask.shape) for polygon in polygons]
    assert (np.sum(alone, axis=0) == mask).all() if alone else not mask.any()
    for polygon, one in zip(polygons, alone, strict=True):
        assert (Path(np.concatenate((polygon, polygon[:1]))).contains_points(centres(mask.shape)) == one.ravel()).all()


@settings(max_examples=200, deadline=None)
@given(MASKS)
def test_no_point_is_superfluous(mask):
    for polygon in outlines(mask):
        steps = np.diff(np.concatenate((polygon, polygon[:1])), axis=0)
        assert (np.count_nonzero(steps, axis=1) == 1).all()
        directions = np.sign(steps)
        assert (directions != np.roll(directions, 1, axis=0)).any(axis=1).all()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(-3, 15), st.floats(-3, 15)), min_size=3, max_size=9))
def test_any_polygon_is_filled_by_parity(points):
    shape, polygon = (12, 11), np.array(points)
    expected = np.array([parity(polygon, point) for point in centres(shape)]).reshape(shape)
    assert (filled([polygon], shape) == expected).all()


def parity(polygon, point):
    """Even-odd by a ray to smaller columns, edge by edge."""
    inside = False
    for a, b in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if (a[0] <= point[0]) != (b[0] <= point[0]):
            column = a[1] + (point[0] - a[0]) / (b[0] - a[0]) * (b[1] - a[1])
            inside ^= column <= point[1]
    return inside


def test_holes_islands_and_corners():
    ring = np.ones((7, 7), bool)
    ring[2:5, 2:5] = False
    ring[3, 3] = True
    polygons = outlines(ring)
    assert len(polygons) == 2 and (filled(polygons, ring.shape) == ring).all()
    # the channel leads to the outer border along one row
    assert any(len(polygon) == 4 for polygon in polygons)
    corner = np.eye(2, dtype=bool)
    assert [polygon.tolist() for polygon in outlines(corner)] == [
        [[0, 0], [0, 1], [1, 1], [1, 0]], [[1, 1], [1, 2], [2, 2], [2, 1]],
    ]  # fmt: skip


def test_filled_as_skimage_does():
    rng = np.random.default_rng(0)
    for _ in range(20):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 12))
        radii = rng.uniform(5, 20, 12)
        polygon = np.stack((25 + radii * np.sin(angles), 25 + radii * np.cos(angles)), axis=1)
        # skimage counts from the centre of the first pixel
        assert (filled([polygon], (50, 50)) == polygon2mask((50, 50), polygon - 0.5)).all()


@pytest.mark.parametrize("mask", [np.zeros((3, 4), bool), np.zeros((0, 0), bool)])
def test_nothing(mask):
    assert outlines(mask) == [] and not filled([], mask.shape).any()
