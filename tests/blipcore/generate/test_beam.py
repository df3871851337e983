"""Beam search finds what a plain implementation without batches and caches finds."""

import pytest
import torch
from random_captioner import KEYS, TOKENIZER, decode_uncached, random_captioner, random_images
from torch import Tensor

from blipcore.generate.config import GenerateConfig
from blipcore.generate.generate import generate
from blipcore.generate.sample import constrain_scores
from blipcore.model.blip import Blip


def plain_beam_search(model: Blip, image: Tensor, config: GenerateConfig) -> list[list[int]]:
    """Search the captions of one image with lists of lists, scoring every prefix from its start."""
    prompt, sep, beam_count = TOKENIZER.prompt(config.prompt), TOKENIZER.sep, config.beams
    beams, finished = [(0.0, prompt)], []
    for length in range(len(prompt), config.max_length):
        candidates = []
        for total, row in beams:
            logprob = decode_uncached(model, image, row)[-1:].log_softmax(-1)
            scores = constrain_scores(logprob, torch.tensor([row]), sep, config)[0]
            candidates += [(total + score, [*row, token]) for token, score in enumerate(scores.tolist())]
        candidates.sort(key=lambda candidate: -candidate[0])
        best = candidates[0][0]
        ended = [(total / length, row[:-1]) for total, row in candidates[:beam_count] if row[-1] == sep]
        finished = sorted(finished + ended, key=lambda hypothesis: -hypothesis[0])[:beam_count]
        beams = [candidate for candidate in candidates if candidate[1][-1] != sep][:beam_count]
        if len(finished) == beam_count and finished[-1][0] >= best / length:
            break
    else:
        finished += [(total / config.max_length, row) for total, row in beams]
    finished = sorted(finished, key=lambda hypothesis: -hypothesis[0])
    return [row[len(prompt) :] for _, row in finished[: config.num_captions]]


@pytest.mark.parametrize("penalty", [1.0, 1.1])
def test_beam_search_equals_a_plain_one(penalty: float) -> None:
    model, image_embeds = random_captioner(), random_images()
    config = GenerateConfig(mode="beam", beams=3, num_captions=3, max_length=10, repetition_penalty=penalty)
    result = generate(model, image_embeds, TOKENIZER, config, KEYS)
    for b, image in enumerate(image_embeds):
        assert result.ids[3 * b : 3 * b + 3] == plain_beam_search(model, image, config)
    lengths = {len(ids) for ids in result.ids}
    assert len(lengths) > 1, "all images finish together, so no rows were dropped"
