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

from blipcore.inference.merge_tokens import merges_per_block
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

    With `merge_tokens`, tokens are merged as in `MergingEncoder`, which also returns their sizes (B, N).
    With `int8` the layers multiply 8-bit integers: weights with a scale per output, tokens with scales per token, so
    that no image affects another. Other operations run in `dtype`. The first call takes torch's number of threads.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        dtype: torch.dtype = torch.bfloat16,
        *,
        int8: bool = False,
        merge_tokens: int = 0,
    ) -> None:
        super().__init__()
        self.config, self.dtype, self.int8, self.merge_tokens = encoder.config, dtype, int8, merge_tokens
        self._graph = GraphBuilder(import_openvino(), encoder, int8, merge_tokens).build()
        self._compiled: Any = None

    def forward(self, pixels: Tensor) -> Tensor | tuple[Tensor, Tensor]:
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
        chunks = [self._compiled([normalise_pixels(chunk).float().numpy()]) for chunk in pixels.split(CHUNK)]
        tokens = torch.cat([torch.from_numpy(outputs[0]).to(self.dtype) for outputs in chunks])
        if not self.merge_tokens:
            return tokens
        return tokens, torch.cat([torch.from_numpy(outputs[1].round()) for outputs in chunks])


class GraphBuilder:
    """Builds an image encoder from OpenVINO operations; the methods are named after `vit`."""

    def __init__(self, openvino: ModuleType, encoder: VisionTransformer, int8: bool, merge_tokens: int) -> None:
        self.openvino, self.op, self.encoder, self.int8 = openvino, openvino.opset13, encoder, int8
        self.merges = merges_per_block(encoder, merge_tokens)

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
        sizes, tokens = None, positions.shape[1]
        if any(self.merges):
            sizes = op.broadcast(self.constant(torch.ones(1, 1, 1)), op.concat([batch, op.constant([tokens, 1])], 0))
        for block, merges in zip(self.encoder.blocks, self.merges, strict=True):
            assert isinstance(block, Block)
            x, sizes = self.block(x, block, sizes, tokens, merges)
            tokens -= merges
        outputs = [self.norm(x, self.encoder.norm)] + ([op.squeeze(sizes, [2])] if sizes is not None else [])
        return self.openvino.Model(outputs, [pixels], "image_encoder")

    def block(self, x: Node, block: Block, sizes: Node | None, tokens: int, merges: int) -> tuple[Node, Node | None]:
        attention, keys = self.attention(self.norm(x, block.norm1), block.attn, sizes)
        x = self.op.add(x, attention)
        if merges:
            x, sizes = self.merge(x, keys, sizes, tokens, merges)
        return self.op.add(x, self.mlp(self.norm(x, block.norm2), block.mlp)), sizes

    def merge(self, x: Node, keys: Node, sizes: Node, tokens: int, merges: int) -> tuple[Node, Node]:
        """Merge tokens as `merge_tokens` does; `sizes` is (B, N, 1)."""
        op, i64 = self.op, np.int64
        even, odd = op.constant(np.arange(0, tokens, 2)), op.constant(np.arange(1, tokens, 2))
        axis = op.constant(1, i64)
        keys = op.normalize_l2(op.reduce_mean(keys, [1], False), [2], 1e-12, "max")
        similarity = op.matmul(op.gather(keys, even, axis), op.gather(keys, odd, axis), False, True)
        evens, odds = (tokens + 1) // 2, tokens // 2
        first = torch.zeros(1, evens, 1)
        first[:, 0] = -4.0  # as in `merge_tokens`, the class token is the last to merge
        best = op.topk(
            op.add(similarity, self.constant(first)), op.constant(1, i64), 2, "max", "value", "i64", stable=True
        )
        values, partner = op.squeeze(best.output(0), [2]), op.squeeze(best.output(1), [2])
        order = op.topk(values, op.constant(evens, i64), 1, "max", "value", "i64", stable=True).output(1)
        merged = op.slice(order, [0], [merges], [1], [1])
        kept = op.slice(order, [-1], [merges - evens - 1], [-1], [1])
        pairs = op.one_hot(
            op.gather_elements(partner, merged, 1), op.constant(odds, i64), self.scalar(1), self.scalar(0), -1
        )
        sums = op.concat([op.multiply(x, sizes), sizes], 2)
        even_sums, odd_sums = op.gather(sums, even, axis), op.gather(sums, odd, axis)
        added = op.matmul(pairs, self.rows(even_sums, merged), True, False)
        sums = op.concat([self.rows(even_sums, kept), op.add(odd_sums, added)], 1)
        x, sizes = op.variadic_split(sums, 2, [self.encoder.config.width, 1]).outputs()
        return op.divide(x, sizes), sizes

    def rows(self, x: Node, index: Node) -> Node:
        """Return the rows of `x` (B, N, W) at `index` (B, M), which differ per image."""
        return self.op.gather(x, index, self.op.constant(1, np.int64), 1)

    def scalar(self, value: float) -> Node:
        return self.op.constant(value, np.float32)

    def attention(self, x: Node, attention: Attention, sizes: Node | None) -> tuple[Node, Node]:
        """Return the attention's output and its keys (B, H, N, d)."""
        op, heads, width = self.op, attention.heads, self.encoder.config.width
        weights, biases = attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3)
        parts = [self.product(x, weight, bias) for weight, bias in zip(weights, biases, strict=True)]
        q, k, v = (op.transpose(op.reshape(part, [0, 0, heads, width // heads], True), [0, 2, 1, 3]) for part in parts)
        bias = [op.unsqueeze(op.transpose(op.log(sizes), [0, 2, 1]), [1])] if sizes is not None else []
        context = op.transpose(op.scaled_dot_product_attention(q, k, v, *bias), [0, 2, 1, 3])
        return self.linear(op.reshape(context, [0, 0, width], True), attention.proj), k

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
