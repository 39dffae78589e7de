"""The shared encoder's geometry, with an encoder and decoders that know the answer in place of trained ones, and its gradients."""

import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nnunet_oar.losses import HardVoxelDiceLoss
from nnunet_oar.networks.normalisation import WindowedInstanceNorm3d
from nnunet_oar.networks.shared_encoder import OrganDecoder, ResBlock, SharedEncoder, SharedEncoderNet
from nnunet_oar.plan import SharedEncoderPlan
from nnunet_oar.roi import Box

STRIDES = ((1, 2, 2), (1, 2, 2), (2, 2, 2), (1, 1, 1))
SMALL = dict(
    organs=("first", "second"), spacing_mm=(2.0, 1.0, 1.0), grid_spacing_mm=(2.0, 1.0, 1.0), features=2, strides=STRIDES,
    margin_vox=(1, 2, 2),
)  # fmt: skip
SHAPE = (21, 50, 61)
BODY = Box((0, 4, 6), (21, 45, 58))
FIRST, SECOND = Box((5, 11, 13), (10, 22, 30)), Box((14, 30, 40), (19, 36, 47))


class Pyramid(nn.Module):
    """The image itself at each level: the brightest voxel of each block of voxels."""

    def forward(self, x):
        levels = [x]
        for stride in STRIDES:
            levels.append(F.max_pool3d(levels[-1], stride, stride))
        return levels


class Between(nn.Module):
    def __init__(self):
        super().__init__()
        self.levels = [(0.0, 0.0), (0.0, 0.0)]

    def inside(self, x, index):
        low, high = self.levels[index]
        return (x > low) & (x < high)


class TrueCoarse(Between):
    """Certain of an organ where the finest of its levels is as bright as it."""

    def forward(self, features):
        organs = torch.cat([self.inside(features[0], index) for index in range(2)], 1).float()
        return torch.cat((1 - organs.amax(1, keepdim=True), organs), 1)[None]


class TrueDecoder(Between):
    """An organ's voxels; keeps the shapes of the crops that it was given."""

    def __init__(self, index):
        super().__init__()
        self.index, self.calls = index, []

    def forward(self, crops):
        self.calls.append([tuple(crop.shape[2:]) for crop in crops])
        return torch.where(self.inside(crops[0], self.index), 4.0, -4.0)


def make(**changes) -> SharedEncoderNet:
    network = SharedEncoderNet(1, SharedEncoderPlan(**(SMALL | changes))).eval()
    network.decoders_trained.fill_(True)
    network.encoder, network.coarse_head = Pyramid(), TrueCoarse()
    network.decoders = nn.ModuleDict({"1": TrueDecoder(0), "2": TrueDecoder(1)})
    return network


def phantom(boxes=(FIRST, SECOND), shape=SHAPE, body=BODY):
    """A body of -50 HU in air with organs of 100 and 200 HU."""
    labels = torch.zeros(shape, dtype=torch.long)
    image = torch.full((1, 1, *shape), -1000.0)
    image[(0, 0, *body.slices)] = -50.0
    for label, box in enumerate(boxes, start=1):
        labels[box.slices] = label
        image[(0, 0, *box.slices)] = 100.0 * label
    return image, labels


def predicted(network, image):
    image = image + 0.01 * torch.arange(image.shape[-1])
    low, middle, high = (float((hu - image.mean()) / image.std(correction=0)) for hu in (50, 150, 250))
    for module in network.modules():
        if isinstance(module, Between):
            module.levels = [(low, middle), (middle, high)]
    with torch.inference_mode():
        logits = network(image)
    return logits, logits.argmax(1)[0]


def test_organs_come_back_where_they_were():
    image, labels = phantom()
    network = make()
    logits, found = predicted(network, image)
    assert torch.equal(found, labels)
    report = network.reports[0]
    assert list(report.localised) == ["first", "second"] and not report.warnings
    for organ, box in (("first", FIRST), ("second", SECOND)):
        assert report.localised[organ].contains(box) and report.boxes[organ].contains(box)
    assert (logits[:, 0] == 0).all() and logits.min() == network.plan.floor
    # regions of interest, not the body
    assert report.boxes["first"].volume < 0.4 * BODY.volume


@pytest.mark.parametrize(
    "box",
    [
        Box((0, 4, 6), (3, 9, 12)),
        Box((18, 40, 51), (21, 45, 58)),
        Box((7, 20, 20), (8, 21, 21)),
        Box((0, 10, 10), (21, 11, 50)),
    ],
)
def test_at_the_border_and_one_voxel_large(box):
    image, labels = phantom((box,))
    for network in (make(), make(margin_vox=(0, 0, 0), grow_attempts=2)):
        assert torch.equal(predicted(network, image)[1], labels)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 20), st.integers(1, 40), st.integers(1, 40)),
    st.tuples(*[st.floats(0, 0.999)] * 3),
    st.tuples(*[st.floats(0, 1)] * 3),
)
def test_a_marked_voxel_is_at_its_place_at_every_level(shape, where, size):
    network = make()
    shape = network.padded(shape)
    voxel = tuple(int(a * n) for a, n in zip(where, shape, strict=True))
    box = Box(voxel, tuple(v + 1 for v in voxel)).grow([int(a * n) for a, n in zip(size, shape, strict=True)])
    box = network.snapped(box.within(shape), shape)
    assert box.contains(Box(voxel, tuple(v + 1 for v in voxel))) and Box.full(shape).contains(box)
    image = torch.zeros(1, 1, *shape)
    image[(0, 0, *voxel)] = 1

    class Look(nn.Module):
        def forward(self, crops):
            total = 0
            for crop in crops:
                assert crop.sum() == 1
                factors = [a // b for a, b in zip(crops[0].shape[2:], crop.shape[2:], strict=True)]
                wide = crop
                for axis, factor in enumerate(factors):
                    wide = wide.repeat_interleave(factor, axis + 2)
                assert wide.shape == crops[0].shape
                total = total + wide
            return total

    network.decoders["1"] = Look()
    out = network.decode(network.encoder(image), 1, box)
    assert out.shape[2:] == box.shape
    inside = tuple(v - a for v, a in zip(voxel, box.start, strict=True))
    # all five levels agree on this voxel, and on no other
    assert out[(0, 0, *inside)] == 5 and (out == 5).sum() == 1


@pytest.mark.parametrize("box", [Box((4, 12, 14), (12, 24, 34)), Box((11, 27, 39), (20, 40, 52))])
def test_a_grid_of_its_own_spacing(box):
    image, labels = phantom((box,))
    network = make(grid_spacing_mm=(4.0, 2.0, 2.0))
    a, b = predicted(network, image)[1] == 1, labels == 1
    assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.85
    assert np.abs(np.subtract(Box.from_mask(a).centre, Box.from_mask(b).centre)).max() <= 1
    assert network.decoders["1"].calls[0][0][0] < 21 / 2 + 1


def test_a_box_that_cuts_an_organ_grows():
    image, labels = phantom((FIRST,))
    network = make(margin_vox=(0, 0, 0), grow_attempts=3)

    # the coarse branch sees the first half of the organ alone
    def half(features):
        probability = torch.zeros(1, 1, 3, *features[0].shape[2:])
        probability[:, :, 0] = 1
        probability[0, 0, 1, 6, 2, 2] = 1
        return probability

    network.coarse_head.forward = half
    _, found = predicted(network, image)
    assert torch.equal(found, labels)
    assert any("segmented again" in warning for warning in network.reports[0].warnings)


def test_specks_neither_move_a_box_nor_make_it_grow():
    image, _ = phantom()
    network = make(grow_attempts=2, margin_vox=(2, 2, 2))
    predicted(network, image)
    report = network.reports[0]
    box, localised = report.boxes["first"], report.localised["first"]
    assert box.start[0] < FIRST.start[0] - 1
    # at a side of its box, and far away from it
    for speck in (Box((box.start[0], 13, 16), (box.start[0] + 1, 15, 18)), Box((19, 40, 10), (20, 42, 12))):
        with_speck = image.clone()
        with_speck[(0, 0, *speck.slices)] = 100.0
        predicted(network, with_speck)
        report = network.reports[0]
        assert report.localised["first"] == localised and report.boxes["first"] == box and not report.warnings


def test_volumes_that_are_larger_than_parts_of_training_are_predicted():
    """With real layers, encoder and decoder, in the precision of prediction."""
    network = SharedEncoderNet(1, SharedEncoderPlan(**(SMALL | {"crop_shape": (8, 16, 16)}))).eval()
    network.decoders_trained.fill_(True)
    network.find_organs = lambda coarse, shape: {1: Box((2, 2, 2), (18, 38, 40)), 2: Box((14, 30, 40), (19, 36, 47))}
    with torch.inference_mode():
        logits = network(phantom()[0])
    assert logits.shape == (1, 3, *SHAPE) and logits.isfinite().all()


class EitherInBoth(TrueCoarse):
    """A coarse branch that knows where two organs are and not which is which."""

    def forward(self, features):
        out = super().forward(features)
        out[:, :, 1:] = out[:, :, 1:].amax(2, keepdim=True)
        return out


@pytest.mark.parametrize("pairs", [(), ((1, 2),)])
def test_a_coarse_branch_that_cannot_tell_the_sides_does_not_swap_them(pairs):
    image, _ = phantom()
    network = make(low_high_pairs=pairs, left_right_axis=2, margin_vox=(0, 0, 0))
    network.coarse_head = EitherInBoth()
    predicted(network, image)
    boxes = network.reports[0].localised
    assert boxes["first"].contains(FIRST) and boxes["second"].contains(SECOND)
    assert (boxes["first"].stop[2] <= SECOND.start[2] and boxes["second"].start[2] >= FIRST.stop[2]) == bool(pairs)
    # one organ in both maps is one organ
    predicted(network, phantom((FIRST,))[0])
    found = network.reports[0].localised
    assert len(found) == (1 if pairs else 2)
    doubts = [warning for warning in network.reports[0].warnings if "looks alike" in warning]
    (name,) = found if pairs else (None,)
    assert len(doubts) == len(pairs) and all(f"check that it is {name}" in doubt for doubt in doubts)


def test_an_organ_stays_where_its_partners_map_leaks_into_it():
    """The map of the first lung holds both, that of the second is right: none is dropped. What is one region is one organ."""
    network = make(low_high_pairs=((1, 2),), left_right_axis=2)
    coarse = torch.zeros(1, 3, 21, 13, 16)
    coarse[0, 1, 5:15, 3:9, 1:14] = 1
    coarse[0, 2, 5:15, 3:9, 8:14] = 1
    found = network.find_organs(coarse, (22, 52, 64))
    assert found[1].stop[2] == 56 and found[2] == Box((5, 12, 32), (16, 36, 56))
    coarse[0, 2] = coarse[0, 1]
    assert len(network.find_organs(coarse, (22, 52, 64))) == 1


def test_a_paired_organ_in_pieces_stays_whole():
    network = make(low_high_pairs=((1, 2),), left_right_axis=2)
    coarse = torch.zeros(1, 3, 21, 13, 16)
    # a slice is missing, and a piece of it is in the other one's place
    coarse[0, 1, 2:9, 3:9, 1:6] = coarse[0, 1, 10:16, 3:9, 1:6] = coarse[0, 1, 5:8, 3:9, 10:14] = 1
    coarse[0, 2, 2:16, 3:9, 10:14] = 1
    found = network.find_organs(coarse, (21, 52, 64))
    assert found == {1: Box((2, 12, 4), (16, 36, 24)), 2: Box((2, 12, 40), (16, 36, 56))}


def test_images_that_are_larger_than_parts_of_training_are_normalised_by_windows():
    plan = SharedEncoderPlan(**(SMALL | {"crop_shape": (8, 16, 24)}))
    windows = [layer.window for layer in SharedEncoder(1, plan).modules() if isinstance(layer, WindowedInstanceNorm3d)]
    # the first convolution and the two, two, three and three of the blocks
    assert windows == [(8, 16, 24)] + [(8, 8, 12)] * 2 + [(8, 4, 6)] * 2 + [(4, 2, 3)] * 6
    decoder = SharedEncoderNet(1, plan).decoders["1"]
    windows = [layer.window for layer in decoder.modules() if isinstance(layer, WindowedInstanceNorm3d)]
    # two convolutions on each level but the deepest
    assert windows == [size for size in ((4, 2, 3), (8, 4, 6), (8, 8, 12), (8, 16, 24)) for _ in range(2)]
    torch.manual_seed(0)
    network, part = SharedEncoderNet(1, plan).eval(), torch.randn(1, 1, 8, 16, 24)
    beside = torch.cat((part, 5 + 3 * part), 4)

    def change():
        with torch.inference_mode():
            alone, together = (network({"image": image})["features"][0][..., :8] for image in (part, beside))
        return float((together - alone).abs().mean())

    by_windows = change()
    for layer in network.modules():
        if isinstance(layer, WindowedInstanceNorm3d):
            layer.window = None
    # the convolution of the first window looks a voxel into the other part
    assert by_windows < 0.5 * change()


def test_nothing_found_and_organs_that_no_case_held(caplog):
    image, labels = phantom(())
    logits, found = predicted(make(), image)
    assert not found.any() and "not found, and left out: first, second; the result is empty" in caplog.text
    image, labels = phantom()
    network = make()
    network.organ_known[1] = False
    assert torch.equal(predicted(network, image)[1], torch.where(labels == 2, 0, labels))
    assert network.reports[0].warnings == ["not found, and left out: second"]


def test_a_ct_without_air_is_used_whole(caplog):
    image, labels = phantom(body=Box.full(SHAPE))
    with caplog.at_level(logging.WARNING):
        assert torch.equal(predicted(make(), image)[1], labels)
        assert torch.equal(predicted(make(intensity_from_hu=None), image)[1], labels)
    assert "no threshold between body and air was found" in caplog.text and "the HU are not known" in caplog.text


def test_a_checkpoint_of_the_coarse_phase_predicts_nothing():
    network = SharedEncoderNet(1, SharedEncoderPlan(**SMALL)).eval()
    with pytest.raises(RuntimeError, match="have not been trained|had not been trained"):
        network(phantom()[0])
    assert {"decoders_trained", "organ_known"} <= set(network.state_dict())


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 20, 20), (3, 17, 9), (16, 32, 32)])
def test_real_layers_take_any_size_and_one_voxel_for_an_organ(shape, axis, train):
    """Slices along each axis, two channels; the paper's margin, which is none."""
    torch.manual_seed(0)
    strides = [tuple(np.roll(stride, axis).tolist()) for stride in STRIDES]
    network = SharedEncoderNet(
        2, SharedEncoderPlan(**(SMALL | {"margin_vox": (0, 0, 0), "strides": strides, "slice_axis": axis}))
    )
    network.train(train).decoders_trained.fill_(True)
    shape = tuple(np.roll(shape, axis).tolist())

    def one_voxel(coarse, shape):
        at = tuple(size // 2 for size in coarse.shape[2:])
        box = Box(at, tuple(a + 1 for a in at)).rescaled(coarse.shape[2:], shape)
        return {1: box, 2: Box((0, 0, 0), (1, 1, 1))}

    network.find_organs = one_voxel
    with torch.no_grad():
        logits = network(torch.randn(1, 2, *shape) * 100)
    assert logits.shape == (1, 3, *shape) and logits.isfinite().all()
    assert set(network.reports[0].boxes) == {"first", "second"}


def test_the_papers_sizes():
    plan = SharedEncoderPlan(organs=("a", "b", "c", "d"), features=4)
    features = SharedEncoder(1, plan)(torch.zeros(1, 1, 8, 32, 32))
    assert [tuple(level.shape[1:]) for level in features] == [
        (4, 8, 32, 32), (4, 8, 16, 16), (8, 8, 8, 8), (16, 4, 4, 4), (32, 4, 4, 4),
    ]  # fmt: skip
    # 32 features at the start are 256 at the end, [X/8, Y/8, Z/2], dilation 3 and 6 in the last two blocks
    assert SharedEncoderPlan(organs=("a",)).features * 8 == 256 and plan.total_stride == (2, 8, 8)
    dilations = [{m.dilation for m in block.modules() if getattr(m, "kernel_size", 0) == (3, 3, 3)} for block in
                 SharedEncoder(1, plan).blocks]  # fmt: skip
    assert dilations == [{(1, 1, 1)}, {(1, 1, 1)}, {(3, 3, 3)}, {(6, 6, 6)}]
    assert plan.coarse_stride == (1, 4, 4)


def test_the_coarse_segmentation_is_the_mean_of_three_sigmoids():
    torch.manual_seed(0)
    network = SharedEncoderNet(1, SharedEncoderPlan(**SMALL)).eval()
    out = network({"image": torch.randn(1, 1, 4, 16, 16)})
    assert out["coarse"].shape == (1, 3, 4, 4, 4)
    with torch.no_grad():
        maps = [
            layer(level.float()).sigmoid()
            for layer, level in zip(network.coarse_head.seg_layers, out["features"][-3:], strict=True)
        ]
    maps = [F.interpolate(m, size=(4, 4, 4), mode="trilinear") for m in maps]
    assert torch.allclose(out["coarse_maps"], torch.stack(maps), atol=0.02)
    assert torch.allclose(out["coarse"], sum(maps) / 3, atol=0.02)


def test_the_fine_loss_alone_changes_the_encoder_and_its_own_decoder():
    torch.manual_seed(0)
    network = SharedEncoderNet(1, SharedEncoderPlan(**SMALL))
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    before = {name: value.clone() for name, value in network.named_parameters()}
    out = network({"image": torch.randn(1, 1, 8, 32, 32)})
    box = network.snapped(Box((2, 8, 8), (5, 17, 19)), (8, 32, 32))
    logits = network.decode(out["features"], 1, box)
    HardVoxelDiceLoss()(logits.sigmoid(), torch.rand(logits.shape) > 0.5).backward()
    optimizer.step()
    changed = {name.split(".")[0] + "." + name.split(".")[1] for name, value in network.named_parameters()
               if not torch.equal(value, before[name])}  # fmt: skip
    assert changed == {"encoder.entry", "encoder.blocks", "decoders.1"}


def test_blocks_and_decoders_have_the_shapes_they_say():
    assert ResBlock(3, 5, 2, (1, 2, 2), 3)(torch.zeros(1, 3, 4, 7, 6)).shape == (1, 5, 4, 4, 3)
    crops = [torch.zeros(1, c, *size) for c, size in ((2, (4, 8, 8)), (4, (4, 4, 4)), (8, (2, 2, 2)))]
    assert OrganDecoder([2, 4, 8], [None] * 3)(crops).shape == (1, 1, 4, 8, 8)
    # -pretrained_weights leaves the coarse branch's outputs out
    names = SharedEncoderNet(1, SharedEncoderPlan(**SMALL)).state_dict()
    assert any(name.startswith("coarse_head.seg_layers.") for name in names)


@pytest.mark.parametrize("stage", ["coarse_head", "decoders"])
def test_what_is_not_finite_is_refused(stage):
    network, (image, _) = make(), phantom()
    module = network.coarse_head if stage == "coarse_head" else network.decoders["2"]
    module.register_forward_hook(lambda module, args, out: out.index_fill(-1, torch.tensor(3), torch.nan))
    with pytest.raises(ValueError, match="NaN or infinite"):
        predicted(network, image)
