"""Cross-attention maps, and Grad-CAM over them as in ALBEF and BLIP."""

from collections.abc import Sequence

import torch
from torch import Tensor

from blipcore.model.attention import ImageKV
from blipcore.model.blip import Blip
from blipcore.model.text import TextTransformer
from blipcore.model.tokenizer import Tokenizer


def cross_attention_maps(text: TextTransformer, ids: Tensor, mask: Tensor, kv: ImageKV) -> tuple[Tensor, list[Tensor]]:
    """Return image-grounded states (R, L, D) and the attention probabilities (R, H, L, N) of each layer.

    Token 0 of N is the class token. A layer over image pairs (NLVR2) has two maps. `torch.autograd.grad(score, maps)`
    works, also for a frozen model.
    """
    maps: list[Tensor] = []
    return text.fuse(ids, mask, kv, maps=maps), maps


def grad_cam(
    model: Blip, tokenizer: Tokenizer, pixels: Tensor, texts: Sequence[str], layer: int | None = None
) -> Tensor:
    """Return heat maps (R, L, side, side), one per token from [ENC] to [SEP], of where text r matches image r.

    A heat map is the attention of `layer` times the positive part of the gradient of the ITM logit "matched", averaged
    over heads, without the class token. The default is the middle layer (6 of 12), as in LAVIS. Padding is zero.

    Raises ValueError for a layer that the model lacks. Safe in several threads.
    """
    depth = model.config.text.depth
    layer = depth // 2 if layer is None else layer
    if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < depth:
        raise ValueError(f"The layer of a heat map must be from 0 to {depth - 1} for this model, not {layer!r}.")
    ids, mask = (x.to(pixels.device) for x in tokenizer(texts, model.config.text.max_positions, "enc"))
    with torch.no_grad():
        kv = model.text.image_kv(model.encode_image(pixels))
    with torch.enable_grad():
        fused, maps = cross_attention_maps(model.text, ids, mask, kv)
        attention = maps[layer]
        (gradient,) = torch.autograd.grad(model.itm_logits(fused)[:, 1].sum(), attention)
    heat = (attention.detach().float() * gradient.float().clamp(min=0)).mean(1)[:, :, 1:] * mask[:, :, None]
    side = model.config.vision.image_size // model.config.vision.patch_size
    return heat.unflatten(2, (side, side))
