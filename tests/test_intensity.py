"""Normalisation against a float64 computation, and its bad inputs."""

import numpy as np
import pytest
import torch

from nnunet_oar.intensity import measure, replace_non_finite


@pytest.mark.parametrize("window", [None, (-200.0, 300.0)])
def test_zero_mean_and_unit_variance_per_channel(window):
    rng = np.random.default_rng(0)
    image = rng.normal((30, -400), (250, 90), size=(5, 6, 7, 2)).transpose(3, 0, 1, 2)
    reference = np.clip(image, *window) if window else image
    reference = (reference - reference.mean((1, 2, 3), keepdims=True)) / reference.std((1, 2, 3), keepdims=True)
    tensor = torch.from_numpy(image).float()
    before = tensor.clone()
    np.testing.assert_allclose(measure(tensor, window).apply(tensor), reference, atol=2e-5)
    assert torch.equal(tensor, before)


def test_a_crop_is_normalised_with_the_whole_image():
    image = torch.randn(1, 8, 8, 8) * 100
    whole = measure(image, None)
    assert torch.equal(whole.apply(image)[:, 2:5], whole.apply(image[:, 2:5]))


@pytest.mark.parametrize("value", [0.0, -1000.0, 3e4])
def test_a_constant_image_becomes_zero(value):
    image = torch.full((1, 4, 5, 6), value)
    assert torch.equal(measure(image, None).apply(image), torch.zeros_like(image))


def test_a_window_that_everything_lies_outside():
    image = torch.randn(1, 4, 4, 4) - 1000
    assert torch.equal(measure(image, (0, 100)).apply(image), torch.zeros_like(image))


def test_large_images_keep_their_precision():
    image = torch.full((1, 200, 200, 200), -1000.0)
    image[:, ::2] = 1000.0
    found = measure(image, None)
    assert found.mean.item() == pytest.approx(0, abs=1e-2) and found.std.item() == pytest.approx(1000, rel=1e-5)


def test_non_finite_voxels_become_the_smallest_finite_one():
    image = torch.tensor([[1.0, float("nan"), -7.0, float("inf"), -float("inf")]])
    clean, count = replace_non_finite(image)
    assert count == 3 and clean.tolist() == [[1, -7, -7, -7, -7]]
    assert replace_non_finite(torch.ones(3))[1] == 0
    assert replace_non_finite(torch.full((2,), float("nan")))[0].tolist() == [0, 0]
