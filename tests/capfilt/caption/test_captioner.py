"""A caption belongs to its picture: not to its batch, nor to how many captions were asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from blipcore.generate.config import GenerateConfig
from capfilt.caption.blip import BlipCaptioner
from capfilt.caption.captioner import captioner_fingerprint, open_captioner

KEYS = [f"{number:06d}" for number in range(32)]


Said = dict[int, list[tuple[str, float]]]


@pytest.fixture
def say(draw) -> Callable[[BlipCaptioner, list[int]], Said]:
    """Captions of drawn pictures, by their numbers."""

    def caption(captioner: BlipCaptioner, numbers: list[int]) -> Said:
        inputs = [captioner.prepare(draw(number)) for number in numbers]
        return dict(zip(numbers, captioner.caption(inputs, [KEYS[number] for number in numbers]), strict=True))

    return caption


@pytest.mark.parametrize("mode", ["nucleus", "beam", "greedy"])
def test_captions_do_not_depend_on_the_batch(tiny_captioner: Path, say, mode: str) -> None:
    captioner = BlipCaptioner(str(tiny_captioner), GenerateConfig(mode=mode), dtype="fp32")
    whole = say(captioner, list(range(32)))
    assert len({text for captions in whole.values() for text, _ in captions}) > 1, "the pictures do not matter"
    shuffled: Said = {}
    for start in range(0, 32, 4):
        shuffled |= say(captioner, [(7 * number) % 32 for number in range(start, start + 4)])
    for number, captions in whole.items():
        assert [text for text, _ in captions] == [text for text, _ in shuffled[number]]
        assert [p for _, p in captions] == pytest.approx([p for _, p in shuffled[number]], abs=1e-3)
        assert all(p < 0 for _, p in captions)


def test_the_first_of_several_captions_is_the_single_one(tiny_captioner: Path, say) -> None:
    one = say(BlipCaptioner(str(tiny_captioner), GenerateConfig(num_captions=1), dtype="fp32"), [3, 4, 5])
    three = say(BlipCaptioner(str(tiny_captioner), GenerateConfig(num_captions=3), dtype="fp32"), [3, 4, 5])
    for number in one:
        assert len(three[number]) == 3
        assert three[number][0][0] == one[number][0][0]
        assert len({text for text, _ in three[number]}) > 1


def test_the_seed_changes_the_captions(tiny_captioner: Path, say) -> None:
    said = [
        say(BlipCaptioner(str(tiny_captioner), GenerateConfig(seed=seed), dtype="fp32"), list(range(8)))
        for seed in (0, 0, 1)
    ]
    assert said[0] == said[1] != said[2]


def test_bf16_speaks_too(tiny_captioner: Path, say) -> None:
    said = say(BlipCaptioner(str(tiny_captioner), dtype="bf16"), [0, 1])
    assert all(text and -1000 < p < 0 for captions in said.values() for text, p in captions)


def test_the_fingerprint_follows_the_weights(tiny_captioner: Path, save_tiny_model, tmp_path: Path) -> None:
    spec = str(tiny_captioner)
    assert open_captioner(spec).fingerprint == captioner_fingerprint(spec)
    other = save_tiny_model(tmp_path / "other", "decode", seed=1)
    assert captioner_fingerprint(str(other)) != captioner_fingerprint(spec)


def test_mistakes_are_sentences(tiny_filter: Path, tiny_captioner: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="captioning needs the text decoder"):
        open_captioner(str(tiny_filter))
    for spec in ("open_clip:ViT-B-32/openai", "hf:"):
        with pytest.raises(ValueError, match=f"'{spec}' is not a captioner; give a blipcore checkpoint folder"):
            open_captioner(spec)
        with pytest.raises(ValueError, match="is not a captioner"):
            captioner_fingerprint(spec)
    with pytest.raises(ValueError, match="max_length 41 must be above"):  # the model has 40 positions
        open_captioner(str(tiny_captioner), GenerateConfig(max_length=41))
    (tmp_path / "empty").mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match="empty"):
        open_captioner(str(tmp_path / "empty"))
