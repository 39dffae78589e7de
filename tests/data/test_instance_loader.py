"""Samples of instances: one kidney per crop, moved but never cut, only of what the case annotates."""

import numpy as np
import pytest
import torch
from fake_dataset import FakeDataset

from nnunet_oar.annotations import Annotations, Source
from nnunet_oar.data.augmentation import in_plane_rotation, seeded_globals
from nnunet_oar.data.instance_loader import InstanceCache, InstanceLoader
from nnunet_oar.plan import InstancePlan
from nnunet_oar.roi import Box

ORGANS = ("kidney", "tumour")
EVERYTHING = Annotations(ORGANS)
LEFT, RIGHT, TUMOUR = Box((4, 8, 26), (14, 18, 34)), Box((6, 10, 4), (12, 17, 12)), Box((14, 10, 28), (17, 14, 32))
PLAN = dict(
    organs=ORGANS, coarse_shape=(12, 12, 12), fine_shape=(20, 20, 20), margin_vox=(2, 2, 2), min_box_vox=(8, 8, 8),
    coarse_strides=((2, 2, 2),), fine_strides=((2, 2, 2),), join_mm=2.0,
)  # fmt: skip


def case(*, tumour=True, kidneys=(LEFT, RIGHT)):
    image = np.random.default_rng(0).normal(0, 5, (1, 30, 36, 40)).astype(np.float32)
    labels = np.zeros(image.shape, np.int16)
    for value, boxes in ((1, kidneys), (2, (TUMOUR,) if tumour else ())):
        for box in boxes:
            labels[(0, *box.slices)] = value
            image[(0, *box.slices)] = 100 * value
    return image, labels


@pytest.fixture
def dataset(tmp_path):
    return FakeDataset(
        tmp_path, {"case_0": case(), "case_1": case(tumour=False, kidneys=(RIGHT,)), "case_2": case(kidneys=())}
    )


def loader(dataset, training=True, annotations=EVERYTHING, **changes) -> InstanceLoader:
    plan = InstancePlan(**(PLAN | changes))
    cache = InstanceCache(dataset, plan, [1, 2], annotations)
    cache.build(dataset.identifiers, disable_progress_bar=True)
    return InstanceLoader(dataset, dataset.identifiers, cache, plan, annotations, fold=0, training=training)


def test_the_tumour_is_part_of_its_kidneys_instance(dataset):
    under_test = loader(dataset)
    assert under_test.cache.read("case_0").instances == (LEFT.union(TUMOUR), RIGHT)
    assert under_test.cache.read("case_1").instances == (RIGHT,)
    # two kidneys that touch are one where the plans allow one instance only
    assert loader(dataset, max_instances=1).cache.read("case_0").instances == (LEFT.union(TUMOUR).union(RIGHT),)


def test_a_rare_organ_is_drawn_as_often_as_the_others_where_the_plans_say_so(dataset):
    def share(**changes) -> float:
        under_test = loader(dataset, **changes)
        of_case = under_test.cache.read("case_0")
        assert of_case.shown == ({1, 2}, {1})
        rng = np.random.default_rng(0)
        boxes = [under_test._box(0, of_case, of_case.organs, True, rng) for _ in range(800)]
        return sum(box.contains(TUMOUR) for box in boxes) / len(boxes)

    # of two kidneys one has the tumour
    assert abs(share() - 0.5) < 0.06
    # half of the draws want the tumour, the others any kidney
    assert abs(share(draw_by="organ") - 0.75) < 0.06


def test_a_label_that_the_case_does_not_annotate_is_not_drawn(dataset):
    kidneys_only = Annotations(ORGANS, (Source("a", ("case_*",), frozenset({"kidney"})),))
    under_test = loader(
        dataset, annotations=kidneys_only, instance_labels=(1,), draw_by="organ", min_box_vox=(30, 8, 8)
    )
    of_case = under_test.cache.read("case_0")
    assert of_case.shown == ({1}, {1})
    assert under_test._draw_instance(of_case, np.random.default_rng(0)) in of_case.instances


def test_instances_are_of_what_the_case_annotates(dataset):
    kidneys_only = Annotations(ORGANS, (Source("a", ("case_*",), frozenset({"kidney"})),))
    under_test = loader(dataset, annotations=kidneys_only)
    assert (
        under_test.cache.read("case_0").instances == (LEFT, RIGHT) and under_test.cache.read("case_2").instances == ()
    )
    assert under_test.cache.folder != loader(dataset).cache.folder
    # labels that make no instance are segmented where boxes show them
    assert loader(dataset, instance_labels=(1,)).cache.read("case_0").instances == (LEFT, RIGHT)


def test_a_crop_shows_one_instance_wholly_and_is_moved(dataset, monkeypatch):
    under_test = loader(dataset)
    boxes = []
    monkeypatch.setattr(under_test, "_crop", lambda name, case, box: (boxes.append((name, box)), CROP)[1])
    CROP = torch.zeros(1, 20, 20, 20), torch.zeros(1, 20, 20, 20)
    for n in range(300):
        under_test.sample(n)
    seen = {name: {box for of, box in boxes if of == name} for name in dataset.identifiers}
    shape = (30, 36, 40)
    instances = {"case_0": (LEFT.union(TUMOUR), RIGHT), "case_1": (RIGHT,), "case_2": (TUMOUR,)}
    for name, crops in seen.items():
        centred = {under_test.plan.fine_box(instance, shape) for instance in instances[name]}
        assert {box.shape for box in crops} == {box.shape for box in centred}
        assert all(any(box.contains(instance) for instance in instances[name]) for box in crops)
        assert all(Box.full(shape).contains(box) for box in crops) and len(crops) > 20
        # as far as the margin to either side
        starts = np.array([box.start for box in crops])
        assert (np.ptp(starts, axis=0) >= 3).all()


def test_validation_goes_through_the_instances_unmoved(dataset):
    under_test = loader(dataset, training=False)
    # in the next pass a case shows its other kidney
    assert torch.equal(under_test.sample(0)["fine"], under_test.sample(6)["fine"])
    assert not torch.equal(under_test.sample(0)["fine"], under_test.sample(3)["fine"])
    batch = next(under_test)
    assert batch["instances"] == [[LEFT.union(TUMOUR), RIGHT]]
    # the whole tumour, at a twentieth of the crop's size each way
    tumour = (batch["fine_target"] == 2).sum() / 20**3
    box = under_test.plan.fine_box(LEFT.union(TUMOUR), (30, 36, 40))
    assert float(tumour) == pytest.approx(TUMOUR.volume / box.volume, rel=0.3)


def test_a_case_without_instances_shows_the_whole_image(tmp_path):
    dataset = FakeDataset(tmp_path, {"empty": case(tumour=False, kidneys=())})
    sample = loader(dataset).sample(0)
    assert sample["instances"] == [] and not sample["fine_target"].any()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_in_plane_rotation_mixes_no_slices(axis):
    shape = (12, 14, 16)
    ramp = torch.arange(shape[axis]).float().view([-1 if a == axis else 1 for a in range(3)]).expand(shape)
    marked = torch.zeros(shape, dtype=torch.int16)
    marked[2:10, 3:12, 4:9] = 1
    moved = False
    for seed in range(12):
        with seeded_globals(seed):
            out = in_plane_rotation(shape, axis)(image=ramp[None].clone(), segmentation=marked[None])
        torch.testing.assert_close(out["image"][0], ramp, atol=1e-3, rtol=0)
        moved |= not torch.equal(out["segmentation"][0], marked)
    assert moved
