"""The scorer of a captioner's probabilities: against single passes, for its own captions, and its null pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from filter_runs import caption, rows, run

from blipcore.checkpoints.load import load_model
from blipcore.generate.config import GenerateConfig
from blipcore.io.samples import TarSample
from capfilt.filter.config import ScoreConfig
from capfilt.filter.lm import NULL_PICTURES, LmScorer
from capfilt.filter.registry import declare_scorers
from capfilt.filter.scorer import Runtime
from capfilt.shards.format import write_shard

PROMPT = "a picture of "
TEXTS = [["a red dog", "Two green trees!!"], [], ["three"], ["a red dog", "a red dog"]]


def load(path: Path, data: Path, prompt: str = PROMPT) -> LmScorer:
    """Return a loaded scorer."""
    scorer = LmScorer(str(path), str(data), prompt)
    scorer.load(Runtime("cpu", "fp32"))
    return scorer


def test_scores_are_log_probabilities_with_and_without_the_picture(tiny_captioner: Path, shards, draw) -> None:
    data = shards(1, NULL_PICTURES + 2)
    scorer = load(tiny_captioner, data)
    inputs = [scorer.prepare(draw(100 + number)) for number in range(4)]
    scores = scorer.score(inputs, TEXTS)
    assert tuple(scores) == scorer.columns == ("lm", "pmi")
    model, tokenizer = load_model(tiny_captioner)
    nulls = torch.stack([scorer.prepare(draw(number)) for number in range(NULL_PICTURES)])
    prompt_length = len(tokenizer.prompt(PROMPT))

    def logprob(pixels: torch.Tensor, text: str) -> torch.Tensor:
        """Return the log-probabilities (B,) of a text for B images, token by token."""
        ids = tokenizer([PROMPT + text], 40, "dec")[0].expand(len(pixels), -1)
        kv = model.text.image_kv(model.encode_image(pixels))
        total = torch.zeros(len(pixels))
        for position in range(prompt_length, ids.shape[1]):
            logits = model.text.logits(model.text.decode(ids[:, :position], None, kv)[:, -1])
            total += logits.log_softmax(-1)[:, ids[0, position]]
        return total

    with torch.no_grad():
        for number, texts in enumerate(TEXTS):
            for index, text in enumerate(texts):
                words = text.lower().strip("!")
                penalty = ((5 + len(words.split()) + 1) / 6) ** 0.6
                given, alone = logprob(inputs[number][None], words), logprob(nulls, words).exp().mean().log()
                assert scores["lm"][number][index] == pytest.approx(given.item() / penalty, rel=1e-4)
                assert scores["pmi"][number][index] == pytest.approx((given - alone).item() / penalty, abs=1e-3)
    assert len(scores["lm"][1]) == 0 and len(set(np.round(scores["pmi"][0] + scores["pmi"][2], 6))) == 3


def test_lm_is_the_confidence_of_the_captioners_own_captions(shards, tiny_blip: Path) -> None:
    data = shards(1, 6)
    caption(data, tiny_blip, name="c", dtype="fp32", generate=GenerateConfig(num_captions=2, prompt=PROMPT))
    summary = run(data, tiny_blip, scorer=f"lm:{tiny_blip}", min_scores={"pmi": -100}, threshold=0)
    captions = [row for row in rows(summary) if row["source"] == "c" and row["lm"] is not None]
    # the longest were cut, so they have no end
    whole = [row for row in captions if len(row["text"].split()) < 14]
    assert len(whole) >= 6
    assert [row["lm"] for row in whole] == pytest.approx([row["confidence"] for row in whole], rel=1e-3)


def test_pictures_that_cannot_be_decoded_are_no_null_pictures(tiny_captioner: Path, tmp_path: Path, drawn) -> None:
    data = tmp_path / "data"
    write_shard(data / "00000.tar", [TarSample("bad", b"no picture", "a text")])
    with pytest.raises(ValueError, match=r"has no picture that can be decoded, and pmi needs one"):
        load(tiny_captioner, data)
    write_shard(data / "00001.tar", [TarSample("bad", b"no picture", "a text"), drawn(1)])
    assert len(load(tiny_captioner, data).null_kv) == 1


def test_a_prompt_that_leaves_no_room_and_other_checkpoints_are_refused(
    tiny_captioner: Path, tiny_filter: Path, shards
) -> None:
    data = shards(1, 2)
    with pytest.raises(ValueError, match=r"lm_prompt has \d+ tokens, which leaves no room"):
        load(tiny_captioner, data, "word " * 600)
    with pytest.raises(ValueError, match="decode"):
        load(tiny_filter, data)


def test_the_settings_tell_scores_of_another_prompt_apart(tiny_captioner: Path, tiny_filter: Path, shards) -> None:
    data = str(shards(1, 2))

    def declare(prompt: str) -> dict:
        config = ScoreConfig(data=data, model=str(tiny_filter), scorer=f"lm:{tiny_captioner}", lm_prompt=prompt)
        return declare_scorers(config)[1].settings()

    assert declare("") == declare("")
    assert declare("") | {"prompt": "a photo of "} == declare("a photo of ")


@pytest.mark.parametrize("spec", ["lm:", "lm:hf:some/model", "lm:openai:gpt@http://a"])
def test_a_scorer_without_a_blip_captioner_is_refused(spec: str, tiny_filter: Path) -> None:
    with pytest.raises(ValueError, match=r"names no BLIP captioner; write lm:FOLDER"):
        declare_scorers(ScoreConfig(data="data", model=str(tiny_filter), scorer=spec))
