"""Device settings: what "auto" resolves to, impossible settings, and copies to a device."""

import importlib.util
import os

import pytest
import torch

from blipcore import device
from blipcore.device import (
    autocast,
    count_cores,
    memory_gb,
    pick_device,
    resolve_backend,
    resolve_dtype,
    stack_on,
    to_device,
)


@pytest.mark.parametrize(("available", "picked"), [(False, "cpu"), (True, "cuda")])
def test_the_automatic_device_is_a_gpu_if_there_is_one(
    monkeypatch: pytest.MonkeyPatch, available: bool, picked: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device() == picked and pick_device("cpu") == "cpu"
    with pytest.raises(ValueError, match="device must be auto, cpu, cuda or cuda:N, not 'gpu'"):
        pick_device("gpu")
    if not available:
        with pytest.raises(ValueError, match="no CUDA device was found"):
            pick_device("cuda")
        return
    assert pick_device("cuda:1") == "cuda:1"
    with pytest.raises(ValueError, match="No device cuda:2: the last CUDA device is cuda:1"):
        pick_device("cuda:2")


@pytest.mark.parametrize(("supported", "dtype"), [(False, "fp32"), (True, "bf16")])
def test_the_automatic_number_format_is_bf16_where_it_is_fast(
    monkeypatch: pytest.MonkeyPatch, supported: bool, dtype: str
) -> None:
    monkeypatch.setattr(device, "supports_bf16", lambda name: supported)
    assert resolve_dtype("cpu") == dtype
    assert [resolve_dtype("cpu", "bf16"), resolve_dtype("cpu", "fp32")] == ["bf16", "fp32"]
    with pytest.raises(ValueError, match="dtype must be 'auto', 'bf16' or 'fp32', not 'fp16'"):
        resolve_dtype("cpu", "fp16")  # type: ignore[arg-type]  # on purpose


def test_matrix_products_run_in_the_number_format() -> None:
    for dtype, expected in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        with autocast("cpu", dtype):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == expected


@pytest.mark.parametrize("installed", [False, True])
def test_the_automatic_backend_is_openvino_for_bf16_on_a_cpu_if_installed(
    monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    assert resolve_backend("cpu", "bf16") == ("openvino" if installed else "torch")
    assert resolve_backend("cpu", "fp32") == resolve_backend("cuda", "bf16") == "torch"
    assert resolve_backend("cpu", "bf16", previous="torch") == "torch"
    assert resolve_backend("cpu", "bf16", "compile", previous="torch") == "compile"


def test_impossible_backends_are_refused() -> None:
    with pytest.raises(ValueError, match="backend openvino needs --device cpu and --dtype bf16"):
        resolve_backend("cpu", "fp32", "openvino")
    assert resolve_backend("cpu", "fp32", "openvino-int8") == "openvino-int8"
    with pytest.raises(ValueError, match="backend openvino-int8 needs --device cpu"):
        resolve_backend("cuda:0", "bf16", "openvino-int8")
    with pytest.raises(ValueError, match="backend must be one of auto, "):
        resolve_backend("cpu", "bf16", "onnx")  # type: ignore[arg-type]  # on purpose


def test_tensors_of_one_shape_are_stacked_on_a_device() -> None:
    rows = [torch.full((2, 3), float(number)) for number in range(4)]
    stacked = stack_on(rows, "cpu")
    assert torch.equal(stacked, torch.stack(rows)) and torch.equal(to_device(stacked, "cpu"), stacked)


def test_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3, 5}, raising=False)
    assert count_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert count_cores() == 1


def test_memory_is_that_of_this_process_in_gigabytes() -> None:
    assert 0.01 < memory_gb("cpu") < 1000
