"""The instance cascade's geometry, with stages that know the answer in place of trained ones."""

import pytest
import torch
from torch import nn

from nnunet_oar.networks.instance_cascade import InstanceCascadeNetwork
from nnunet_oar.plan import InstancePlan
from nnunet_oar.roi import Box

SMALL = dict(
    organs=("kidney", "tumour"), coarse_shape=(24, 24, 24), fine_shape=(24, 24, 24), coarse_features=2, fine_features=2,
    coarse_strides=((2, 2, 2),) * 2, fine_strides=((2, 2, 2),) * 2, margin_vox=(3, 3, 3), min_box_vox=(16, 16, 16),
    hu_window=None, join_mm=3.0,
)  # fmt: skip
SHAPE = (48, 52, 72)
LEFT, RIGHT, TUMOUR = Box((10, 16, 48), (30, 32, 60)), Box((14, 18, 10), (32, 33, 24)), Box((30, 18, 49), (36, 28, 59))


class Oracle(nn.Module):
    """Logits 4 or -4 by the image's value, which is 0, 1 (kidney) or 2 (tumour) times a hundred before normalisation."""

    def __init__(self, classes):
        super().__init__()
        self.classes, self.calls, self.levels = classes, [], (0.0, 0.0)

    def forward(self, image):
        self.calls.append(tuple(image.shape))
        rank = (image[:, 0] > self.levels[0]).int() + (image[:, 0] > self.levels[1]).int()
        rank = rank.clamp_max(self.classes - 1)
        return torch.stack([8.0 * (rank == k) - 4.0 for k in range(self.classes)], 1)


def make(**changes) -> InstanceCascadeNetwork:
    network = InstanceCascadeNetwork(1, InstancePlan(**(SMALL | changes))).eval()
    network.localizer, network.segmenter = Oracle(2), Oracle(3)
    return network


def phantom(kidneys=(LEFT, RIGHT), tumours=(TUMOUR,)):
    labels = torch.zeros(SHAPE, dtype=torch.long)
    for value, boxes in ((1, kidneys), (2, tumours)):
        for box in boxes:
            labels[box.slices] = value
    image = labels[None, None] * 100.0 - 50 + torch.linspace(0, 1, SHAPE[-1])
    return image, labels


def predicted(network, image):
    for stage in network.stages.values():
        stage.levels = tuple((level - image.mean()) / image.std(correction=0) for level in (0, 100))
    with torch.inference_mode():
        logits = network(image)
    return logits, logits.argmax(1)[0]


def dice(a, b):
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_every_kidney_has_a_box_of_its_own_and_comes_back_where_it_is():
    image, labels = phantom()
    network = make()
    logits, found = predicted(network, image)
    report = network.reports[0]
    assert list(report.boxes) == ["instance 1", "instance 2"] and report.warnings == []
    assert len(network.segmenter.calls) == 2 and len(network.localizer.calls) == 1
    left, right = report.boxes.values()
    assert left.contains(LEFT.union(TUMOUR)) and right.contains(RIGHT) and not left.contains(RIGHT)
    assert dice(found > 0, labels > 0) > 0.9 and dice(found == 2, labels == 2) > 0.75
    assert logits[0, 0].abs().max() == 0 and logits.min() >= -5
    outside = torch.ones(SHAPE, dtype=torch.bool)
    for box in report.boxes.values():
        outside[box.slices] = False
    assert (logits[0, 1:, outside] == -5).all()


@pytest.mark.parametrize(("kidneys", "tumours", "boxes"), [((RIGHT,), (), 1), ((), (), 0), ((RIGHT,), (TUMOUR,), 2)])
def test_one_kidney_none_and_a_tumour_far_from_it(kidneys, tumours, boxes):
    image, labels = phantom(kidneys, tumours)
    image[0, 0, 0, 0, 0] += 1  # a constant image has no variance
    network = make()
    _, found = predicted(network, image)
    assert len(network.reports[0].boxes) == boxes
    if boxes:
        assert dice(found > 0, labels > 0) > 0.9
    else:
        assert network.reports[0].warnings == ["the localiser found nothing: the result is empty"] and not found.any()


def test_kidneys_that_touch_are_segmented_apart_once_the_size_of_one_is_known():
    a, b = Box((10, 16, 18), (30, 32, 33)), Box((14, 16, 39), (34, 32, 54))
    image, labels = phantom((a, b), ())
    bridge = Box((20, 22, 32), (23, 25, 40))
    labels[bridge.slices], image[(0, 0, *bridge.slices)] = 1, 50.0
    network = make(join_mm=0.0)
    predicted(network, image)
    assert len(network.reports[0].boxes) == 1
    network.largest_instance_mm.copy_(torch.tensor((22.0, 18.0, 17.0)))
    _, found = predicted(network, image)
    assert len(network.reports[0].boxes) == 2 and dice(found == 1, labels == 1) > 0.9
    assert "largest_instance_mm" in network.state_dict()
    without = make(join_mm=0.0, separate=False)
    without.load_state_dict(network.state_dict())
    predicted(without, image)
    assert len(without.reports[0].boxes) == 1


@pytest.mark.parametrize("surer", [(0.0, 2.0), (2.0, 0.0)])
def test_where_boxes_overlap_the_more_probable_label_stays(surer):
    """Two kidneys a few voxels apart: each box shows a part of the other one."""
    a, b = Box((10, 16, 20), (30, 32, 34)), Box((10, 16, 40), (30, 32, 54))
    image, labels = phantom((a, b), ())
    network = make(join_mm=0.0, margin_vox=(3, 3, 6))
    answers = iter(surer)

    class Biased(Oracle):
        def forward(self, crop):
            logits = super().forward(crop)
            logits[:, 2] = next(answers)  # one of them is surer of a tumour everywhere
            return logits

    network.segmenter = Biased(3)
    logits, found = predicted(network, image)
    first, second = network.reports[0].boxes.values()
    overlap = Box(tuple(map(max, first.start, second.start)), tuple(map(min, first.stop, second.stop)))
    assert overlap.volume > 0
    # in the background, relative to its logit of 4: 0 - 4 in one box, 2 - 4 in the other
    inside = logits[(0, 2, *overlap.slices)]
    background = labels[overlap.slices] == 0
    # (between a kidney and its surroundings more)
    assert float(inside[background].min()) == float(inside[background].median()) == pytest.approx(-2.0, abs=1e-5)


def test_a_box_is_grown_for_the_instance_not_for_its_neighbour():
    a, b = Box((10, 16, 20), (30, 32, 34)), Box((10, 16, 40), (30, 32, 54))
    image, _ = phantom((a, b), ())
    # a margin that shows a slice of the neighbour at the box's side
    network = make(join_mm=0.0, grow_attempts=2, margin_vox=(3, 3, 7), min_box_vox=(4, 4, 4))
    predicted(network, image)
    assert network.reports[0].warnings == [] and len(network.segmenter.calls) == 2
    # no margin at all: the kidney itself is cut
    tight = make(join_mm=0.0, grow_attempts=2, margin_vox=(0, 0, 0), min_box_vox=(4, 4, 4))
    predicted(tight, image)
    assert any("reaches the side of its box" in text for text in tight.reports[0].warnings)
