"""Samples of the heat-map cascade: centres move with the image, crops hold their organ, left stays left."""

import numpy as np
import pytest
import torch
from fake_dataset import EVERYTHING, HALVES, FakeDataset

from nnunet_oar.annotations import Annotations
from nnunet_oar.data.heatmap_loader import HeatmapCache, HeatmapLoader
from nnunet_oar.plan import HeatmapPlan
from nnunet_oar.roi import Box

SHAPE, SPACING = (24, 30, 36), (3.0, 2.0, 2.0)


def case(seed, organs=(1, 2)):
    """Two bright boxes, the first to the low side of x."""
    rng = np.random.default_rng(seed)
    image = rng.normal(-100, 1, (1, *SHAPE)).astype(np.float32)
    labels = np.zeros((1, *SHAPE), np.int16)
    for label in organs:
        start = np.array((8, 10, 6 if label == 1 else 22)) + rng.integers(-3, 4, 3)
        where = Box(tuple(start), tuple(start + 8))
        labels[(0, *where.slices)], image[(0, *where.slices)] = label, 200.0 * label
    return image, labels


@pytest.fixture
def dataset(tmp_path):
    return FakeDataset(tmp_path, {f"case_{i}": case(i) for i in range(4)})


def plan(organs=("one", "two"), **changes) -> HeatmapPlan:
    values = dict(
        organs=organs, spacing_mm=SPACING, localizer_spacing_mm=(3.0, 3.0, 3.0), margin_vox=(4, 4, 4), hu_window=None,
        organ_step_vox=dict.fromkeys(organs, (1.0, 1.0, 1.0)), organ_strides=dict.fromkeys(organs, ((2, 2, 2),)),
    )  # fmt: skip
    return HeatmapPlan(**(values | changes))


def loader(dataset, training=True, annotations=EVERYTHING, start=0, **changes) -> HeatmapLoader:
    of = plan(annotations.organs, **changes)
    cache = HeatmapCache(dataset, of, [1, 2])
    cache.build(dataset.identifiers, disable_progress_bar=True)
    size = np.tile(np.multiply((8, 8, 8), SPACING), (2, 1))
    return HeatmapLoader(
        dataset, dataset.identifiers, cache, of, annotations, size, fold=0, training=training, start=start
    )


def middle_of_the_bright(image: torch.Tensor) -> np.ndarray:
    """In edge coordinates."""
    voxels = np.argwhere((image[0] > image[0].amin() + 0.5 * (image[0].amax() - image[0].amin())).numpy())
    return (voxels.min(0) + voxels.max(0) + 1) / 2


@pytest.mark.parametrize("augmentation", ["flips", "nnunet"])
def test_centres_move_with_the_image(tmp_path, augmentation):
    dataset = FakeDataset(tmp_path, {f"case_{i}": case(i, organs=(2,)) for i in range(4)})
    under_test = loader(dataset, augmentation=augmentation, flip_axes=(0, 1, 2), localizer_crop=(20, 18, 22))
    checked = 0
    for n in range(60):
        sample = under_test.sample(n)
        image, centres = sample["coarse"], sample["centres"]
        assert tuple(image.shape) == (1, 20, 18, 22)
        second = centres[1].numpy()
        # far enough inside that nothing of the organ is cut
        if (np.minimum(second, np.subtract(image.shape[1:], second)) < 5).any():
            continue
        np.testing.assert_allclose(middle_of_the_bright(image), second, atol=1.1)
        checked += 1
    assert checked > 8


def test_left_and_right_change_places_with_their_centres_and_crops(dataset):
    organs = ("lung_left", "lung_right")
    changes = dict(flip_axes=(2,), left_right_axis=2, swap_on_flip=((1, 2),))
    under_test = loader(dataset, annotations=Annotations(organs), **changes)
    sides = set()
    for n in range(24):
        sample = under_test.sample(n)
        # organ 1 stays on its side, whatever was mirrored
        assert sample["centres"][0, 2] < sample["centres"][1, 2]
        for label, image, mask in sample["crops"]:
            brightness = float(image[0][mask[0] > 0].mean())
            sides.add((label, brightness > 4.7))
            assert mask.any()
    # each organ's network sees its own organ and the mirrored other one
    assert sides == {(1, False), (1, True), (2, False), (2, True)}


def test_crops_hold_their_organ_within_the_jitter(dataset):
    under_test, sizes = loader(dataset, margin_jitter=1.0), set()
    for n in range(20):
        sample = under_test.sample(n)
        assert len(sample["crops"]) == 2
        for label, image, mask in sample["crops"]:
            assert image.shape[1:] == mask.shape[1:] and set(mask.unique().tolist()) == {0, 1}
            # 8 voxels and two margins of 0 to 8
            assert int(mask.sum()) == 8**3 and 8 <= min(image.shape[1:]) <= max(image.shape[1:]) <= 25
            sizes.update(image.shape[1:])
            # organ 2 is the brighter one
            assert label == 1 or float(image[0][mask[0] > 0].min()) > float(image[0][mask[0] == 0].max())
    assert len(sizes) > 8


def test_crops_show_as_much_as_boxes_with_measured_margins_will(dataset):
    one, two = EVERYTHING.organs
    # the means are 8; what exceeds twice a mean counts no more
    extents = {one: ((4, 8, 8), (8, 12, 8)), two: ((8, 8, 8), (8, 8, 80))}
    under_test = loader(
        dataset, measured_margin=True, margin_jitter=0.5, margin_vox=(1, 1, 1), organ_extent_vox=extents
    )
    size_mm, size_vox = np.multiply((8, 8, 8), SPACING), (8, 8, 8)
    ranges = {organ: under_test.plan.margin_range_mm(organ, size_mm) for organ in (one, two, "of no case")}
    for least, _ in ranges.values():
        np.testing.assert_allclose(least, np.multiply((0.5, 0.5, 0.5), SPACING))
    # twice the margin, a voxel of the localiser (3 mm), and half of what the largest exceeds the mean by
    twice = np.multiply((2, 2, 2), SPACING) + 3
    for organ, more in ((one, (0, 2, 0)), (two, (0, 0, 4)), ("of no case", (0, 0, 0))):
        np.testing.assert_allclose(ranges[organ][1], twice + np.multiply(more, SPACING))
    longest = {1: np.zeros(3), 2: np.zeros(3)}
    for n in range(150):
        for label, _, mask in under_test.sample(n)["crops"]:
            assert int(mask.sum()) == 8**3
            longest[label] = np.maximum(longest[label], mask.shape[1:])
    for label, organ in ((1, one), (2, two)):
        most = size_vox + 2 * ranges[organ][1] / SPACING
        # a box ends at whole voxels; no draw reaches both ends to the last voxel
        assert (longest[label] <= np.ceil(most) + 1).all() and (longest[label] >= 0.85 * most).all()


def test_only_what_is_annotated_is_drawn_and_has_a_centre(dataset):
    under_test = loader(dataset, annotations=HALVES, organs_per_iteration=2)
    for n in range(12):
        sample = under_test.sample(n)
        (label,) = np.flatnonzero(sample["annotated"]) + 1
        assert [crop[0] for crop in sample["crops"]] == [label] and list(sample["organs"]) == [label]
        assert sample["centres"][label - 1].isfinite().all() and sample["centres"][2 - label].isnan().all()
    # without re-calibration what is left out counts as absent, and is shown as such
    blind = loader(dataset, annotations=HALVES, recalibration=False, organs_per_iteration=2)
    drawn = [
        (crop[0], bool(crop[2].any()), sample["organs"])
        for sample in map(blind.sample, range(12))
        for crop in sample["crops"]
    ]
    assert all(there == (label in organs) for label, there, organs in drawn) and not all(there for _, there, _ in drawn)


def test_an_absent_organ_is_shown_now_and_then_without_a_mask(tmp_path):
    dataset = FakeDataset(tmp_path, {"case_0": case(0, organs=(1,))})
    crops = [crop for n in range(100) for crop in loader(dataset, organs_per_iteration=1).sample(n)["crops"]]
    absent = [mask for label, _, mask in crops if label == 2]
    assert 8 < len(absent) < 35 and not any(mask.any() for mask in absent)
    assert not any(
        crop[0] == 2
        for n in range(40)
        for crop in loader(dataset, organs_per_iteration=2, absent_share=0.0).sample(n)["crops"]
    )


def test_a_sample_is_a_function_of_its_number_and_validation_is_not_augmented(dataset):
    a, b = loader(dataset, augmentation="nnunet"), loader(dataset, augmentation="nnunet", start=3)
    batches = [next(a) for _ in range(4)]
    again = next(b)
    assert torch.equal(batches[3]["coarse"], again["coarse"]) and torch.equal(batches[3]["centres"], again["centres"])
    assert all(torch.equal(x[1], y[1]) for x, y in zip(batches[3]["crops"][0], again["crops"][0], strict=True))
    val = loader(dataset, training=False, augmentation="nnunet", flip_axes=(0,))
    first, later = val.sample(0), val.sample(4)
    assert torch.equal(first["coarse"], later["coarse"]) and [crop[0] for crop in first["crops"]] == [1, 2]
    # the organ's centre is the crop's
    for _, _, mask in first["crops"]:
        box = Box.from_mask(mask[0])
        np.testing.assert_allclose(box.centre, np.array(mask.shape[1:]) / 2, atol=0.51)


def test_regions_are_read_not_volumes(dataset):
    under_test = loader(dataset)
    dataset.reads.clear()
    under_test.sample(0)
    assert all(np.prod([s.stop - s.start for s in index[1:]]) < np.prod(SHAPE) / 2 for index in dataset.reads)


def test_parts_of_a_case_know_only_what_they_show(tmp_path):
    """The centre is that of what the part shows of an organ; an organ beyond it is absent, however near."""
    dataset = FakeDataset(tmp_path, {"case_0": case(0)})
    cache = loader(dataset).cache
    kept = cache.read("case_0")
    box = kept.organs[1]
    scale = np.divide(kept.image.shape[1:], kept.shape)
    whole = np.multiply(box.centre, scale)
    np.testing.assert_allclose(kept.centre(1), whole)
    start = np.array((0, 0, int(whole[2])))
    size = np.array(kept.image.shape[1:]) - start
    middle = kept.centre(1, start, size)
    assert middle[2] == pytest.approx((box.stop[2] * scale[2] - start[2]) / 2) and middle[0] == pytest.approx(whole[0])
    beyond = np.array((0, 0, int(np.ceil(box.stop[2] * scale[2]))))
    assert np.isnan(kept.centre(1, beyond, np.array(kept.image.shape[1:]) - beyond)).all()


def test_thin_cases_can_be_augmented(tmp_path):
    image, labels = case(0)
    dataset = FakeDataset(tmp_path, {"case_0": (image[:, 9:10], labels[:, 9:10])})
    under_test = loader(dataset, augmentation="nnunet", organ_step_vox=dict.fromkeys(("one", "two"), (1.0, 2.0, 2.0)))
    for n in range(40):
        assert under_test.sample(n)["coarse"].isfinite().all()
