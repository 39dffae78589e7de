"""The heat-map cascade's geometry, with stages that know the answer in place of trained ones."""

import numpy as np
import pytest
import torch
from torch import nn

from nnunet_oar.heatmaps import gaussian_heatmaps
from nnunet_oar.networks.heatmap import HeatmapNet3D
from nnunet_oar.networks.heatmap_cascade import HeatmapCascadeNetwork
from nnunet_oar.networks.unet3d import UNet3D
from nnunet_oar.plan import HeatmapPlan
from nnunet_oar.roi import Box

ORGANS = ("first", "second", "third")
SHAPE, SPACING = (40, 44, 52), (2.0, 1.5, 1.0)
FIRST, SECOND = Box((10, 12, 14), (20, 24, 30)), Box((22, 26, 8), (30, 34, 14))
SMALL = dict(
    organs=ORGANS, spacing_mm=SPACING, localizer_features=2, organ_features=2, localizer_strides=((2, 2, 2),),
    localizer_spacing_mm=(3.0, 3.0, 3.0), margin_vox=(3, 3, 3), organ_step_vox=dict.fromkeys(ORGANS, (1.0, 1.0, 1.0)),
    organ_strides=dict.fromkeys(ORGANS, ((2, 2, 2),)), sigma2_mm2=30.0,
)  # fmt: skip


class TrueHeat(nn.Module):
    """The heat maps of known centres (voxels of the image), whatever is given."""

    def __init__(self, centres, shape):
        super().__init__()
        self.centres, self.shape, self.calls = torch.tensor(centres), torch.tensor(shape), []

    def forward(self, image):
        self.calls.append(tuple(image.shape[2:]))
        scale = torch.tensor(image.shape[2:]) / self.shape
        return gaussian_heatmaps(self.centres * scale, image.shape[2:], (3.0, 3.0, 3.0), 30.0)[None]


class Threshold(nn.Module):
    """Logit `sure` where the image lies between two levels, else -4; keeps the shapes that it was given."""

    def __init__(self, sure=4.0):
        super().__init__()
        self.sure, self.calls, self.levels = sure, [], (0.0, 0.0)

    def forward(self, image):
        self.calls.append(tuple(image.shape[2:]))
        inside = (image > self.levels[0]) & (image < self.levels[1])
        return torch.where(inside, self.sure, -4.0)


def make(boxes=(FIRST, SECOND, None), **changes) -> HeatmapCascadeNetwork:
    network = HeatmapCascadeNetwork(1, HeatmapPlan(**(SMALL | changes))).eval()
    centres = [box.centre if box else (torch.nan,) * 3 for box in boxes]
    network.localizer = TrueHeat(centres, SHAPE)
    for label in network.segmenters:
        network.segmenters[label] = Threshold()
    for index, box in enumerate(boxes):
        size = np.multiply(box.shape if box else (5, 5, 5), SPACING)
        network.organ_size_mm[index] = torch.tensor(size)
    return network


def phantom():
    labels = torch.zeros(SHAPE, dtype=torch.long)
    image = torch.full((1, 1, *SHAPE), -100.0) + torch.linspace(0, 1, SHAPE[-1])
    for label, box in ((1, FIRST), (2, SECOND)):
        labels[box.slices] = label
        image[(0, 0, *box.slices)] = 100.0 * label
    return image, labels


def predicted(network, image):
    scaled = [float((level - image.mean()) / image.std(correction=0)) for level in (50, 150, 250)]
    for label, levels in zip("123", (scaled[:2], scaled[1:], scaled[1:]), strict=True):
        if isinstance(network.segmenters[label], Threshold):
            network.segmenters[label].levels = tuple(levels)
    with torch.inference_mode():
        logits = network(image)
    return logits, logits.argmax(1)[0]


def test_every_organ_is_segmented_in_its_own_box_and_an_organ_without_heat_is_absent():
    image, labels = phantom()
    network = make()
    logits, found = predicted(network, image)
    assert torch.equal(found, labels)
    report = network.reports[0]
    assert list(report.boxes) == ["first", "second"] and report.warnings == ["not found, and left out: third"]
    assert report.boxes["first"].contains(FIRST.grow(3)) and report.boxes["second"].contains(SECOND.grow(3))
    assert not report.boxes["first"].contains(FIRST.grow(5))
    assert network.localizer.calls == [(27, 22, 17)] and network.segmenters["3"].calls == []
    assert (logits[0, 3] == -5).all() and logits[0, 0].abs().max() == 0
    outside = torch.ones(SHAPE, dtype=torch.bool)
    outside[report.boxes["first"].slices] = False
    assert (logits[0, 1, outside] == -5).all()


def test_nothing_found_is_empty_and_said():
    image, _ = phantom()
    network = make((None, None, None))
    _, found = predicted(network, image)
    assert not found.any() and network.reports[0].warnings == [
        "not found, and left out: first, second, third; the result is empty"
    ]


def test_an_organ_that_training_never_held_is_absent_whatever_the_heat():
    image, _ = phantom()
    network = make()
    network.organ_size_mm[0] = 0
    _, found = predicted(network, image)
    assert not (found == 1).any() and (found == 2).any()


def test_overlaps_go_to_the_most_probable_organ():
    """Both organs' networks claim the first organ's voxels."""
    image, labels = phantom()
    network = make((FIRST, FIRST, None))
    for label, sure in (("1", 1.0), ("2", 3.0)):
        network.segmenters[label] = Threshold(sure)
    scaled = [float((level - image.mean()) / image.std(correction=0)) for level in (50, 150)]

    for better in ("2", "1"):
        network.segmenters["1"].levels = network.segmenters["2"].levels = tuple(scaled)
        with torch.inference_mode():
            found = network(image).argmax(1)[0]
        assert (found[FIRST.slices] == int(better)).all()
        network.segmenters["1"].sure, network.segmenters["2"].sure = 3.0, 1.0


def test_a_larger_margin_adds_voxels_and_never_rescales():
    image, labels = phantom()
    network = make()
    _, before = predicted(network, image)
    (small,) = network.segmenters["1"].calls
    network.margin_mm[0] = torch.tensor((10.0, 7.5, 5.0))
    _, after = predicted(network, image)
    large = network.segmenters["1"].calls[-1]
    assert torch.equal(before, labels) and torch.equal(after, labels)
    assert tuple(np.subtract(large, small)) == (4, 4, 4)


def test_a_box_that_cuts_its_organ_is_grown():
    image, labels = phantom()
    network = make(grow_attempts=2)
    network.organ_size_mm[0] /= 2
    network.margin_mm[0] = 0
    _, found = predicted(network, image)
    assert torch.equal(found == 1, labels == 1)
    assert any("reaches the side of its box" in text for text in network.reports[0].warnings)
    cut = make()
    cut.organ_size_mm[0] /= 2
    cut.margin_mm[0] = 0
    assert 0 < (predicted(cut, image)[1] == 1).sum() < FIRST.volume


def test_a_box_is_not_grown_for_a_speck_at_its_side():
    image, _ = phantom()
    network = make(grow_attempts=2)
    predicted(network, image)
    box = network.reports[0].boxes["first"]
    # two slices beyond the organ
    image[(0, 0, *Box((box.stop[0] - 1, 14, 20), (box.stop[0], 16, 22)).slices)] = 100.0
    assert box.stop[0] - 1 > FIRST.stop[0]
    predicted(network, image)
    assert network.reports[0].boxes["first"] == box
    assert network.reports[0].warnings == ["not found, and left out: third"]


@pytest.mark.parametrize("shape", [(1, 44, 52), (3, 5, 4)])
def test_small_images(shape):
    image, _ = phantom()
    network = HeatmapCascadeNetwork(1, HeatmapPlan(**SMALL)).eval()
    network.organ_size_mm[:] = 10.0
    network.plan.__dict__["threshold"] = -10.0  # every organ is found
    with torch.inference_mode():
        logits = network(image[..., : shape[0], : shape[1], : shape[2]])
    assert logits.shape == (1, 4, *shape) and logits.isfinite().all()


def test_a_u_net_takes_any_size_and_padding_changes_only_what_is_near():
    torch.manual_seed(0)
    network = UNet3D(1, 2, 4, ((2, 2, 2), (1, 2, 2)))
    for shape in ((1, 1, 1), (2, 4, 4), (7, 9, 5), (8, 8, 8)):
        out = network(torch.randn(2, 1, *shape))
        assert out.shape == (2, 2, *shape) and out.isfinite().all()
        out.sum().backward()
    assert HeatmapNet3D(1, 5, 4, ((2, 2, 2),))(torch.randn(1, 1, 5, 6, 7)).shape == (1, 5, 5, 6, 7)
    # -pretrained_weights leaves out the last layers
    assert any(".seg_layers." in key for key in network.state_dict())


class BothInBoth(TrueHeat):
    """A localiser that knows where two organs are and not which is which."""

    def forward(self, image):
        heat = super().forward(image)
        heat[:, :2] = 0.5 * heat[:, :1] + 0.8 * heat[:, 1:2]
        return heat


@pytest.mark.parametrize("pairs", [(), ((2, 1),)])
def test_a_localiser_that_cannot_tell_the_sides_does_not_swap_them(pairs):
    # at the low end of x lies the second organ
    network = make(low_high_pairs=pairs, left_right_axis=2)
    network.localizer = BothInBoth([box.centre if box else (torch.nan,) * 3 for box in (FIRST, SECOND, None)], SHAPE)
    centres = network.localise(torch.zeros(1, 1, *network.plan.localizer_shape(SHAPE)), SHAPE)
    right = [np.allclose(centre, box.centre, atol=2) for centre, box in zip(centres, (FIRST, SECOND), strict=False)]
    assert all(right) == bool(pairs) and centres[2] is None


def test_the_measured_numbers_are_part_of_the_checkpoint():
    network = make()
    assert {"organ_size_mm", "margin_mm", "centre_error_mm"} <= set(network.state_dict())
    assert torch.equal(HeatmapCascadeNetwork(1, HeatmapPlan(**SMALL)).margin_mm[0], torch.tensor((6.0, 4.5, 3.0)))


@pytest.mark.parametrize("stage", ["localizer", "segmenters"])
def test_what_is_not_finite_is_refused(stage):
    network, (image, _) = make(), phantom()
    module = network.localizer if stage == "localizer" else network.segmenters["2"]
    module.register_forward_hook(lambda module, args, out: out.index_fill(2, torch.tensor(3), torch.nan))
    with pytest.raises(ValueError, match="NaN or infinite"):
        predicted(network, image)
