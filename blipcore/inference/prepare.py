"""A loaded model made ready to be asked: on its device, its weights in the number format of its matrix products.

Training keeps float32 weights and converts them in every product (`precision.autocast`). Here they are converted once.
The image encoder, nine tenths of the work, may run through a compiler (`Backend`).
"""

import ctypes
import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blipcore.device import Backend, Dtype, resolve_backend, resolve_dtype, supports_bf16
from blipcore.generate.cuda_graphs import Steps
from blipcore.inference.openvino import OpenVinoEncoder
from blipcore.model.blip import Blip

CHUNK = 4  # pictures that a CPU encodes at a time: their activations still fit its caches


def for_inference(model: Blip, device: str, dtype: Dtype = "auto", backend: Backend = "torch") -> Blip:
    """`model` itself, on `device` and in `dtype`, its image encoder through `backend`; no more to be trained."""
    backend = resolve_backend(device, dtype, backend)
    kind = torch.bfloat16 if resolve_dtype(device, dtype) == "bf16" else torch.float32
    encoder, cpu = model.visual_encoder, torch.device(device).type == "cpu"
    if backend.startswith("openvino"):
        model.visual_encoder = OpenVinoEncoder(encoder, kind, int8=backend == "openvino-int8")
    model.to(device, kind).eval().requires_grad_(False)
    if backend == "compile":
        for block in encoder.blocks:
            block.compile()
    elif cpu and kind == torch.bfloat16 and supports_bf16(device) and torch.backends.mkldnn.is_available():
        pack(model)
    if cpu:
        encoder.at_once = CHUNK
    else:
        model.text.steps = Steps()
    return model


class PackedLinear(nn.Module):
    """A linear layer whose bf16 weights lie as oneDNN's products read them, and are not laid out anew at each product.

    torch does so itself only in what its compiler makes; the numbers are the same to the last bit.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach()), layer.bias

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:  # for heat maps; oneDNN's product has no gradient
            return F.linear(x, self.weight.to_dense(), self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def pack(model: nn.Module) -> None:
    """Make the linear layers of a bf16 model `PackedLinear`, but for keys and values, whose weights are read apart."""
    for module in list(model.modules()):
        for name, layer in module.named_children():
            if isinstance(layer, nn.Linear) and name != "kv":
                setattr(module, name, PackedLinear(layer))


def keep_memory() -> None:
    """Have glibc keep freed memory for the next tensor; without glibc nothing changes. For a process of our own alone.

    By default blocks of megabytes go back to the system when freed, and the next ones cost a fault a page.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(-4, 0)  # M_MMAP_MAX: no block of its own for any tensor
            mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: do not give back what is free at the end
