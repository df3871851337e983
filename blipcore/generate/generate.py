"""Image tokens in, captions out: nucleus sampling, beam search and greedy decoding over our own loop.

Lengths, penalty, filters and beam bookkeeping are those of the library the official code was written for (transformers
4.15), so a beam search reproduces its token ids. The image is encoded once: its tokens, or their cross-attention keys
and values, serve all steps and all captions of the picture, which also share the pass over the prompt; self-attention
keeps a preallocated cache (`decoding`).

Sampling draws its noise from a counter-based generator keyed by (seed, sample key, caption index), one number a step.
What a picture gets therefore does not depend on its batch, on the order of pictures or on the number of workers.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from blipcore.generate.beam import _beam_search
from blipcore.generate.config import GenerateConfig
from blipcore.generate.sample import Generated, _sample, sample_noise
from blipcore.model.attention import ImageKV
from blipcore.model.blip import Blip
from blipcore.model.text import TextTransformer
from blipcore.model.tokenizer import Tokenizer


@torch.inference_mode()
def generate(
    model: Blip, image_embeds: Tensor, tokenizer: Tokenizer, config: GenerateConfig, keys: Sequence[str]
) -> Generated:
    """Captions of the pictures whose tokens are `image_embeds` (B, N, W) and whose sample keys are `keys` (B)."""
    captions = config.beams if config.mode == "beam" else config.num_captions
    read = captions * (config.max_length - 1)  # tokens of a picture that ask for the next one
    return generate_from(model.text, model.text.image_kv(image_embeds, text_tokens=read), tokenizer, config, keys)


@torch.inference_mode()
def generate_from(
    text: TextTransformer, kv: ImageKV, tokenizer: Tokenizer, config: GenerateConfig, keys: Sequence[str]
) -> Generated:
    """Texts that the decoder `text` writes for each of the B rows of `kv`, whose sample keys are `keys`."""
    prompt = prompt_that_fits(text, tokenizer, config)
    assert len(keys) == len(kv), f"{len(keys)} keys for {len(kv)} pictures"
    if not keys:
        return Generated([], [])
    if config.mode == "beam":
        return _beam_search(text, kv, prompt, tokenizer.sep, config)
    noise = None
    if config.mode == "nucleus":
        steps = config.max_length - len(prompt)
        rows = [sample_noise(config.seed, key, j, steps) for key in keys for j in range(config.num_captions)]
        noise = torch.from_numpy(np.stack(rows))
    return _sample(text, kv, prompt, tokenizer.sep, config, noise)


def prompt_that_fits(text: TextTransformer, tokenizer: Tokenizer, config: GenerateConfig) -> list[int]:
    """The prompt's token ids; ValueError where it or `max_length` is too long."""
    prompt, longest = tokenizer.prompt(config.prompt), text.config.max_positions
    if not len(prompt) < config.max_length <= longest:
        raise ValueError(
            f"max_length {config.max_length} must be above the prompt's {len(prompt)} tokens and at most {longest}"
        )
    return prompt
