"""Generates captions from image tokens by nucleus sampling, beam search or greedy decoding.

Lengths, penalty, filters and beams follow transformers 4.15, which the official code uses, so beam search reproduces
its token ids. All captions of an image share its keys and values and the pass over the prompt.

Sampling draws one number per step from a counter-based generator keyed by (seed, sample key, caption index), so the
caption of an image depends neither on its batch nor on the number of workers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from blipcore.generate.beam import beam_search
from blipcore.generate.config import GenerateConfig
from blipcore.generate.cuda_graphs import CudaGraphs
from blipcore.generate.decoder import Decoder
from blipcore.generate.sample import GeneratedTexts, batch_noise, sample_captions
from blipcore.model.attention import ImageKV
from blipcore.model.blip import Blip
from blipcore.model.text import TextTransformer
from blipcore.model.tokenizer import Tokenizer


@torch.inference_mode()
def generate(
    model: Blip,
    image_embeds: Tensor,
    tokenizer: Tokenizer,
    config: GenerateConfig,
    keys: Sequence[str],
    graphs: CudaGraphs | None = None,
    sizes: Tensor | None = None,
) -> GeneratedTexts:
    """Return captions of the images with tokens `image_embeds` (B, N, W) and sample keys `keys` (B).

    `graphs` replays decoding steps (see `cuda_graphs`); pass the same object for every batch. `sizes` (B, N) are those
    of merged tokens.
    """
    texts_per_image = config.beams if config.mode == "beam" else config.num_captions
    kv = model.text.image_kv(image_embeds, sizes, text_tokens=texts_per_image * (config.max_length - 1))
    return generate_texts(model.text, kv, tokenizer, config, keys, graphs)


@torch.inference_mode()
def generate_texts(
    text: TextTransformer,
    kv: ImageKV,
    tokenizer: Tokenizer,
    config: GenerateConfig,
    keys: Sequence[str],
    graphs: CudaGraphs | None = None,
) -> GeneratedTexts:
    """Return texts of the decoder `text` for the B items of `kv` with sample keys `keys`."""
    prompt = encode_prompt(text, tokenizer, config)
    assert len(keys) == len(kv), f"{len(keys)} keys for {len(kv)} images"
    if not keys:
        return GeneratedTexts([], [])
    decoder = Decoder(text, kv, config.max_length) if graphs is None else graphs.decoder(text, kv, config.max_length)
    if config.mode == "beam":
        return beam_search(decoder, prompt, tokenizer.sep, config)
    noise = batch_noise(config, keys, config.max_length - len(prompt)) if config.mode == "nucleus" else None
    return sample_captions(decoder, prompt, tokenizer.sep, config, noise)


def encode_prompt(text: TextTransformer, tokenizer: Tokenizer, config: GenerateConfig) -> list[int]:
    """Return the prompt's token ids. Raises ValueError if `max_length` leaves no room for more or is too long."""
    prompt, longest = tokenizer.prompt(config.prompt), text.config.max_positions
    if not len(prompt) < config.max_length <= longest:
        raise ValueError(
            f"max_length {config.max_length} must be above the prompt's {len(prompt)} tokens and at most {longest}."
        )
    return prompt
