"""Nucleus sampling with per-key noise."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from blipcore.generate.config import GenerateConfig
from blipcore.generate.cuda_graphs import decoding
from blipcore.generate.nucleus import draw_tokens
from blipcore.model.attention import ImageKV
from blipcore.model.text import TextTransformer


@dataclass
class GeneratedTexts:
    """Captions, picture by picture: caption j of picture b is row b * num_captions + j."""

    ids: list[list[int]]  # without the prompt and without [SEP]
    logprob: list[float]  # of the row's tokens, [SEP] included, under the model before any penalty or filter


def sample_noise(seed: int, key: str, index: int, steps: int) -> np.ndarray:
    """`steps` numbers in [0, 1) that belong to caption `index` of the picture `key`; more steps keep the first ones."""
    digest = hashlib.blake2b(f"{seed}/{index}/{key}".encode(errors="surrogatepass"), digest_size=16).digest()
    # Raw counters rather than Generator.random, whose stream numpy does not promise to keep.
    raw = np.random.Philox(key=int.from_bytes(digest, "little")).random_raw(steps)
    return (raw >> np.uint64(11)) * 2.0**-53


def sample_captions(
    text: TextTransformer, kv: ImageKV, prompt: list[int], sep: int, config: GenerateConfig, noise: Tensor | None
) -> GeneratedTexts:
    """Sample with `noise` (R, steps), R = B * num_captions, or take the likeliest token at every step without it."""
    B, n, device = len(kv), config.num_captions, kv.layers[0].device
    decoder = decoding(text, kv, config.max_length)
    ids = torch.tensor([prompt] * B, device=device)
    logits = decoder.read(ids)
    if n > 1:
        of = torch.arange(B, device=device).repeat_interleave(n)
        decoder.select(of)
        ids, logits = ids[of], logits[of]
    rows = torch.arange(B * n)  # which caption each row of the shrinking batch is
    done = torch.zeros(B * n, dtype=torch.bool)
    captions: list[list[int]] = [[] for _ in range(B * n)]
    logprob = torch.zeros(B * n, device=device)
    for step in range(config.max_length - len(prompt)):
        if step > 0:
            logits = decoder.read(ids[:, -1:])
        scores = constrain_scores(logits, ids, sep, config)
        token = (
            scores.argmax(1).cpu()
            if noise is None
            else sample_next_token(scores / config.temperature, noise[rows, step], config)
        )
        gained = logits.log_softmax(1).gather(1, token[:, None].to(device))[:, 0]
        logprob[rows.to(device)] += gained.masked_fill(done.to(device), 0.0)
        for row, value, over in zip(rows.tolist(), token.tolist(), done.tolist(), strict=True):
            if value != sep and not over:
                captions[row].append(value)
        done |= token == sep
        if done.all():
            break
        ids = torch.cat([ids, token[:, None].to(device)], dim=1)
        finished = done.view(-1, n).all(1)
        pictures = (~finished).nonzero()[:, 0]
        if decoder.worth_dropping(len(pictures)):
            alive = (pictures[:, None] * n + torch.arange(n)).flatten()
            on_device = alive.to(device)
            decoder.select(on_device, pictures.to(device))
            ids = ids[on_device]
            rows, done = rows[alive], done[alive]
    return GeneratedTexts(captions, logprob.tolist())


def constrain_scores(scores: Tensor, ids: Tensor, sep: int, config: GenerateConfig) -> Tensor:
    """Scores (R, V) of the token after `ids` (R, L), repetition penalised and the end forbidden below min_length."""
    scores = scores.clone()
    if config.repetition_penalty != 1.0:
        seen = scores.gather(1, ids)
        penalised = torch.where(seen < 0, seen * config.repetition_penalty, seen / config.repetition_penalty)
        scores.scatter_(1, ids, penalised)
    if ids.shape[1] < config.min_length:
        scores[:, sep] = -torch.inf
    return scores


def sample_next_token(scores: Tensor, noise: Tensor, config: GenerateConfig) -> Tensor:
    """Draw a token per row (R,) from the top-k, then top-p share of softmax(scores (R, V)) with `noise` (R,)."""
    V = scores.shape[1]
    top, ids = (x.cpu() for x in scores.topk(min(config.top_k, V) if config.top_k else V))
    return draw_tokens(top.double().softmax(1), ids, noise, config.top_p, V)
