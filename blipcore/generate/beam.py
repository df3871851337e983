"""Beam search with the rules of transformers 4.15 (`generation_beam_search.py`), which the official code uses."""

from __future__ import annotations

from typing import NamedTuple

import torch

from blipcore.generate.config import GenerateConfig
from blipcore.generate.decoder import Decoder
from blipcore.generate.sample import GeneratedTexts, constrain_scores


class Hypothesis(NamedTuple):
    """A finished text of a beam search."""

    # Summed (penalised) log-probability divided by the length.
    score: float
    logprob: float
    ids: list[int]


class Candidate(NamedTuple):
    """A continuation of a beam by one token."""

    row: int
    token: int
    score: float
    logprob: float


def beam_search(decoder: Decoder, prompt: list[int], sep: int, config: GenerateConfig) -> GeneratedTexts:
    """Return the `num_captions` best texts per image.

    A hypothesis scores its summed log-probability divided by its number of tokens, with the prompt and without [SEP].
    An image is finished when it has `beams` hypotheses and no candidate beats the worst of them at the current length.
    """
    B, nb, device = len(decoder.kv), config.beams, decoder.kv.layers[0].device
    hypotheses: list[list[Hypothesis]] = [[] for _ in range(B)]
    # Unfinished images, each with nb rows of the batch.
    live = list(range(B))
    ids = torch.tensor([prompt] * (B * nb), device=device)
    # All beams start equal, so only the first of each image counts in the first step.
    total = torch.tensor([0.0] + [-1e9] * (nb - 1), device=device).repeat(B)
    logprob = torch.zeros_like(total)
    for length in range(len(prompt), config.max_length):
        # 1) Score every continuation of every beam; the best 2*nb per image leave nb even if all others end.
        logits = decoder.prefill(ids) if length == len(prompt) else decoder.step(ids[:, -1:])
        token_logprob = logits.log_softmax(1)
        V = token_logprob.shape[1]
        scores = (constrain_scores(token_logprob, ids, sep, config) + total[:, None]).view(len(live), nb * V)
        top, flat = scores.topk(2 * nb, dim=1)
        sums = (token_logprob + logprob[:, None]).view(len(live), nb * V).gather(1, flat)
        top_scores, top_index, top_logprob = top.tolist(), flat.tolist(), sums.tolist()
        texts = ids[:, len(prompt) :].tolist()

        # 2) Per image: store hypotheses that end, collect the next beams, check if the image is finished.
        beams: list[Candidate] = []
        unfinished: list[int] = []
        for slot, image in enumerate(live):
            candidates: list[Candidate] = []
            ranked = zip(top_scores[slot], top_index[slot], top_logprob[slot], strict=True)
            for rank, (score, index, text_logprob) in enumerate(ranked):
                row, token = slot * nb + index // V, index % V
                if token != sep:
                    candidates.append(Candidate(row, token, score, text_logprob))
                elif rank < nb:
                    _store(hypotheses[image], Hypothesis(score / length, text_logprob, texts[row]), nb)
                if len(candidates) == nb:
                    break
            worst = min((h.score for h in hypotheses[image]), default=0.0)
            if len(hypotheses[image]) < nb or worst < top_scores[slot][0] / length:
                unfinished.append(slot)
                beams += candidates
        if not unfinished:
            return _best(hypotheses, config)

        # 3) Reorder the rows to the chosen beams of unfinished images.
        source = torch.tensor([beam.row for beam in beams], device=device)
        some_finished = len(unfinished) < len(live)
        decoder.select(source, torch.tensor(unfinished, device=device) if some_finished else None)
        token = torch.tensor([beam.token for beam in beams], device=device)
        total = torch.tensor([beam.score for beam in beams], device=device)
        logprob = torch.tensor([beam.logprob for beam in beams], device=device)
        ids = torch.cat([ids[source], token[:, None]], dim=1)
        live = [live[slot] for slot in unfinished]

    texts = ids[:, len(prompt) :].tolist()
    for row, (score, text_logprob) in enumerate(zip(total.tolist(), logprob.tolist(), strict=True)):
        _store(hypotheses[live[row // nb]], Hypothesis(score / config.max_length, text_logprob, texts[row]), nb)
    return _best(hypotheses, config)


def _store(hypotheses: list[Hypothesis], hypothesis: Hypothesis, beams: int) -> None:
    """Add a hypothesis; keep the `beams` best."""
    if len(hypotheses) < beams or hypothesis.score > min(h.score for h in hypotheses):
        hypotheses.append(hypothesis)
        if len(hypotheses) > beams:
            hypotheses.remove(min(hypotheses, key=lambda h: h.score))


def _best(hypotheses: list[list[Hypothesis]], config: GenerateConfig) -> GeneratedTexts:
    """Return the `num_captions` best hypotheses of each image, best first."""
    best_last = (sorted(of_image, key=lambda h: h.score) for of_image in hypotheses)
    ranked = [h for of_image in best_last for h in of_image[: -config.num_captions - 1 : -1]]
    return GeneratedTexts([h.ids for h in ranked], [h.logprob for h in ranked])
