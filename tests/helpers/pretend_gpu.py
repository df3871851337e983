"""A GPU that is none, for machines without one: tensors that say they are on "cuda:0" and have their numbers near by.

Code written for a GPU runs to its end on them and gives numbers, and what it may not do is told: tensors of two devices
in one operation raise, and every place where the host would wait for the device is written down. What CUDA's own
kernels compute, how fast and in how much memory, only a GPU can show (`pytest -m gpu`).
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
OURS = re.compile(r"(?<!tests)/(blipcore|capfilt)/")

# The host needs a number from the device, to go on or to know the size of the result.
WAITING = {
    aten._local_scalar_dense.default,
    aten._unique2.default,
    aten.bincount.default,
    aten.equal.default,
    aten.masked_select.default,
    aten.multinomial.default,  # checks its input
    aten.nonzero.default,
    aten.repeat_interleave.Tensor,
    aten.unique_dim.default,
}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
MOVES = {aten.to.device, aten.to.dtype, aten.to.dtype_layout, aten.to.other}


class GpuTensor(Tensor):
    """Says it is on the GPU; `near` has the numbers."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> "GpuTensor":
        # A CPU build of torch has nothing for CUDA: beneath is a tensor without data, with the keys of one of CUDA.
        shell = torch.empty_strided(near.shape, near.stride(), dtype=near.dtype, device="meta")
        return Tensor._make_subclass(cls, shell, False, dispatch_device=True, device_for_backend_keys=GPU)

    def __init__(self, near: Tensor) -> None:
        self.near = near

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"GpuTensor({self.near})"

    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_cpu = is_meta = property(lambda self: False)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.prim.device.default:
            return _beneath()
        raise RuntimeError(f"{func} outside of `pretend_gpu`")


def _beneath() -> torch.device:
    """What torch's own code is told: the GPU, for autocast, but not where autograd would ask CUDA for its streams."""
    return torch.device("meta") if torch.is_grad_enabled() or _Numbered.backward else GPU


def _each(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """What `change` makes of the tensors in an argument or a result of an operation."""
    if isinstance(value, Tensor):
        return change(value)
    return type(value)([_each(one, change) for one in value]) if isinstance(value, list | tuple) else value


def _near(tensor: Tensor) -> Tensor:
    return tensor.near if isinstance(tensor, GpuTensor) else tensor


class _Numbered(TorchFunctionMode):
    """Gives "cuda" its number, which CUDA would; knows whether a backward pass runs."""

    backward = False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        def numbered(value: Any) -> Any:
            unnumbered = isinstance(value, str | torch.device) and str(value) == "cuda"
            return GPU if unnumbered else value

        args, kwargs = [numbered(value) for value in args], dict(kwargs or {})
        kwargs = {name: numbered(value) for name, value in kwargs.items()}
        if func is Tensor.tolist and isinstance(args[0], GpuTensor):
            return args[0].cpu().tolist()
        if func not in (Tensor.backward, torch.autograd.backward, torch.autograd.grad):
            return func(*args, **kwargs)
        before, _Numbered.backward = _Numbered.backward, True
        try:
            return func(*args, **kwargs)
        finally:
            _Numbered.backward = before


class _Computes(TorchDispatchMode):
    """Does every operation on the numbers near by, if CUDA would do it."""

    _mode_key = torch._C._TorchDispatchModeKey.FAKE  # or torch would look for CUDA before it makes a tensor

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.prim.device.default:
            return _beneath()
        if func is aten._fused_sdp_choice.default:
            return 0  # attention as single operations; the fused ones ask for a real device
        if func in MOVES:
            with self:  # they come as they are in inference mode, and are a copy or nothing
                return func.decompose(*args, **(kwargs or {}))
        with torch.inference_mode(False), torch.no_grad():  # in inference mode no tensor could be a view of another
            return self.compute(func, args, dict(kwargs or {}))

    def compute(self, func, args, kwargs):
        tensors: list[Tensor] = []
        _each((args, tuple(kwargs.values())), tensors.append)
        far = {id(tensor.near): tensor for tensor in tensors if isinstance(tensor, GpuTensor)}
        device, pinned = kwargs.get("device"), kwargs.pop("pin_memory", False)
        to_gpu = bool(far) if device is None else device.type != "cpu"
        if device is not None:
            kwargs["device"] = CPU
        if far or to_gpu:
            self.check(func, args, kwargs, [tensor for tensor in tensors if not isinstance(tensor, GpuTensor)], to_gpu)
        out = func(*_each(args, _near), **{name: _each(value, _near) for name, value in kwargs.items()})
        if pinned:
            out.pretend_pinned = True
        if not to_gpu or any(out is tensor for tensor in tensors):  # the second: a copy into a tensor of the CPU
            return out
        return _each(out, lambda tensor: far[id(tensor)] if id(tensor) in far else GpuTensor(tensor))

    def check(self, func, args, kwargs, near: list[Tensor], to_gpu: bool) -> None:
        """Write down where the host would wait; RuntimeError where CUDA would meet tensors of two devices."""
        if func in (aten._to_copy.default, aten.copy_.default):
            source = args[0] if func is aten._to_copy.default else args[1]
            target = to_gpu if func is aten._to_copy.default else isinstance(args[0], GpuTensor)
            by_itself = (kwargs.get("non_blocking") or True in args[2:]) and hasattr(source, "pretend_pinned")
            if isinstance(source, GpuTensor) != target and not by_itself:
                self.waited(func)
            return
        if func in INDEXED:
            indices = [index for index in args[1] if index is not None]
            if any(index.dtype == torch.bool or not isinstance(index, GpuTensor) for index in indices):
                self.waited(func)
            near = [tensor for tensor in near if not any(tensor is index for index in indices)]
        if func in WAITING:
            self.waited(func)
        if any(tensor.ndim for tensor in near):
            raise RuntimeError(f"{func}: tensors on cuda:0 and on the CPU, {[tuple(t.shape) for t in near]}")

    def waited(self, func) -> None:
        ours = [frame for frame in traceback.extract_stack() if OURS.search(frame.filename)]
        where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno} {ours[-1].name}" if ours else "elsewhere"
        self.waits.append(f"{where}: {func}")


@contextlib.contextmanager
def _guarded() -> Iterator[None]:
    """CUDA's place in torch's table of devices filled with the entry of "meta", which does nothing."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * 21).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    before, guards[1] = guards[1], guards[14]  # by the numbers of c10's DeviceType: CUDA, Meta
    try:
        yield
    finally:
        guards[1] = before


@contextlib.contextmanager
def pretend_gpu() -> Iterator[list[str]]:
    """Inside, there is one GPU, "cuda:0"; the list tells where the host has waited for it."""

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
        stack.enter_context(_guarded())
        stack.callback(torch._C._set_only_lift_cpu_tensors, lifts)
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") begins on the CPU
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrite)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.enter_context(_Numbered())
        yield stack.enter_context(_Computes()).waits
