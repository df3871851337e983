"""Attention: keys and values of images, image tokens in their place, the decoder's cache."""

import pytest
import torch
from torch.testing import assert_close

from blipcore.model.attention import ImageKV, KVCache, attend, causal_mask
from blipcore.model.config import TextConfig
from blipcore.model.text import TextTransformer

IDS = torch.randint(0, 40, (6, 5), generator=torch.Generator().manual_seed(2))
IMAGE_MASK = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 6 + [0]])


def make_text() -> TextTransformer:
    torch.manual_seed(0)
    text = TextTransformer(TextConfig(40, 32, 2, 2, 64, 40, encoder_width=32, dropout=0.0)).eval()
    with torch.no_grad():
        for parameter in text.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return text


def test_attention_written_out_for_bf16_on_a_cpu_is_close_to_the_fused_one() -> None:
    q, k, v = (torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    mask = causal_mask(0, 5, q.device)
    expected = attend(q, k, v, mask)
    assert_close(attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), mask).float(), expected, atol=0.03, rtol=0.03)


@pytest.mark.parametrize("image_mask", [None, IMAGE_MASK])
@torch.inference_mode()
def test_attending_to_image_tokens_equals_attending_to_their_keys_and_values(image_mask: torch.Tensor | None) -> None:
    text, embeds, mask = make_text(), torch.randn(3, 7, 32), torch.ones_like(IDS)
    kv, tokens = text.image_kv(embeds, image_mask), text.image_kv(embeds, image_mask, text_tokens=15)
    assert kv.layers[0].ndim == 5 and tokens.layers[0].ndim == 4 and len(tokens) == len(kv) == 3
    # Two texts per image.
    assert_close(text.fuse(IDS, mask, tokens), text.fuse(IDS, mask, kv), atol=1e-5, rtol=1e-4)
    # Other images in another order.
    index = torch.tensor([2, 0])
    expected = text.decode(IDS[:2], mask[:2], kv.select(index))
    assert_close(text.decode(IDS[:2], mask[:2], tokens.select(index)), expected, atol=1e-5, rtol=1e-4)
    # From as many text tokens as a head has channels, keys and values are less work.
    assert text.image_kv(embeds, text_tokens=16).layers[0].ndim == 5


@torch.inference_mode()
def test_rows_out_of_order_name_their_images() -> None:
    text, embeds, mask = make_text(), torch.randn(3, 7, 32), torch.ones_like(IDS)
    kv, others = text.image_kv(embeds, IMAGE_MASK), torch.tensor([2, 2, 0])
    expected = text.fuse(IDS, mask, kv.select(torch.tensor([0, 1, 2, 2, 2, 0])))
    assert_close(text.fuse(IDS, mask, kv, others=others), expected, atol=1e-5, rtol=1e-4)


def test_layers_that_share_an_item_still_share_it_after_a_change() -> None:
    item = torch.randn(1, 3, 7, 32)
    kv = ImageKV([item, item], IMAGE_MASK).select(torch.tensor([1, 1]))
    assert kv.layers[0] is kv.layers[1] and kv.layers[0].shape == (1, 2, 7, 32)
    assert kv.mask is not None and kv.mask.tolist() == [IMAGE_MASK[1].tolist()] * 2


def test_a_cache_returns_the_keys_and_values_of_all_tokens_so_far() -> None:
    cache = KVCache(torch.zeros(1, 2, 2, 1, 4, 3))
    k, v = torch.randn(2, 1, 2, 3), torch.randn(2, 1, 2, 3)
    assert cache.positions(2).tolist() == [0, 1]
    allowed = cache.allowed(2)
    assert allowed is not None and allowed.tolist() == [[True, False], [True, True]]
    assert torch.equal(torch.stack(cache.append(0, k, v)), torch.stack([k, v]))
    cache.advance(2)
    cache.select(torch.tensor([1, 0]))
    keys, values = cache.append(0, k[:, :, :1], v[:, :, :1])
    assert torch.equal(keys, torch.cat([k[[1, 0]], k[:, :, :1]], dim=2))
    assert torch.equal(values, torch.cat([v[[1, 0]], v[:, :, :1]], dim=2))
    assert cache.allowed(1) is None
