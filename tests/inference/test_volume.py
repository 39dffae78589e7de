"""What networks read straight from a CT's voxels, against nnU-Net's preprocessing followed by their own."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.preprocessing.normalization import default_normalization_schemes as schemes_of_nnunet
from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization
from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet

from nnunet_oar.inference import volume as module
from nnunet_oar.inference.volume import SCALES, Intensities, OriginalVolume
from nnunet_oar.networks.volume import LoadedVolume
from nnunet_oar.plan import CascadePlan
from nnunet_oar.roi import Box

CPU = torch.device("cpu")


def intensities(plan=None, schemes=("NoNormalization",), foreground=None, mask=False):
    configuration = {"normalization_schemes": list(schemes), "use_mask_for_norm": [mask] * len(schemes)}
    return Intensities(configuration, foreground or {}, plan or CascadePlan(organs=("a",)))


def resampled(array, shape):
    out = resample_torch_fornnunet(
        np.ascontiguousarray(array, dtype=np.float32), shape, (1, 1, 1), (1, 1, 1), is_seg=False, force_separate_z=False,
        num_threads=1,
    )  # fmt: skip
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


WITHOUT_WINDOW = CascadePlan(organs=("a",), hu_window=None)
CT = {"percentile_00_5": -250.0, "percentile_99_5": 310.0, "mean": 40.0, "std": 120.0}
# the window in HU that CT and this plan leave: the narrower of the two on each side
CT_PLAN = CascadePlan(organs=("a",), intensity_from_hu=(1 / 120, -40 / 120), hu_window=(-200.0, 400.0))


def assert_same(found, expected, std):
    """Normalised intensities, to 1e-4, or to a thousandth of a HU where all voxels are nearly alike."""
    for channel, one in enumerate(np.atleast_1d(std)):
        torch.testing.assert_close(
            found[..., channel, :, :, :], expected[..., channel, :, :, :], atol=max(1e-4, 1e-3 / one), rtol=0
        )


@st.composite
def views(draw):
    """(C, Z, Y, X) as a file's array looks when it is turned and cut: any order of axes, any of them backwards."""
    channels, stored = draw(st.integers(1, 2)), draw(st.tuples(*[st.integers(1, 9)] * 3))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    array = rng.normal(-100, 300, (channels, *stored)).astype(draw(st.sampled_from([np.int16, np.float32])))
    array = array.transpose(0, *(1 + axis for axis in draw(st.permutations(range(3)))))
    array = array[(slice(None), *(slice(None, None, draw(st.sampled_from([1, -1]))) for _ in range(3)))]
    array.flags.writeable = False
    return array


@st.composite
def places(draw):
    """A working shape, a box of it and the grid of a sample."""
    shape = draw(st.tuples(*[st.integers(1, 9)] * 3))
    start = tuple(draw(st.integers(0, size - 1)) for size in shape)
    stop = tuple(draw(st.integers(first + 1, size)) for first, size in zip(start, shape, strict=True))
    return shape, Box(start, stop), draw(st.tuples(*[st.integers(1, 9)] * 3))


@settings(max_examples=80, deadline=None)
@given(
    views(), places(), st.sampled_from([None, (-200.0, 150.0), (-3000.0, 3000.0)]), st.sampled_from([1, 40, 4_000_000])
)
def test_any_view_is_read_as_if_it_had_been_resampled(array, place, window, chunk):
    shape, box, grid = place
    plan, schemes = CascadePlan(organs=("a",), hu_window=window), ("NoNormalization",) * len(array)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_VOXELS", chunk)
        ours = OriginalVolume(array, shape, intensities(plan, schemes), CPU)
        sample, whole, everything = ours.sample(box, grid), ours.whole(), ours.sample(Box.full(shape), shape)
    theirs = LoadedVolume(resampled(array.copy(), shape), window)
    assert ours.shape == shape and sample.shape == (1, len(array), *grid) and sample.dtype == torch.float32
    assert_same(sample, theirs.sample(box, grid), ours.std)
    assert_same(everything, theirs.normalised[None], ours.std)
    assert_same(ours.lowest.view(-1, 1, 1, 1), theirs.lowest.view(-1, 1, 1, 1), ours.std)
    # as it came: neither clipped nor normalised
    torch.testing.assert_close(whole, theirs.whole(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float64, ">i2"])
def test_every_type_that_files_hold_is_read(dtype):
    array = np.random.default_rng(0).integers(0, 255, (1, 4, 5, 6)).astype(dtype)
    ours = OriginalVolume(array, (3, 7, 5), intensities(WITHOUT_WINDOW), CPU)
    theirs = LoadedVolume(resampled(array, (3, 7, 5)), None)
    assert_same(
        ours.sample(Box((0, 1, 1), (3, 6, 5)), (4, 4, 4)), theirs.sample(Box((0, 1, 1), (3, 6, 5)), (4, 4, 4)), 1.0
    )


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
@pytest.mark.parametrize("shape", [(3, 4, 5), (6, 6, 6)])
def test_the_ct_itself_is_never_changed(dtype, shape):
    """Clipping and normalisation work in place, on what was copied: the array may be the caller's own image."""
    array = np.random.default_rng(0).normal(0, 300, (1, 3, 4, 5)).astype(dtype)
    before = array.copy()
    volume = OriginalVolume(array, shape, intensities(CT_PLAN, ("CTNormalization",), {"0": CT}), CPU)
    for _ in range(2):
        first = volume.sample(Box.full(shape), shape)
        assert torch.equal(volume.sample(Box.full(shape), shape), first) and torch.equal(volume.whole(), volume.whole())
    assert np.array_equal(array, before)


def test_ct_normalisation_clips_before_the_interpolation():
    """By hand, as nnU-Net: 0 and 1000 are clipped to (-250, 310) at first."""
    array = np.array([0, 1000], np.float32).reshape(1, 2, 1, 1)
    made = intensities(WITHOUT_WINDOW, ("CTNormalization",), {"0": CT})
    ours = OriginalVolume(array, (4, 1, 1), made, CPU)
    seen = np.array([0, 77.5, 232.5, 310])
    mean, std = seen.mean(), seen.std()
    assert ours.mean[0] == pytest.approx(mean) and ours.std[0] == pytest.approx(std)
    found = ours.sample(Box.full((4, 1, 1)), (4, 1, 1)).flatten()
    np.testing.assert_allclose(found, (seen - mean) / std, atol=1e-5)
    assert float(ours.lowest[0]) == pytest.approx(-mean / std)
    # preprocessed data are in units of the training set's deviation
    np.testing.assert_allclose(ours.whole().flatten(), (seen - 40) / 120, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(views(), places(), st.booleans())
def test_ct_normalisation_on_any_grid(array, place, has_window):
    """nnU-Net's own, then resampled."""
    shape, box, grid = place
    plan, schemes = CT_PLAN if has_window else WITHOUT_WINDOW, ("CTNormalization",) * len(array)
    known = {str(channel): CT | {"mean": 40.0 + channel} for channel in range(len(array))}
    # with a window of our own all channels are in units of the first one
    if has_window:
        known = dict.fromkeys(known, CT)

    channels = [
        CTNormalization(False, known[str(c)], np.float32).run(of.copy())
        for c, of in enumerate(array.astype(np.float32))
    ]
    for working in (array.shape[1:], shape):
        ours = OriginalVolume(array, working, intensities(plan, schemes, known), CPU)
        where = box if working == shape else Box.full(working)
        preprocessed = resampled(np.stack(channels), working)
        theirs = LoadedVolume(preprocessed, plan.data_window)
        assert_same(ours.sample(where, grid), theirs.sample(where, grid), ours.std)
        assert_same(ours.lowest.view(-1, 1, 1, 1), theirs.lowest.view(-1, 1, 1, 1), ours.std)
        torch.testing.assert_close(ours.whole(), preprocessed, atol=1e-4, rtol=0)


@pytest.mark.parametrize("scheme", SCALES)
def test_after_other_schemes_the_networks_own_normalisation_gives_the_same(scheme):
    """They shift and scale the whole image alone, so it does not matter whether they were applied."""
    array = np.random.default_rng(3).integers(0, 255, (2, 7, 8, 6)).astype(np.float32)
    shape, box, grid = (5, 11, 6), Box((1, 0, 2), (5, 9, 6)), (6, 7, 5)
    ours = OriginalVolume(array, shape, intensities(WITHOUT_WINDOW, (scheme,) * 2), CPU)
    normaliser = getattr(schemes_of_nnunet, scheme)(False, {}, np.float32)
    theirs = LoadedVolume(resampled(np.stack([normaliser.run(of.copy()) for of in array]), shape), None)
    assert_same(ours.sample(box, grid), theirs.sample(box, grid), 100)
    assert_same(ours.lowest.view(-1, 1, 1, 1), theirs.lowest.view(-1, 1, 1, 1), 100)


@pytest.mark.parametrize("value", [0, -1000, 3071, 0.1])
@pytest.mark.parametrize("shape", [(3, 3, 3), (5, 2, 7), (1, 1, 1)])
def test_a_constant_channel_is_only_shifted(value, shape):
    """Also where interpolation leaves rounding errors, which must not be blown up; the other channel is not concerned."""
    array = np.random.default_rng(0).normal(0, 300, (2, 3, 3, 3)).astype(np.float32)
    array[1] = value
    volume = OriginalVolume(array, shape, intensities(WITHOUT_WINDOW, ("NoNormalization",) * 2), CPU)
    sample = volume.sample(Box.full(shape), (4, 4, 4))[0]
    assert volume.std[1] == 1 and sample[1].abs().max() < 1e-3 and abs(volume.lowest[1]) < 1e-3
    assert sample.isfinite().all()
    # all of it is clipped to one value: the same
    plan = CascadePlan(organs=("a",), hu_window=(-200.0, 150.0))
    outside = OriginalVolume(array + 5000, shape, intensities(plan, ("NoNormalization",) * 2), CPU)
    assert outside.std == (1, 1) and (outside.sample(Box.full(shape), (2, 2, 2)) == 0).all()


def test_statistics_do_not_depend_on_chunks_even_far_from_zero(monkeypatch):
    """Sums of squares would lose all digits at 1e5 +- 1."""
    array = (1e5 + np.random.default_rng(0).normal(0, 1, (1, 12, 10, 11))).astype(np.float32)
    for chunk in (1, 110, 250, 10_000):
        monkeypatch.setattr(module, "CHUNK_VOXELS", chunk)
        volume = OriginalVolume(array, array.shape[1:], intensities(WITHOUT_WINDOW), CPU)
        assert volume.mean[0] == pytest.approx(array.mean(dtype=np.float64), abs=0.02)
        assert volume.std[0] == pytest.approx(array.std(dtype=np.float64), rel=1e-3)


@pytest.mark.parametrize(
    "schemes, masks, words",
    [
        (("CTNormalization", "Other"), (False, False), "channel 1 is normalised with Other,"),
        (("NoNormalization",), (True,), "channel 0 is normalised with NoNormalization in a mask,"),
    ],
)
def test_the_channel_that_cannot_be_read_is_named(schemes, masks, words):
    configuration = {"normalization_schemes": list(schemes), "use_mask_for_norm": list(masks)}
    with pytest.raises(ValueError, match=f"{words}.*use nnUNetv2_predict") as error:
        Intensities(configuration, {"0": CT}, CT_PLAN)
    assert "\n" not in str(error.value)
