"""Where a text looks in a picture: cross-attention maps, and Grad-CAM over them as ALBEF and BLIP show it.

In: a model and a (picture, text) pair. Out: attention probabilities of every layer, with their graph, or one heat map
a token. The maps are recorded while a context lasts; no hook or buffer stays behind.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from blipcore.model.attention import CrossRead
from blipcore.model.blip import Blip
from blipcore.model.text import TextTransformer
from blipcore.model.tokenizer import Tokenizer


@contextmanager
def cross_attention_maps(text: TextTransformer) -> Iterator[list[Tensor]]:
    """Inside the block, each pass of `text` over images appends (R, H, L, N) probabilities to the list, layer by layer.

    They are part of the graph: `torch.autograd.grad(score, maps)` works, also for a frozen model. Token 0 of N is the
    class token. A layer over image pairs (NLVR) appends two maps.
    """
    maps: list[Tensor] = []
    readers = [module for module in text.modules() if isinstance(module, CrossRead)]
    for reader in readers:
        reader.maps = maps
    try:
        yield maps
    finally:
        for reader in readers:
            del reader.maps


def grad_cam(
    model: Blip, tokenizer: Tokenizer, pixels: Tensor, texts: Sequence[str], layer: int | None = None
) -> Tensor:
    """What makes text r match picture r: heat maps (R, L, side, side) of its tokens, [ENC] first and [SEP] last.

    The attention of `layer` (the middle one, 6 of 12, as LAVIS shows it) times the positive part of its gradient of the
    ITM logit "matched", mean over heads, without the class token. Padding's rows are zero.
    """
    ids, mask = (x.to(pixels.device) for x in tokenizer(texts, model.config.text.max_positions, "enc"))
    with torch.no_grad():
        kv = model.text.image_kv(model.encode_image(pixels))
    with torch.enable_grad(), cross_attention_maps(model.text) as maps:
        fused = model.text.fuse(ids, mask, kv)
        chosen = maps[len(maps) // 2 if layer is None else layer]
        (gradient,) = torch.autograd.grad(model.itm_logits(fused)[:, 1].sum(), chosen)
    heat = (chosen.detach().float() * gradient.float().clamp(min=0)).mean(1)[:, :, 1:] * mask[:, :, None]  # (R, L, N-1)
    side = model.config.vision.image_size // model.config.vision.patch_size
    return heat.unflatten(2, (side, side))
