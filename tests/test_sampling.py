"""Interpolation along axes against a loop in double precision, and against the resize that everything else here uses."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_oar.roi import resize
from nnunet_oar.sampling import Between, between, centres, interpolated_along

quick = settings(deadline=None, max_examples=60)

sizes = st.integers(1, 9)
# grids need not start at 0, nor have voxels of one unit
regions = st.tuples(st.floats(-30, 30), st.floats(0.5, 40)).map(lambda drawn: (drawn[0], drawn[0] + drawn[1]))


def values(*shape, seed=0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 100


def by_hand(line: np.ndarray, at: float, start: float, stop: float) -> float:
    """A line of voxels that fills [start, stop), at one coordinate: a loop over the pairs of neighbours, in float64."""
    step = (stop - start) / len(line)
    middles = [start + (index + 0.5) * step for index in range(len(line))]
    if at <= middles[0]:
        return line[0]
    for index in range(len(line) - 1):
        if at <= middles[index + 1]:
            part = (at - middles[index]) / step
            return line[index] * (1 - part) + line[index + 1] * part
    return line[-1]


@quick
@given(sizes, regions, st.lists(st.floats(-0.5, 1.5), min_size=1, max_size=8), st.integers(0, 2))
def test_any_positions_against_a_loop(size, region, parts, axis):
    """Also positions before and behind the grid, in any order."""
    start, stop = region
    at = start + np.array(parts) * (stop - start)
    shape = [2, 3, 2]
    shape[axis] = size
    x = values(*shape)
    where = between(at, start, stop, size)
    found = interpolated_along(x, axis, where)
    lines = x.double().numpy()
    expected = np.stack(
        [np.apply_along_axis(by_hand, axis, lines, position, start, stop) for position in at.tolist()], axis
    )
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, expected, atol=2e-3)
    # the last axes may also be counted from the end
    assert torch.equal(interpolated_along(x, axis - 3, where), found)


@quick
@given(sizes, regions, st.lists(st.floats(-1e4, 1e4), max_size=8))
def test_neighbours_exist_and_weights_are_below_1(size, region, positions):
    where = between(np.array(positions, dtype=float), *region, size)
    assert where.lower.dtype == where.upper.dtype == np.int64 and where.weight.dtype == np.float32
    assert ((where.lower >= 0) & (where.upper < size)).all()
    assert ((where.weight >= 0) & (where.weight <= 1)).all()
    assert np.array_equal(where.upper - where.lower, (where.weight > 0).astype(int))


@quick
@given(st.tuples(sizes, sizes, sizes), st.tuples(sizes, sizes, sizes), st.permutations(range(3)))
def test_whole_grids_are_those_of_resize(old, new, order):
    x = values(2, *old)
    found = x
    for axis in order:
        where = between(centres(0, new[axis], new[axis], old[axis]), 0, old[axis], old[axis])
        found = interpolated_along(found, axis + 1, where)
    torch.testing.assert_close(found, resize(x[None], new, mode="linear")[0], atol=1e-3, rtol=1e-5)


@quick
@given(sizes, sizes, st.floats(0.5, 20), st.data())
def test_a_part_of_a_grid_is_that_part_of_its_result(old, new, extent, data):
    """The grid over a box of its own extent, in any unit."""
    first = data.draw(st.integers(0, new - 1))
    last = data.draw(st.integers(first + 1, new))
    x = values(old)
    whole = interpolated_along(x, 0, between(centres(0, new, new, extent), 0, extent, old))
    part = interpolated_along(x, 0, between(centres(first, last, new, extent), 0, extent, old))
    torch.testing.assert_close(part, whole[first:last], atol=1e-3, rtol=1e-5)


def test_centres_lie_in_the_middle_of_voxels():
    assert centres(0, 4, 4, 4).tolist() == [0.5, 1.5, 2.5, 3.5]
    assert centres(1, 3, 4, 2).tolist() == [0.75, 1.25] and centres(2, 2, 4, 2).tolist() == []


@quick
@given(sizes, regions)
def test_beyond_the_outermost_centres_their_values_continue(size, region):
    start, stop = region
    half = (stop - start) / size / 2
    for at, voxel in ((start - 1e6, 0), (start, 0), (start + half, 0), (stop - half, size - 1), (stop + 1e6, size - 1)):
        where = between(np.array([at]), start, stop, size)
        # a coordinate in another unit is rounded: by so little that nobody sees it
        assert abs(where.lower[0] + where.weight[0] - voxel) < 1e-4
    for at, voxel in ((start - 1e6, 0), (start - half, 0), (stop + half, size - 1)):
        where = between(np.array([at]), start, stop, size)
        assert (where.lower.tolist(), where.upper.tolist(), where.weight.tolist()) == ([voxel], [voxel], [0])


@quick
@given(sizes, st.integers(-20, 20), st.sampled_from([0.25, 0.5, 1.0, 2.0, 4.0]))
def test_on_a_centre_the_voxel_stands_alone(size, start, step):
    where = between(start + (np.arange(size) + 0.5) * step, start, start + size * step, size)
    assert where.weight.max() == 0 and where.lower.tolist() == where.upper.tolist() == list(range(size))


def test_no_voxel_that_counts_for_nothing_is_read():
    """An infinite neighbour of weight 0 would make NaN."""
    x = torch.tensor([1.0, math.inf, 3.0, 5.0])
    where = between(np.array([0.5, 2.5, 3.0]), 0, 4, 4)
    assert interpolated_along(x, 0, where).tolist() == [1, 3, 4]


def test_a_part_of_the_grid_is_a_view():
    x = values(4, 5, 6)
    for axis, size in enumerate(x.shape):
        part = interpolated_along(x, axis, between(np.arange(1, size) + 0.5, 0, size, size))
        assert torch.equal(part, x.narrow(axis, 1, size - 1))
        assert part.data_ptr() == x.narrow(axis, 1, size - 1).data_ptr() and part._base is x


@pytest.mark.parametrize("at", [[0, 2], [2, 1], [1, 1, 2], [0, 0], [0, 0, 2], [0, 2, 1, 3], [0, 0, 0, 1, 4]])
def test_voxels_that_do_not_follow_each_other_are_copied(at):
    """Also where there are as many of them as lie between the first and the last."""
    x = values(5, 4)
    out = interpolated_along(x, 0, between(np.array(at) + 0.5, 0, 5, 5))
    assert torch.equal(out, x[at])
    out += 1
    assert torch.equal(x, values(5, 4))


def test_a_finer_grid_is_continued_in_front_of_its_first_voxel():
    """No position lies between two centres, those in front of the grid fall on the first one again and again."""
    where = between(centres(0, 5, 5, 5), 3, 6, 9)
    assert where.lower.tolist() == [0, 0, 0, 1, 4] and not where.weight.any()
    assert interpolated_along(torch.arange(9.0), 0, where).tolist() == [0, 0, 0, 1, 4]


@pytest.mark.parametrize("axis", [0, 1])
def test_the_input_is_not_changed(axis):
    x = values(3, 4)
    out = interpolated_along(x, axis, between(np.array([0.6, 1.2, 1.9]), 0, x.shape[axis], x.shape[axis]))
    assert torch.equal(x, values(3, 4)) and out.data_ptr() != x.data_ptr()


def test_moved_counts_from_another_voxel():
    where = between(np.array([3.2, 4.5]), 0, 8, 8)
    moved = where.moved(-2)
    assert isinstance(moved, Between) and moved.weight is where.weight
    assert (moved.lower.tolist(), moved.upper.tolist()) == ([0, 2], [1, 2])
    x = values(8)
    assert torch.equal(interpolated_along(x[2:], 0, moved), interpolated_along(x, 0, where))
