"""Device settings: the device, number format and backend for "auto", and copies to a device.

torch is imported inside the functions, because commands read their settings without it.
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


def count_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pick_device(device: str = "auto") -> str:
    """Return `device`; for "auto", "cuda" if a GPU is available, else "cpu".

    Raises ValueError for a missing GPU and for a string that names no device.
    """
    import torch

    available = torch.cuda.is_available()
    if device == "auto":
        return "cuda" if available else "cpu"
    try:
        index = torch.device(device).index or 0
    except RuntimeError:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, not '{device}'.") from None
    if device.startswith("cuda") and not available:
        raise ValueError(f"device is {device!r}, but no CUDA device was found: use 'cpu' or 'auto'.")
    if not device.startswith(("cpu", "cuda")):
        try:
            torch.empty(1, device=device).item()
        except (RuntimeError, AssertionError, NotImplementedError, ValueError):
            raise ValueError(
                f"device is {device!r}, but this torch or machine has none: use 'cpu' or 'auto'."
            ) from None
    if device.startswith("cuda") and index >= torch.cuda.device_count():
        raise ValueError(f"No device {device}: the last CUDA device is cuda:{torch.cuda.device_count() - 1}.")
    return device


def supports_bf16(device: str | torch.device) -> bool:
    """Return True if bf16 matrix products run in hardware: CPUs with AVX512-BF16 or AMX, GPUs from Ampere on."""
    import torch

    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # Private functions, which some versions of torch may lack.
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def resolve_dtype(device: str | torch.device, dtype: Dtype = "auto") -> Literal["bf16", "fp32"]:
    """Return `dtype`; for "auto", bf16 if `device` supports it, else fp32."""
    if dtype not in ("auto", "bf16", "fp32"):
        raise ValueError(f"dtype must be 'auto', 'bf16' or 'fp32', not {dtype!r}.")
    if dtype == "auto":
        return "bf16" if supports_bf16(device) else "fp32"
    return dtype


def resolve_backend(
    device: str, dtype: Dtype = "auto", backend: Backend = "auto", previous: Backend | None = None
) -> Backend:
    """Return `backend`; for "auto", `previous`, else openvino for bf16 on a CPU if installed, else torch.

    `previous` is the backend of unfinished work. openvino-int8, for any CPU, is never chosen automatically. Raises
    ValueError for OpenVINO on a GPU and for openvino in fp32, which is for parity with the official code.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"backend must be one of {', '.join(get_args(Backend))}, not {backend!r}.")
    on_cpu = device.partition(":")[0] == "cpu"
    if backend == "openvino-int8" and not on_cpu:
        raise ValueError("backend openvino-int8 needs --device cpu; use torch or compile here.")
    bf16_on_cpu = on_cpu and resolve_dtype(device, dtype) == "bf16"
    if backend == "openvino" and not bf16_on_cpu:
        raise ValueError("backend openvino needs --device cpu and --dtype bf16; use torch or compile here.")
    if backend == "auto" and previous is not None:
        return previous
    if backend == "auto":
        return "openvino" if bf16_on_cpu and importlib.util.find_spec("openvino") else "torch"
    return backend


def autocast(device: str | torch.device, dtype: Dtype = "auto") -> AbstractContextManager:
    """Return a context in which matrix products on `device` run in `dtype`."""
    import torch

    enabled = resolve_dtype(device, dtype) == "bf16"
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=enabled)


def to_device(batch: Tensor, device: str) -> Tensor:
    """Copy a batch to `device`; to a GPU through pinned memory, so that the host does not wait."""
    return batch.pin_memory().to(device, non_blocking=True) if device.startswith("cuda") else batch.to(device)


def stack_on(rows: Sequence[Tensor], device: str) -> Tensor:
    """Stack tensors of one shape on `device`; on a GPU through pinned memory.

    torch reuses pinned memory for the next batch. Pinning the stacked tensors would allocate twice.
    """
    import torch

    if not device.startswith("cuda"):
        return torch.stack(list(rows)).to(device)
    pinned = torch.empty(len(rows), *rows[0].shape, dtype=rows[0].dtype, pin_memory=True)
    return torch.stack(list(rows), out=pinned).to(device, non_blocking=True)


def memory_gb(device: str) -> float:
    """Return the memory of this process in GB: the peak on a GPU, the current one on a CPU (0 if unknown)."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e9
