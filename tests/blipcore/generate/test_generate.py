"""Generation: a caption depends on its image and key alone; lengths, log-probabilities and refused settings."""

from typing import Any

import pytest
from random_captioner import IMAGES, KEYS, TOKENIZER, decode_uncached, random_captioner, random_images
from torch import Tensor

from blipcore.generate.config import GenerateConfig
from blipcore.generate.generate import generate
from blipcore.model.blip import Blip


@pytest.fixture(scope="module")
def model() -> Blip:
    return random_captioner()


@pytest.fixture(scope="module")
def image_embeds() -> Tensor:
    return random_images()


def caption(model: Blip, image_embeds: Tensor, order: list[int], **options: Any) -> dict[tuple[str, int], list[int]]:
    """Return the token ids of each (key, caption index) for a batch of the images in `order`."""
    config = GenerateConfig(**options)
    result = generate(model, image_embeds[order], TOKENIZER, config, [KEYS[i] for i in order])
    n = config.num_captions
    return {(KEYS[i], j): result.ids[b * n + j] for b, i in enumerate(order) for j in range(n)}


def text_logprob(model: Blip, image_embeds: Tensor, prompt: str, ids: list[int], max_length: int) -> float:
    """Return the log-probability of one caption, from a single pass without cache."""
    row = [*TOKENIZER.prompt(prompt), *ids, TOKENIZER.sep][:max_length]
    logprob = decode_uncached(model, image_embeds, row).log_softmax(-1)
    start = len(TOKENIZER.prompt(prompt))
    return sum(logprob[i - 1, row[i]].item() for i in range(start, len(row)))


def test_a_caption_depends_on_its_image_key_and_index_alone(model: Blip, image_embeds: Tensor) -> None:
    order = list(range(IMAGES))
    expected = caption(model, image_embeds, order, num_captions=3, seed=7)
    assert len({tuple(ids) for ids in expected.values()}) > IMAGES, "captions hardly differ, so this test shows little"
    assert caption(model, image_embeds, order[::-1], num_captions=3, seed=7) == expected
    for part in ([4], [8, 1], [2, 3, 0]):
        captions = caption(model, image_embeds, part, num_captions=3, seed=7)
        assert captions == {key: expected[key] for key in captions}
    single = caption(model, image_embeds, order, num_captions=1, seed=7)
    assert single == {key: ids for key, ids in expected.items() if key[1] == 0}
    assert caption(model, image_embeds, order, num_captions=3, seed=8) != expected


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
def test_logprob_is_that_of_the_model_before_penalty_and_filters(
    model: Blip, image_embeds: Tensor, options: dict[str, Any]
) -> None:
    config = GenerateConfig(max_length=12, **options)
    result = generate(model, image_embeds, TOKENIZER, config, KEYS)
    assert len(result.ids) == IMAGES * config.num_captions
    for row, (ids, logprob) in enumerate(zip(result.ids, result.logprob, strict=True)):
        image = image_embeds[row // config.num_captions]
        expected = text_logprob(model, image, config.prompt, ids, config.max_length)
        assert logprob == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("mode", ["nucleus", "greedy", "beam"])
def test_lengths_include_the_prompt(model: Blip, image_embeds: Tensor, mode: Any) -> None:
    for shortest, longest in ((5, 8), (8, 8), (1, 5)):
        config = GenerateConfig(mode=mode, min_length=shortest, max_length=longest)
        for ids in generate(model, image_embeds, TOKENIZER, config, KEYS).ids:
            # The prompt has 4 tokens.
            assert shortest - 4 <= len(ids) <= longest - 4
            assert TOKENIZER.sep not in ids


def test_no_images_give_no_captions(model: Blip, image_embeds: Tensor) -> None:
    assert generate(model, image_embeds[:0], TOKENIZER, GenerateConfig(), []).ids == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "sample"}, "mode must be"),
        ({"top_p": 0.0}, "top_p"),
        ({"temperature": 0.0}, "temperature"),
        ({"mode": "greedy", "num_captions": 2}, "one caption"),
        ({"mode": "beam", "num_captions": 4}, "at least as many beams"),
        ({"num_captions": 0}, "at least 1"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerateConfig(**options)


@pytest.mark.parametrize("longest", [4, 33])
def test_max_length_must_fit_the_prompt_and_the_model(model: Blip, image_embeds: Tensor, longest: int) -> None:
    with pytest.raises(ValueError, match=f"max_length {longest}"):
        generate(model, image_embeds, TOKENIZER, GenerateConfig(max_length=longest), KEYS)
