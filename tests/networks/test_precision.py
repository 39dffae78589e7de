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


def dtype_of_a_convolution(size=(4, 4, 4)):
    with precision.autocast(torch.device("cpu")):
        return torch.nn.Conv3d(1, 1, 1)(torch.zeros(1, 1, *size)).dtype


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


def test_what_torch_gets_wrong_is_computed_in_float32(monkeypatch):
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: True)
    monkeypatch.setattr(precision, "cpu_bfloat16_gradients_are_right", lambda: True)
    for short in ((2, 4, 4), (6, 1, 3), (4, 4, 2)):
        assert dtype_of_a_convolution(short) == torch.float32
    assert dtype_of_a_convolution((3, 3, 3)) == torch.bfloat16


@pytest.mark.skipif(not precision.cpu_has_bfloat16(), reason="the processor has no bfloat16")
@pytest.mark.parametrize("stride, dilation", [(1, 1), (2, 1), ((1, 2, 2), 1), (1, 3), (1, 6)])
@pytest.mark.parametrize("size", [(2, 4, 4), (3, 4, 4), (4, 2, 2), (6, 1, 3), (8, 8, 8)])
def test_gradients_are_those_of_float32(size, stride, dilation):
    torch.manual_seed(0)
    conv = torch.nn.Conv3d(16, 16, 3, stride, padding=dilation, dilation=dilation)
    image = torch.randn(2, 16, *size)
    conv(image).square().sum().backward()
    reference, conv.weight.grad = conv.weight.grad, None
    with precision.autocast(torch.device("cpu")):
        out = conv(image)
    out.float().square().sum().backward()
    assert (conv.weight.grad - reference).norm() < 0.02 * reference.norm()


@pytest.mark.parametrize("value", [float("nan"), 1e30])
def test_wrong_gradients_are_noticed(monkeypatch, value):
    """What torch can return: memory that nobody has written."""
    right = precision._weight_gradient

    def unwritten(image, weight, out_grad):
        gradient = right(image, weight, out_grad)
        if torch.is_autocast_enabled("cpu") and image.shape[2] == 3:
            gradient.flatten()[-1] = value
        return gradient

    monkeypatch.setattr(precision, "_weight_gradient", unwritten)
    assert not precision.cpu_bfloat16_gradients_are_right()


def test_right_gradients_pass(monkeypatch):
    right = precision._weight_gradient

    def rounded(image, weight, out_grad):
        if not torch.is_autocast_enabled("cpu"):
            return right(image, weight, out_grad)
        with torch.autocast("cpu", enabled=False):
            return right(image, weight, out_grad).bfloat16().float()

    monkeypatch.setattr(precision, "_weight_gradient", rounded)
    assert precision.cpu_bfloat16_gradients_are_right()


def test_the_check_leaves_the_random_numbers_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    precision.cpu_bfloat16_gradients_are_right()
    assert torch.equal(torch.rand(3), expected)
