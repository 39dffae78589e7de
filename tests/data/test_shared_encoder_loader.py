"""Parts of bodies for the shared encoder: in the body, on the encoder's grid, the same whatever came before."""

import numpy as np
import pytest
import torch
from fake_dataset import EVERYTHING, HALVES, FakeDataset

from nnunet_oar.data.shared_encoder_loader import BodyCache, SharedEncoderLoader
from nnunet_oar.plan import SharedEncoderPlan
from nnunet_oar.roi import Box

SHAPE, BODY = (24, 50, 60), Box((0, 8, 10), (24, 44, 54))
STRIDES = ((1, 2, 2), (2, 2, 2), (1, 1, 1))


def case(seed, organs=(1, 2)):
    """A body with two organs, the first to the low side of x."""
    rng = np.random.default_rng(seed)
    image = rng.normal(-1000, 5, (1, *SHAPE)).astype(np.float32)
    image[(0, *BODY.slices)] = rng.normal(0, 5, BODY.shape)
    labels = np.zeros((1, *SHAPE), np.int16)
    for label in organs:
        start = np.array((8, 16, 16 if label == 1 else 38)) + rng.integers(-3, 4, 3)
        where = Box(tuple(start), tuple(start + 8))
        labels[(0, *where.slices)], image[(0, *where.slices)] = label, 200.0 * label
    labels[0, :2, :2, :2] = -1
    return image, labels


@pytest.fixture
def dataset(tmp_path):
    return FakeDataset(tmp_path, {f"case_{i}": case(i) for i in range(4)})


def loader(dataset, training=True, annotations=EVERYTHING, start=0, **changes) -> SharedEncoderLoader:
    values = dict(
        organs=annotations.organs, spacing_mm=(2.0, 2.0, 2.0), grid_spacing_mm=(2.0, 2.0, 2.0), crop_shape=(12, 16, 20),
        strides=STRIDES, convolutions=(2, 2, 2), dilations=(1, 3, 6), flip_axes=(),
    )  # fmt: skip
    plan = SharedEncoderPlan(**(values | changes))
    cache = BodyCache(dataset, plan, [1, 2])
    cache.build(dataset.identifiers, disable_progress_bar=True)
    return SharedEncoderLoader(
        dataset, dataset.identifiers, cache, plan, annotations, fold=0, training=training, start=start
    )


def test_bodies_and_organs_are_kept(dataset):
    under_test = loader(dataset)
    for name in dataset.identifiers:
        kept = under_test.cache.read(name)
        assert kept.found and not kept.cut_organs and kept.body.contains(BODY) and BODY.grow(3).contains(kept.body)
        assert kept.organs == {label: Box.from_mask(dataset.cases[name][1][0] == label) for label in (1, 2)}
        image = torch.from_numpy(dataset.cases[name][0])
        assert torch.allclose(kept.normalisation.apply(image).mean(), torch.zeros(()), atol=1e-4)


def test_a_body_that_would_cut_an_organ_is_enlarged_in_training(tmp_path):
    image, labels = case(0)
    labels[0, 4:8, 2:5, 2:6] = 1  # outside of what looks like the body
    under_test = loader(FakeDataset(tmp_path, {"case_0": (image, labels)}))
    kept = under_test.cache.read("case_0")
    assert kept.cut_organs and kept.body.contains(kept.organs[1]) and kept.body.contains(BODY)


@pytest.mark.parametrize("augmentation", ["flips", "nnunet"])
def test_image_and_labels_belong_together(dataset, augmentation):
    under_test = loader(dataset, augmentation=augmentation, flip_axes=(0, 1, 2), organ_share=1.0)
    hits = 0
    for n in range(20):
        sample = under_test.sample(n)
        assert (
            sample["image"].shape == (1, 12, 16, 20) == sample["target"].shape and sample["target"].dtype == torch.int16
        )
        organ = sample["target"][0] > 0
        hits += int(organ.any())
        if augmentation == "flips" and organ.any():
            assert sample["image"][0][organ].min() > sample["image"][0][~organ].max()
    # the middle lies in an organ
    assert hits == 20


def test_samples_are_a_function_of_their_number(dataset):
    first, second = loader(dataset, augmentation="nnunet"), loader(dataset, augmentation="nnunet", start=3)
    for _ in range(3):
        next(first)
    np.random.seed(7)
    a, b = next(first), next(second)
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert a["image"].shape == (1, 1, 12, 16, 20)


def test_small_bodies_are_seen_whole_and_padded(tmp_path):
    image, labels = case(0)
    index = (slice(None), *Box((3, 9, 11), (17, 30, 42)).slices)
    dataset = FakeDataset(tmp_path, {"case_0": (image[index], labels[index])})
    sample = loader(dataset, crop_shape=(64, 64, 64)).sample(0)
    # no air: the image is the body; 14 x 21 x 31 voxels in multiples of (2, 4, 4)
    assert sample["image"].shape == (1, 14, 24, 32) and sample["coarse_target"].shape == (1, 14, 12, 16)
    assert torch.equal(sample["target"][0, :14, :21, :31], torch.from_numpy(np.maximum(labels[index][0], 0)))
    # an organ that the last slice cuts goes on in the padding, as its image does
    for name in ("image", "target"):
        last = sample[name][0, :, 20:21, :31]
        assert torch.equal(sample[name][0, :, 21:, :31], last.expand(-1, 3, -1))


def test_another_grid_and_covering_labels(dataset):
    sample = loader(dataset, grid_spacing_mm=(4.0, 4.0, 4.0), crop_shape=(12, 20, 24), coarse_labels="covering",
                    organ_share=1.0).sample(1)  # fmt: skip
    assert sample["image"].shape[1:] == (12, 20, 24)
    assert set(sample["coarse_target"].unique().tolist()) <= {0, 1, 2}
    # whatever is in the target is in the coarse one
    assert set(sample["target"].unique().tolist()) == set(sample["coarse_target"].unique().tolist())


def test_what_a_case_leaves_out_is_never_in_the_middle(dataset):
    under_test = loader(dataset, annotations=HALVES, organ_share=1.0)
    for n in range(16):
        sample = under_test.sample(n)
        label = 1 if sample["annotated"][0] else 2
        assert sample["annotated"].tolist() == [label == 1, label == 2]
        middle = [size // 2 for size in sample["target"].shape[1:]]
        near = sample["target"][(0, *(slice(m - 6, m + 6) for m in middle))]
        assert (near == label).any()


def test_left_and_right_change_places(dataset):
    under_test = loader(dataset, flip_axes=(2,), left_right_axis=2, swap_on_flip=((1, 2),), organ_share=0.0,
                        crop_shape=(24, 36, 48))  # fmt: skip
    plain = loader(dataset, organ_share=0.0, crop_shape=(24, 36, 48))
    mirrored = 0
    for n in range(8):
        sample = under_test.sample(n)
        first, second = (Box.from_mask(sample["target"][0] == label) for label in (1, 2))
        assert first.centre[2] < second.centre[2]
        mirrored += not torch.equal(sample["image"], plain.sample(n)["image"])
    assert 0 < mirrored < 8


def test_validation_looks_at_organs_in_turn_and_regions_alone_are_read(dataset):
    under_test = loader(dataset, training=False)
    assert torch.equal(under_test.sample(0)["image"], loader(dataset, training=False).sample(0)["image"])
    assert not torch.equal(under_test.sample(0)["image"], under_test.sample(4)["image"])
    dataset.reads.clear()
    under_test.sample(1)
    assert dataset.reads and all(
        s.stop - s.start <= 20 for index in dataset.reads for s in index[1:] if isinstance(s, slice)
    )
