"""The image encoder: a pre-LN Vision Transformer (paper section 3.1; models/vit.py of the official code).

All output tokens, the class token first, go to cross-attention (`image_embeds`). Parameters have timm's names, so
DeiT, AugReg and official files load without renaming. For dimension letters see `attention`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blipcore.model.attention import attend, call_with_recompute, init_std
from blipcore.model.config import VisionConfig

# Mean and standard deviation of the training pixels, from CLIP.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# (pixel / 255 - mean) / std as one multiply-add.
_SCALE = (1.0 / (255.0 * torch.tensor(CLIP_STD))).tolist()
_SHIFT = (-torch.tensor(CLIP_MEAN) / torch.tensor(CLIP_STD)).tolist()


def normalise_pixels(pixels: Tensor) -> Tensor:
    """Return uint8 pixels (..., 3, S, S) as float32, normalised with CLIP's mean and standard deviation.

    Floats are taken to be normalised and returned unchanged.
    """
    if pixels.dtype != torch.uint8:
        return pixels
    # Made on the device: a copy from the host would wait for the GPU.
    channels = [[torch.full((1, 1), value, device=pixels.device) for value in values] for values in (_SHIFT, _SCALE)]
    shift, scale = (torch.stack(values) for values in channels)
    return torch.addcmul(shift, pixels.float(), scale)


class PatchEmbed(nn.Module):
    """Embed non-overlapping patches, row by row: a convolution, on a GPU computed as a matrix product.

    cuDNN's convolution would round float32 to TF32, unlike the rest of the model.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.width, kernel_size=config.patch_size, stride=config.patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return patch vectors (B, N-1, W) of pixels (B, 3, S, S)."""
        weight, bias = self.proj.weight, self.proj.bias
        pixels = normalise_pixels(pixels).to(weight.dtype)
        if pixels.device.type == "cpu":
            return self.proj(pixels).flatten(2).transpose(1, 2)
        side = weight.shape[-1]
        patches = pixels.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # (B, 3, rows, side, columns, side)
        return F.linear(patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2), weight.flatten(1), bias)


class Attention(nn.Module):
    """Multi-head self-attention over image tokens with a fused q/k/v projection."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.join(attend(*self.split(x)))

    def split(self, x: Tensor) -> Tensor:
        """Return queries, keys and values (3, B, H, N, d) of tokens (B, N, W)."""
        B, N, W = x.shape
        return self.qkv(x).view(B, N, 3, self.heads, W // self.heads).permute(2, 0, 3, 1, 4)

    def join(self, context: Tensor) -> Tensor:
        """Return the output (B, N, W) of the heads' contexts (B, H, N, d)."""
        return self.proj(context.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers around the exact (erf) GELU or OpenAI CLIP's sigmoid approximation."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        hidden = int(config.width * config.mlp_ratio)
        self.fc1 = nn.Linear(config.width, hidden)
        self.fc2 = nn.Linear(hidden, config.width)
        self.quick = config.activation == "quick_gelu"

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x) if self.quick else F.gelu(x))


class Block(nn.Module):
    """Pre-LN transformer block. `survive` (2, B, 1, 1) scales each sample's two branches; 0 drops a branch."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.eps)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=config.eps)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor, survive: Tensor | None = None) -> Tensor:
        attention = self.attn(self.norm1(x))
        x = x + (attention if survive is None else attention * survive[0])
        mlp = self.mlp(self.norm2(x))
        return x + (mlp if survive is None else mlp * survive[1])


class VisionTransformer(nn.Module):
    """Map pixels (B, 3, S, S), uint8 or normalised, to image tokens (B, N, W) after the final LayerNorm."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        tokens = 1 + (config.image_size // config.patch_size) ** 2
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, config.width))
        self.norm_pre = nn.LayerNorm(config.width, eps=config.eps) if config.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self._recomputed_blocks = 0
        # Larger batches are encoded in chunks of this many images; None: no limit.
        self.chunk_size: int | None = None
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        # A model on the meta device gets its weights from a file.
        if not self.pos_embed.is_meta:
            self.apply(self._init)
            nn.init.trunc_normal_(self.cls_token, std=0.02)
            nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def _init(self, module: nn.Module) -> None:
        # The patch convolution keeps PyTorch's default, as in the official model.
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=init_std(self.config.width))
            nn.init.zeros_(module.bias)

    def recompute_activations(self, blocks: int) -> None:
        """In training, recompute the activations of the last `blocks` blocks in the backward pass."""
        self._recomputed_blocks = blocks

    def embed(self, pixels: Tensor) -> Tensor:
        """Return the input (B, N, W) of the first block."""
        side = self.config.image_size
        assert pixels.shape[-2:] == (side, side), f"Pixels are {tuple(pixels.shape[-2:])}; the model expects {side}."
        x = self.patch_embed(pixels)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1).to(x.dtype), x], dim=1) + self.pos_embed
        return self.norm_pre(x)

    def forward(self, pixels: Tensor) -> Tensor:
        if self.chunk_size and len(pixels) > self.chunk_size:
            return torch.cat([self(chunk) for chunk in pixels.split(self.chunk_size)])
        x = self.embed(pixels)
        survive = self._draw_survivors(x)
        for i, block in enumerate(self.blocks):
            if self.training and i >= len(self.blocks) - self._recomputed_blocks:
                x = call_with_recompute(block, x, survive[i])
            else:
                x = block(x, survive[i])
        return self.norm(x)

    def _draw_survivors(self, x: Tensor) -> Tensor | list[None]:
        """Draw stochastic depth: the factors (2, B, 1, 1) of each block's branches, or None if nothing is dropped.

        Drawn here for all blocks: a rate stored in each block would make torch.compile build a program per block.
        """
        depth, rate = self.config.depth, self.config.drop_path
        if not self.training or rate == 0.0:
            return [None] * depth
        keep = 1.0 - torch.linspace(0.0, rate, depth, device=x.device).view(depth, 1, 1, 1, 1)
        survives = torch.rand(depth, 2, len(x), 1, 1, device=x.device) < keep
        return (survives / keep).to(x.dtype)


def resize_pos_embed(pos_embed: Tensor, image_size: int, patch_size: int) -> Tensor:
    """Resize a position table (1, 1+P, W) to another square image size; the class token's row is unchanged.

    Bicubic without antialiasing or corner alignment, as `interpolate_pos_embed` of the official models/vit.py. Raises
    ValueError if the rows are no square grid and a class token.
    """
    old, new = int((pos_embed.shape[1] - 1) ** 0.5), image_size // patch_size
    if not 0 < old * old == pos_embed.shape[1] - 1:
        raise ValueError(f"A position table of {pos_embed.shape[1]} rows is no square grid plus a class token.")
    if old == new:
        return pos_embed
    cls, grid = pos_embed[:, :1], pos_embed[:, 1:]
    grid = grid.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([cls, grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
