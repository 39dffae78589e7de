"""Reduced precision where the hardware has it: nnU-Net itself autocasts on CUDA only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


@cache
def cpu_has_bfloat16() -> bool:
    """True for processors with AMX or AVX512-BF16; on others bfloat16 is emulated and slower than float32."""
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)


_CONVOLUTIONS = (torch.conv2d, torch.conv3d, torch.conv_transpose2d, torch.conv_transpose3d)
SHORT_VOX = 2


class _ShortConvolutionsInFloat32(TorchFunctionMode):
    """Convolutions of inputs that are one or two voxels long on an axis, as the deepest level of a network may be, leave autocast.

    On processors with AVX512-BF16 and without AMX, oneDNN in torch 2.15 returns uninitialised memory for the gradient of the
    weights of 3D ones that are two voxels long on the first axis, and strided ones that are one voxel long on another write where
    they must not. From three voxels up all sizes, strides and dilations that were tried are right, and so are 2D convolutions.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func not in _CONVOLUTIONS or min(args[0].shape[2:]) > SHORT_VOX:
            return func(*args, **kwargs)
        image, *rest = args
        with torch.autocast("cpu", enabled=False):
            return func(image.float(), *rest, **kwargs)


@contextmanager
def _cpu_bfloat16() -> Iterator[None]:
    with _ShortConvolutionsInFloat32(), torch.autocast("cpu", dtype=torch.bfloat16):
        yield


@cache
def cpu_bfloat16_gradients_are_right() -> bool:
    """Whether convolutions in bfloat16, as `autocast` runs them, have the gradients that float32 ones have on this processor with
    this torch.

    Small ones of several shapes are tried; takes milliseconds and leaves torch's generators alone.
    """
    generator = torch.Generator().manual_seed(0)
    for size in ((2, 2, 2), (2, 4, 4), (1, 4, 4), (3, 3, 3), (4, 4, 4)):
        image, out_grad = torch.randn(2, 2, 32, *size, generator=generator)
        weight = torch.randn(32, 32, 3, 3, 3, generator=generator)
        for memory_format in (torch.contiguous_format, torch.channels_last_3d):
            image = image.contiguous(memory_format=memory_format)
            reference = _weight_gradient(image, weight, out_grad)
            with _cpu_bfloat16():
                reduced = _weight_gradient(image, weight, out_grad)
            # bfloat16 has 8 bits; NaN compares as False
            if not bool(((reduced - reference).abs() <= 0.05 * reference.abs().max()).all()):
                return False
    return True


def _weight_gradient(image: Tensor, weight: Tensor, out_grad: Tensor) -> Tensor:
    weight = weight.detach().requires_grad_()
    with torch.enable_grad():
        out = F.conv3d(image, weight, padding=1)
        (gradient,) = torch.autograd.grad(out, weight, out_grad.to(out.dtype))
    return gradient


def precision_of(device: torch.device) -> str:
    """In what networks predict there, see `autocast`."""
    if device.type == "cuda":
        return "float16"
    return "bfloat16" if device.type == "cpu" and cpu_has_bfloat16() else "float32"


def autocast(device: torch.device) -> AbstractContextManager:
    """float16 on CUDA (as nnU-Net), bfloat16 on a CPU that computes in it (and, where gradients are taken, computes
    them rightly), float32 elsewhere."""
    if device.type == "cuda":
        return torch.autocast("cuda")
    if device.type == "cpu" and cpu_has_bfloat16():
        if not torch.is_grad_enabled() or cpu_bfloat16_gradients_are_right():
            return _cpu_bfloat16()
    return nullcontext()
