"""Which components are one instance: kidneys that are missing, touching, fused, or have a tumour beside them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_oar import instances
from nnunet_oar.instances import find_instances
from nnunet_oar.roi import Box

VOXEL_MM = (4.0, 2.0, 2.0)


def ellipsoid(shape, centre, semi) -> np.ndarray:
    grid = np.ogrid[tuple(slice(size) for size in shape)]
    return sum(((g - c) / s) ** 2 for g, c, s in zip(grid, centre, semi, strict=True)) <= 1


SHAPE = (40, 60, 100)
LEFT, RIGHT = ellipsoid(SHAPE, (20, 30, 75), (12, 10, 10)), ellipsoid(SHAPE, (18, 30, 25), (11, 9, 9))


def found(mask, voxel_mm=VOXEL_MM, **options) -> list[Box]:
    return find_instances(mask, options.pop("max_instances", 2), voxel_mm=voxel_mm, **options)


def test_two_kidneys_the_larger_one_first():
    assert found(LEFT | RIGHT) == [Box.from_mask(LEFT), Box.from_mask(RIGHT)]


def test_one_kidney_and_none():
    assert found(RIGHT) == [Box.from_mask(RIGHT)]
    assert found(np.zeros(SHAPE, bool)) == []


def test_specks_are_dropped():
    mask = LEFT | RIGHT
    mask[0, 0, 0] = True
    assert found(mask) == [Box.from_mask(LEFT), Box.from_mask(RIGHT)]


@pytest.mark.parametrize("gap_vox, parts", [(2, 1), (3, 2)])
def test_gaps_are_between_faces(gap_vox, parts):
    """8 and 12 mm between faces, 12 and 16 mm between the voxels' centres."""
    mask = np.zeros((4, 4, 40), bool)
    mask[:, :, 2:14] = mask[:, :, 14 + gap_vox : 26 + gap_vox] = True
    assert len(found(mask, (4.0, 4.0, 4.0), join_mm=10.0)) == parts


def test_noise_of_many_components_costs_no_more_than_a_few(monkeypatch):
    """An untrained localiser: 150 specks, the largest a little larger than the others."""
    mask = np.zeros(SHAPE, bool)
    mask[4:36:6, 4:56:8, 4:96:12] = mask[5:36:6, 4:56:8, 4:96:12] = True
    mask[3:5, 4:7, 4:7] = True
    looked_at = []
    join = instances._join_near
    monkeypatch.setattr(
        instances, "_join_near", lambda parts, *more: looked_at.append(len(parts)) or join(parts, *more)
    )
    boxes = found(mask)
    assert looked_at == [instances.MOST_PARTS] and len(boxes) == 2
    assert any(box.contains(Box((3, 4, 4), (5, 7, 7))) for box in boxes)


def test_a_tumour_that_is_its_own_component_belongs_to_its_kidney():
    # 3 voxels of 2 mm beside the kidney's upper end
    tumour = ellipsoid(SHAPE, (20, 45, 75), (3, 3, 3))
    gap = Box.from_mask(tumour).start[1] - Box.from_mask(LEFT).stop[1]
    assert 0 < gap * VOXEL_MM[1] < 10
    assert found(LEFT | tumour) == [Box.from_mask(LEFT | tumour)]
    assert found(LEFT | RIGHT | tumour) == [Box.from_mask(LEFT | tumour), Box.from_mask(RIGHT)]
    # measured in mm: with larger voxels it is too far away, a speck or a component of its own
    far = {"voxel_mm": (12.0, 12.0, 12.0)}
    assert found(LEFT | tumour, **far) == [Box.from_mask(LEFT)] and len(found(LEFT | tumour, fraction=0, **far)) == 2


def test_a_third_component_joins_the_nearest_however_far():
    far = ellipsoid(SHAPE, (35, 10, 50), (3, 6, 6))
    boxes = found(LEFT | RIGHT | far)
    assert len(boxes) == 2 and Box.around(boxes) == Box.from_mask(LEFT | RIGHT | far)
    assert sum(box.contains(Box.from_mask(far)) for box in boxes) == 1


def test_kidneys_that_touch_are_divided_at_the_neck_where_they_are_larger_than_any_in_training():
    a, b = ellipsoid(SHAPE, (20, 30, 60), (12, 10, 10)), ellipsoid(SHAPE, (20, 30, 41), (12, 10, 10))
    touching = a | b
    largest = (100.0, 44.0, 44.0)
    assert found(touching) == [Box.from_mask(touching)]
    boxes = found(touching, largest_mm=largest)
    assert len(boxes) == 2
    for kidney in (a, b):
        box = Box.from_mask(kidney)
        assert any(np.abs(np.subtract(box.start + box.stop, other.start + other.stop)).max() <= 2 for other in boxes)
    # a single kidney of that size stays whole, and so does what has no neck
    assert len(found(a, largest_mm=largest)) == 1
    assert len(found(ellipsoid(SHAPE, (20, 30, 50), (12, 10, 22)), largest_mm=largest)) == 1
    # no more instances than there may be
    assert len(found(touching | ellipsoid(SHAPE, (20, 30, 90), (8, 6, 6)), largest_mm=largest)) == 2


def test_a_horseshoe_kidney_is_one_instance_or_two_that_cover_it():
    isthmus = np.zeros(SHAPE, bool)
    isthmus[28:31, 28:33, 25:76] = True
    horseshoe = LEFT | RIGHT | isthmus
    assert found(horseshoe) == [Box.from_mask(horseshoe)]
    boxes = found(horseshoe, largest_mm=(100.0, 44.0, 44.0))
    assert len(boxes) == 2 and Box.around(boxes) == Box.from_mask(horseshoe)


def test_near_kidneys_are_not_joined_where_that_would_be_larger_than_any_in_training():
    a, b = ellipsoid(SHAPE, (20, 30, 60), (12, 10, 10)), ellipsoid(SHAPE, (20, 30, 38), (12, 10, 10))
    assert len(found(a | b)) == 1
    assert len(found(a | b, largest_mm=(100.0, 44.0, 44.0))) == 2


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    max_instances=st.integers(1, 4),
    voxel=st.tuples(*[st.sampled_from([0.7, 1.0, 5.0])] * 3),
    bounded=st.booleans(),
)
def test_any_mask(seed, max_instances, voxel, bounded):
    """Never more than allowed, inside the mask's box, and together they hold all that is not dropped."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 14, 3))
    mask = np.zeros(shape, bool)
    for _ in range(rng.integers(0, 5)):
        start = rng.integers(0, shape)
        stop = np.minimum(start + rng.integers(1, 6, 3), shape)
        mask[Box(tuple(start), tuple(stop)).slices] = True
    boxes = find_instances(
        mask, max_instances, voxel_mm=voxel, fraction=0, join_mm=2.0, largest_mm=(4.0, 4.0, 4.0) if bounded else None
    )
    assert len(boxes) <= max_instances and (len(boxes) > 0) == mask.any()
    covered = np.zeros(shape, bool)
    for box in boxes:
        covered[box.slices] = True
    assert not (mask & ~covered).any()
    if boxes:
        assert Box.around(boxes) == Box.from_mask(mask)


@pytest.mark.parametrize("shape", [(1, 9, 9), (1, 1, 1)])
def test_one_slice_and_one_voxel(shape):
    mask = np.ones(shape, bool)
    assert found(mask) == [Box.full(shape)]
    assert Box.around(found(mask, largest_mm=(0.5, 0.5, 0.5))) == Box.full(shape)


def test_what_no_core_reaches_stays_with_the_nearer_half():
    """Two balls that touch, and a tumour two voxels beside one of them: cut at the neck, the tumour is still there."""
    shape = (30, 30, 60)
    left, right = ellipsoid(shape, (15, 15, 17), (9, 9, 12)), ellipsoid(shape, (15, 15, 41), (9, 9, 12))
    tumour = np.zeros(shape, bool)
    tumour[14:17, 14:17, 1:4] = True
    boxes = find_instances(left | right | tumour, 2, voxel_mm=(2.0, 2.0, 2.0), largest_mm=(36.0, 36.0, 58.0))
    assert len(boxes) == 2 and Box.around(boxes) == Box.from_mask(left | right | tumour)
    (beside,) = [box for box in boxes if box.contains(Box.from_mask(tumour))]
    assert beside.centre[2] < 24 and not beside.contains(Box.from_mask(right))
