"""The image encoder on a CPU through OpenVINO: the same layers, compiled for this processor's bf16 or int8 units.

In: a `VisionTransformer`. Out: a module that maps the same pixels to the same image tokens. The graph is written with
OpenVINO's own operations, so nothing is traced or exported, and is compiled once a process.
"""

import functools
import sys
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from blipcore.model.vit import Block, VisionTransformer, normalise_pixels

CHUNK = 4  # pictures a call: more are no faster, and their activations take memory
GROUP = 256  # numbers of a token that share a scale in int8; fewer round less, and cost more from 128 down


def import_openvino() -> ModuleType:
    """The package; ImportError says what to install."""
    # It would report every import over the network through this one, and does without where it is not there.
    sys.modules.setdefault("openvino_telemetry", None)
    try:
        import openvino
    except ImportError:
        raise ImportError("the backend openvino needs OpenVINO: pip install 'capfilt[openvino]'") from None
    return openvino


@functools.cache
def openvino_core():
    """OpenVINO's runtime, one for the process and never given up.

    Its CPU plugin sets the signal stack of the thread that loads it and takes that memory back when the last user of it
    goes. Where the garbage collector ends it on another thread, the first one is left with a stack that is not there,
    and the next signal (Ctrl-C, a child's end) ends the process without a word.
    """
    return import_openvino().Core()


class OpenVinoEncoder(nn.Module):
    """(B, 3, S, S) pixels -> (B, N, W) image tokens in `dtype`, by the weights that `encoder` has now.

    With `int8` the layers' products are of 8-bit numbers: weights with a scale for each output, tokens with scales that
    are found as they come, so that no picture changes another's. All else is computed in `dtype`. The threads are those
    that torch has for itself when the first picture comes.
    """

    def __init__(self, encoder: VisionTransformer, dtype: torch.dtype = torch.bfloat16, *, int8: bool = False) -> None:
        super().__init__()
        self.config, self.dtype, self.int8 = encoder.config, dtype, int8
        self._graph = _Graph(import_openvino(), encoder, int8).model()
        self._compiled = None

    def forward(self, pixels: Tensor) -> Tensor:
        if self._compiled is None:
            options = {
                "INFERENCE_PRECISION_HINT": "bf16" if self.dtype == torch.bfloat16 else "f32",
                "DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP if self.int8 else 0,
                "PERFORMANCE_HINT": "LATENCY",
                "NUM_STREAMS": 1,
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "ENABLE_CPU_PINNING": False,  # workers beside each other would all be pinned to the first cores
            }
            self._compiled = openvino_core().compile_model(self._graph, "CPU", options)
            self._graph = None
        some = [self._compiled([normalise_pixels(part).float().numpy()])[0] for part in pixels.split(CHUNK)]
        return torch.cat([torch.from_numpy(tokens).to(self.dtype) for tokens in some])


class _Graph:
    """Writes the encoder's layers down as OpenVINO operations; method names follow `vit`."""

    def __init__(self, ov: ModuleType, encoder: VisionTransformer, int8: bool) -> None:
        self.ov, self.op, self.encoder, self.int8 = ov, ov.opset13, encoder, int8

    def model(self):
        config, op = self.encoder.config, self.op
        side, width = config.image_size, config.width
        pixels = op.parameter([-1, 3, side, side], np.float32, name="pixels")
        patches, table = self.encoder.patch_embed.proj, self.encoder.pos_embed
        stride = [config.patch_size] * 2
        x = op.convolution(pixels, self.constant(patches.weight), stride, [0, 0], [0, 0], [1, 1])
        x = op.add(x, self.constant(patches.bias.view(1, -1, 1, 1)))
        x = op.transpose(op.reshape(x, [0, 0, -1], True), [0, 2, 1])  # (B, N-1, W)
        x = op.add(x, self.constant(table[:, 1:]))
        batch = op.gather(op.shape_of(pixels), op.constant([0]), op.constant(0))
        shape = op.concat([batch, op.constant([1, width])], 0)
        first = op.broadcast(self.constant(self.encoder.cls_token + table[:, :1]), shape)
        x = op.concat([first, x], 1)
        if config.pre_norm:
            x = self.norm(x, self.encoder.norm_pre)
        for block in self.encoder.blocks:
            x = self.block(x, block)
        return self.ov.Model([self.norm(x, self.encoder.norm)], [pixels], "image_encoder")

    def block(self, x, block: Block):
        op, heads, width = self.op, block.attn.heads, self.encoder.config.width
        y = self.norm(x, block.norm1)
        weights, biases = block.attn.qkv.weight.chunk(3), block.attn.qkv.bias.chunk(3)
        parts = [self.product(y, weight, bias) for weight, bias in zip(weights, biases, strict=True)]
        q, k, v = (op.transpose(op.reshape(part, [0, 0, heads, width // heads], True), [0, 2, 1, 3]) for part in parts)
        attended = op.transpose(op.scaled_dot_product_attention(q, k, v), [0, 2, 1, 3])
        x = op.add(x, self.linear(op.reshape(attended, [0, 0, width], True), block.attn.proj))
        y = self.linear(self.norm(x, block.norm2), block.mlp.fc1)
        if block.mlp.quick:
            y = op.multiply(y, op.sigmoid(op.multiply(y, self.constant(torch.tensor(1.702)))))
        else:
            y = op.gelu(y, "erf")
        return op.add(x, self.linear(y, block.mlp.fc2))

    def linear(self, x, layer: nn.Linear):
        return self.product(x, layer.weight, layer.bias)

    def product(self, x, weight: Tensor, bias: Tensor):
        weights = self.by_rows(weight) if self.int8 else self.constant(weight)
        return self.op.add(self.op.matmul(x, weights, False, True), self.constant(bias.view(1, 1, -1)))

    def by_rows(self, weight: Tensor):
        """Weights (O, I) as 8-bit integers times a scale for each row."""
        weight = weight.detach().float()
        scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
        steps = self.op.constant((weight / scale).round().to(torch.int8).numpy())
        return self.op.multiply(self.op.convert(steps, "f32"), self.constant(scale))

    def norm(self, x, layer: nn.LayerNorm):
        y = self.op.mvn(x, [-1], True, layer.eps, "inside_sqrt")
        return self.op.add(self.op.multiply(y, self.constant(layer.weight)), self.constant(layer.bias))

    def constant(self, tensor: Tensor):
        return self.op.constant(tensor.detach().float().contiguous().numpy())
