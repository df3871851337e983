"""A simulated GPU for machines without one: tensors that report "cuda:0" and keep their numbers on the CPU.

Code written for a GPU runs to its end on them. Tensors of two devices in one operation raise, and every place where the
host would wait for the device is recorded. Results of CUDA's own kernels, speed and memory need a real GPU
(`pytest -m gpu`).
"""

import contextlib
import ctypes
import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
GPU, CPU = torch.device("cuda:0"), torch.device("cpu")
OUR_CODE = re.compile(r"(?<!tests)/(blipcore|capfilt)/")

# Operations that make the host wait for a number, to continue or to know the size of the result.
WAITING_OPS = {
    aten._local_scalar_dense.default,
    aten._unique2.default,
    aten.bincount.default,
    aten.equal.default,
    aten.masked_select.default,
    aten.multinomial.default,  # validates its input
    aten.nonzero.default,
    aten.repeat_interleave.Tensor,
    aten.unique_dim.default,
}
INDEXING_OPS = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
MOVING_OPS = {aten.to.device, aten.to.dtype, aten.to.dtype_layout, aten.to.other}


class GpuTensor(Tensor):
    """A tensor that reports the GPU as its device; `values` has its numbers."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> "GpuTensor":
        # A CPU build of torch has no CUDA tensors: the base is a tensor without data, with CUDA's dispatch keys.
        shell = torch.empty_strided(values.shape, values.stride(), dtype=values.dtype, device="meta")
        return Tensor._make_subclass(cls, shell, False, dispatch_device=True, device_for_backend_keys=GPU)

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"GpuTensor({self.values})"

    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_cpu = is_meta = property(lambda self: False)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.prim.device.default:
            return _base_device()
        raise RuntimeError(f"{func} outside of `pretend_gpu`")


def _base_device() -> torch.device:
    """Return the device that torch's own code sees: the GPU, but "meta" where autograd would ask CUDA for streams."""
    return torch.device("meta") if torch.is_grad_enabled() or _DeviceNumbers.backward else GPU


def _map_tensors(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """Apply `change` to every tensor in an argument or a result of an operation."""
    if isinstance(value, Tensor):
        return change(value)
    return type(value)([_map_tensors(item, change) for item in value]) if isinstance(value, list | tuple) else value


def _to_cpu(tensor: Tensor) -> Tensor:
    return tensor.values if isinstance(tensor, GpuTensor) else tensor


class _DeviceNumbers(TorchFunctionMode):
    """Turns "cuda" into "cuda:0", as CUDA does, and knows if a backward pass is running."""

    backward = False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        def add_number(value: Any) -> Any:
            is_cuda = isinstance(value, str | torch.device) and str(value) == "cuda"
            return GPU if is_cuda else value

        args, kwargs = [add_number(value) for value in args], dict(kwargs or {})
        kwargs = {name: add_number(value) for name, value in kwargs.items()}
        if func is Tensor.tolist and isinstance(args[0], GpuTensor):
            return args[0].cpu().tolist()
        if func not in (Tensor.backward, torch.autograd.backward, torch.autograd.grad):
            return func(*args, **kwargs)
        previous, _DeviceNumbers.backward = _DeviceNumbers.backward, True
        try:
            return func(*args, **kwargs)
        finally:
            _DeviceNumbers.backward = previous


class _Computation(TorchDispatchMode):
    """Runs every operation on the CPU values, if CUDA would accept it."""

    # Otherwise torch looks for CUDA before it creates a tensor.
    _mode_key = torch._C._TorchDispatchModeKey.FAKE

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.prim.device.default:
            return _base_device()
        if func is aten._fused_sdp_choice.default:
            return 0  # unfused attention: the fused kernels need a real device
        if func in MOVING_OPS:
            # In inference mode they arrive undecomposed; they are a copy or nothing.
            with self:
                return func.decompose(*args, **(kwargs or {}))
        # In inference mode no tensor can be a view of another.
        with torch.inference_mode(False), torch.no_grad():
            return self.compute(func, args, dict(kwargs or {}))

    def compute(self, func, args, kwargs):
        tensors: list[Tensor] = []
        _map_tensors((args, tuple(kwargs.values())), tensors.append)
        gpu_tensors = {id(tensor.values): tensor for tensor in tensors if isinstance(tensor, GpuTensor)}
        device, pinned = kwargs.get("device"), kwargs.pop("pin_memory", False)
        to_gpu = bool(gpu_tensors) if device is None else device.type != "cpu"
        if device is not None:
            kwargs["device"] = CPU
        if gpu_tensors or to_gpu:
            self.check(func, args, kwargs, [tensor for tensor in tensors if not isinstance(tensor, GpuTensor)], to_gpu)
        out = func(
            *_map_tensors(args, _to_cpu), **{name: _map_tensors(value, _to_cpu) for name, value in kwargs.items()}
        )
        if pinned:
            out.pretend_pinned = True
        # The second condition is a copy into a CPU tensor.
        if not to_gpu or any(out is tensor for tensor in tensors):
            return out
        return _map_tensors(
            out, lambda tensor: gpu_tensors[id(tensor)] if id(tensor) in gpu_tensors else GpuTensor(tensor)
        )

    def check(self, func, args, kwargs, cpu_tensors: list[Tensor], to_gpu: bool) -> None:
        """Record a wait of the host, if any; raise RuntimeError for tensors of two devices."""
        if func in (aten._to_copy.default, aten.copy_.default):
            source = args[0] if func is aten._to_copy.default else args[1]
            target = to_gpu if func is aten._to_copy.default else isinstance(args[0], GpuTensor)
            asynchronous = (kwargs.get("non_blocking") or True in args[2:]) and hasattr(source, "pretend_pinned")
            if isinstance(source, GpuTensor) != target and not asynchronous:
                self.record_wait(func)
            return
        if func in INDEXING_OPS:
            indices = [index for index in args[1] if index is not None]
            if any(index.dtype == torch.bool or not isinstance(index, GpuTensor) for index in indices):
                self.record_wait(func)
            cpu_tensors = [tensor for tensor in cpu_tensors if not any(tensor is index for index in indices)]
        if func in WAITING_OPS:
            self.record_wait(func)
        if any(tensor.ndim for tensor in cpu_tensors):
            raise RuntimeError(f"{func}: tensors on cuda:0 and on the CPU, {[tuple(t.shape) for t in cpu_tensors]}")

    def record_wait(self, func) -> None:
        """Add "file:line function < caller < ...: operation" with the innermost frames of the packages."""
        frames = [frame for frame in traceback.extract_stack() if OUR_CODE.search(frame.filename)][::-1]
        if not frames:
            self.waits.append(f"elsewhere: {func}")
            return
        calls = " < ".join(frame.name for frame in frames)
        self.waits.append(f"{Path(frames[0].filename).name}:{frames[0].lineno} {calls}: {func}")


@contextlib.contextmanager
def _cuda_device_guard() -> Iterator[None]:
    """Put the entry of "meta", which does nothing, in CUDA's place in torch's table of devices."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * 21).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    # The indices are c10's DeviceType numbers of CUDA and Meta.
    original, guards[1] = guards[1], guards[14]
    try:
        yield
    finally:
        guards[1] = original


@contextlib.contextmanager
def pretend_gpu() -> Iterator[list[str]]:
    """Simulate one GPU, "cuda:0"; yield the list of waits (see `_Computation.record_wait`)."""

    def pin(tensor: Tensor) -> Tensor:
        pinned = tensor.clone()
        pinned.pretend_pinned = True
        return pinned

    fakes = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_capability": lambda device=None: (9, 0),
        "is_bf16_supported": lambda *_: True,
        "max_memory_allocated": lambda device=None: 0,
        "get_rng_state": lambda device="cuda": torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda state, device="cuda": None,
        "current_stream": lambda device=None: mock.Mock(),
        "stream": lambda stream: contextlib.nullcontext(),
        "empty_cache": lambda: None,
        "amp.common.amp_definitely_not_available": lambda: False,
    }
    overwrite, lifts = torch.__future__.get_overwrite_module_params_on_conversion(), torch._C._only_lift_cpu_tensors()
    with contextlib.ExitStack() as stack:
        for name, fake in fakes.items():
            stack.enter_context(mock.patch(f"torch.cuda.{name}", fake))
        stack.enter_context(mock.patch("torch.Tensor.pin_memory", pin))
        stack.enter_context(_cuda_device_guard())
        stack.callback(torch._C._set_only_lift_cpu_tensors, lifts)
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") starts on the CPU
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrite)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.enter_context(_DeviceNumbers())
        yield stack.enter_context(_Computation()).waits
