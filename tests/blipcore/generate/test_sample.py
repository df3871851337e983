"""Sampling: the noise of a key, the distribution of draws, penalty and minimum length, greedy decoding."""

import math

import pytest
import torch
from random_captioner import KEYS, TOKENIZER, decode_uncached, random_captioner, random_images

from blipcore.generate.config import GenerateConfig
from blipcore.generate.generate import generate
from blipcore.generate.nucleus import draw_tokens
from blipcore.generate.sample import constrain_scores, sample_next_token, sample_noise


def test_noise_depends_on_seed_key_and_index() -> None:
    noise = sample_noise(1, "k", 0, 8)
    assert ((noise >= 0) & (noise < 1)).all()
    assert (sample_noise(1, "k", 0, 3) == noise[:3]).all()
    for other in (sample_noise(2, "k", 0, 8), sample_noise(1, "l", 0, 8), sample_noise(1, "k", 1, 8)):
        assert not set(noise) & set(other)
    # This number must never change: captions of older versions must be reproducible.
    assert noise[0] == pytest.approx(0.5687081879284482, abs=1e-15)


def test_draws_follow_the_distribution() -> None:
    probabilities = torch.tensor([0.1, 0.4, 0.05, 0.25, 0.2])
    N = 4000
    noise = (torch.arange(N, dtype=torch.float64) + 0.5) / N
    scores = probabilities.log().expand(N, -1)

    def frequencies(top_k: int, top_p: float) -> list[float]:
        tokens = sample_next_token(scores, noise, GenerateConfig(top_k=top_k, top_p=top_p))
        return (tokens.bincount(minlength=5) / N).tolist()

    assert frequencies(0, 1.0) == pytest.approx(probabilities.tolist(), abs=1e-3)
    assert frequencies(2, 1.0) == pytest.approx([0, 0.4 / 0.65, 0, 0.25 / 0.65, 0], abs=1e-3)
    # 0.4 + 0.25 is less than 0.7, so the token that crosses it (0.2) is kept.
    assert frequencies(0, 0.7) == pytest.approx([0, 0.4 / 0.85, 0, 0.25 / 0.85, 0.2 / 0.85], abs=1e-3)
    assert frequencies(0, 0.01) == [0, 1, 0, 0, 0]
    # top_p applies after top_k: 0.4 / 0.65 is less than 0.62.
    assert frequencies(2, 0.62) == pytest.approx([0, 0.4 / 0.65, 0, 0.25 / 0.65, 0], abs=1e-3)


def test_the_smallest_and_largest_noise_draw_possible_tokens() -> None:
    scores = torch.tensor([[0.0, -math.inf, 0.3, -math.inf]] * 2)
    noise = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert sample_next_token(scores, noise, GenerateConfig(top_k=0, top_p=1.0)).tolist() == [0, 2]


def test_the_likeliest_tokens_alone_give_the_draws_of_the_whole_vocabulary() -> None:
    generator = torch.Generator().manual_seed(0)
    probs, ids = torch.randn(200, 60, generator=generator).mul(4).softmax(1).sort(1, descending=True)
    noise = torch.rand(200, generator=generator, dtype=torch.float64)
    expected = draw_tokens(probs, ids, noise, 0.6, vocab_size=60)
    assert len(expected.unique()) > 20
    assert draw_tokens(probs[:, :40], ids[:, :40], noise, 0.6, vocab_size=60).equal(expected)


def test_repetition_penalty_and_minimum_length() -> None:
    scores = torch.tensor([[2.0, -2.0, 1.0, 0.5]])
    config = GenerateConfig(repetition_penalty=2.0, min_length=5)
    constrained = constrain_scores(scores, torch.tensor([[0, 1, 0]]), 3, config)
    assert constrained.tolist() == [[1.0, -4.0, 1.0, -math.inf]]
    assert scores.tolist() == [[2.0, -2.0, 1.0, 0.5]]
    assert constrain_scores(scores, torch.tensor([[2] * 5]), 3, config).tolist() == [[2.0, -2.0, 0.5, 0.5]]


def test_greedy_decoding_equals_a_loop_without_cache() -> None:
    model, image_embeds = random_captioner(), random_images()
    config = GenerateConfig(mode="greedy", max_length=12, repetition_penalty=1.3)
    result = generate(model, image_embeds, TOKENIZER, config, KEYS)
    prompt = TOKENIZER.prompt(config.prompt)
    for image, ids in zip(image_embeds, result.ids, strict=True):
        row = list(prompt)
        while len(row) < config.max_length and TOKENIZER.sep not in row:
            logits = decode_uncached(model, image, row)[-1:]
            row.append(int(constrain_scores(logits, torch.tensor([row]), TOKENIZER.sep, config).argmax()))
        assert ids == [token for token in row[len(prompt) :] if token != TOKENIZER.sep]
