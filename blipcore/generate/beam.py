"""Beam search."""

from __future__ import annotations

from typing import NamedTuple

import torch

from blipcore.generate.config import GenerateConfig
from blipcore.generate.cuda_graphs import decoding
from blipcore.generate.sample import Generated, _constrain
from blipcore.model.attention import ImageKV
from blipcore.model.text import TextTransformer


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
