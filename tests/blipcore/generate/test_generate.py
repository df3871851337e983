"""Generation: what a caption depends on, lengths, filters, probabilities, beam search against a plain one."""

import math

import pytest
import torch
from random_captioner import TOKENIZER, random_captioner
from torch import Tensor

from blipcore.generate.config import GenerateConfig
from blipcore.generate.generate import generate
from blipcore.generate.sample import _constrain, _draw, sample_noise
from blipcore.model.blip import Blip
from blipcore.model.tokenizer import Tokenizer

PICTURES = 9


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return TOKENIZER


@pytest.fixture(scope="module")
def model() -> Blip:
    return random_captioner()


@pytest.fixture(scope="module")
def image_embeds() -> Tensor:
    return torch.randn(PICTURES, 5, 16, generator=torch.Generator().manual_seed(1))


KEYS = [f"00000{i}" for i in range(PICTURES)]


def captions(model, image_embeds, tokenizer, order, **options) -> dict[tuple[str, int], list[int]]:
    config = GenerateConfig(**options)
    out = generate(model, image_embeds[order], tokenizer, config, [KEYS[i] for i in order])
    n = config.num_captions
    return {(KEYS[i], j): out.ids[b * n + j] for b, i in enumerate(order) for j in range(n)}


def teacher_forced(model, image_embeds, tokenizer, prompt, ids, max_length) -> float:
    """Log-probability of one caption in one pass without cache."""
    row = [*tokenizer.prompt(prompt), *ids, tokenizer.sep][:max_length]
    tokens = torch.tensor([row])
    hidden = model.text.decode(tokens, torch.ones_like(tokens), model.text.image_kv(image_embeds[None]))
    logp = model.text.logits(hidden).log_softmax(-1)[0]
    start = len(tokenizer.prompt(prompt))
    return sum(logp[i - 1, row[i]].item() for i in range(start, len(row)))


def test_caption_depends_on_key_and_index_alone(model, image_embeds, tokenizer):
    everything = list(range(PICTURES))
    together = captions(model, image_embeds, tokenizer, everything, num_captions=3, seed=7)
    assert len({tuple(ids) for ids in together.values()}) > PICTURES  # otherwise the rest says little
    assert captions(model, image_embeds, tokenizer, everything[::-1], num_captions=3, seed=7) == together
    for order in ([4], [8, 1], [2, 3, 0]):
        part = captions(model, image_embeds, tokenizer, order, num_captions=3, seed=7)
        assert part == {key: together[key] for key in part}
    fewer = captions(model, image_embeds, tokenizer, everything, num_captions=1, seed=7)
    assert fewer == {key: ids for key, ids in together.items() if key[1] == 0}
    assert captions(model, image_embeds, tokenizer, everything, num_captions=3, seed=8) != together


def test_noise_belongs_to_its_key():
    noise = sample_noise(1, "k", 0, 8)
    assert ((noise >= 0) & (noise < 1)).all()
    assert (sample_noise(1, "k", 0, 3) == noise[:3]).all()
    for other in (sample_noise(2, "k", 0, 8), sample_noise(1, "l", 0, 8), sample_noise(1, "k", 1, 8)):
        assert not set(noise) & set(other)
    # Fixed for ever: captions made by an older version must come out again.
    assert noise[0] == pytest.approx(0.5687081879284482, abs=1e-15)


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "nucleus", "num_captions": 2},
        {"mode": "nucleus", "temperature": 0.5, "top_k": 0, "top_p": 1.0},
        {"mode": "greedy"},
        {"mode": "beam", "num_captions": 3},
        {"mode": "beam", "repetition_penalty": 1.0, "prompt": ""},
    ],
)
def test_logprob_is_that_of_the_unfiltered_model(model, image_embeds, tokenizer, options):
    config = GenerateConfig(max_length=12, **options)
    out = generate(model, image_embeds, tokenizer, config, KEYS)
    assert len(out.ids) == PICTURES * config.num_captions
    for row, (ids, logprob) in enumerate(zip(out.ids, out.logprob, strict=True)):
        image = image_embeds[row // config.num_captions]
        expected = teacher_forced(model, image, tokenizer, config.prompt, ids, config.max_length)
        assert logprob == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("mode", ["nucleus", "greedy", "beam"])
def test_lengths_count_the_prompt(model, image_embeds, tokenizer, mode):
    for shortest, longest in ((5, 8), (8, 8), (1, 5)):
        config = GenerateConfig(mode=mode, min_length=shortest, max_length=longest)
        for ids in generate(model, image_embeds, tokenizer, config, KEYS).ids:
            assert shortest - 4 <= len(ids) <= longest - 4  # a prompt of 4 tokens
            assert tokenizer.sep not in ids


def test_greedy_equals_a_loop_without_cache(model, image_embeds, tokenizer):
    config = GenerateConfig(mode="greedy", max_length=12, repetition_penalty=1.3)
    out = generate(model, image_embeds, tokenizer, config, KEYS)
    for image, ids in zip(image_embeds, out.ids, strict=True):
        row = tokenizer.prompt(config.prompt)
        while len(row) < config.max_length and tokenizer.sep not in row:
            tokens = torch.tensor([row])
            hidden = model.text.decode(tokens, torch.ones_like(tokens), model.text.image_kv(image[None]))
            scores = _constrain(model.text.logits(hidden)[:, -1], tokens, tokenizer.sep, config)
            row.append(scores.argmax().item())
        assert ids == [token for token in row[4:] if token != tokenizer.sep]


def plain_beam_search(model, image, tokenizer, config: GenerateConfig) -> list[list[int]]:
    """The same search for one picture as lists of lists, every prefix scored anew."""
    kv = model.text.image_kv(image[None])
    prompt, sep, nb = tokenizer.prompt(config.prompt), tokenizer.sep, config.beams
    beams, finished = [(0.0, prompt)], []
    for length in range(len(prompt), config.max_length):
        candidates = []
        for total, row in beams:
            tokens = torch.tensor([row])
            logits = model.text.logits(model.text.decode(tokens, torch.ones_like(tokens), kv))[:, -1]
            scores = _constrain(logits.log_softmax(-1), tokens, sep, config)[0]
            candidates += [(total + score, [*row, token]) for token, score in enumerate(scores.tolist())]
        candidates.sort(key=lambda c: -c[0])
        best = candidates[0][0]
        ended = [(total / length, row[:-1]) for total, row in candidates[:nb] if row[-1] == sep]
        finished = sorted(finished + ended, key=lambda c: -c[0])[:nb]
        beams = [c for c in candidates if c[1][-1] != sep][:nb]
        if len(finished) == nb and finished[-1][0] >= best / length:
            break
    else:
        finished += [(total / config.max_length, row) for total, row in beams]
    finished = sorted(finished, key=lambda c: -c[0])
    return [row[len(prompt) :] for _, row in finished[: config.num_captions]]


@pytest.mark.parametrize("penalty", [1.0, 1.1])
def test_beam_search_equals_a_plain_one(model, image_embeds, tokenizer, penalty):
    config = GenerateConfig(mode="beam", beams=3, num_captions=3, max_length=10, repetition_penalty=penalty)
    out = generate(model, image_embeds, tokenizer, config, KEYS)
    for b, image in enumerate(image_embeds):
        assert out.ids[3 * b : 3 * b + 3] == plain_beam_search(model, image, tokenizer, config)
    lengths = {len(ids) for ids in out.ids}
    assert len(lengths) > 1  # pictures are done at different steps, so rows were dropped


def test_draw_follows_the_distribution():
    probabilities = torch.tensor([0.1, 0.4, 0.05, 0.25, 0.2])
    N = 4000
    noise = (torch.arange(N, dtype=torch.float64) + 0.5) / N
    scores = probabilities.log().expand(N, -1)

    def shares(**options) -> list[float]:
        drawn = _draw(scores, noise, GenerateConfig(**options))
        return (drawn.bincount(minlength=5) / N).tolist()

    assert shares(top_k=0, top_p=1.0) == pytest.approx(probabilities.tolist(), abs=1e-3)
    assert shares(top_k=2, top_p=1.0) == pytest.approx([0, 0.4 / 0.65, 0, 0.25 / 0.65, 0], abs=1e-3)
    # 0.4 + 0.25 is short of 0.7, so the token that crosses it (0.2) is kept.
    assert shares(top_k=0, top_p=0.7) == pytest.approx([0, 0.4 / 0.85, 0, 0.25 / 0.85, 0.2 / 0.85], abs=1e-3)
    assert shares(top_k=0, top_p=0.01) == [0, 1, 0, 0, 0]
    # top_p applies to what top_k left: 0.4 / 0.65 is short of 0.62.
    assert shares(top_k=2, top_p=0.62) == pytest.approx([0, 0.4 / 0.65, 0, 0.25 / 0.65, 0], abs=1e-3)


def test_draw_at_the_ends_of_the_noise():
    scores = torch.tensor([[0.0, -math.inf, 0.3, -math.inf]] * 2)
    noise = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert _draw(scores, noise, GenerateConfig(top_k=0, top_p=1.0)).tolist() == [0, 2]


def test_penalty_and_minimum():
    scores = torch.tensor([[2.0, -2.0, 1.0, 0.5]])
    config = GenerateConfig(repetition_penalty=2.0, min_length=5)
    constrained = _constrain(scores, torch.tensor([[0, 1, 0]]), 3, config)
    assert constrained.tolist() == [[1.0, -4.0, 1.0, -math.inf]]
    assert scores.tolist() == [[2.0, -2.0, 1.0, 0.5]]
    assert _constrain(scores, torch.tensor([[2] * 5]), 3, config).tolist() == [[2.0, -2.0, 0.5, 0.5]]


def test_no_pictures(model, image_embeds, tokenizer):
    assert generate(model, image_embeds[:0], tokenizer, GenerateConfig(), []).ids == []


def test_wrong_settings_are_refused(model, image_embeds, tokenizer):
    for options, message in [
        ({"mode": "sample"}, "mode is"),
        ({"top_p": 0.0}, "top_p"),
        ({"temperature": 0.0}, "temperature"),
        ({"mode": "greedy", "num_captions": 2}, "one caption"),
        ({"mode": "beam", "num_captions": 4}, "as many beams"),
        ({"num_captions": 0}, "at least 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            GenerateConfig(**options)
    for longest in (4, 33):
        with pytest.raises(ValueError, match=f"max_length {longest}"):
            generate(model, image_embeds, tokenizer, GenerateConfig(max_length=longest), KEYS)
