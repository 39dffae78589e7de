"""Normalisation by windows against scipy in float64."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import RegularGridInterpolator
from torch import nn

from nnunet_oar.networks import normalisation
from nnunet_oar.networks.normalisation import WindowedInstanceNorm3d, window_starts


def layer(channels, window, seed=0) -> WindowedInstanceNorm3d:
    generator = torch.Generator().manual_seed(seed)
    made = WindowedInstanceNorm3d(channels, window).eval()
    made.weight.data = torch.rand(channels, generator=generator) + 0.5
    made.bias.data = torch.randn(channels, generator=generator)
    return made


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400))
def test_windows_reach_both_ends_and_overlap_by_half(whole, part):
    part = min(whole, part)
    starts = window_starts(whole, part)
    assert starts[0] == 0 and starts[-1] == whole - part
    # rounded to whole voxels
    assert all(0 <= b - a <= part / 2 + 1 for a, b in itertools.pairwise(starts))


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(*[st.integers(4, 14)] * 3),
    st.tuples(*[st.integers(3, 9)] * 3),
    st.sampled_from([0, -3, 500]),
)
def test_larger_inputs_are_normalised_by_what_lies_about_each_voxel(seed, shape, window, mean):
    rng = np.random.default_rng(seed)
    x = rng.normal(mean, 2, (2, 3, *shape))
    norm = layer(3, window, seed % 1000)
    size = np.minimum(window, shape)
    starts = [window_starts(whole, int(part)) for whole, part in zip(shape, size, strict=True)]
    middles = [np.array(of_axis) + part / 2 for of_axis, part in zip(starts, size, strict=True)]
    # an axis with one window has the same value everywhere
    middles = [np.array([m[0], m[0] + 1]) if len(m) == 1 else m for m in middles]
    voxels = np.stack(np.meshgrid(*(np.arange(n) + 0.5 for n in shape), indexing="ij"), -1)
    voxels = np.clip(voxels, [m[0] for m in middles], [m[-1] for m in middles])
    expected = np.empty_like(x)
    for sample, channel in np.ndindex(2, 3):
        scale, shift = np.empty((2, *(len(m) for m in middles)))
        for index in np.ndindex(*scale.shape):
            start = [of_axis[min(i, len(of_axis) - 1)] for i, of_axis in zip(index, starts, strict=True)]
            part = x[(sample, channel, *(slice(a, a + n) for a, n in zip(start, size, strict=True)))]
            scale[index] = norm.weight[channel].item() / np.sqrt(part.var() + norm.eps)
            shift[index] = norm.bias[channel].item() - part.mean() * scale[index]
        a, b = (RegularGridInterpolator(middles, values)(voxels) for values in (scale, shift))
        expected[sample, channel] = x[sample, channel] * a + b
    with torch.inference_mode():
        np.testing.assert_allclose(norm(torch.from_numpy(x).float()).numpy(), expected, atol=1e-3)


@pytest.mark.parametrize("train, window, shape", [(True, (2, 2, 2), (5, 6, 7)), (False, (5, 6, 7), (5, 6, 7)),
                                                  (False, (5, 6, 7), (3, 6, 2)), (False, None, (5, 6, 7))])  # fmt: skip
def test_in_training_and_up_to_the_window_it_is_instance_normalisation(train, window, shape):
    x, norm, plain = torch.randn(2, 3, *shape), layer(3, window).train(train), nn.InstanceNorm3d(3, affine=True)
    plain.load_state_dict(norm.state_dict())
    assert torch.equal(norm(x), plain(x))


def test_a_part_within_a_whole_of_its_kind_is_as_the_part_alone():
    torch.manual_seed(0)
    part = torch.randn(1, 2, 4, 6, 8)
    norm = layer(2, (4, 6, 8))
    whole = norm(part.repeat(1, 1, 3, 2, 2))
    # windows that begin elsewhere hold the same voxels in another order
    torch.testing.assert_close(whole, norm(part).repeat(1, 1, 3, 2, 2), rtol=1e-4, atol=1e-4)
    # beside something else: what is far enough away has no part in it
    beside = norm(torch.cat((part, 50 + 9 * torch.randn(1, 2, 8, 6, 8)), 2))
    torch.testing.assert_close(beside[:, :, :2], norm(part)[:, :, :2], rtol=5e-3, atol=5e-3)
    assert not torch.allclose(
        nn.InstanceNorm3d(2)(torch.cat((part, 50 + part), 2))[:, :, :2], norm(part)[:, :, :2], atol=0.3
    )


def test_channels_are_taken_a_few_at_a_time(monkeypatch):
    x, norm = torch.randn(2, 5, 9, 8, 7), layer(5, (4, 4, 4))
    together = norm(x)
    monkeypatch.setattr(normalisation, "VOXELS_AT_ONCE", 2 * 9 * 8 * 7)
    torch.testing.assert_close(norm(x), together)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_statistics_are_as_good_as_in_float32(dtype):
    """The mean of one part is far from its deviation and from the other part."""
    torch.manual_seed(0)
    norm = layer(2, (4, 6, 8))
    x = torch.cat((5 + 0.3 * torch.randn(1, 2, 8, 6, 8), torch.randn(1, 2, 8, 6, 8)), 2)
    with torch.inference_mode():
        expected = norm(x.to(dtype).float())
        with torch.autocast("cpu", dtype=dtype):
            out = norm(x.to(dtype))
            whole = norm(x)
    assert out.dtype == dtype and whole.dtype == torch.float32
    torch.testing.assert_close(out.float(), expected, rtol=0.01, atol=0.01)
    torch.testing.assert_close(whole, norm(x), rtol=1e-4, atol=1e-4)
