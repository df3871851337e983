"""Image tokens in, captions out: nucleus sampling, beam search and greedy decoding over our own loop.

Lengths, penalty, filters and beam bookkeeping are those of the library the official code was written for (transformers
4.15), so a beam search reproduces its token ids. The image is encoded once: its tokens, or their cross-attention keys
and values, serve all steps and all captions of the picture, which also share the pass over the prompt; self-attention
keeps a preallocated cache (`decoding`).

Sampling draws its noise from a counter-based generator keyed by (seed, sample key, caption index), one number a step.
What a picture gets therefore does not depend on its batch, on the order of pictures or on the number of workers.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from blipcore.model.blip import Blip
from blipcore.model.decoding import decoding
from blipcore.model.generate_config import GenerateConfig
from blipcore.model.med import ImageKV, TextTransformer
from blipcore.model.tokenizer import Tokenizer


@dataclass
class Generated:
    """Captions, picture by picture: caption j of picture b is row b * num_captions + j."""

    ids: list[list[int]]  # without the prompt and without [SEP]
    logprob: list[float]  # of the row's tokens, [SEP] included, under the model before any penalty or filter


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


def sample_noise(seed: int, key: str, index: int, steps: int) -> np.ndarray:
    """`steps` numbers in [0, 1) that belong to caption `index` of the picture `key`; more steps keep the first ones."""
    digest = hashlib.blake2b(f"{seed}/{index}/{key}".encode(errors="surrogatepass"), digest_size=16).digest()
    # Raw counters rather than Generator.random, whose stream numpy does not promise to keep.
    raw = np.random.Philox(key=int.from_bytes(digest, "little")).random_raw(steps)
    return (raw >> np.uint64(11)) * 2.0**-53


def _sample(
    text: TextTransformer, kv: ImageKV, prompt: list[int], sep: int, config: GenerateConfig, noise: Tensor | None
) -> Generated:
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
        scores = _constrain(logits, ids, sep, config)
        token = (
            scores.argmax(1).cpu() if noise is None else _draw(scores / config.temperature, noise[rows, step], config)
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
    return Generated(captions, logprob.tolist())


def _constrain(scores: Tensor, ids: Tensor, sep: int, config: GenerateConfig) -> Tensor:
    """Scores (R, V) of the token after `ids` (R, L), repetition penalised and the end forbidden below min_length."""
    scores = scores.clone()
    if config.repetition_penalty != 1.0:
        seen = scores.gather(1, ids)
        penalised = torch.where(seen < 0, seen * config.repetition_penalty, seen / config.repetition_penalty)
        scores.scatter_(1, ids, penalised)
    if ids.shape[1] < config.min_length:
        scores[:, sep] = -torch.inf
    return scores


def _draw(scores: Tensor, noise: Tensor, config: GenerateConfig) -> Tensor:
    """One token (R,) a row from the top-k, then top-p share of softmax(scores (R, V)), by inverse CDF of `noise` (R,).

    The nucleus keeps the token that crosses `top_p`. The CDF runs in double precision and in the order of ids, so
    that the rounding of another batch size, which may swap near-equal scores, does not change the draw.
    """
    V = scores.shape[1]
    top, tokens = (x.cpu() for x in scores.topk(min(config.top_k, V) if config.top_k else V))
    share = top.double().softmax(1)
    share = share.masked_fill(share.cumsum(1) - share > config.top_p, 0.0)
    tokens, order = tokens.sort(1)
    cdf = share.gather(1, order).cumsum(1)
    total = cdf[:, -1:]
    target = torch.minimum(noise[:, None] * total, total.nextafter(torch.zeros_like(total)))
    return tokens.gather(1, torch.searchsorted(cdf, target, right=True))[:, 0]


class _Hypothesis(NamedTuple):
    score: float  # (penalised) log-probability over length
    logprob: float
    ids: list[int]


def _beam_search(text: TextTransformer, kv: ImageKV, prompt: list[int], sep: int, config: GenerateConfig) -> Generated:
    """Beam search with transformers 4.15's rules.

    A hypothesis scores its summed log-probability over its number of tokens, prompt included and [SEP] excluded. A
    picture is done when `beams` hypotheses are stored and no candidate can beat the worst of them at this length.
    """
    nb, device = config.beams, kv.layers[0].device
    stored: list[list[_Hypothesis]] = [[] for _ in range(len(kv))]
    live = list(range(len(kv)))  # pictures that are still searched, nb rows each
    decoder = decoding(text, kv, config.max_length)
    ids = torch.tensor([prompt] * (len(kv) * nb), device=device)
    total = torch.tensor([0.0] + [-1e9] * (nb - 1), device=device).repeat(len(live))  # all beams start equal: use one
    logprob = torch.zeros_like(total)
    for length in range(len(prompt), config.max_length):
        new = ids if length == len(prompt) else ids[:, -1:]
        own = decoder.read(new).log_softmax(1)
        V = own.shape[1]
        scores = (_constrain(own, ids, sep, config) + total[:, None]).view(len(live), nb * V)
        best, flat = scores.topk(2 * nb, dim=1)
        sums = (own + logprob[:, None]).view(len(live), nb * V).gather(1, flat)
        best, flat, sums, written = best.tolist(), flat.tolist(), sums.tolist(), ids[:, len(prompt) :].tolist()

        kept: list[tuple[int, int, float, float]] = []  # source row, token, score and log-probability of the next rows
        still = []
        for slot, picture in enumerate(live):
            candidates = []
            for rank, (score, place, logp) in enumerate(zip(best[slot], flat[slot], sums[slot], strict=True)):
                row, token = slot * nb + place // V, place % V
                if token != sep:
                    candidates.append((row, token, score, logp))
                elif rank < nb:
                    _store(stored[picture], _Hypothesis(score / length, logp, written[row]), nb)
                if len(candidates) == nb:
                    break
            worst = min((h.score for h in stored[picture]), default=0.0)
            if len(stored[picture]) < nb or worst < best[slot][0] / length:
                still.append((slot, picture))
                kept += candidates
        if not still:
            return _best(stored, config)
        source = torch.tensor([row for row, *_ in kept], device=device)
        fewer = len(still) < len(live)
        decoder.select(source, torch.tensor([slot for slot, _ in still], device=device) if fewer else None)
        token, total, logprob = (torch.tensor(column, device=device) for column in list(zip(*kept, strict=True))[1:])
        ids = torch.cat([ids[source], token[:, None]], dim=1)
        live = [picture for _, picture in still]

    written = ids[:, len(prompt) :].tolist()
    for row, (score, logp) in enumerate(zip(total.tolist(), logprob.tolist(), strict=True)):
        _store(stored[live[row // nb]], _Hypothesis(score / config.max_length, logp, written[row]), nb)
    return _best(stored, config)


def _store(stored: list[_Hypothesis], new: _Hypothesis, beams: int) -> None:
    """Add a hypothesis and let go of the worst once there are more than `beams`."""
    if len(stored) < beams or new.score > min(h.score for h in stored):
        stored.append(new)
        if len(stored) > beams:
            stored.remove(min(stored, key=lambda h: h.score))


def _best(stored: list[list[_Hypothesis]], config: GenerateConfig) -> Generated:
    best_last = (sorted(hypotheses, key=lambda h: h.score) for hypotheses in stored)
    ranked = [h for hypotheses in best_last for h in hypotheses[: -config.num_captions - 1 : -1]]
    return Generated([h.ids for h in ranked], [h.logprob for h in ranked])
