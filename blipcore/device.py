"""What depends on the device: which one "auto" is, its number format and backend, how a batch gets there.

torch comes in where it is first needed: commands read their settings by the names here without it.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Dtype = Literal["auto", "bf16", "fp32"]
Backend = Literal["auto", "torch", "compile", "openvino", "openvino-int8"]


def pick_device(device: str = "auto") -> str:
    """ "auto" is the GPU when there is one; ValueError for a GPU where there is none, and for what is no device."""
    import torch

    available = torch.cuda.is_available()
    if device != "auto":
        try:
            number = torch.device(device).index or 0
        except RuntimeError:
            raise ValueError(f"device is auto, cpu, cuda or cuda:N, not '{device}'") from None
    if device.startswith("cuda") and not available:
        raise ValueError(f"device {device!r} was asked for, but no CUDA device was found: use 'cpu' or 'auto'.")
    if device.startswith("cuda") and number >= torch.cuda.device_count():
        raise ValueError(f"there is no {device}: the last CUDA device is cuda:{torch.cuda.device_count() - 1}.")
    return ("cuda" if available else "cpu") if device == "auto" else device


def supports_bf16(device: str | torch.device) -> bool:
    """True where bf16 matrix products run in hardware: CPUs with AVX512-BF16 or AMX, CUDA devices from Ampere on."""
    import torch

    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # private, so perhaps not in every torch
    return device.type == "cpu" and any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def resolve_dtype(device: str | torch.device, dtype: Dtype = "auto") -> Literal["bf16", "fp32"]:
    """What "auto" means on `device`: bf16 where it supports it, else fp32."""
    if dtype not in ("auto", "bf16", "fp32"):
        raise ValueError(f"dtype is 'auto', 'bf16' or 'fp32', not {dtype!r}.")
    return ("bf16" if supports_bf16(device) else "fp32") if dtype == "auto" else dtype


def resolve_backend(device: str, dtype: Dtype = "auto", backend: Backend = "auto", before: str | None = None) -> str:
    """What "auto" means: what the same work was begun with `before`, else OpenVINO where it is installed, for bf16 on
    a CPU, and torch as it is elsewhere.

    ValueError for OpenVINO in another case: fp32 is for parity, which torch's own operations have. Its int8 is for
    any CPU, in place of either, and never chosen by itself.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"backend is one of {', '.join(get_args(Backend))}, not {backend!r}.")
    cpu = device.partition(":")[0] == "cpu"
    if backend == "openvino-int8" and not cpu:
        raise ValueError("backend openvino-int8 is for --device cpu; use torch or compile here.")
    fits = cpu and resolve_dtype(device, dtype) == "bf16"
    if backend == "openvino" and not fits:
        raise ValueError("backend openvino is for --device cpu with --dtype bf16; use torch or compile here.")
    if backend == "auto" and before is not None:
        return before
    if backend == "auto":
        return "openvino" if fits and importlib.util.find_spec("openvino") else "torch"
    return backend


def autocast(device: str | torch.device, dtype: Dtype = "auto") -> AbstractContextManager:
    """Autocast to bf16 on `device`, or none for fp32."""
    import torch

    on = resolve_dtype(device, dtype) == "bf16"
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=on)


def to_device(batch: Tensor, device: str) -> Tensor:
    """Copy a batch to `device`, without making the host wait where the device allows it."""
    return batch.pin_memory().to(device, non_blocking=True) if device.startswith("cuda") else batch.to(device)


def stack_on(rows: Sequence[Tensor], device: str) -> Tensor:
    """One tensor on `device` of tensors of one shape, by way of memory that a GPU fetches from by itself.

    torch keeps such memory for the next batch, while a stack that is made first takes its pages from the system anew.
    """
    import torch

    if not device.startswith("cuda"):
        return torch.stack(list(rows)).to(device)
    pinned = torch.empty(len(rows), *rows[0].shape, dtype=rows[0].dtype, pin_memory=True)
    return torch.stack(list(rows), out=pinned).to(device, non_blocking=True)


def memory_gb(device: str) -> float:
    """GB that this process takes: the most so far on a GPU, at this moment on a CPU (0 where nobody says)."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e9
