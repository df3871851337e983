"""The token loop of nucleus sampling and greedy decoding, with noise per sample key."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from blipcore.generate.config import GenerateConfig
from blipcore.generate.decoder import Decoder
from blipcore.generate.nucleus import draw_tokens


@dataclass
class GeneratedTexts:
    """Generated texts, image by image: text j of image b is row b * num_captions + j."""

    # Token ids without the prompt and without [SEP].
    ids: list[list[int]]
    # Log-probability of the row's tokens and [SEP] under the model, before penalty and filters.
    logprob: list[float]


def sample_noise(seed: int, key: str, index: int, steps: int) -> np.ndarray:
    """Return `steps` numbers in [0, 1) for caption `index` of the sample `key`; fewer steps give a prefix."""
    digest = hashlib.blake2b(f"{seed}/{index}/{key}".encode(errors="surrogatepass"), digest_size=16).digest()
    # Raw output: numpy may change the stream of Generator.random.
    raw = np.random.Philox(key=int.from_bytes(digest, "little")).random_raw(steps)
    return (raw >> np.uint64(11)) * 2.0**-53


def batch_noise(config: GenerateConfig, keys: Sequence[str], steps: int) -> Tensor:
    """Return the noise (R, steps) of a batch, R = len(keys) * num_captions."""
    rows = [sample_noise(config.seed, key, j, steps) for key in keys for j in range(config.num_captions)]
    return torch.from_numpy(np.stack(rows))


def sample_captions(
    decoder: Decoder, prompt: list[int], sep: int, config: GenerateConfig, noise: Tensor | None
) -> GeneratedTexts:
    """Sample texts with `noise` (R, steps), R = B * num_captions; None takes the likeliest token at every step."""
    B, n, device = len(decoder.kv), config.num_captions, decoder.kv.layers[0].device
    # 1) Prefill the prompt once per image, then repeat its row for every caption.
    ids = torch.tensor([prompt] * B, device=device)
    logits = decoder.prefill(ids)
    if n > 1:
        images = torch.arange(B, device=device).repeat_interleave(n)
        decoder.select(images)
        ids, logits = ids[images], logits[images]
    # The batch shrinks as images finish: rows[i] is the caption in row i of the batch.
    rows = torch.arange(B * n)
    done = torch.zeros(B * n, dtype=torch.bool)
    captions: list[list[int]] = [[] for _ in range(B * n)]
    logprob = torch.zeros(B * n, device=device)
    for step in range(config.max_length - len(prompt)):
        # 2) Advance by the last token.
        if step > 0:
            logits = decoder.step(ids[:, -1:])
        # 3) Choose the next token of every row.
        scores = constrain_scores(logits, ids, sep, config)
        if noise is None:
            token = scores.argmax(1).cpu()
        else:
            token = sample_next_token(scores / config.temperature, noise[rows, step], config)
        token_logprob = logits.log_softmax(1).gather(1, token[:, None].to(device))[:, 0]
        logprob[rows.to(device)] += token_logprob.masked_fill(done.to(device), 0.0)
        for row, value, ended in zip(rows.tolist(), token.tolist(), done.tolist(), strict=True):
            if value != sep and not ended:
                captions[row].append(value)
        # 4) Stop, or continue with the images that have an unfinished caption.
        done |= token == sep
        if done.all():
            break
        ids = torch.cat([ids, token[:, None].to(device)], dim=1)
        unfinished = (~done.view(-1, n).all(1)).nonzero()[:, 0]
        if decoder.should_drop_finished(len(unfinished)):
            kept = (unfinished[:, None] * n + torch.arange(n)).flatten()
            kept_on_device = kept.to(device)
            decoder.select(kept_on_device, unfinished.to(device))
            ids = ids[kept_on_device]
            rows, done = rows[kept], done[kept]
    return GeneratedTexts(captions, logprob.tolist())


def constrain_scores(scores: Tensor, ids: Tensor, sep: int, config: GenerateConfig) -> Tensor:
    """Return scores (R, V) of the token after `ids` (R, L): repetition penalised, no [SEP] before min_length.

    Same as `RepetitionPenaltyLogitsProcessor` and `MinLengthLogitsProcessor` of transformers 4.15.
    """
    scores = scores.clone()
    if config.repetition_penalty != 1.0:
        repeated = scores.gather(1, ids)
        penalty = config.repetition_penalty
        penalised = torch.where(repeated < 0, repeated * penalty, repeated / penalty)
        scores.scatter_(1, ids, penalised)
    if ids.shape[1] < config.min_length:
        scores[:, sep] = -torch.inf
    return scores


def sample_next_token(scores: Tensor, noise: Tensor, config: GenerateConfig) -> Tensor:
    """Draw a token per row (R,) from the top-k, then top-p tokens of scores (R, V) with `noise` (R,)."""
    V = scores.shape[1]
    top, ids = (x.cpu() for x in scores.topk(min(config.top_k, V) if config.top_k else V))
    return draw_tokens(top.double().softmax(1), ids, noise, config.top_p, V)
