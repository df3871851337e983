"""A BLIP caption is a function of picture, key and settings: not of its batch or the number of captions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from blipcore.generate.config import GenerateConfig
from capfilt.caption.blip import BlipCaptioner
from capfilt.caption.captioner import Caption

KEYS = [f"{number:06d}" for number in range(32)]

Captions = dict[int, list[Caption]]  # by the number of the drawn picture
Describe = Callable[[BlipCaptioner, list[int]], Captions]


@pytest.fixture
def describe(draw) -> Describe:
    """Caption drawn pictures in one batch."""

    def caption(captioner: BlipCaptioner, numbers: list[int]) -> Captions:
        inputs = [captioner.prepare(draw(number)) for number in numbers]
        return dict(zip(numbers, captioner.caption(inputs, [KEYS[number] for number in numbers]), strict=True))

    return caption


@pytest.mark.parametrize("mode", ["nucleus", "beam", "greedy"])
def test_captions_do_not_depend_on_the_batch(tiny_captioner: Path, describe: Describe, mode: str) -> None:
    captioner = BlipCaptioner(str(tiny_captioner), GenerateConfig(mode=mode), dtype="fp32")
    one_batch = describe(captioner, list(range(32)))
    assert len({caption.text for captions in one_batch.values() for caption in captions}) > 1, "pictures do not matter"
    shuffled: Captions = {}
    for start in range(0, 32, 4):
        shuffled |= describe(captioner, [(7 * number) % 32 for number in range(start, start + 4)])
    for number, captions in one_batch.items():
        assert [caption.text for caption in captions] == [caption.text for caption in shuffled[number]]
        assert [caption.logprob for caption in captions] == pytest.approx(
            [caption.logprob for caption in shuffled[number]], abs=1e-3
        )
        assert all(caption.logprob < 0 and caption.error is None for caption in captions)


def test_the_first_of_several_captions_is_the_single_one(tiny_captioner: Path, describe: Describe) -> None:
    single = describe(BlipCaptioner(str(tiny_captioner), GenerateConfig(num_captions=1), dtype="fp32"), [3, 4, 5])
    several = describe(BlipCaptioner(str(tiny_captioner), GenerateConfig(num_captions=3), dtype="fp32"), [3, 4, 5])
    for number in single:
        assert len(several[number]) == 3
        assert several[number][0].text == single[number][0].text
        assert len({caption.text for caption in several[number]}) > 1


def test_the_seed_changes_the_captions(tiny_captioner: Path, describe: Describe) -> None:
    captions = [
        describe(BlipCaptioner(str(tiny_captioner), GenerateConfig(seed=seed), dtype="fp32"), list(range(8)))
        for seed in (0, 0, 1)
    ]
    assert captions[0] == captions[1] != captions[2]


def test_captions_of_merged_tokens_do_not_depend_on_the_batch(tiny_captioner: Path, describe: Describe) -> None:
    captioner = BlipCaptioner(str(tiny_captioner), GenerateConfig(), dtype="fp32", merge_tokens=2)
    one_batch, alone = describe(captioner, list(range(8))), describe(captioner, [5])
    assert alone[5][0].text == one_batch[5][0].text


def test_bf16_gives_captions_too(tiny_captioner: Path, describe: Describe) -> None:
    captions = describe(BlipCaptioner(str(tiny_captioner), dtype="bf16"), [0, 1])
    assert all(caption.text and -1000 < caption.logprob < 0 for (caption,) in captions.values())


def test_a_checkpoint_or_prompt_that_does_not_fit_raises(tiny_filter: Path, tiny_captioner: Path) -> None:
    with pytest.raises(ValueError, match="captioning needs the text decoder"):
        BlipCaptioner(str(tiny_filter))
    with pytest.raises(ValueError, match="max_length 41 must be above"):  # the model has 40 positions
        BlipCaptioner(str(tiny_captioner), GenerateConfig(max_length=41))
