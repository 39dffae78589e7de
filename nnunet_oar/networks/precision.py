"""Reduced precision where the hardware has it: nnU-Net itself autocasts on CUDA only."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch


@cache
def cpu_has_bfloat16() -> bool:
    """True for processors with AMX or AVX512-BF16; on others bfloat16 is emulated and slower than float32."""
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)


def autocast(device: torch.device) -> AbstractContextManager:
    """float16 on CUDA (as nnU-Net), bfloat16 on a CPU that computes in it, float32 elsewhere."""
    if device.type == "cuda":
        return torch.autocast("cuda")
    if device.type == "cpu" and cpu_has_bfloat16():
        return torch.autocast("cpu", dtype=torch.bfloat16)
    return nullcontext()
