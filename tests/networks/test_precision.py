"""Reduced precision only where it computes what float32 computes."""

import pytest
import torch

from nnunet_oar.networks import precision


@pytest.fixture(autouse=True)
def forget():
    precision.cpu_has_bfloat16.cache_clear()
    precision.cpu_bfloat16_gradients_are_right.cache_clear()
    yield
    precision.cpu_has_bfloat16.cache_clear()
    precision.cpu_bfloat16_gradients_are_right.cache_clear()


def dtype_of_a_convolution():
    with precision.autocast(torch.device("cpu")):
        return torch.nn.Conv3d(1, 1, 1)(torch.zeros(1, 1, 2, 2, 2)).dtype


def test_float32_where_the_processor_has_no_bfloat16(monkeypatch):
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: False)
    assert dtype_of_a_convolution() == torch.float32


@pytest.mark.parametrize("right", [True, False])
def test_gradients_decide_for_training_alone(monkeypatch, right):
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: True)
    monkeypatch.setattr(precision, "cpu_bfloat16_gradients_are_right", lambda: right)
    assert dtype_of_a_convolution() == (torch.bfloat16 if right else torch.float32)
    with torch.no_grad():
        assert dtype_of_a_convolution() == torch.bfloat16


@pytest.mark.parametrize("value", [float("nan"), 1e30])
def test_wrong_gradients_are_noticed(monkeypatch, value):
    """What torch returns where oneDNN emulates bfloat16: memory that nobody has written."""
    right = precision._weight_gradient

    def unwritten(image, weight, out_grad):
        gradient = right(image, weight, out_grad)
        if image.dtype == torch.bfloat16 and image.shape[2] == 2:
            gradient.flatten()[-1] = value
        return gradient

    monkeypatch.setattr(precision, "_weight_gradient", unwritten)
    assert not precision.cpu_bfloat16_gradients_are_right()


def test_right_gradients_pass(monkeypatch):
    right = precision._weight_gradient

    def rounded(image, weight, out_grad):
        gradient = right(image.float(), weight.detach().float(), out_grad.float())
        return gradient if image.dtype == torch.float32 else gradient.bfloat16().float()

    monkeypatch.setattr(precision, "_weight_gradient", rounded)
    assert precision.cpu_bfloat16_gradients_are_right()


def test_the_check_leaves_the_random_numbers_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    precision.cpu_bfloat16_gradients_are_right()
    assert torch.equal(torch.rand(3), expected)
