"""Slabs: a function of their number alone, the right slices, organs balanced, left and right kept apart."""

import numpy as np
import pytest
import torch
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from fake_dataset import EVERYTHING, HALVES, FakeDataset, case

from nnunet_oar.annotations import Annotations, Source
from nnunet_oar.data.slab_loader import SlabLoader
from nnunet_oar.data.slice_cache import SliceCache
from nnunet_oar.networks.attention_anatomy import AttentionAnatomyNet
from nnunet_oar.plan import AttentionPlan, Phase

PLAN = dict(organs=("one", "two"), slice_shape=(40, 48), stages=3, features=2, batch_size=3)


@pytest.fixture
def dataset(tmp_path):
    return FakeDataset(tmp_path, {f"case_{i}": case(i) for i in range(4)})


def loader(dataset, training=True, start=0, workers=1, fold=0, annotations=EVERYTHING, epoch_batches=5, **changes):
    plan = AttentionPlan(**(PLAN | changes))
    cache = SliceCache(dataset, plan.slice_axis, plan.data_window, [1, 2])
    cache.build(dataset.identifiers, disable_progress_bar=True)
    # the region of a slice is its number here, so that a sample tells where it is from
    regions = {name: np.arange(cache.read(name).slices) for name in dataset.identifiers}
    return SlabLoader(
        dataset, dataset.identifiers, cache, plan, annotations, regions, epoch_batches=epoch_batches, fold=fold,
        training=training, start=start, workers=workers,
    )  # fmt: skip


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)


# batchgenerators ends its workers while its own thread may still be fetching from them
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_number_of_workers_and_an_interruption_change_nothing(dataset):
    whole = loader(dataset, augmentation="nnunet")
    expected = [next(whole) for _ in range(4)]
    for workers in (1, 2):
        augmenter = MultiThreadedAugmenter(loader(dataset, augmentation="nnunet", workers=workers), None, workers)
        assert all(same(next(augmenter), batch) for batch in expected), workers
        augmenter._finish()
    assert same(next(loader(dataset, augmentation="nnunet", start=3)), expected[3])
    assert not same(next(loader(dataset, fold=1)), next(loader(dataset)))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slab_is_the_slice_and_its_neighbours(dataset, axis):
    """Against the whole volume, normalised and indexed."""
    under_test = loader(dataset, training=False, slice_axis=axis, slice_shape=(48, 48))
    found = set()
    for n in range(30):
        sample = under_test.sample(n)
        position = int(sample["region"])
        for name, (image, labels) in dataset.cases.items():
            planes = np.moveaxis((image[0] - image.mean()) / image.std(), axis, 0)
            count, height, width = planes.shape
            top, left = (48 - height) // 2, (48 - width) // 2
            indices = np.clip(np.arange(position - 2, position + 3), 0, count - 1)
            middle = np.maximum(np.moveaxis(labels[0], axis, 0)[position], 0)
            slab = sample["slab"][:, top : top + height, left : left + width].numpy()
            if np.allclose(slab, planes[indices], atol=1e-3):
                found.add(name)
                target = sample["target"][0].numpy()
                assert (
                    target[top : top + height, left : left + width] == middle
                ).all() and target.sum() == middle.sum()
                outside = sample["slab"].clone()
                outside[:, top : top + height, left : left + width] = float(planes.min())
                np.testing.assert_allclose(outside, planes.min(), rtol=1e-4)
                break
        else:
            raise AssertionError(f"sample {n} is of no case")
    assert len(found) == 4


def test_larger_slices_are_cut_about_their_centre_as_the_network_cuts_them(dataset):
    """What the loader makes of a slice and what the network makes of it at prediction are one."""
    under_test = loader(dataset, training=False, slice_shape=(16, 48), stages=2)
    sample = under_test.sample(0)
    seen = []
    network = AttentionAnatomyNet(1, under_test.plan).eval()

    def watch(slabs):
        seen.append(slabs)
        return torch.zeros(len(slabs), 3, 16, 48), torch.zeros(len(slabs), 0)

    network.network.forward = watch
    for image, _ in dataset.cases.values():
        network(torch.from_numpy(image)[None])
    slabs = torch.cat(seen).contiguous()
    assert (slabs - sample["slab"]).abs().amax((1, 2, 3)).min() < 1e-3


def test_only_the_slab_is_read_from_the_file(dataset):
    under_test = loader(dataset)
    dataset.reads.clear()
    under_test.sample(0)
    assert len(dataset.reads) == 2
    lengths = [index[1].stop - index[1].start for index in dataset.reads]
    assert lengths[0] <= 5 and lengths[1] == 1


def test_organs_are_balanced(tmp_path):
    """One organ fills 20 of 30 slices, the other one slice of one case of three."""
    cases = {
        f"case_{i}": (np.zeros((1, 30, 12, 12), np.float32), np.zeros((1, 30, 12, 12), np.int16)) for i in range(3)
    }
    for image, labels in cases.values():
        image += np.arange(12)
        labels[0, :20, 2:6, 2:6] = 1
    cases["case_2"][1][0, 25, 3:5, 3:5] = 2
    under_test = loader(FakeDataset(tmp_path, cases), slice_shape=(16, 16), stages=2)
    targets = [set(under_test.sample(n)["target"].unique().tolist()) for n in range(600)]
    with_two = sum(2 in labels for labels in targets)
    assert 150 < with_two < 250  # a third, and the rare background draw


def test_slices_of_organs_come_from_cases_that_annotate_them(dataset):
    under_test = loader(dataset, annotations=HALVES)
    assert [sorted(name for name, _ in stratum) for stratum in under_test.strata] == [
        ["case_0", "case_1", "case_2", "case_3"], ["case_0", "case_1"], ["case_2", "case_3"],
    ]  # fmt: skip


def test_sides_are_never_mirrored_unless_the_labels_are_swapped(dataset):
    """Organ 1 always lies at lower indices than organ 2 along y and x; organ 1 is annotated in cases 0 and 1 only."""
    for _, seg in dataset.cases.values():
        seg[:] = 0
        seg[0, 5:12, 4:9, 6:11] = 1
        seg[0, 5:12, 20:26, 22:30] = 2
    unflipped = loader(dataset, flip_axes=(1,), left_right_axis=2, slice_shape=(40, 40))
    rows, columns = set(), set()
    for n in range(60):
        labels = unflipped.sample(n)["target"][0]
        if {1, 2} <= set(labels.unique().tolist()):
            one, two = (torch.nonzero(labels == label).float().mean(0) for label in (1, 2))
            rows.add(bool(one[0] < two[0]))
            columns.add(bool(one[1] < two[1]))
    assert rows == {True, False} and columns == {True}

    # every case annotates organ 1 alone: mirrored, it is one that annotates organ 2 alone
    first = Annotations(("one", "two"), (Source("first", ("*",), frozenset({"one"})),))
    swapped = loader(dataset, annotations=first, flip_axes=(2,), left_right_axis=2, swap_on_flip=((1, 2),))
    sides = set()
    for n in range(60):
        sample = swapped.sample(n)
        labels = sample["target"][0]
        (annotated,) = np.flatnonzero(sample["annotated"].numpy()) + 1
        sides.add(int(annotated))
        if (labels == annotated).any():
            # organ 1 lay at the low end: it is there as organ 1, or at the high end as organ 2
            assert bool(torch.nonzero(labels == annotated).float().mean(0)[1] < 24) == (annotated == 1)
            assert (labels == annotated).sum() == 25  # and it is the organ of 5 x 5, not the one of 6 x 8
    assert sides == {1, 2}


def test_the_elastic_phase_deforms_and_the_others_do_not(dataset):
    phases = (Phase(0, 1e-3), Phase(2, 1e-3, elastic=True))
    still, moving = (loader(dataset, phases=chosen, epoch_batches=1) for chosen in ((Phase(0, 1e-3),), phases))
    equal = [torch.equal(still.sample(n)["slab"], moving.sample(n)["slab"]) for n in range(30)]
    # three samples a batch, one batch an epoch: epochs 0 and 1 are the first six samples
    assert all(equal[:6]) and 4 < sum(equal[6:]) < 20
    for n in range(6, 30):
        sample = moving.sample(n)
        assert sample["target"].dtype == torch.int16 and sample["slab"].isfinite().all()


def test_bad_voxels_and_negative_labels_do_not_spoil_a_batch(dataset):
    for image, _ in dataset.cases.values():
        image[0, :, 3, 3] = np.nan
    batch = next(loader(dataset, batch_size=16, augmentation="nnunet"))
    assert batch["slab"].isfinite().all() and batch["target"].min() == 0
    assert batch["slab"].shape == (16, 5, 40, 48) and batch["annotated"].shape == (16, 2)


def test_a_one_slice_ct(tmp_path):
    image, labels = (
        np.random.default_rng(0).normal(size=(1, 1, 20, 20)).astype(np.float32),
        np.ones((1, 1, 20, 20), np.int16),
    )
    sample = loader(FakeDataset(tmp_path, {"thin": (image, labels)}), slice_shape=(24, 24)).sample(0)
    assert all(torch.equal(sample["slab"][0], channel) for channel in sample["slab"])
