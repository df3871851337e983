"""Which number format the matrix products run in: bf16 where the device is fast at it, fp32 where parity is asked for."""

from contextlib import AbstractContextManager
from typing import Literal

import torch

Dtype = Literal["auto", "bf16", "fp32"]


def supports_bf16(device: str) -> bool:
    """True where bf16 matrix products run in hardware: CPUs with AVX512-BF16 or AMX, CUDA devices from Ampere on."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if torch.device(device).type != "cpu":
        return False
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # private, so perhaps not in every torch
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def autocast(device: str, dtype: Dtype = "auto") -> AbstractContextManager:
    """Autocast to bf16 on `device`, or no autocast at all; "auto" is bf16 where the device supports it."""
    if dtype not in ("auto", "bf16", "fp32"):
        raise ValueError(f"dtype is 'auto', 'bf16' or 'fp32', not {dtype!r}.")
    on = dtype == "bf16" or (dtype == "auto" and supports_bf16(device))
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=on)
