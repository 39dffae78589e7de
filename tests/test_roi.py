import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_oar.roi import Box, resize

quick = settings(deadline=None, max_examples=60)

SHAPE = (7, 10, 13)


@st.composite
def boxes(draw, low=-20, high=40, axes=3):
    start = tuple(draw(st.integers(low, high)) for _ in range(axes))
    stop = tuple(draw(st.integers(first, high + 5)) for first in start)
    return Box(start, stop)


sizes = st.tuples(*[st.integers(1, 30)] * 3)


def voxels(box):
    """The voxels of a box as a set: the definition that all box arithmetic can be checked against."""
    return {tuple(a + b for a, b in zip(index, box.start, strict=True)) for index in np.ndindex(*box.shape)}


# ---------------------------------------------------------------- Box


def test_box_is_a_frozen_value():
    box = Box([np.int64(1), 2], (3, 4))
    assert box == Box((1, 2), (3, 4)) and hash(box) == hash(Box((1, 2), (3, 4)))
    assert repr(box) == "Box(start=(1, 2), stop=(3, 4))"
    with pytest.raises(AttributeError):
        box.start = (0, 0)


@pytest.mark.parametrize(
    "start, stop, named",
    [
        ((0, 0, 0), (1, 1), "(0, 0, 0)"),
        ((0, 0, 5), (1, 1, 4), "(1, 1, 4)"),
        ((0.5, 0, 0), (1, 1, 1), "0.5"),
        ((), (), "()"),
        (3, 4, "start=3"),
    ],
)
def test_impossible_boxes_are_refused_and_printed(start, stop, named):
    with pytest.raises(ValueError, match="start") as error:
        Box(start, stop)
    assert named in str(error.value)


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
@pytest.mark.parametrize(
    "box",
    [
        Box((2, 3, 4), (5, 9, 6)),
        Box((3, 0, 12), (4, 1, 13)),  # one voxel, at two borders
        Box((0, 2, 0), (1, 8, 13)),  # one slice at the border
        Box.full(SHAPE),
    ],
)
def test_from_mask_finds_the_box_that_was_painted(box, convert):
    mask = np.zeros(SHAPE, dtype=bool)
    mask[box.slices] = True
    assert Box.from_mask(convert(mask)) == box
    assert Box.from_mask(convert(mask.astype(np.int16) * -3)) == box
    assert Box.from_mask(convert(mask.astype(np.float32) * 0.25)) == box
    transposed = Box.from_mask(convert(mask).T if convert is np.asarray else convert(mask).permute(2, 1, 0))
    assert transposed == Box(box.start[::-1], box.stop[::-1])


@quick
@given(st.lists(st.tuples(*[st.integers(0, size - 1) for size in SHAPE]), min_size=1, max_size=5))
def test_from_mask_is_the_range_of_the_foreground_indices(points):
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[tuple(np.transpose(points))] = 7
    found = np.argwhere(mask)
    expected = Box(tuple(found.min(0)), tuple(found.max(0) + 1))
    assert Box.from_mask(mask) == expected
    assert Box.from_mask(torch.from_numpy(mask)) == expected


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
def test_from_mask_of_nothing_is_none(convert):
    assert Box.from_mask(convert(np.zeros(SHAPE, dtype=bool))) is None
    assert Box.from_mask(convert(np.zeros((3, 0, 4), dtype=bool))) is None
    with pytest.raises(ValueError, match="scalar"):
        Box.from_mask(convert(np.array(True)))


def test_from_mask_leaves_the_mask_alone_and_takes_any_number_of_axes():
    mask = np.array([0, 0, 1, 0, 1, 0])
    assert Box.from_mask(mask) == Box((2,), (5,))
    assert Box.from_mask(np.ones((2, 3, 4, 5))) == Box.full((2, 3, 4, 5))
    np.testing.assert_array_equal(mask, [0, 0, 1, 0, 1, 0])


def test_centre_is_in_edge_coordinates():
    assert Box((2, 0, 4), (3, 4, 9)).centre == (2.5, 2.0, 6.5)


def test_slices_select_exactly_the_box_and_refuse_what_numpy_would_wrap():
    values = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    cut = values[Box((1, 2, 3), (4, 4, 8)).slices]
    assert cut.shape == (3, 2, 5) and cut[0, 0, 0] == values[1, 2, 3] and cut[-1, -1, -1] == values[3, 3, 7]
    with pytest.raises(ValueError, match="outside"):
        _ = Box((0, -1, 0), (3, 3, 3)).slices


def test_volume_and_full():
    assert Box.full(SHAPE).volume == 7 * 10 * 13 and Box.full(SHAPE).shape == SHAPE
    assert Box((1, 5, 2), (9, 5, 3)).volume == 0


@quick
@given(boxes(), st.tuples(*[st.integers(0, 9)] * 3))
def test_grow_keeps_the_centre_and_shrinking_undoes_it(box, margin):
    grown = box.grow(margin)
    assert grown.centre == box.centre
    assert grown.shape == tuple(size + 2 * extra for size, extra in zip(box.shape, margin, strict=True))
    assert grown.grow([-extra for extra in margin]) == box
    assert box.grow(4) == box.grow((4, 4, 4))


@quick
@given(boxes(), sizes)
def test_at_least_holds_the_box_is_long_enough_and_no_longer(box, shape):
    enlarged = box.at_least(shape)
    assert enlarged.contains(box)
    assert enlarged.shape == tuple(map(max, shape, box.shape))
    for before, after in zip(box.centre, enlarged.centre, strict=True):
        assert after - before in (0, 0.5)  # the odd voxel lies at the stop side
    assert enlarged.at_least(shape) == enlarged


def test_at_least_by_hand():
    assert Box((4, 4, 4), (5, 6, 9)).at_least((4, 4, 4)) == Box((3, 3, 4), (7, 7, 9))
    assert Box((4, 4, 4), (5, 6, 9)).at_least(4) == Box((3, 3, 4), (7, 7, 9))


@quick
@given(boxes(), sizes)
def test_within_stays_inside_and_keeps_what_fits(box, shape):
    inside = box.within(shape)
    assert Box.full(shape).contains(inside)
    assert inside.shape == tuple(map(min, box.shape, shape))
    if Box.full(shape).contains(box):
        assert inside == box
    for axis, size in enumerate(shape):
        # no shift beyond the nearest place with room: on an axis where it moved, it touches the face it had crossed
        if box.start[axis] < 0:
            assert inside.start[axis] == 0
        elif box.stop[axis] > size:
            assert inside.stop[axis] == size
        else:
            assert (inside.start[axis], inside.stop[axis]) == (box.start[axis], box.stop[axis])
    assert inside.within(shape) == inside


def test_within_by_hand():
    # shifted up, shifted down, longer than the image
    assert Box((-3, 8, -2), (4, 12, 20)).within((10, 10, 10)) == Box((0, 6, 0), (7, 10, 10))
    assert Box((5,), (40,)).within((30,)) == Box((0,), (30,))


@quick
@given(boxes(low=0, high=20), sizes, sizes)
def test_rescaled_covers_the_same_region_and_hardly_more(box, from_shape, to_shape):
    box = box.within(from_shape)
    rescaled = box.rescaled(from_shape, to_shape)
    assert Box.full(to_shape).contains(rescaled)
    for a, b, c, d, old, new in zip(
        box.start, box.stop, rescaled.start, rescaled.stop, from_shape, to_shape, strict=True
    ):
        assert c * old <= a * new < (c + 1) * old  # exact, in integers
        assert (d - 1) * old < b * new <= d * old
    assert rescaled.rescaled(to_shape, from_shape).contains(box)


@quick
@given(boxes(), sizes, st.integers(1, 5))
def test_rescaled_to_a_multiple_and_back_is_the_clipped_box(box, shape, factor):
    box = Box(*(tuple(min(max(v, 0), n) for v, n in zip(edge, shape, strict=True)) for edge in (box.start, box.stop)))
    finer = tuple(factor * size for size in shape)
    assert box.rescaled(shape, shape) == box
    assert box.rescaled(shape, finer).rescaled(finer, shape) == box


def test_rescaled_by_hand():
    # 10 -> 4: voxels 3..5 are [3, 6), that is [1.2, 2.4), hence [1, 3); outside the image it is clipped
    assert Box((3,), (6,)).rescaled((10,), (4,)) == Box((1,), (3,))
    assert Box((-7,), (60,)).rescaled((10,), (4,)) == Box((0,), (4,))
    with pytest.raises(ValueError, match="positive"):
        Box((0,), (1,)).rescaled((0,), (4,))


@quick
@given(boxes(0, 6), boxes(0, 6))
def test_union_and_contains_agree_with_sets_of_voxels(one, other):
    union = one.union(other)
    assert union == other.union(one) and union.contains(one) and union.contains(other)
    assert union.start == tuple(map(min, one.start, other.start))
    assert union.stop == tuple(map(max, one.stop, other.stop))
    if one.volume and other.volume:
        assert one.contains(other) == (voxels(other) <= voxels(one))


def test_a_wrong_number_of_axes_is_refused():
    box = Box((0, 0, 0), (1, 1, 1))
    for call in (
        lambda: box.grow((1, 1)),
        lambda: box.at_least((3, 3)),
        lambda: box.within((3, 3)),
        lambda: box.rescaled((3, 3, 3), (3, 3)),
        lambda: box.union(Box((0,), (1,))),
        lambda: box.contains(Box((0,), (1,))),
    ):
        with pytest.raises(ValueError, match="one entry per axis"):
            call()


# ---------------------------------------------------------------- resize


def ramps(shape, dtype):
    """(1, axes, *shape): channel a holds the index along axis a."""
    return torch.stack(torch.meshgrid(*[torch.arange(n) for n in shape], indexing="ij"))[None].to(dtype)


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_equal_size_returns_the_tensor_itself(mode):
    x = torch.rand(2, 3, 4, 5, 6)
    assert resize(x, (4, 5, 6), mode=mode) is x


@pytest.mark.parametrize("old, new", [((6, 9, 5), (11, 4, 8)), ((7, 12), (3, 30)), ((9,), (4,))])
def test_linear_samples_at_voxel_centres(old, new):
    x = ramps(old, torch.float64)
    out = resize(x, new, mode="linear")
    assert out.shape == (1, len(old), *new)
    for axis, (n, m) in enumerate(zip(old, new, strict=True)):
        line = out[0, axis].movedim(axis, 0).reshape(m, -1)
        expected = ((torch.arange(m, dtype=torch.float64) + 0.5) * n / m - 0.5).clamp(0, n - 1)
        torch.testing.assert_close(line, expected[:, None].expand_as(line))


@quick
@given(st.integers(1, 60), st.integers(1, 60))
def test_nearest_takes_the_voxel_whose_centre_is_nearest(old, new):
    taken = resize(torch.arange(old)[None, None], (new,), mode="nearest")[0, 0]
    for target, source in enumerate(taken.tolist()):
        # twice the distance of the two centres, times `new`, in integers
        distance = abs((2 * target + 1) * old - (2 * source + 1) * new)
        assert all(distance <= abs((2 * target + 1) * old - (2 * other + 1) * new) for other in range(old))
    # where there is no doubt, torch's nearest-exact says the same
    ties = (2 * torch.arange(new) + 1) * old % (2 * new) == 0
    exact = F.interpolate(torch.arange(old, dtype=torch.float64)[None, None], size=new, mode="nearest-exact")[0, 0]
    assert torch.equal(taken[~ties], exact.long()[~ties])


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.int64]
)
def test_nearest_keeps_dtype_and_label_values(dtype):
    top = 1 if dtype == torch.bool else torch.iinfo(dtype).max
    x = torch.zeros(1, 1, 5, 6, 7, dtype=dtype)
    x[..., 3:] = top
    for shape in [(3, 4, 5), (11, 9, 14), (5, 6, 3)]:
        out = resize(x, shape, mode="nearest")
        assert out.dtype == dtype and out.shape == (1, 1, *shape)
        assert set(out.flatten().tolist()) == {0, top}


def test_nearest_keeps_every_label_up_to_65535():
    labels = torch.arange(65536).reshape(1, 1, 16, 64, 64)
    enlarged = resize(labels, (20, 70, 90), mode="nearest")
    assert torch.equal(enlarged.unique(), labels.unique())


GRIDS = [
    # size of the box, grid: even factors (all ties), odd ones, fractions, enlarging, anisotropic
    ((24, 32, 40), (12, 16, 20)),
    ((32, 48, 40), (8, 12, 10)),
    ((27, 30, 33), (9, 10, 11)),
    ((25, 39, 36), (10, 26, 24)),
    ((20, 25, 31), (27, 16, 31)),
    ((11, 13, 40), (32, 32, 32)),
    ((9, 50, 44), (16, 16, 16)),
]


@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("size, grid", GRIDS)
def test_crop_resize_paste_moves_nothing(size, grid, mode):
    """A coordinate ramp goes through the whole chain; image (linear) and label (nearest) must come back alike."""
    image_shape = tuple(n + 9 for n in size)
    box = Box((3, 7, 1), tuple(a + n for a, n in zip((3, 7, 1), size, strict=True)))
    image = ramps(image_shape, torch.float64 if mode == "linear" else torch.int16)
    crop = resize(image[(..., *box.slices)], grid, mode=mode)
    pasted = torch.full_like(image, -1)
    pasted[(..., *box.slices)] = resize(crop, box.shape, mode=mode)
    outside = torch.ones(image_shape, dtype=torch.bool)
    outside[box.slices] = False
    assert (pasted[0, :, outside] == -1).all()
    for axis in range(3):
        coarse = max(1, size[axis] / grid[axis])  # a voxel of the coarser grid, in voxels of the image
        offset = (pasted - image)[0, axis][box.slices].double() / coarse
        assert abs(offset.mean()) < 0.05
        # nearest rounds to a voxel centre on each of the two ways
        assert offset.abs().max() <= 0.5 + (0.5 / coarse if mode == "nearest" else 0) + 1e-9
        # and no part of it is displaced either: the mean over each quarter of the axis stays small
        profile = offset.movedim(axis, 0).flatten(1).mean(1)
        for part in profile.tensor_split(4):
            assert abs(part.mean()) < 0.26


@pytest.mark.parametrize("old, new", sorted({pair for size, grid in GRIDS for pair in zip(size, grid, strict=True)}))
def test_image_and_label_of_an_organ_stay_on_each_other(old, new):
    """A bar at every place of an axis: where its centre comes out in the resized image, in the label, and should."""
    step = max(1, -(-old // new))
    length = 3 * step  # three voxels of the coarser grid, so that none gets lost
    starts = torch.arange(step, old - length - step + 1)
    index = torch.arange(old)
    bars = ((index >= starts[:, None]) & (index < starts[:, None] + length))[:, None]
    expected = (starts + length / 2) * new / old
    positions = torch.arange(new) + 0.5
    offsets = []
    for resized in (resize(bars.double(), (new,), mode="linear"), resize(bars, (new,), mode="nearest")):
        weight = resized[:, 0].double()
        offsets.append((weight * positions).sum(1) / weight.sum(1) - expected)
    coarser = max(1, new / old)
    for offset in offsets:
        assert offset.abs().max() <= 0.5 * coarser + 1e-9
        assert abs(offset.mean()) < 0.05 * coarser
    assert abs((offsets[0] - offsets[1]).mean()) < 0.05 * coarser


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_sides_are_never_swapped(mode):
    x = torch.zeros(1, 1, 6, 10, 14)
    x[0, 0, 0, 1, 2] = 1  # near the start of all axes
    for grid in [(3, 5, 7), (9, 15, 21), (5, 20, 6)]:
        out = resize(resize(x, grid, mode="linear"), (6, 10, 14), mode=mode)[0, 0]
        place = np.unravel_index(int(out.argmax()), out.shape)
        assert all(abs(a - b) <= 2 for a, b in zip(place, (0, 1, 2), strict=True))


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_batch_and_channels_are_independent_and_gradients_flow(mode):
    x = torch.rand(2, 3, 6, 5, 7, dtype=torch.float64, requires_grad=True)
    out = resize(x, (4, 8, 7), mode=mode)
    torch.testing.assert_close(out[1:, 2:], resize(x[1:, 2:], (4, 8, 7), mode=mode))
    assert torch.autograd.gradcheck(lambda x: resize(x, (4, 8, 7), mode=mode), x[:1, :1].detach().requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_dtype(dtype):
    x = torch.rand(1, 2, 5, 6, 7).to(dtype)
    for mode in ("linear", "nearest"):
        assert resize(x, (8, 3, 9), mode=mode).dtype == dtype


def test_resize_refuses_with_the_value():
    x = torch.zeros(1, 1, 4, 5, 6)
    with pytest.raises(ValueError, match="'cubic'"):
        resize(x, (2, 2, 2), mode="cubic")
    with pytest.raises(ValueError, match=r"\(2, 2\)"):
        resize(x, (2, 2), mode="linear")
    with pytest.raises(ValueError, match=r"\(2, 0, 2\)"):
        resize(x, (2, 0, 2), mode="nearest")
    with pytest.raises(ValueError, match="int16"):
        resize(x.short(), (2, 2, 2), mode="linear")


def test_around_holds_all_boxes():
    boxes = [Box((1, 5), (3, 6)), Box((0, 7), (2, 9)), Box((4, 4), (5, 5))]
    assert Box.around(boxes) == Box.around(iter(boxes)) == Box((0, 4), (5, 9))
    assert Box.around(boxes[:1]) == boxes[0]
    assert Box.around([]) is None


@given(boxes(), st.tuples(*[st.integers(-9, 9)] * 3))
def test_moved_and_inside_of_another_box(box, offset):
    moved = box.moved(offset)
    assert moved.shape == box.shape and moved.moved([-o for o in offset]) == box
    assert moved.inside(box).start == offset and box.inside(box) == Box.full(box.shape)
    outer = box.union(moved)
    assert Box.full(outer.shape).contains(box.inside(outer)) and box.inside(outer).moved(outer.start) == box
