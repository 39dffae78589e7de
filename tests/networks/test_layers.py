"""Labels straight from layers against the plain way: full logits of the volume, pasted, averaged, resampled and compared."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nnunet_oar.networks import layers as module
from nnunet_oar.networks.attention_anatomy import AttentionAnatomyNet
from nnunet_oar.networks.layers import Grid, Layer, Sample, labels_of, paste, positive_box, probabilities_of
from nnunet_oar.networks.volume import LoadedVolume, PredictionReport
from nnunet_oar.plan import AttentionPlan
from nnunet_oar.roi import Box

quick = settings(deadline=None, max_examples=40)

ORGANS, FLOOR, CPU = 3, -5.0, torch.device("cpu")
# where the two highest logits are nearer than this, rounding may decide
NEAR = 1e-4

shapes = st.tuples(*[st.integers(1, 8)] * 3)


@st.composite
def regions(draw, shape, low, high):
    """Start and stop in eighths of a voxel, which floats hold exactly, within [low, size + high]."""
    start, stop = [], []
    for size in shape:
        first = draw(st.integers(int(low * 8), (size + high) * 8 - 1))
        start.append(first / 8)
        stop.append(draw(st.integers(first + 1, (size + high) * 8)) / 8)
    return tuple(start), tuple(stop)


@st.composite
def some_layers(draw, shape):
    """One organ's layer in a volume of this shape: its samples reach beyond it, or end before it does."""
    samples = []
    start, stop = draw(regions(shape, 0, 0))
    for _ in range(draw(st.integers(1, 3))):
        logits = torch.randn(
            draw(st.tuples(*[st.integers(1, 5)] * 3)),
            generator=torch.Generator().manual_seed(draw(st.integers(0, 999))),
        )
        # mostly negative, and lower than the floor here and there
        logits = logits * draw(st.sampled_from([1.0, 4.0])) - draw(st.sampled_from([0.0, 1.5, 3.0]))
        samples.append(Sample(*draw(st.one_of(st.just((start, stop)), regions(shape, -3, 3))), logits))
    return Layer(draw(st.integers(1, ORGANS)), start, stop, tuple(samples))


@st.composite
def cases(draw):
    """Layers of one to three folds, a grid over the volume and a part of it."""
    volume = draw(shapes)
    grid = Grid(draw(st.one_of(st.just(volume), shapes, st.tuples(*[st.integers(5, 12)] * 3))), volume)
    folds = draw(st.lists(st.lists(some_layers(volume), max_size=4), min_size=1, max_size=3).filter(any))
    if draw(st.booleans()):
        return folds, grid, Box.full(grid.shape)
    start = tuple(draw(st.integers(0, size - 1)) for size in grid.shape)
    stop = tuple(draw(st.integers(first + 1, size)) for first, size in zip(start, grid.shape, strict=True))
    return folds, grid, Box(start, stop)


def plain(folds, grid) -> list[torch.Tensor]:
    """Logits (1 + ORGANS, *grid.shape) of the mean, and of each fold where there are several: the way of nnUNetv2_predict."""
    full = []
    for layers in folds:
        logits = torch.full((ORGANS, *grid.volume), FLOOR)
        paste(layers, logits)
        full.append(logits)
    if len(full) > 1:
        full.insert(0, torch.stack(full).mean(0))
    full = [torch.cat((torch.zeros(1, *grid.volume), logits)) for logits in full]
    return [F.interpolate(of[None], size=grid.shape, mode="trilinear", align_corners=False)[0] for of in full]


def assert_labels(found, logits):
    """They are the highest of the logits (K, Z, Y, X), but for near ties."""
    assert found.dtype == torch.int16 and found.shape == logits.shape[1:]
    chosen = logits.gather(0, found[None].long())[0]
    torch.testing.assert_close(chosen, logits.amax(0), atol=NEAR, rtol=0)
    clear = logits.topk(2, 0).values.diff(dim=0)[0] < -NEAR
    assert torch.equal(found[clear].long(), logits.argmax(0)[clear])


def organ_at(label, *voxels, shape=(3, 3, 3), start=(0.0,) * 3, stop=(3.0,) * 3, logit=2.0) -> Layer:
    """A layer of one sample over all of it that is positive in these voxels alone."""
    logits = torch.full(shape, -2.0)
    for voxel in voxels:
        logits[voxel] = logit
    return Layer(label, start, stop, (Sample(start, stop, logits),))


# ---------------------------------------------------------------- layers in the volume


def by_hand(layer, shape) -> np.ndarray:
    """Logits of one layer in the volume in float64, NaN outside its region."""
    middles = [np.arange(size) + 0.5 for size in shape]
    mean = np.zeros(shape)
    for sample in layer.samples:
        values = sample.logits.double().numpy()
        for axis in range(3):
            size = values.shape[axis]
            step = (sample.stop[axis] - sample.start[axis]) / size
            known = sample.start[axis] + (np.arange(size) + 0.5) * step
            values = np.apply_along_axis(
                lambda line, at, known=known: np.interp(at, known, line), axis, values, middles[axis]
            )
        mean += values / len(layer.samples)
    inside = [(first <= at) & (at < last) for first, last, at in zip(layer.start, layer.stop, middles, strict=True)]
    return np.where(inside[0][:, None, None] & inside[1][:, None] & inside[2], mean, np.nan)


@quick
@given(st.data())
def test_paste_against_double_precision(data):
    """Centres in [start, stop), the mean of the samples, the highest of several layers, never below what is there."""
    shape = data.draw(shapes)
    layers = data.draw(st.lists(some_layers(shape), max_size=3))
    before = [[sample.logits.clone() for sample in layer.samples] for layer in layers]
    logits = torch.full((ORGANS, *shape), FLOOR)
    slab = data.draw(st.sampled_from([1, 10, 1000]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SLAB_VOXELS", slab)
        paste(layers, logits)
    expected = np.full((ORGANS, *shape), FLOOR)
    for layer in layers:
        expected[layer.label - 1] = np.fmax(expected[layer.label - 1], by_hand(layer, shape))
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    # a sample whose grid is the volume's is not copied: it must not be changed either
    for layer, old in zip(layers, before, strict=True):
        assert all(torch.equal(sample.logits, was) for sample, was in zip(layer.samples, old, strict=True))


def test_a_finer_sample_is_continued_in_front_of_its_first_voxel():
    """Three voxels of it in one of the volume: every centre of the volume falls on one of the sample's."""
    line = torch.arange(9.0)
    layer = Layer(1, (0, 0, 0), (5, 1, 1), (Sample((3, 0, 0), (6, 1, 1), line.view(9, 1, 1)),))
    logits = torch.full((1, 5, 1, 1), FLOOR)
    paste([layer], logits)
    assert logits.flatten().tolist() == [0, 0, 0, 1, 4]


def test_layers_of_a_box_fill_it():
    layer = Layer.of_box(2, Box((1, 2, 0), (3, 5, 4)), (Box((0, 2, 0), (4, 6, 4)), torch.ones(4, 4, 4)))
    assert (layer.start, layer.stop) == ((1, 2, 0), (3, 5, 4))
    assert (layer.samples[0].start, layer.samples[0].stop) == ((0, 2, 0), (4, 6, 4))
    logits = torch.full((2, 5, 6, 4), FLOOR)
    paste([layer], logits)
    expected = torch.full((2, 5, 6, 4), FLOOR)
    expected[1, 1:3, 2:5] = 1
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("samples", [1, 2])
def test_logits_are_not_changed_where_nothing_is_interpolated(samples):
    """A sample on the volume's own grid is read as a view; the floor and the mean are computed in place, but not in it."""
    box = Box((1, 0, 2), (4, 5, 6))
    logits = [torch.full(box.shape, -10.0 + index) for index in range(samples)]
    layer = Layer.of_box(1, box, *((box, of) for of in logits))
    grid = Grid((6, 6, 6), (6, 6, 6))
    for where in (box, Box.full(grid.shape)):
        probabilities_of([[layer]], 1, grid, where, FLOOR, CPU)
        labels_of([[layer]], grid, where, FLOOR)
    paste([layer], torch.full((1, 6, 6, 6), -20.0))
    assert all((of == -10.0 + index).all() for index, of in enumerate(logits))


def test_logits_of_half_precision_are_computed_in_single():
    half = organ_at(1, (1, 1, 1), shape=(3, 4, 5))
    half.samples[0].logits.mul_(torch.rand(3, 4, 5))
    half = dataclasses.replace(
        half, samples=(dataclasses.replace(half.samples[0], logits=half.samples[0].logits.half()),)
    )
    single = dataclasses.replace(
        half, samples=tuple(dataclasses.replace(sample, logits=sample.logits.float()) for sample in half.samples)
    )
    grid = Grid((5, 6, 7), (3, 3, 3))
    outs = [probabilities_of([[layer]], 1, grid, Box.full(grid.shape), FLOOR, CPU) for layer in (half, single)]
    assert torch.equal(*outs) and outs[0].dtype == torch.float32


# ---------------------------------------------------------------- on any grid


@quick
@given(cases())
def test_labels_are_those_of_resampled_full_logits(case):
    folds, grid, box = case
    found, logits = labels_of(folds, grid, box, FLOOR), plain(folds, grid)
    # with several folds the mean comes first, then each of them
    assert len(found) == len(logits) == (1 if len(folds) == 1 else 1 + len(folds))
    for labels, of in zip(found, logits, strict=True):
        assert_labels(labels, of[(slice(None), *box.slices)])


@quick
@given(cases())
def test_probabilities_are_those_of_resampled_full_logits(case):
    folds, grid, box = case
    found = probabilities_of(folds, ORGANS, grid, box, FLOOR, CPU)
    expected = plain(folds, grid)[0].softmax(0)[(slice(None), *box.slices)]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@quick
@given(cases())
def test_no_voxel_outside_the_positive_box_is_labelled(case):
    """Neither by all folds nor by one."""
    folds, grid, _ = case
    box = positive_box([layer for layers in folds for layer in layers], grid)
    outside = torch.ones(grid.shape, dtype=torch.bool)
    if box is not None:
        assert box.volume and Box.full(grid.shape).contains(box)
        outside[box.slices] = False
    for logits in plain(folds, grid):
        assert not ((logits[1:] > 1e-5) & outside).any()


@quick
@given(st.data())
def test_a_layer_is_not_positive_outside_of_where_it_says_so(data):
    shape = data.draw(shapes)
    layer = data.draw(some_layers(shape))
    logits = np.nan_to_num(by_hand(layer, shape), nan=FLOOR)
    if layer.positive is None:
        assert logits.max() <= 1e-5
        return
    start, stop = layer.positive
    assert all(a <= b < c <= d for a, b, c, d in zip(layer.start, start, stop, layer.stop, strict=True))
    logits[Grid(shape, shape).box(start, stop).slices] = FLOOR
    assert logits.max() <= 1e-5


def test_the_positive_box_is_tight():
    """One voxel of nine: at its neighbours' centres nothing of it is left; a voxel of the volume more before it is harmless."""
    layer = organ_at(1, (4, 0, 8), shape=(9, 9, 9), stop=(9.0, 9.0, 9.0))
    assert layer.positive == ((3.5, 0, 7.5), (5.5, 1.5, 9))
    assert positive_box([layer], Grid((9, 9, 9), (9, 9, 9))) == Box((2, 0, 6), (5, 1, 9))
    # twice as fine: from the centre of the volume's voxel before it to that of the one after it
    assert positive_box([layer], Grid((18, 18, 18), (9, 9, 9))) == Box((5, 0, 13), (11, 3, 18))
    assert (
        positive_box([organ_at(1)], Grid((9, 9, 9), (3, 3, 3))) is None
        and positive_box([], Grid((1,) * 3, (1,) * 3)) is None
    )
    assert positive_box([organ_at(1), layer], Grid((9, 9, 9), (9, 9, 9))) == Box((2, 0, 6), (5, 1, 9))


def test_where_organs_meet_the_higher_one_wins_and_the_background_wins_at_zero():
    grid, box = Grid((3, 3, 3), (3, 3, 3)), Box.full((3, 3, 3))
    folds = [
        [
            organ_at(1, (0, 0, 0), (0, 0, 1)),
            organ_at(3, (0, 0, 1), (0, 0, 2), logit=3.0),
            organ_at(2, (1, 1, 1), logit=0.0),
        ]
    ]
    labels = labels_of(folds, grid, box, FLOOR)
    assert len(labels) == 1 and labels[0][0, 0].tolist() == [1, 3, 3] and int((labels[0] > 0).sum()) == 3
    # of equal logits the lower label stays, as argmax has it
    folds = [[organ_at(2, (0, 0, 0)), organ_at(1, (0, 0, 0))]]
    assert labels_of(folds, grid, box, FLOOR)[0][0, 0, 0] == 1


def test_a_fold_that_finds_nothing_says_the_floor():
    """(2 - 5) / 2 is negative: the background wins in the mean; 6 is enough."""
    grid, box = Grid((3, 3, 3), (3, 3, 3)), Box.full((3, 3, 3))
    for logit, wins in ((2.0, 0), (6.0, 1)):
        mean, first, second = labels_of([[organ_at(1, (1, 1, 1), logit=logit)], []], grid, box, FLOOR)
        assert (mean[1, 1, 1], first[1, 1, 1], second[1, 1, 1]) == (wins, 1, 0)
        assert int((mean > 0).sum()) == wins and not second.any()
    # and logits below the floor count as the floor
    low, high = organ_at(1, (1, 1, 1), logit=-100.0), organ_at(1, (1, 1, 1), logit=6.0)
    assert labels_of([[low], [high]], grid, box, FLOOR)[0][1, 1, 1] == 1


def test_probabilities_without_any_layer_are_those_of_the_floor():
    grid = Grid((2, 3, 4), (3, 3, 3))
    found = probabilities_of([[], []], 2, grid, Box((0, 1, 0), (2, 3, 4)), FLOOR, CPU)
    expected = torch.tensor([0, FLOOR, FLOOR]).softmax(0).view(3, 1, 1, 1).expand(3, 2, 2, 4)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("thin, size", [(1, 1), (1, 4), (4, 1)])
def test_a_volume_or_grid_of_one_slice(axis, thin, size):
    """thin: voxels of the volume on this axis, size: of the grid."""
    volume, shape = [6, 6, 6], [8, 5, 6]
    volume[axis], shape[axis] = thin, size
    generator = torch.Generator().manual_seed(axis)
    layers = [
        Layer.of_box(label, Box.full(volume), (Box.full(volume), torch.randn(2, 3, 4, generator=generator)))
        for label in (1, 2)
    ]
    grid = Grid(tuple(shape), tuple(volume))
    labels = labels_of([layers], grid, Box.full(shape), FLOOR)[0]
    assert_labels(labels, plain([layers], grid)[0])
    assert labels.unique().tolist() == [0, 1, 2]


# ---------------------------------------------------------------- grids


@quick
@given(st.data())
def test_a_box_of_the_grid_holds_the_centres_in_the_region(data):
    grid = Grid(data.draw(shapes), data.draw(shapes))
    start, stop = data.draw(regions(grid.volume, -2, 2))
    box = grid.box(start, stop)
    for axis in range(3):
        size, of = grid.shape[axis], grid.volume[axis]
        # in integers, in sixteenths of the volume's voxels times the grid's size
        inside = [
            index for index in range(size)
            if start[axis] * 16 * size <= (2 * index + 1) * of * 8 < stop[axis] * 16 * size
        ]  # fmt: skip
        assert list(range(box.start[axis], box.stop[axis])) == inside


@quick
@given(shapes, st.data(), st.integers(1, 200))
def test_slabs_tile_the_box(shape, data, voxels):
    start = tuple(data.draw(st.integers(0, size)) for size in shape)
    box = Box(start, tuple(data.draw(st.integers(first, size)) for first, size in zip(start, shape, strict=True)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SLAB_VOXELS", voxels)
        slabs = list(Grid(shape, (3, 3, 3)).slabs(box))
    times = np.zeros(shape, dtype=int)
    for slab in slabs:
        times[slab.slices] += 1
        assert slab.shape[0] == 1 or slab.volume <= voxels
    expected = np.zeros(shape, dtype=int)
    expected[box.slices] = 1
    assert np.array_equal(times, expected)
    assert [slab.start[0] for slab in slabs] == sorted(slab.start[0] for slab in slabs)


@quick
@given(cases(), st.integers(1, 60))
def test_slab_by_slab_gives_the_same(case, voxels):
    folds, grid, box = case
    whole = labels_of(folds, grid, box, FLOOR)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SLAB_VOXELS", voxels)
        parts = [labels_of(folds, grid, slab, FLOOR)[0] for slab in grid.slabs(box)]
    # all voxels of a box are interpolated alike, rounding apart
    logits = plain(folds, grid)[0][(slice(None), *box.slices)]
    assert_labels(torch.cat(parts), logits)
    assert_labels(whole, logits)


# ---------------------------------------------------------------- a network that says it in parts


class ShowsSlices(nn.Module):
    """Stands in for the 2.5D network: organ a is where the middle slice is bright, organ b where the one above it is."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, slabs):
        middle, above = slabs[:, 2], slabs[:, 3]
        return torch.stack((torch.zeros_like(middle), middle * 3, above * self.factor), 1), slabs[:, 0, 0, :0]


def attention_net(axis, batch, factor=4.0) -> AttentionAnatomyNet:
    plan = AttentionPlan(
        organs=("a", "b"), slice_shape=(8, 12), stages=3, features=2, slice_axis=axis, prediction_batch=batch
    )
    network = AttentionAnatomyNet(1, plan).eval()
    network.network = ShowsSlices(factor)
    return network


def noise(slices, axis, plane=(7, 14)) -> torch.Tensor:
    """(1, Z, Y, X): one axis of the plane is larger than the network's slices, one smaller."""
    image = torch.randn(1, slices, *plane, generator=torch.Generator().manual_seed(slices))
    return image.movedim(1, 1 + axis)


@torch.no_grad()
def parts_of(network, image):
    return list(network.predict_parts(LoadedVolume(image, None), PredictionReport()))


SLICES = pytest.mark.parametrize("slices", [1, 2, 3, 17])
BATCHES = pytest.mark.parametrize("batch", [1, 2, 16, 17])
AXES = pytest.mark.parametrize("axis", [0, 1, 2])


@SLICES
@BATCHES
@AXES
def test_the_parts_of_a_volume_tile_it_on_any_grid(axis, batch, slices):
    image = noise(slices, axis)
    volume = tuple(image.shape[1:])
    parts = parts_of(attention_net(axis, batch), image)
    assert len(parts) == -(-slices // batch)
    for size in (slices, 1, 2, 5, 16, 2 * slices, 3 * slices, 100):
        shape = [9, 5, 6]
        shape[axis] = size
        grid, times = Grid(tuple(shape), volume), np.zeros(shape, dtype=int)
        for part in parts:
            times[grid.box(part.start, part.stop).slices] += 1
        assert (times == 1).all()


@SLICES
@BATCHES
@AXES
def test_labels_part_by_part_are_those_of_one_batch(axis, batch, slices):
    """On the grid of another spacing, of one fold and of two: what lies between two batches belongs to both."""
    image = noise(slices, axis)
    volume = tuple(image.shape[1:])
    for size in (slices, 2 * slices + 1, max(1, slices // 2)):
        shape = [9, 11, 10]
        shape[axis] = size
        grid, outs = Grid(tuple(shape), volume), []
        for at_once in (batch, slices):
            networks = [attention_net(axis, at_once), attention_net(axis, at_once, factor=-2.0)]
            labels = [torch.full(shape, -1, dtype=torch.int16) for _ in range(4)]
            for folds in zip(*(parts_of(network, image) for network in networks), strict=True):
                box = grid.box(folds[0].start, folds[0].stop)
                layers = [part.layers for part in folds]
                if not box.volume:
                    continue
                found = labels_of(layers, grid, box, FLOOR) + labels_of(layers[:1], grid, box, FLOOR)
                for out, value in zip(labels, found, strict=True):
                    out[box.slices] = value
            # a network alone says what it says in company
            assert torch.equal(labels[1], labels[3])
            outs.append(labels)
        for found, expected in zip(*outs, strict=True):
            assert torch.equal(found, expected)
        # and as nnUNetv2_predict has it: logits of the whole volume, then resampled
        logits = networks[0](image[None])
        logits = F.interpolate(logits, size=shape, mode="trilinear", align_corners=False)[0]
        assert_labels(outs[0][1], logits)
        assert outs[0][0].unique().numel() > 1
