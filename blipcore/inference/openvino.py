"""The image encoder through OpenVINO, compiled for the bf16 or int8 units of this CPU.

The graph is built from OpenVINO's operations, without tracing, and compiled once per process.
"""

import functools
import sys
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from blipcore.model.vit import Attention, Block, Mlp, VisionTransformer, normalise_pixels

# Images per call; more are no faster and take memory.
CHUNK = 4
# Numbers of a token that share a scale in int8. Smaller groups round less; those of 128 and below cost time.
INT8_GROUP_SIZE = 256

# A node of the graph or an output of one; OpenVINO's types would need the package.
Node = Any


def import_openvino() -> ModuleType:
    """Import OpenVINO without its telemetry. Raises ImportError with the install command if it is missing."""
    # OpenVINO reports every import over the network through this module, which is optional.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None blocks an import
    try:
        import openvino
    except ImportError:
        raise ImportError("The backend openvino needs OpenVINO: pip install 'capfilt[openvino]'") from None
    return openvino


@functools.cache
def openvino_core() -> Any:
    """Return OpenVINO's runtime, one per process and never freed.

    Its CPU plugin sets the signal stack of the thread that loads it and frees this memory with the last reference. If
    another thread's garbage collection frees it, the first thread keeps a dangling signal stack: the next signal
    (Ctrl-C, the end of a child) kills the process silently.
    """
    return import_openvino().Core()


class OpenVinoEncoder(nn.Module):
    """Map pixels (B, 3, S, S) to image tokens (B, N, W) in `dtype`, with a copy of the weights of `encoder`.

    With `int8` the layers multiply 8-bit integers: weights with a scale per output, tokens with scales per token, so
    that no image affects another. Other operations run in `dtype`. The first call takes torch's number of threads.
    """

    def __init__(self, encoder: VisionTransformer, dtype: torch.dtype = torch.bfloat16, *, int8: bool = False) -> None:
        super().__init__()
        self.config, self.dtype, self.int8 = encoder.config, dtype, int8
        self._graph = GraphBuilder(import_openvino(), encoder, int8).build()
        self._compiled: Any = None

    def forward(self, pixels: Tensor) -> Tensor:
        if self._compiled is None:
            options = {
                "INFERENCE_PRECISION_HINT": "bf16" if self.dtype == torch.bfloat16 else "f32",
                "DYNAMIC_QUANTIZATION_GROUP_SIZE": INT8_GROUP_SIZE if self.int8 else 0,
                "PERFORMANCE_HINT": "LATENCY",
                "NUM_STREAMS": 1,
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                # Pinning would put all worker processes on the first cores.
                "ENABLE_CPU_PINNING": False,
            }
            self._compiled = openvino_core().compile_model(self._graph, "CPU", options)
            self._graph = None
        chunks = [self._compiled([normalise_pixels(chunk).float().numpy()])[0] for chunk in pixels.split(CHUNK)]
        return torch.cat([torch.from_numpy(tokens).to(self.dtype) for tokens in chunks])


class GraphBuilder:
    """Builds an image encoder from OpenVINO operations; the methods are named after `vit`."""

    def __init__(self, openvino: ModuleType, encoder: VisionTransformer, int8: bool) -> None:
        self.openvino, self.op, self.encoder, self.int8 = openvino, openvino.opset13, encoder, int8

    def build(self) -> Any:
        config, op = self.encoder.config, self.op
        side, width = config.image_size, config.width
        pixels = op.parameter([-1, 3, side, side], np.float32, name="pixels")
        patches, positions = self.encoder.patch_embed.proj, self.encoder.pos_embed
        stride = [config.patch_size] * 2
        x = op.convolution(pixels, self.constant(patches.weight), stride, [0, 0], [0, 0], [1, 1])
        assert patches.bias is not None
        x = op.add(x, self.constant(patches.bias.view(1, -1, 1, 1)))
        x = op.transpose(op.reshape(x, [0, 0, -1], True), [0, 2, 1])  # (B, N-1, W)
        x = op.add(x, self.constant(positions[:, 1:]))
        batch = op.gather(op.shape_of(pixels), op.constant([0]), op.constant(0))
        shape = op.concat([batch, op.constant([1, width])], 0)
        class_token = op.broadcast(self.constant(self.encoder.cls_token + positions[:, :1]), shape)
        x = op.concat([class_token, x], 1)
        if isinstance(self.encoder.norm_pre, nn.LayerNorm):
            x = self.norm(x, self.encoder.norm_pre)
        for block in self.encoder.blocks:
            assert isinstance(block, Block)
            x = self.block(x, block)
        return self.openvino.Model([self.norm(x, self.encoder.norm)], [pixels], "image_encoder")

    def block(self, x: Node, block: Block) -> Node:
        x = self.op.add(x, self.attention(self.norm(x, block.norm1), block.attn))
        return self.op.add(x, self.mlp(self.norm(x, block.norm2), block.mlp))

    def attention(self, x: Node, attention: Attention) -> Node:
        op, heads, width = self.op, attention.heads, self.encoder.config.width
        weights, biases = attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3)
        parts = [self.product(x, weight, bias) for weight, bias in zip(weights, biases, strict=True)]
        q, k, v = (op.transpose(op.reshape(part, [0, 0, heads, width // heads], True), [0, 2, 1, 3]) for part in parts)
        context = op.transpose(op.scaled_dot_product_attention(q, k, v), [0, 2, 1, 3])
        return self.linear(op.reshape(context, [0, 0, width], True), attention.proj)

    def mlp(self, x: Node, mlp: Mlp) -> Node:
        x = self.linear(x, mlp.fc1)
        if mlp.quick:
            x = self.op.multiply(x, self.op.sigmoid(self.op.multiply(x, self.constant(torch.tensor(1.702)))))
        else:
            x = self.op.gelu(x, "erf")
        return self.linear(x, mlp.fc2)

    def linear(self, x: Node, layer: nn.Linear) -> Node:
        return self.product(x, layer.weight, layer.bias)

    def product(self, x: Node, weight: Tensor, bias: Tensor) -> Node:
        weights = self.quantised(weight) if self.int8 else self.constant(weight)
        return self.op.add(self.op.matmul(x, weights, False, True), self.constant(bias.view(1, 1, -1)))

    def quantised(self, weight: Tensor) -> Node:
        """Return weights (O, I) as 8-bit integers times one scale per row."""
        weight = weight.detach().float()
        scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
        integers = self.op.constant((weight / scale).round().to(torch.int8).numpy())
        return self.op.multiply(self.op.convert(integers, "f32"), self.constant(scale))

    def norm(self, x: Node, layer: nn.LayerNorm) -> Node:
        normalised = self.op.mvn(x, [-1], True, layer.eps, "inside_sqrt")
        return self.op.add(self.op.multiply(normalised, self.constant(layer.weight)), self.constant(layer.bias))

    def constant(self, tensor: Tensor) -> Node:
        return self.op.constant(tensor.detach().float().contiguous().numpy())
