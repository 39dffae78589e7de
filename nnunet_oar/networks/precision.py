"""Reduced precision where the hardware has it: nnU-Net itself autocasts on CUDA only."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor


@cache
def cpu_has_bfloat16() -> bool:
    """True for processors with AMX or AVX512-BF16; on others bfloat16 is emulated and slower than float32."""
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)


@cache
def cpu_bfloat16_gradients_are_right() -> bool:
    """Whether bfloat16 convolutions of this torch on this processor have the gradients that float32 ones have.

    Where oneDNN emulates bfloat16, torch 2.15 returns uninitialised memory for the weight gradient of 3^3
    convolutions of inputs that are two voxels long on the first axis, as the deepest level of a network may be. Takes
    milliseconds and leaves torch's generators alone.
    """
    generator = torch.Generator().manual_seed(0)
    for size in ((2, 2, 2), (2, 4, 4), (4, 4, 4)):
        image, out_grad = torch.randn(2, 2, 32, *size, generator=generator)
        weight = torch.randn(32, 32, 3, 3, 3, generator=generator)
        for memory_format in (torch.contiguous_format, torch.channels_last_3d):
            reference, reduced = (
                _weight_gradient(image.to(dtype, memory_format=memory_format), weight.to(dtype), out_grad.to(dtype))
                for dtype in (torch.float32, torch.bfloat16)
            )
            # bfloat16 has 8 bits; NaN compares as False
            if not bool(((reduced - reference).abs() <= 0.05 * reference.abs().max()).all()):
                return False
    return True


def _weight_gradient(image: Tensor, weight: Tensor, out_grad: Tensor) -> Tensor:
    weight = weight.detach().requires_grad_()
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        (gradient,) = torch.autograd.grad(F.conv3d(image, weight, padding=1), weight, out_grad)
    return gradient.float()


def autocast(device: torch.device) -> AbstractContextManager:
    """float16 on CUDA (as nnU-Net), bfloat16 on a CPU that computes in it (and, where gradients are taken, computes
    them rightly), float32 elsewhere."""
    if device.type == "cuda":
        return torch.autocast("cuda")
    if device.type == "cpu" and cpu_has_bfloat16():
        if not torch.is_grad_enabled() or cpu_bfloat16_gradients_are_right():
            return torch.autocast("cpu", dtype=torch.bfloat16)
    return nullcontext()
