"""`hf:` with a tiny random model of transformers: captions depend on their picture and key, and match `generate`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_vlm import save_tiny_vlm

from blipcore.device import Dtype
from capfilt.caption.captioner import Caption
from capfilt.caption.chat import ChatConfig
from capfilt.caption.hf import HfCaptioner, TokenChooser
from capfilt.caption.registry import captioner_fingerprint, open_captioner
from capfilt.caption.stage import CaptionConfig, caption_shards
from capfilt.shards.tables import read_table
from capfilt.vlm.hf_files import hf_fingerprint

KEYS = [f"{number:06d}" for number in range(12)]

Captions = list[list[Caption]]


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_vlm(tmp_path_factory.mktemp("vlm") / "llava")


@pytest.fixture
def describe(vlm: Path, draw) -> Callable[..., Captions]:
    """Caption drawn pictures, `batch` at a time."""

    def caption(settings: ChatConfig, batch: int = 12, dtype: Dtype = "fp32") -> Captions:
        captioner = HfCaptioner(str(vlm), settings, dtype=dtype)
        captions: Captions = []
        for start in range(0, len(KEYS), batch):
            numbers = range(start, start + batch)
            inputs = [captioner.prepare(draw(number)) for number in numbers]
            captions += captioner.caption(inputs, [KEYS[number] for number in numbers])
        return captions

    return caption


def texts(captions: Captions) -> list[list[str | None]]:
    return [[caption.text for caption in captions_of_picture] for captions_of_picture in captions]


def test_greedy_captions_match_generate(vlm: Path, describe, draw) -> None:
    settings = ChatConfig(mode="greedy", prompt="describe this image", max_new_tokens=40)
    captioner = HfCaptioner(str(vlm), settings, dtype="fp32")
    assert captioner.prompt == "user <image> describe this image assistant "
    for number, (caption,) in enumerate(describe(settings, batch=4)):
        inputs = captioner.processor(text=[captioner.prompt], images=[draw(number)], return_tensors="pt")
        out = captioner.model.generate(
            **inputs, do_sample=False, max_new_tokens=40, return_dict_in_generate=True, output_logits=True
        )
        new = out.sequences[0, inputs["input_ids"].shape[1] :]
        logprobs = [logits[0].log_softmax(0)[token] for logits, token in zip(out.logits, new, strict=True)]
        expected = captioner.tokenizer.decode(new, skip_special_tokens=True)
        if new[-1] == 1:
            assert caption.text == expected and caption.logprob == pytest.approx(float(sum(logprobs)), abs=1e-3)
        else:
            assert caption.error.startswith("too_long")


def test_sampled_captions_depend_on_key_and_seed(describe) -> None:
    settings = ChatConfig(prompt="describe this image", num_captions=2)
    one_batch = describe(settings)
    captions = [caption for captions_of_picture in one_batch for caption in captions_of_picture]
    assert len({caption.text for caption in captions}) > 6, "pictures do not matter"
    assert all((caption.text is None) == (caption.error is not None) for caption in captions)
    assert texts(describe(settings, batch=3)) == texts(one_batch)
    assert [pair[:1] for pair in texts(one_batch)] == texts(describe(ChatConfig(prompt="describe this image")))
    assert texts(describe(ChatConfig(prompt="describe this image", num_captions=2, seed=1))) != texts(one_batch)
    assert texts(describe(ChatConfig(prompt="a red dog", num_captions=2))) != texts(one_batch)


@pytest.mark.parametrize("kind", ["qwen2_vl", "idefics3"])
def test_models_of_other_families_take_batches_too(kind: str, tmp_path: Path, draw) -> None:
    model = save_tiny_vlm(tmp_path / kind, kind)
    captioner = HfCaptioner(str(model), ChatConfig(prompt="describe", num_captions=2, max_new_tokens=30), dtype="fp32")
    pictures = [draw(number, 40 + 12 * number) for number in range(4)]
    together = captioner.caption(pictures, KEYS[:4])
    alone = [captioner.caption([picture], [key])[0] for picture, key in zip(pictures, KEYS, strict=False)]
    assert texts(together) == texts(alone) and any(caption.text for pair in together for caption in pair)


def test_tokens_are_drawn_from_the_nucleus() -> None:
    scores = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(2000, 4)
    keys = [str(number) for number in range(2000)]
    for top_p, expected in ((0.45, [1, 0, 0, 0]), (0.79, [0.625, 0.375, 0, 0]), (1.0, [0.5, 0.3, 0.15, 0.05])):
        chooser = TokenChooser(ChatConfig(top_p=top_p, max_new_tokens=1), keys, {3})
        masked = chooser(torch.zeros(2000, 1, dtype=torch.long), scores)
        chosen = torch.tensor([row[0] for row in chooser.token_ids()])
        assert torch.equal(masked.argmax(1), chosen) and masked.isinf().sum() == 3 * 2000
        share = torch.bincount(chosen, minlength=4) / 2000
        assert share.tolist() == pytest.approx(expected, abs=0.04)
        assert torch.equal(chooser.done, chosen == 3)


def test_bf16_gives_captions_too(describe) -> None:
    assert all(caption.text or caption.error for (caption,) in describe(ChatConfig(max_new_tokens=8), dtype="bf16"))


def test_from_tar_to_table(shards, vlm: Path) -> None:
    data = shards(1, 6)
    config = CaptionConfig(str(data), f"hf:{vlm}", name="llava", device="cpu", batch_size=4)
    counts = caption_shards(config, progress=False)["counts"]
    rows = read_table(data / "captions/llava/00000.parquet").to_pylist()
    assert counts["pictures"] == len(rows) == 6 == counts["captions"] + counts.get("no_caption", 0)
    assert any(row["text"] for row in rows) and all(row["logprob"] < 0 for row in rows if row["text"])


def test_the_fingerprint_depends_on_the_files(vlm: Path, tmp_path: Path) -> None:
    first = captioner_fingerprint(f"hf:{vlm}")
    assert first == hf_fingerprint(str(vlm)) == open_captioner(f"hf:{vlm}").fingerprint
    assert hf_fingerprint(str(save_tiny_vlm(tmp_path / "other", seed=1))) != first
    copy = tmp_path / "models--a--b" / "snapshots" / "0123456789abcdef0123"
    copy.parent.mkdir(parents=True)
    copy.symlink_to(vlm)
    assert hf_fingerprint(str(copy)) == f"hf:{copy}@0123456789abcdef"


def test_without_a_chat_template_the_prompt_is_used_as_it_is(tmp_path: Path, draw) -> None:
    model = save_tiny_vlm(tmp_path / "plain", template=False)
    captioner = HfCaptioner(str(model), ChatConfig(prompt="<image> a red", max_new_tokens=8), dtype="fp32")
    assert captioner.prompt == "<image> a red"
    assert len(captioner.caption([draw(1), draw(2)], ["1", "2"])) == 2


def test_folders_that_are_no_model_of_transformers_raise(tmp_path: Path, tiny_captioner: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        hf_fingerprint(str(tmp_path))
    with pytest.raises(ValueError, match=r"has no model_type\. Give a checkpoint of BLIP without 'hf:'"):
        HfCaptioner(str(tiny_captioner), ChatConfig())
