"""The pipeline's geometry and guards, with stages that know the answer in place of trained ones.

The stand-ins read the organ off the image (above 0 HU organ 1, above 200 HU organ 2), so whatever is shifted, flipped or swapped
on the way shows in the labels.
"""

import logging

import pytest
import torch
from torch import nn

from nnunet_oar.networks.cascade import CascadeNetwork
from nnunet_oar.plan import CascadePlan
from nnunet_oar.roi import Box

ORGANS = ("first", "second")
SMALL = dict(
    organs=ORGANS, coarse_shape=(16, 16, 16), fine_shape=(24, 24, 24), coarse_features=2, fine_features=2,
    coarse_strides=((2, 2, 2),) * 2, fine_strides=((2, 2, 2),) * 2, margin_vox=(2, 2, 2), min_box_vox=(12, 12, 12),
    extra_box_vox=((20, 20, 20),),
)  # fmt: skip


class Oracle(nn.Module):
    """Logits 4 where the image lies in an organ's range of HU, else -4; keeps its calls. `levels`: 0 and 200 HU, normalised."""

    def __init__(self, blind: bool = False):
        super().__init__()
        self.blind, self.calls, self.levels = blind, [], (0.0, 0.0)

    def forward(self, image):
        self.calls.append(image)
        rank = torch.zeros_like(image[:, 0])
        if not self.blind:
            rank = (image[:, 0] > self.levels[0]).int() + (image[:, 0] > self.levels[1]).int()
        return torch.stack([8.0 * (rank == k) - 4.0 for k in range(3)], 1)


def make(blind_localiser=False, canvas=None, **changes) -> CascadeNetwork:
    network = CascadeNetwork(1, CascadePlan(**(SMALL | changes)), canvas).eval()
    network.localizer = Oracle(blind_localiser)
    network.segmenter = Oracle()
    return network


FIRST, SECOND = Box((10, 12, 14), (20, 24, 30)), Box((22, 26, 8), (30, 34, 14))


def phantom(shape=(40, 44, 52), first=FIRST, second=SECOND):
    """Body -100, organs much brighter; nothing is exactly 0."""
    image = torch.full((1, 1, *shape), -100.0) + torch.linspace(0, 1, shape[-1])
    labels = torch.zeros(shape, dtype=torch.long)
    for label, box in ((1, first), (2, second)):
        if box is not None:
            labels[box.slices] = label
            image[(0, 0, *box.slices)] = 100.0 if label == 1 else 300.0
    return image, labels


def dice(a, b):
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def predicted(network, image):
    values = image[torch.isfinite(image) & (image != 0)]
    for stage in network.stages.values() if len(values) else ():
        stage.levels = tuple((level - values.mean()) / values.std(correction=0) for level in (0, 200))
    with torch.inference_mode():
        logits = network(image)
    return logits, logits.argmax(1)[0]


def test_both_organs_come_back_where_they_are():
    image, labels = phantom()
    logits, found = predicted(make(), image)
    assert logits.shape == (1, 3, *labels.shape) and logits.dtype == torch.float32
    assert dice(found == 1, labels == 1) > 0.85
    assert dice(found == 2, labels == 2) > 0.75  # 8 x 8 x 6 voxels: mostly surface, which resizing blends
    # blended voxels about organ 2 look like organ 1, so only both together have a sharp border
    a, b = Box.from_mask(found > 0), Box.from_mask(labels > 0)
    assert all(abs(p - q) <= 1 for p, q in zip(a.start + a.stop, b.start + b.stop, strict=True))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_left_stays_left_on_every_axis(axis):
    """Organs at both ends of one axis: any flip or swap of axes on the way would change places."""
    start, stop = [18, 20, 24], [24, 27, 32]
    low, high = (list(start), list(stop)), (list(start), list(stop))
    size = (40, 44, 52)[axis]
    low[0][axis], low[1][axis] = 6, 14
    high[0][axis], high[1][axis] = size - 14, size - 6
    image, labels = phantom(first=Box(*low), second=Box(*high))
    _, found = predicted(make(), image)
    for label in (1, 2):
        assert dice(found == label, labels == label) > 0.8


def test_logits_are_relative_to_the_background_and_never_below_the_floor():
    image, _ = phantom()
    network = make(floor=-3.0)
    logits, _ = predicted(network, image)
    box = network.reports[0].boxes["organs"]
    assert (logits[:, 0] == 0).all()
    assert logits.min() == -3.0
    outside = torch.ones(image.shape[2:], dtype=torch.bool)
    outside[box.slices] = False
    assert (logits[0, 1:, outside] == -3.0).all()
    # organ logit 4, background -4: relative 8
    assert logits.max() == pytest.approx(8.0)


@pytest.mark.parametrize("padding", [(3, 0, 0, 5, 2, 2), (40, 0, 0, 0, 0, 0), (1, 1, 1, 1, 1, 1)])
def test_zero_padding_changes_nothing(padding):
    image, _ = phantom()
    plain, _ = predicted(make(), image)
    padded, _ = predicted(make(), nn.functional.pad(image, padding))
    cut = tuple(slice(padding[4 - 2 * axis], padded.shape[axis + 2] - padding[5 - 2 * axis]) for axis in range(3))
    assert torch.equal(padded[(..., *cut)], plain)
    assert (padded[:, 1:].amax((2, 3, 4)) == plain[:, 1:].amax((2, 3, 4))).all()


def test_the_paper_recipe_leaves_a_cut_organ_cut_and_the_guard_grows_the_box():
    image, labels = phantom(first=Box((4, 12, 14), (36, 24, 30)), second=None)

    class Short(Oracle):
        def forward(self, coarse):
            logits = super().forward(coarse)
            logits[:, 1:, 9:] = -4.0  # the localiser sees the upper part of the organ only
            logits[:, 0, 9:] = 4.0
            return logits

    def run(**changes):
        network = make(**changes)
        network.localizer = Short()
        return network, predicted(network, image)[1]

    network, cut = run()
    assert Box.from_mask(cut == 1).stop[0] < 30 and network.reports[0].warnings == []
    network, whole = run(grow_attempts=5, margin_vox=(3, 3, 3))
    assert Box.from_mask(whole == 1).stop[0] >= 35
    assert any("reaches the side of its box" in text for text in network.reports[0].warnings)
    network, _ = run(grow_attempts=1, margin_vox=(1, 1, 1))
    assert any("may be cut" in text for text in network.reports[0].warnings)


def test_an_organ_at_the_face_of_the_image_does_not_grow_for_ever():
    image, _ = phantom(first=Box((0, 12, 14), (20, 24, 30)), second=None)
    network = make(grow_attempts=2)
    predicted(network, image)
    assert network.reports[0].warnings == [] and len(network.segmenter.calls) == 1


def test_nothing_found_is_empty_in_the_paper_recipe_and_says_so(caplog):
    image, _ = phantom()
    with caplog.at_level(logging.WARNING):
        logits, found = predicted(make(blind_localiser=True), image)
    assert not found.any() and "localiser found no organ" in caplog.text


def test_the_fallback_keeps_organs_of_a_size_seen_in_training():
    image, labels = phantom()
    extents = {"first": ((9, 11, 14), (12, 13, 18)), "second": ((20, 20, 20), (30, 30, 30))}
    network = make(blind_localiser=True, fallback_whole=True, organ_extent_vox=extents, fine_shape=(40, 44, 52))
    _, found = predicted(network, image)
    assert dice(found == 1, labels == 1) > 0.95
    assert not (found == 2).any()
    assert any(text.startswith("second was found without localisation") for text in network.reports[0].warnings)


def test_an_organ_without_known_extent_is_not_trusted_in_the_fallback():
    image, _ = phantom()
    _, found = predicted(make(blind_localiser=True, fallback_whole=True, fine_shape=(40, 44, 52)), image)
    assert not found.any()


def test_small_components_do_not_widen_the_box():
    image, _ = phantom(second=None)
    image[0, 0, 37:40, 41:44, 49:52] = 100.0  # less than 5 % of the organ
    network = make()
    predicted(network, image)
    assert network.reports[0].localised["organs"].stop[0] <= 23
    network = make(component_fraction=0.0)
    predicted(network, image)
    assert network.reports[0].localised["organs"].stop == (40, 44, 52)


def test_an_image_that_is_zero_everywhere_is_empty_and_says_so():
    network = make()
    logits, found = predicted(network, torch.zeros(1, 1, 20, 20, 20))
    assert not found.any() and torch.isfinite(logits).all()
    assert "0 everywhere" in network.reports[0].warnings[0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_bad_voxels_are_replaced_and_counted(bad):
    image, labels = phantom()
    image[0, 0, 35, 40, 2:4] = bad
    network = make()
    logits, found = predicted(network, image)
    assert torch.isfinite(logits).all() and dice(found == 1, labels == 1) > 0.85
    assert network.reports[0].warnings[0].startswith("2 voxels are NaN or infinite")


@pytest.mark.parametrize("shape", [(1, 44, 52), (3, 5, 7), (1, 1, 2), (6, 300, 4)])
def test_images_smaller_than_the_crop(shape):
    image, _ = phantom(shape, first=Box((0, 0, 0), (1, 1, 1)), second=None)
    logits, _ = predicted(make(grow_attempts=2, fallback_whole=True), image)
    assert logits.shape == (1, 3, *shape) and torch.isfinite(logits).all()


def test_an_image_that_fills_the_canvas_is_probably_a_tile():
    image, _ = phantom()
    network = make(canvas=(40, 44, 52))
    predicted(network, image)
    assert "tiles" in network.reports[0].warnings[0]
    network = make(canvas=(42, 46, 54))
    predicted(network, nn.functional.pad(image, (1, 1, 1, 1, 1, 1)))
    assert network.reports[0].warnings == []


def test_several_volumes_are_predicted_each_on_its_own():
    one = phantom()[0]
    two = one.flip(2)
    network = make()
    both = predicted(network, torch.cat((one, two)))[0]
    assert torch.equal(both[:1], predicted(make(), one)[0]) and torch.equal(both[1:], predicted(make(), two)[0])


def test_every_channel_is_normalised_on_its_own():
    image, labels = phantom()
    network = make()
    both = torch.cat((image, 1000 * image + 7), 1)
    predicted(network, both)
    crop = network.segmenter.calls[0]
    assert crop.shape[1] == 2
    torch.testing.assert_close(crop[:, 0], crop[:, 1], atol=1e-3, rtol=1e-3)


def test_multi_test_averages_the_named_organ_only():
    image, labels = phantom()
    plain, _ = predicted(make(), image)
    network = make(test_time={"second": ("boxes",)}, extra_box_vox=((36, 36, 36),))
    averaged, found = predicted(network, image)
    assert len(network.segmenter.calls) == 2
    assert torch.equal(averaged[:, 1], plain[:, 1])
    assert not torch.equal(averaged[:, 2], plain[:, 2])
    assert dice(found == 2, labels == 2) > 0.75


def test_mirrored_crops_of_a_perfect_segmenter_change_nothing():
    image, _ = phantom()
    plain, _ = predicted(make(), image)
    network = make(test_time={"first": ("flips",), "second": ("flips",)})
    averaged, _ = predicted(network, image)
    assert len(network.segmenter.calls) == 4  # plain and one for each axis
    torch.testing.assert_close(averaged, plain)


def test_mirroring_left_right_swaps_the_labels_back():
    """A segmenter that calls the organ at the low end of the last axis 1, the other one 2, whatever they look like."""

    class BySide(nn.Module):
        def forward(self, image):
            organ = image[:, 0] > 1
            low = torch.arange(image.shape[-1]) < image.shape[-1] // 2
            channels = [~organ, organ & low, organ & ~low]
            return torch.stack([8.0 * channel.float() - 4.0 for channel in channels], 1)

    image, _ = phantom(first=Box((10, 10, 6), (20, 20, 16)), second=Box((10, 10, 34), (20, 20, 44)))
    both = {"first": ("flips",), "second": ("flips",)}
    settings = dict(flip_axes=(2,), left_right_axis=2, fine_shape=(24, 24, 24))
    results = {}
    for name, swap in (("swapped", ((1, 2),)), ("forgotten", ())):
        network = make(test_time=both, swap_on_flip=swap, **settings)
        network.segmenter = BySide()
        results[name] = predicted(network, image)[0]
    plain = make(**settings)
    plain.segmenter = BySide()
    torch.testing.assert_close(results["swapped"], predicted(plain, image)[0])
    assert not torch.allclose(results["forgotten"], results["swapped"])


def test_a_dict_goes_to_the_stages():
    network = CascadeNetwork(1, CascadePlan(**SMALL))
    images = {"coarse": torch.randn(2, 1, 16, 16, 16), "fine": torch.randn(2, 1, 24, 24, 24)}
    for mode in (network.train(), network.eval()):
        logits = mode(images)
        assert {stage: tuple(value.shape) for stage, value in logits.items()} == {
            "coarse": (2, 3, 16, 16, 16), "fine": (2, 3, 24, 24, 24),
        }  # fmt: skip
    assert set(network({"fine": images["fine"]})) == {"fine"}


def test_segmentation_layers_have_the_name_that_pretrained_weights_skip():
    names = [
        name for name, value in CascadeNetwork(1, CascadePlan(**SMALL)).state_dict().items() if value.shape[:1] == (3,)
    ]
    assert names and all(".seg_layers." in name for name in names)
    more = CascadeNetwork(1, CascadePlan(**(SMALL | {"organs": ("a", "b", "c", "d")})))
    fewer = CascadeNetwork(1, CascadePlan(**SMALL)).state_dict()
    assert {n: v.shape for n, v in more.state_dict().items() if ".seg_layers." not in n} == {
        n: v.shape for n, v in fewer.items() if ".seg_layers." not in n
    }


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("stage", ["coarse", "fine"])
def test_what_is_not_finite_is_refused_and_not_taken_for_background(stage, value):
    network, (image, _) = make(), phantom()
    network.stages[stage].register_forward_hook(lambda module, args, out: out.index_fill(2, torch.tensor(3), value))
    with pytest.raises(ValueError, match="NaN or infinite"):
        predicted(network, image)
