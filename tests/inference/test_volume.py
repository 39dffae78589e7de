"""What networks read straight from a CT's voxels, against nnU-Net's preprocessing followed by their own."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization
from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet

from nnunet_oar.inference import volume as module
from nnunet_oar.inference.volume import Intensities, OriginalVolume
from nnunet_oar.networks.volume import LoadedVolume
from nnunet_oar.plan import CascadePlan
from nnunet_oar.roi import Box

CPU = torch.device("cpu")


def intensities(plan=None, schemes=("NoNormalization",), foreground=None, mask=False):
    configuration = {"normalization_schemes": list(schemes), "use_mask_for_norm": [mask] * len(schemes)}
    return Intensities(configuration, foreground or {}, plan or CascadePlan(organs=("a",)))


def resampled(array, shape):
    out = resample_torch_fornnunet(
        np.ascontiguousarray(array, dtype=np.float32), shape, (1, 1, 1), (1, 1, 1), is_seg=False, force_separate_z=False
    )
    return torch.as_tensor(np.asarray(out))


sizes = st.tuples(st.integers(2, 12), st.integers(2, 12), st.integers(2, 12))


@settings(max_examples=80, deadline=None)
@given(sizes, sizes, sizes, st.integers(1, 2), st.booleans(), st.booleans(), st.integers(0, 2**32 - 1))
def test_samples_are_those_of_the_resampled_image(stored, shape, grid, channels, windowed, turned, seed):
    rng = np.random.default_rng(seed)
    array = rng.normal(0, 300, (channels, *stored)).astype(np.int16 if windowed else np.float32)
    if turned:
        array = array.transpose(0, 3, 1, 2)[:, ::-1, :, ::-1]
    plan = CascadePlan(organs=("a",), hu_window=(-200.0, 150.0) if windowed else None)
    schemes = ("NoNormalization",) * channels
    ours = OriginalVolume(array, shape, intensities(plan, schemes), CPU)
    theirs = LoadedVolume(resampled(array, shape), plan.data_window)
    start = [int(rng.integers(0, size)) for size in shape]
    box = Box(tuple(start), tuple(int(rng.integers(a + 1, size + 1)) for a, size in zip(start, shape, strict=True)))
    for where in (box, Box.full(shape)):
        assert torch.allclose(ours.sample(where, grid), theirs.sample(where, grid), atol=2e-3)
    assert torch.allclose(ours.whole(), theirs.whole(), atol=1e-2)
    assert torch.allclose(ours.lowest, theirs.lowest, atol=2e-3)


def test_chunks_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    array = rng.normal(0, 300, (1, 13, 11, 12)).astype(np.int16)
    grid, box = (7, 9, 8), Box((1, 2, 0), (9, 14, 10))
    whole = OriginalVolume(array, (10, 15, 10), intensities(), CPU).sample(box, grid)
    monkeypatch.setattr(module, "CHUNK_VOXELS", 200)
    assert torch.allclose(OriginalVolume(array, (10, 15, 10), intensities(), CPU).sample(box, grid), whole, atol=1e-5)


def test_stock_ct_normalisation_is_seen_through():
    rng = np.random.default_rng(1)
    array = rng.normal(0, 300, (1, 9, 10, 11)).astype(np.float32)
    known = {"percentile_00_5": -250.0, "percentile_99_5": 310.0, "mean": 40.0, "std": 120.0}
    plan = CascadePlan(organs=("a",), intensity_from_hu=(1 / 120, -40 / 120), hu_window=(-200.0, 400.0))
    ours = OriginalVolume(array, array.shape[1:], intensities(plan, ("CTNormalization",), {"0": known}), CPU)
    normalised = CTNormalization(False, known, np.float32).run(array[0].copy())
    theirs = LoadedVolume(torch.from_numpy(normalised)[None], plan.data_window)
    box = Box((1, 0, 2), (8, 10, 9))
    assert torch.allclose(ours.sample(box, (5, 6, 7)), theirs.sample(box, (5, 6, 7)), atol=1e-4)


def test_a_constant_image_and_what_is_not_known():
    volume = OriginalVolume(np.full((1, 3, 3, 3), 7, np.int16), (3, 3, 3), intensities(), CPU)
    assert (volume.sample(Box.full((3, 3, 3)), (2, 2, 2)) == 0).all()
    intensities(schemes=("ZScoreNormalization",))
    with pytest.raises(ValueError, match="channel 0 is normalised with Other.*nnUNetv2_predict"):
        intensities(schemes=("Other",))
    with pytest.raises(ValueError, match="ZScoreNormalization in a mask"):
        intensities(schemes=("ZScoreNormalization",), mask=True)
