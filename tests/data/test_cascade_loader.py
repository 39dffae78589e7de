"""Samples: a function of their number alone, aligned, read by region, left and right kept apart."""

import numpy as np
import pytest
import torch
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from fake_dataset import EVERYTHING, HALVES, FakeDataset, case

from nnunet_oar.annotations import Annotations, Source
from nnunet_oar.data.augmentation import flip, seeded_globals, swap_organs
from nnunet_oar.data.cascade_loader import CascadeLoader
from nnunet_oar.data.coarse_cache import CoarseCache
from nnunet_oar.plan import CascadePlan
from nnunet_oar.roi import Box

PLAN = dict(
    organs=("one", "two"), coarse_shape=(12, 12, 12), fine_shape=(20, 20, 20), margin_vox=(2, 2, 2), min_box_vox=(8, 8, 8),
    extra_box_vox=((24, 24, 24),), coarse_strides=((2, 2, 2),), fine_strides=((2, 2, 2),),
)  # fmt: skip


@pytest.fixture
def dataset(tmp_path):
    return FakeDataset(tmp_path, {f"case_{i}": case(i) for i in range(4)})


def loader(dataset, training=True, fold=0, start=0, workers=1, annotations=EVERYTHING, **changes) -> CascadeLoader:
    plan = CascadePlan(**(PLAN | changes))
    cache = CoarseCache(dataset, plan.coarse_shape, plan.data_window, [1, 2])
    cache.build(dataset.identifiers, disable_progress_bar=True)
    return CascadeLoader(
        dataset,
        dataset.identifiers,
        cache,
        plan,
        annotations,
        fold=fold,
        training=training,
        start=start,
        workers=workers,
    )


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[key], b[key]) for key in ("coarse", "coarse_target", "fine", "fine_target"))


# batchgenerators ends its workers while its own thread may still be fetching from them
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("augmentation", ["flips", "nnunet"])
def test_the_number_of_workers_changes_nothing(dataset, augmentation):
    alone = loader(dataset, augmentation=augmentation, batch_size=2)
    expected = [next(alone) for _ in range(5)]
    for workers in (1, 2, 3):
        augmenter = MultiThreadedAugmenter(
            loader(dataset, augmentation=augmentation, batch_size=2, workers=workers), None, workers
        )
        assert all(same(next(augmenter), batch) for batch in expected), workers
        augmenter._finish()


def test_a_resumed_loader_goes_on_where_it_stopped(dataset):
    whole = loader(dataset, augmentation="nnunet")
    batches = [next(whole) for _ in range(6)]
    resumed = loader(dataset, augmentation="nnunet", start=4)
    assert same(next(resumed), batches[4]) and same(next(resumed), batches[5])


def test_folds_seeds_and_numbers_differ(dataset):
    first = next(loader(dataset))
    assert not same(first, next(loader(dataset, fold=1)))
    assert not same(first, next(loader(dataset, fold="all")))
    assert not same(first, next(loader(dataset, seed=1)))


def test_each_pass_sees_every_case_once_in_another_order(dataset):
    under_test = loader(dataset)
    orders = [[under_test.case_of(n, under_test.cases) for n in range(4 * i, 4 * i + 4)] for i in range(6)]
    assert all(sorted(order) == dataset.identifiers for order in orders)
    assert len({tuple(order) for order in orders}) > 1


def test_drawing_a_sample_leaves_the_global_generators_alone(dataset):
    under_test = loader(dataset, augmentation="nnunet")
    np.random.seed(5)
    torch.manual_seed(5)
    expected = np.random.rand(), torch.rand(1)
    np.random.seed(5)
    torch.manual_seed(5)
    next(under_test)
    assert (np.random.rand(), torch.rand(1)) == expected
    with seeded_globals(3):
        inside = torch.rand(1)
    with seeded_globals(3):
        assert torch.rand(1) == inside


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("augmentation", ["flips", "nnunet"])
def test_image_and_labels_stay_aligned(dataset, training, augmentation):
    under_test = loader(dataset, training, augmentation=augmentation)
    for _ in range(6):
        batch = next(under_test)
        for stage in ("coarse", "fine"):
            image, labels = batch[stage][0, 0], batch[f"{stage}_target"][0, 0]
            assert image.dtype == torch.float32 and labels.dtype == torch.int16 and labels.min() == 0
            # organ 2 is brighter than organ 1, organ 1 than the background: medians, as edges are blended
            if (labels == 1).sum() > 30 and (labels == 2).sum() > 30:
                values = [image[labels == label].median() for label in (0, 1, 2)]
                assert values[0] < values[1] < values[2]


def test_only_the_box_is_read_from_the_file(dataset):
    under_test = loader(dataset, extra_box_vox=())
    dataset.reads.clear()
    next(under_test)
    assert len(dataset.reads) == 2
    for index in dataset.reads:
        assert np.prod([s.stop - s.start for s in index[1:]]) < 30 * 36 * 40


def test_validation_crops_are_the_papers_box(dataset):
    under_test = loader(dataset, training=False)
    dataset.reads.clear()
    batch = next(under_test)
    organs = list(batch["organs"][0].values())
    box = under_test.plan.fine_box(organs[0].union(organs[1]), batch["image_shape"][0])
    assert dataset.reads[0][1:] == box.slices


def test_training_uses_every_box_size_and_keeps_the_organs_inside(dataset):
    under_test = loader(dataset, margin_jitter=0.5, augmentation="flips")
    shapes = set()
    for n in range(24):
        dataset.reads.clear()
        sample = under_test.sample(n)
        box = Box(tuple(s.start for s in dataset.reads[0][1:]), tuple(s.stop for s in dataset.reads[0][1:]))
        assert all(box.contains(organ) for organ in sample["organs"].values())
        shapes.add(max(box.shape) >= 23)
    assert shapes == {True, False}


@pytest.mark.parametrize("shape", [(1, 20, 20), (3, 8, 30), (16, 16, 16)])
def test_organs_at_every_face_stay_whole_and_thin_cts_do_not_fail(tmp_path, shape):
    image, labels = np.zeros((1, *shape), np.float32), np.ones((1, *shape), np.int16)
    image += np.arange(shape[-1])
    under_test = loader(FakeDataset(tmp_path, {"thin": (image, labels)}), margin_jitter=0.5)
    for n in range(20):
        sample = under_test.sample(n)
        assert sample["fine_target"].all()  # the organ fills the image: no box may be smaller


def test_an_empty_case_gives_the_whole_image_as_background(dataset):
    for name in dataset.identifiers:
        dataset.cases[name][1][:] = 0
    batch = next(loader(dataset))
    assert batch["organs"] == [{}] and not batch["fine_target"].any() and torch.isfinite(batch["fine"]).all()


def test_a_bad_voxel_does_not_spoil_a_batch(dataset):
    for name in dataset.identifiers:
        dataset.cases[name][0][0, 12, 12, 12] = np.nan
    batch = next(loader(dataset))
    assert torch.isfinite(batch["coarse"]).all() and torch.isfinite(batch["fine"]).all()


def test_no_sample_mirrors_left_and_right_unless_the_plan_says_so(dataset):
    """Organ 1 always lies at lower indices than organ 2 on all axes."""

    def centres(batch):
        labels = batch["fine_target"][0, 0]
        return [np.array(Box.from_mask(labels == label).centre) for label in (1, 2)]

    unflipped = loader(dataset, flip_axes=(0, 1), left_right_axis=2)
    sides = [(a < b).tolist() for a, b in (centres(next(unflipped)) for _ in range(16))]
    assert all(side[2] for side in sides)
    assert {side[0] for side in sides} == {side[1] for side in sides} == {True, False}

    # mirrored along the axis and swapped: the label at the low end is always 1, though the image is mirrored
    swapped = loader(dataset, flip_axes=(2,), left_right_axis=2, swap_on_flip=((1, 2),))
    bright_first = set()
    for _ in range(16):
        batch = next(swapped)
        low, high = centres(batch)
        assert low[2] < high[2]
        labels, image = batch["fine_target"][0, 0], batch["fine"][0, 0]
        bright_first.add(bool(image[labels == 1].median() > image[labels == 2].median()))
    assert bright_first == {True, False}


def test_flip_does_not_touch_its_input():
    image, labels = torch.rand(1, 3, 4, 5), torch.randint(0, 3, (1, 3, 4, 5))
    before = image.clone(), labels.clone()
    plan = CascadePlan(organs=("a", "b"), left_right_axis=2, swap_on_flip=((1, 2),))
    flip(image, labels, (2,), plan)
    assert torch.equal(image, before[0]) and torch.equal(labels, before[1])


def test_crops_are_made_of_the_organs_that_a_case_annotates(dataset):
    under_test = loader(dataset, training=False, annotations=HALVES)
    for n in range(4):
        dataset.reads.clear()
        sample = under_test.sample(n)
        label = 1 if n < 2 else 2
        assert list(sample["organs"]) == [label]
        box = under_test.plan.fine_box(sample["organs"][label], sample["image_shape"])
        assert dataset.reads[0][1:] == box.slices
        for stage in ("coarse", "fine"):
            assert sample[f"{stage}_annotated"].tolist() == [label == 1, label == 2]


def test_crops_of_incomplete_cases_sometimes_reach_further(dataset):
    def volumes(annotations, often):
        under_test = loader(dataset, annotations=annotations, reach_unannotated=often, extra_box_vox=())
        found = []
        for n in range(24):
            dataset.reads.clear()
            sample = under_test.sample(n)
            box = Box(tuple(s.start for s in dataset.reads[0][1:]), tuple(s.stop for s in dataset.reads[0][1:]))
            assert all(box.contains(organ) for organ in sample["organs"].values())
            found.append(box.volume)
        return found

    assert volumes(EVERYTHING, 1.0) == volumes(EVERYTHING, 0.0)
    reaching, plain = volumes(HALVES, 1.0), volumes(HALVES, 0.0)
    assert all(a >= b for a, b in zip(reaching, plain, strict=True)) and sum(reaching) > 1.5 * sum(plain)


def test_crops_reach_where_a_complete_case_has_what_is_left_out(dataset):
    """Case 0 annotates organ 1, case 1 everything: organ 2 lies 9 voxels further on each axis in all of them."""
    annotations = Annotations(
        ("one", "two"),
        (
            Source("part", ("case_0",), frozenset({"one"})),
            Source("whole", ("case_1", "case_2", "case_3"), frozenset({"one", "two"})),
        ),
    )
    under_test = loader(
        dataset,
        annotations=annotations,
        reach_unannotated=1.0,
        extra_box_vox=(),
        margin_vox=(0, 0, 0),
        min_box_vox=(1, 1, 1),
    )
    labels = dataset.cases["case_0"][1][0]
    one, both = Box.from_mask(labels == 1), Box.from_mask(labels > 0)
    seen = 0
    for n in range(16):
        dataset.reads.clear()
        sample = under_test.sample(n)
        box = Box(tuple(s.start for s in dataset.reads[0][1:]), tuple(s.stop for s in dataset.reads[0][1:]))
        if not sample["fine_annotated"].all():
            seen += 1
            assert sample["organs"] == {1: one} and box == both
    assert seen == 4


def test_what_is_annotated_changes_sides_with_the_labels(dataset):
    """A case that contours only its left organ, mirrored, is one that contours only its right organ."""
    under_test = loader(dataset, annotations=HALVES, flip_axes=(2,), left_right_axis=2, swap_on_flip=((1, 2),))
    seen = set()
    for n in range(24):
        sample = under_test.sample(n)
        (organ,) = sample["organs"]
        for stage in ("coarse", "fine"):
            (annotated,) = np.flatnonzero(sample[f"{stage}_annotated"].numpy()) + 1
            seen.add((organ, int(annotated)))
            # the organ that the case annotates is whole in every crop, under its own or the other label
            assert (sample[f"{stage}_target"] == annotated).any()
    assert seen == {(1, 1), (1, 2), (2, 1), (2, 2)}


def test_swap_organs_swaps_pairs_only():
    plan = CascadePlan(organs=("l", "m", "r"), left_right_axis=2, swap_on_flip=((1, 3),))
    annotated = torch.tensor([True, False, False])
    assert swap_organs(annotated, (2, 0), plan).tolist() == [False, False, True]
    assert swap_organs(annotated, (0, 1), plan).tolist() == annotated.tolist() == [True, False, False]
