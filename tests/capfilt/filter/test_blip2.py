"""The BLIP-2 scorer equals transformers, and other BLIP-2 models are refused with a hint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from filter_runs import caption, rows, run
from tiny_filters import save_tiny_blip2

from capfilt.filter.blip2 import Blip2Scorer
from capfilt.filter.scorer import Runtime

TEXTS = [["a red dog", "two green trees on the left"], [], ["the cat", "a red dog"]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_blip2(tmp_path_factory.mktemp("blip2") / "filter")


def load(model: Path, **runtime: str) -> Blip2Scorer:
    scorer = Blip2Scorer(str(model))
    scorer.load(Runtime(**runtime))
    return scorer


@torch.no_grad()
def test_scores_equal_those_of_transformers(model: Path, draw) -> None:
    scorer = load(model)
    inputs = [scorer.prepare(draw(number)) for number in range(3)]
    scores = scorer.score(inputs, TEXTS)
    for pixels, texts, itm, itc in zip(inputs, TEXTS, scores["itm"], scores["itc"], strict=True):
        assert len(itm) == len(itc) == len(texts)
        for text, text_itm, text_itc in zip(texts, itm, itc, strict=True):
            words = scorer.tokenizer([text], return_tensors="pt")
            arguments = {name: words[name] for name in ("input_ids", "attention_mask")} | {"pixel_values": pixels[None]}
            matching = scorer.model(**arguments, use_image_text_matching_head=True).logits_per_image.softmax(1)
            assert text_itm == pytest.approx(matching[0, 1].item(), abs=1e-5)
            cosine = scorer.model(**arguments, use_image_text_matching_head=False).logits_per_image
            assert text_itc == pytest.approx(cosine[0, 0].item(), abs=1e-5)
    assert len({round(x, 6) for row in scores["itm"] for x in row}) > 2


def test_bf16_scores_are_close_to_fp32_scores(model: Path, draw) -> None:
    fp32, bf16 = load(model), load(model, dtype="bf16")
    inputs = [fp32.prepare(draw(number)) for number in range(3)]
    for column in ("itm", "itc"):
        for a, b in zip(fp32.score(inputs, TEXTS)[column], bf16.score(inputs, TEXTS)[column], strict=True):
            assert a == pytest.approx(b, abs=0.05)


def test_blip2_filters_a_shard_set(model: Path, shards) -> None:
    summary = run(shards(1, 4), model, threshold=0)
    assert summary["kept"] == 4 and Path(summary["scores"]).name.startswith("blip2-")
    assert {"itm", "itc"} <= rows(summary)[0].keys()
    manifest = json.loads((Path(summary["scores"]) / "manifest.json").read_text())
    assert "transformers" in manifest["versions"] and "first_token" not in manifest["config"]


def test_a_backend_that_blip2_does_not_use_is_refused(model: Path, shards) -> None:
    with pytest.raises(ValueError, match="backend compile is for BLIP and ALBEF, not for"):
        run(shards(1, 1), model, backend="compile")


def test_a_captioner_given_as_filter_and_a_filter_given_as_captioner_are_told_apart(
    model: Path, shards, tmp_path: Path
) -> None:
    data, captioner = shards(1, 1), tmp_path / "captioner"
    captioner.mkdir()
    config = json.loads((model / "config.json").read_text()) | {"architectures": ["Blip2ForConditionalGeneration"]}
    (captioner / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"is a BLIP-2 captioner: give it to `capfilt caption --model hf:.*no ITM head"
    ):
        run(data, captioner)
    with pytest.raises(ValueError, match="is a BLIP-2 filter: give it to `capfilt filter --model"):
        caption(data, model)


def test_incomplete_weights_are_refused_by_name(model: Path, shards, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    state = safetensors.torch.load_file(broken / "model.safetensors")
    del state["itm_head.weight"]
    safetensors.torch.save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"is no complete BLIP-2 filter: missing itm_head\.weight"):
        run(shards(1, 1), broken)
    (broken / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"transformers cannot load .* as a BLIP-2 filter"):
        run(shards(1, 1), broken)


def test_the_fingerprint_covers_the_image_processor(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "copy")
    before = Blip2Scorer(str(tmp_path / "copy")).fingerprint
    assert before == Blip2Scorer(str(model)).fingerprint
    file = tmp_path / "copy" / "preprocessor_config.json"
    file.write_text(file.read_text().replace('"do_normalize": true', '"do_normalize": false'))
    assert Blip2Scorer(str(tmp_path / "copy")).fingerprint != before
