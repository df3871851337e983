"""Prepares a model for inference: on its device, in its number format, its image encoder through a backend.

Training converts float32 weights in every product (`device.autocast`); here they are converted once. The image
encoder, nine tenths of the time, may run through a compiler (`Backend`).
"""

import ctypes
import sys
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blipcore.device import Backend, Dtype, resolve_backend, resolve_dtype, supports_bf16
from blipcore.inference.merge_tokens import MergingEncoder
from blipcore.inference.openvino import OpenVinoEncoder
from blipcore.model.albef import Albef
from blipcore.model.blip import Blip

M = TypeVar("M", Blip, Albef)
# Images per pass on a CPU: the activations of 4 images fit its caches.
CPU_CHUNK = 4


def prepare_for_inference(
    model: M, device: str, dtype: Dtype = "auto", backend: Backend = "torch", merge_tokens: int = 0
) -> M:
    """Move `model` to `device` in `dtype`, its image encoder through `backend`, and return it.

    With `merge_tokens`, each block of the image encoder merges this many tokens (see `merge_tokens`), and images are
    encoded by `encode_merged`. Changes the model in place; it cannot be trained afterwards.
    """
    backend = resolve_backend(device, dtype, backend)
    number_format = torch.bfloat16 if resolve_dtype(device, dtype) == "bf16" else torch.float32
    encoder, on_cpu = model.visual_encoder, torch.device(device).type == "cpu"
    if backend.startswith("openvino"):
        int8 = backend == "openvino-int8"
        openvino_encoder = OpenVinoEncoder(encoder, number_format, int8=int8, merge_tokens=merge_tokens)
        model.register_module("visual_encoder", openvino_encoder)
    elif on_cpu:
        encoder.chunk_size = CPU_CHUNK
    blocks = encoder.blocks
    if merge_tokens and not backend.startswith("openvino"):
        merging_encoder = MergingEncoder(encoder, merge_tokens)
        model.register_module("visual_encoder", merging_encoder)
        blocks = merging_encoder.blocks
    model.to(device, number_format).eval().requires_grad_(False)
    if backend == "compile":
        for block in blocks:
            block.compile()
    elif on_cpu and number_format == torch.bfloat16 and supports_bf16(device) and torch.backends.mkldnn.is_available():
        pack_linear_layers(model)
    return model


class PackedLinear(nn.Module):
    """A linear layer with bf16 weights in oneDNN's layout, which saves a reordering in every product.

    torch itself packs weights only in compiled code. Results are bit-identical.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach()), layer.bias

    def forward(self, x: Tensor) -> Tensor:
        # For heat maps: oneDNN's product has no gradient.
        if torch.is_grad_enabled() and x.requires_grad:
            return F.linear(x, self.weight.to_dense(), self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def pack_linear_layers(model: nn.Module) -> None:
    """Replace the linear layers of a bf16 model by `PackedLinear`, except `kv`, whose weights are read directly."""
    for module in list(model.modules()):
        for name, layer in module.named_children():
            if isinstance(layer, nn.Linear) and name != "kv":
                setattr(module, name, PackedLinear(layer))


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next tensor, in the whole process. Without glibc, do nothing.

    By default, freed megabytes go back to the system, and new ones cost a page fault per page.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            # M_MMAP_MAX = 0: take large blocks from the heap too.
            mallopt(-4, 0)
            # M_TRIM_THRESHOLD: never return free memory at the end of the heap.
            mallopt(-1, 2**31 - 1)
