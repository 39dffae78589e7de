import numpy as np
import pytest
from scipy import ndimage

from nnunet_oar.components import drop_small, keep_largest, split_instances

SHAPE = (9, 24, 30)


def bars(*lengths):
    """One bar along the last axis for each length, with a gap of two rows between them."""
    mask = np.zeros((3, 3 * len(lengths) + 1, max(lengths) + 2), dtype=bool)
    for row, length in enumerate(lengths):
        mask[1, 3 * row + 1, 1 : 1 + length] = True
    return mask


def test_drop_small_drops_strictly_smaller_only():
    # 5% of 100 is 5: five stays, four goes
    kept = drop_small(bars(100, 5, 4))
    np.testing.assert_array_equal(kept, bars(100, 5, 4) & (np.arange(10) < 7)[None, :, None])
    assert kept.sum() == 105


@pytest.mark.parametrize("count, of, fraction", [(3, 30, 0.1), (6, 120, 0.05), (7, 100, 0.07)])
def test_drop_small_keeps_what_has_exactly_the_fraction(count, of, fraction):
    assert drop_small(bars(of, count), fraction).sum() == count + of
    assert drop_small(bars(of, count - 1), fraction).sum() == of


def test_fraction_zero_keeps_all_and_one_keeps_the_largest():
    mask = bars(10, 10, 9, 1)
    assert drop_small(mask, 0).sum() == 30
    assert drop_small(mask, 1).sum() == 20
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=str(wrong)):
            drop_small(mask, wrong)


def test_voxels_that_share_a_corner_belong_together():
    mask = np.zeros((4, 5, 6), dtype=bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[2, 0, 2] = True
    mask[3, 4, 5] = True
    assert [part.sum() for part in split_instances(mask, 9)] == [3, 1]


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_scipy_on_random_masks(seed):
    mask = np.random.default_rng(seed).random(SHAPE) < 0.06
    labels, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    sizes = np.bincount(labels.ravel())[1:]
    assert count > 20
    parts = split_instances(mask, 10_000)
    assert sorted(sizes, reverse=True) == [part.sum() for part in parts]
    np.testing.assert_array_equal(sum(part.astype(int) for part in parts), mask)  # disjoint and complete
    for part in parts:
        assert len(np.unique(labels[part])) == 1
    expected = np.isin(labels, 1 + np.flatnonzero(sizes >= 0.4 * sizes.max()))
    np.testing.assert_array_equal(drop_small(mask, 0.4), expected)


def test_split_instances_gives_the_largest_first_and_no_more_than_asked():
    mask = bars(4, 9, 6)
    assert [part.sum() for part in split_instances(mask, 2)] == [9, 6]
    assert all(part.shape == mask.shape and part.dtype == bool for part in split_instances(mask, 2))
    assert len(split_instances(mask, 5)) == 3
    with pytest.raises(ValueError, match="0"):
        split_instances(mask, 0)


def test_keep_largest():
    np.testing.assert_array_equal(keep_largest(bars(4, 9, 6)), bars(4, 9, 6) & (np.arange(10) == 4)[None, :, None])


def test_an_empty_mask_stays_empty():
    empty = np.zeros(SHAPE, dtype=bool)
    for result in (drop_small(empty), keep_largest(empty)):
        assert result.shape == SHAPE and result.dtype == bool and not result.any()
    assert split_instances(empty, 3) == []


@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray, lambda m: m[:, ::-1].copy()[:, ::-1]])
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32])
def test_any_layout_and_dtype_and_the_input_is_left_alone(layout, dtype):
    mask = layout(bars(40, 12, 1).astype(dtype) * dtype(1))
    before = mask.copy()
    for result in (drop_small(mask), keep_largest(mask), *split_instances(mask, 2)):
        assert result.dtype == bool and not np.shares_memory(result, mask)
    np.testing.assert_array_equal(drop_small(mask), bars(40, 12, 1) & (np.arange(10) < 6)[None, :, None])
    np.testing.assert_array_equal(mask, before)


def test_a_mask_that_is_not_a_volume_is_refused():
    with pytest.raises(ValueError, match=r"\(4, 5\)"):
        keep_largest(np.ones((4, 5), dtype=bool))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("length", [3, 5, 28])
def test_a_line_with_every_other_voxel_set(axis, length):
    shape = [1, 1, 1]
    shape[axis] = length
    mask = (np.arange(length) % 2 == 0).reshape(shape)
    parts = split_instances(mask, length)
    assert len(parts) == (length + 1) // 2 and np.array_equal(np.any(parts, axis=0), mask)
    assert np.array_equal(drop_small(mask, 1.0), mask)
