"""AttentionAnatomyNet: equation (1) by hand, and that slices come back where they were."""

import math

import pytest
import torch
from torch import nn

from nnunet_oar.networks.attention_anatomy import AttentionAnatomyNet, RegionBranch, modulate, residual_unet_2d
from nnunet_oar.plan import AttentionPlan, Phase
from nnunet_oar.slabs import centre_boxes, neighbours


def plan(**changes) -> AttentionPlan:
    return AttentionPlan(
        **{"organs": ("a", "b"), "slice_shape": (32, 48), "stages": 3, "features": 4, "regions": ("head", "chest")}
        | changes
    )


def network(in_channels=1, **changes) -> AttentionAnatomyNet:
    torch.manual_seed(0)
    return AttentionAnatomyNet(in_channels, plan(**changes)).eval()


def volume(*shape) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, *shape, generator=generator) * 100 + 1


def test_equation_1_by_hand():
    """Softmax (1/4, 1/4, 1/2), z4 = (0.2, 0.6): weighed (0.25, 0.05, 0.3), renormalised by their sum 0.6."""
    logits = torch.tensor([1.0, 1.0, 2.0]).log().view(1, 3, 1, 1)
    out = modulate(logits, torch.tensor([[0.2, 0.6]]), 0.0).softmax(1).flatten()
    assert out.tolist() == pytest.approx([0.25 / 0.6, 0.05 / 0.6, 0.3 / 0.6], rel=1e-6)
    # epsilon is added to z4
    out = modulate(logits, torch.tensor([[0.0, 0.6]]), 0.2).softmax(1).flatten()
    assert out.tolist() == pytest.approx([0.25 / 0.7, 0.05 / 0.7, 0.4 / 0.7], rel=1e-6)


def test_equation_1_on_random_numbers():
    torch.manual_seed(3)
    logits, attention = torch.randn(4, 6, 5, 7).double() * 4, torch.rand(4, 5)
    weight = torch.cat((torch.ones(4, 1), attention + 1e-6), 1)[:, :, None, None]
    expected = logits.softmax(1) * weight
    torch.testing.assert_close(
        modulate(logits, attention, 1e-6).softmax(1),
        (expected / expected.sum(1, keepdim=True)).float(),
        atol=1e-6,
        rtol=1e-5,
    )


def test_the_background_is_not_modulated_and_attention_can_be_switched_off():
    with_attention, without = network(), network(attention=False)
    without.load_state_dict(with_attention.state_dict())
    slab = {"slab": volume(5, 32, 48)}
    a, b = with_attention(slab), without(slab)
    torch.testing.assert_close(a["logits"][:, 0], b["logits"][:, 0])
    difference = (a["logits"] - b["logits"])[:, 1:]
    # ln z4 of an organ: the same in every pixel, negative
    torch.testing.assert_close(difference, difference[:, :, :1, :1].expand_as(difference), atol=1e-5, rtol=1e-4)
    assert (difference < 0).all() and torch.equal(a["region"], b["region"])


def test_organs_and_regions_share_all_but_the_last_layer():
    branch = network().network.branch
    out = network()({"slab": volume(5, 32, 48)})
    assert out["region"].shape == (1, 2) and out["logits"].shape == (1, 3, 32, 48)
    assert branch.seg_layers["region"].in_features == branch.seg_layers["attention"].in_features
    assert network(regions=())({"slab": volume(5, 32, 48)})["region"].shape == (1, 0)


class ShowsSlice(nn.Module):
    """Stands in for the network: calls organ a where the middle slice is positive, organ b where the one above it is."""

    def __init__(self, channels=1):
        super().__init__()
        self.channels = channels

    def forward(self, slabs):
        slices = slabs.unflatten(1, (5, self.channels))[:, :, 0]
        zero = torch.zeros_like(slices[:, 2])
        return torch.stack((zero, slices[:, 2] * 2, slices[:, 3] * 2), 1), slabs[:, 0, 0, :0]


@pytest.mark.parametrize("shape", [(7, 20, 30), (7, 32, 48), (4, 40, 60), (3, 33, 47), (1, 10, 80), (2, 64, 20)])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_every_voxel_comes_back_to_its_place(shape, axis, batch):
    """Centre crop, padding, neighbours and slice axis, against plain indexing."""
    depth, height, width = shape
    image = volume(1, depth, height, width)
    under_test = network(slice_axis=axis, prediction_batch=batch)
    under_test.network = ShowsSlice()
    out = under_test(image.movedim(2, 2 + axis)).movedim(2 + axis, 2)
    normalised = (image - image.mean()) / image.std(correction=0)
    above = normalised[:, :, list(range(1, depth)) + [depth - 1]]
    expected = torch.full((1, 3, *shape), -5.0)
    expected[:, 0] = 0
    rows = slice(max(0, (height - 32) // 2), max(0, (height - 32) // 2) + min(32, height))
    columns = slice(max(0, (width - 48) // 2), max(0, (width - 48) // 2) + min(48, width))
    for channel, source in ((1, normalised), (2, above)):
        expected[:, channel, :, rows, columns] = (source[:, 0, :, rows, columns] * 2).clamp_min(-5)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("slices", [1, 3, 11])
def test_the_slice_batch_changes_nothing(slices):
    image = volume(1, slices, 32, 48)
    outs = []
    for batch in (1, 2, 4, 16):
        under_test = network(prediction_batch=batch)
        with torch.no_grad():
            outs.append(under_test(image))
    for out in outs[1:]:
        torch.testing.assert_close(out, outs[0], atol=1e-4, rtol=1e-4)
        assert (out.argmax(1) == outs[0].argmax(1)).float().mean() > 0.999


def test_two_channels_stay_slice_by_slice():
    image = torch.cat((volume(1, 6, 32, 48), volume(1, 6, 32, 48) * 3 + 50), 1)
    under_test = network(in_channels=2)
    under_test.network = ShowsSlice(channels=2)
    one = network()
    one.network = ShowsSlice()
    torch.testing.assert_close(under_test(image), one(image[:, :1]), atol=1e-4, rtol=1e-4)
    assert network(in_channels=2)(image).shape == (1, 3, 6, 32, 48)


def test_padding_of_the_predictor_is_not_looked_at():
    image = volume(1, 5, 20, 30)
    padded = torch.zeros(1, 1, 9, 40, 44)
    padded[:, :, 2:7, 10:30, 7:37] = image
    with torch.no_grad():
        alone, inside = network()(image), network()(padded)
    torch.testing.assert_close(inside[:, :, 2:7, 10:30, 7:37], alone)
    assert (inside[:, 1:, :2] == -5).all() and (inside[:, 0] == 0).all()


def test_an_image_without_any_organ_is_reported():
    under_test = network()
    under_test.network = ShowsSlice()
    under_test(torch.full((1, 1, 3, 8, 8), -1000.0))
    assert under_test.reports[0].warnings == ["no organ was found: the result is empty"]
    under_test(torch.zeros(1, 1, 3, 8, 8))
    assert "0 everywhere" in under_test.reports[0].warnings[0]


def test_encoder_and_decoder_can_be_replaced():
    calls = []

    def backbone(*args):
        calls.append(args)
        return residual_unet_2d(args[0], args[1], 2, args[3])

    under_test = AttentionAnatomyNet(1, plan(), backbone=backbone)
    assert calls == [(5, 3, 4, 3)] and under_test(volume(1, 3, 32, 48)).shape == (1, 3, 3, 32, 48)


def test_neighbours_repeat_the_edges():
    assert neighbours([0, 3, 4], 5, 5).tolist() == [[0, 0, 0, 1, 2], [1, 2, 3, 4, 4], [2, 3, 4, 4, 4]]
    assert neighbours([0], 5, 1).tolist() == [[0] * 5] and neighbours(range(2), 3, 2).tolist() == [[0, 0, 1], [0, 1, 1]]


def test_centre_boxes_match_each_other():
    crop, place = centre_boxes((512, 100), (320, 320))
    assert (crop.start, crop.stop) == ((96, 0), (416, 100)) and (place.start, place.stop) == ((0, 110), (320, 210))


def test_gradients_reach_the_attention_through_the_segmentation():
    under_test = network().train()
    under_test({"slab": volume(5, 32, 48)})["logits"].softmax(1)[:, 1].mean().backward()
    assert under_test.network.branch.seg_layers["attention"].weight.grad.abs().sum() > 0
    assert under_test.network.branch.seg_layers["region"].weight.grad is None


def test_the_papers_numbers_are_the_defaults():
    defaults = AttentionPlan()
    assert (defaults.slices, defaults.slice_shape, defaults.batch_size) == (5, (320, 320), 16)
    assert [defaults.phase(epoch) for epoch in (0, 19, 20, 49, 50, 70, 99)] == [
        *[Phase(0, 1e-3, 0.0, 0.0, 1.0)] * 2, *[Phase(20, 1e-3)] * 2, Phase(50, 5e-4, focal=0.0),
        *[Phase(70, 1e-4, focal=0.0, region=0.0, elastic=True)] * 2,
    ]  # fmt: skip


def test_half_precision_does_not_overflow_in_the_attention():
    """GradScaler's first scale is 65536; ln z4 has the gradient 1 / z4."""
    branch = RegionBranch(4, 0, 3)
    last = branch.seg_layers["attention"].half()
    nn.init.constant_(last.bias, -8.0)  # z4 of 3e-4
    branch.shared = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 128)).half()
    features = torch.randn(2, 4, 3, 3).half().requires_grad_()
    loss = 65536 * 0.05 * modulate(torch.zeros(2, 4, 1, 1), branch(features)[1], 1e-6)[:, 1:].mean()
    loss.backward()
    assert last.weight.grad.isfinite().all() and last.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"slices": 4}, "slices is 4; allowed is an odd number"),
        ({"slice_shape": (30, 48)}, "multiples of 4"),
        ({"slice_shape": (4, 4)}, "multiples of 4 and one larger"),
        ({"phases": (Phase(3, 1e-3),)}, "phases start at \\[3\\]"),
        ({"epochs": 20}, "the last of 20 epochs is of one without dice and focal"),
        ({"region_organs": ((1,),)}, "one entry for each of 2 regions"),
        ({"region_organs": ((1,), (3,))}, "labels go from 1 to 2"),
    ],
)
def test_plans_that_cannot_work_are_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        plan(**changes)


def test_phases_survive_the_plans_file():
    section = plan(phases=(Phase(0, 1e-3, math.pi), Phase(5, 1e-4, elastic=True))).to_section()
    assert section["phases"][1] == {
        "start": 5,
        "learning_rate": 1e-4,
        "dice": 1.0,
        "focal": 1.0,
        "region": 1.0,
        "elastic": True,
    }
    assert AttentionPlan.from_section(section).phases[0].dice == math.pi
    for bad, sentence in (
        ({"start": -1, "learning_rate": 1}, "each an integer"),
        ({"begin": 0}, "an object with start"),
    ):
        with pytest.raises(ValueError, match=f"phases is .* allowed is a list, each {sentence}|{sentence}"):
            AttentionPlan.from_section(section | {"phases": [bad]})


def warnings_of(network: AttentionAnatomyNet, image: torch.Tensor) -> list[str]:
    network.network = ShowsSlice()
    with torch.no_grad():
        network(image)
    return network.reports[0].warnings


@pytest.mark.parametrize(
    "rows, columns", [((20, 36), (20, 30)), ((4, 8), (20, 30)), ((9, 12), (6, 9)), ((9, 12), (50, 54))]
)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_organ_that_the_frame_cuts_is_named_with_a_warning(axis, rows, columns):
    """The frame holds rows 4 to 35 and columns 6 to 53; organ b is what is a slice above."""
    image = torch.full((1, 1, 6, 40, 60), -100.0)
    image[:, :, 2, slice(*rows), slice(*columns)] = 500.0
    (a, b) = warnings_of(network(slice_axis=axis), image.movedim(2, 2 + axis))
    assert a.startswith("a reaches the side of the frame of (32, 48)") and b.startswith("b reaches the side")


@pytest.mark.parametrize("rows, shape", [((20, 35), (40, 60)), ((8, 32), (32, 60)), ((8, 30), (30, 40))])
def test_organs_inside_the_frame_and_at_faces_of_the_image_are_not_cut(rows, shape):
    image = torch.full((1, 1, 6, *shape), -100.0)
    image[:, :, 2, slice(*rows), 20:30] = 500.0
    assert warnings_of(network(), image) == []


def test_what_is_not_finite_is_refused():
    under_test = network()
    under_test.network = ShowsSlice()
    under_test.network.register_forward_hook(
        lambda module, args, out: (out[0].index_fill(3, torch.tensor(3), torch.nan), out[1])
    )
    with pytest.raises(ValueError, match="NaN or infinite"):
        under_test(volume(1, 5, 32, 48))
