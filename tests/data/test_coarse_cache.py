"""The zoomed volumes on disk."""

import os

import numpy as np
import pytest
import torch
from fake_dataset import FakeDataset, case
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_oar.data.coarse_cache import CoarseCache, covering_labels
from nnunet_oar.intensity import measure
from nnunet_oar.roi import Box, resize


@pytest.fixture
def dataset(tmp_path):
    return FakeDataset(tmp_path, {f"case_{i}": case(i) for i in range(3)})


def cache_of(dataset, shape=(12, 14, 16), window=None):
    return CoarseCache(dataset, shape, window, [1, 2])


def test_what_is_read_is_what_the_network_would_see(dataset):
    cache = cache_of(dataset, window=(-110.0, 150.0))
    cache.build(dataset.identifiers, disable_progress_bar=True)
    found = cache.read("case_1")
    image, labels = dataset.cases["case_1"]
    normalisation = measure(torch.from_numpy(image), (-110.0, 150.0))
    expected = resize(normalisation.apply(torch.from_numpy(image))[None], (12, 14, 16), mode="linear")[0]
    np.testing.assert_allclose(found.image, expected, atol=2e-3, rtol=1e-3)  # stored in half precision
    assert found.shape == image.shape[1:]
    assert found.organs == {label: Box.from_mask(labels[0] == label) for label in (1, 2)}
    assert set(np.unique(found.labels)) == {0, 1, 2}  # -1 is background
    assert torch.equal(found.normalisation.mean, normalisation.mean)


def test_a_second_build_reads_nothing(dataset):
    cache_of(dataset).build(dataset.identifiers, disable_progress_bar=True)
    reads = len(dataset.reads)
    cache_of(dataset).build(dataset.identifiers, disable_progress_bar=True)
    assert len(dataset.reads) == reads > 0


def test_other_settings_get_another_folder(dataset):
    folders = {
        cache_of(dataset).folder,
        cache_of(dataset, (8, 8, 8)).folder,
        cache_of(dataset, window=(0.0, 1.0)).folder,
    }
    assert len(folders) == 3 and all(folder.parent == cache_of(dataset).folder.parent for folder in folders)


def test_a_case_that_was_preprocessed_again_is_zoomed_again(dataset, tmp_path):
    cache = cache_of(dataset)
    cache.build(dataset.identifiers, disable_progress_bar=True)
    dataset.cases["case_0"] = case(99)
    os.utime(tmp_path / "case_0.b2nd", ns=(1, 1))
    dataset.reads.clear()
    cache.build(dataset.identifiers, disable_progress_bar=True)
    assert len(dataset.reads) == 2  # image and labels of the one case
    np.testing.assert_allclose(cache.read("case_0").normalisation.mean, dataset.cases["case_0"][0].mean(), rtol=1e-4)


def test_a_build_that_is_cut_off_leaves_no_half_file(dataset, monkeypatch):
    cache = cache_of(dataset)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        cache.build(["case_0"], disable_progress_bar=True)
    assert not list(cache.folder.glob("*.npz"))
    monkeypatch.undo()
    cache.build(["case_0"], disable_progress_bar=True)
    assert cache.read("case_0").shape == (30, 36, 40)


def test_an_empty_label_map_has_no_organs(dataset):
    dataset.cases["case_0"][1][:] = 0
    cache = cache_of(dataset)
    cache.build(["case_0"], disable_progress_bar=True)
    assert cache.read("case_0").organs == {}


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    old=st.tuples(*[st.integers(1, 14)] * 3),
    new=st.tuples(*[st.integers(1, 9)] * 3),
)
def test_covering_labels_against_a_loop(seed, old, new):
    """A coarse voxel i covers the fine ones that its interval [i * n / m, (i + 1) * n / m) meets."""
    rng = np.random.default_rng(seed)
    labels = (rng.integers(0, 4, old) * (rng.random(old) < 0.3)).astype(np.int16)
    found = covering_labels(labels, new, [1, 2, 3])
    assert found.dtype == torch.int16
    for at in np.ndindex(new):
        region = labels[tuple(slice(i * n // m, -(-(i + 1) * n // m)) for i, n, m in zip(at, old, new, strict=True))]
        counts = [(region == value).sum() for value in (1, 2, 3)]
        assert int(found[at]) == (int(np.argmax(counts)) + 1 if any(counts) else 0)


@pytest.mark.parametrize("at", [(0, 0, 0), (10, 3, 7), (29, 35, 39)])
def test_no_organ_is_too_thin_to_cover(dataset, at):
    """One voxel of organ 2 in a case, zoomed to a sixth: its box holds it after the way back."""
    image, labels = dataset.cases["case_0"]
    labels[:] = 0
    labels[(0, *at)] = 2
    cache = CoarseCache(dataset, (5, 6, 7), None, [1, 2], "covering")
    cache.build(["case_0"], disable_progress_bar=True)
    box = Box.from_mask(cache.read("case_0").labels[0] == 2).rescaled((5, 6, 7), image.shape[1:])
    assert box.contains(Box(at, tuple(i + 1 for i in at)))
    assert cache.folder != cache_of(dataset, (5, 6, 7)).folder
