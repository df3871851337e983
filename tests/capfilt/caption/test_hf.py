"""`hf:` with a tiny random model of transformers: captions belong to their pictures, and are what generate() says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_vlm import save_tiny_vlm

from capfilt.caption.captioner import captioner_fingerprint, open_captioner
from capfilt.caption.chat import ChatConfig
from capfilt.caption.hf import HfCaptioner, hf_fingerprint
from capfilt.caption.stage import CaptionConfig, caption_shards
from capfilt.shards.tables import read_table

KEYS = [f"{number:06d}" for number in range(12)]


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_vlm(tmp_path_factory.mktemp("vlm") / "llava")


@pytest.fixture
def say(vlm: Path, draw):
    """Captions of drawn pictures, a few at a time."""

    def caption(settings: ChatConfig, batch: int = 12, dtype: str = "fp32") -> list:
        captioner = HfCaptioner(str(vlm), settings, dtype=dtype)
        told = []
        for start in range(0, len(KEYS), batch):
            some = range(start, start + batch)
            inputs = [captioner.prepare(draw(number)) for number in some]
            told += captioner.caption(inputs, [KEYS[number] for number in some])
        return told

    return caption


def texts(told: list) -> list[list[str | None]]:
    return [[caption.text for caption in captions] for captions in told]


def test_greedy_captions_are_those_of_generate(vlm: Path, say, draw) -> None:
    settings = ChatConfig(mode="greedy", prompt="describe this image", max_new_tokens=40)
    captioner = HfCaptioner(str(vlm), settings, dtype="fp32")
    assert captioner.prompt == "user <image> describe this image assistant "
    told = say(settings, batch=4)
    for number, (caption,) in enumerate(told):
        inputs = captioner.processor(text=[captioner.prompt], images=[draw(number)], return_tensors="pt")
        out = captioner.model.generate(
            **inputs, do_sample=False, max_new_tokens=40, return_dict_in_generate=True, output_logits=True
        )
        new = out.sequences[0, inputs["input_ids"].shape[1] :]
        gained = [logits[0].log_softmax(0)[token] for logits, token in zip(out.logits, new, strict=True)]
        expected = captioner.tokenizer.decode(new, skip_special_tokens=True)
        if new[-1] == 1:
            assert caption.text == expected and caption.logprob == pytest.approx(float(sum(gained)), abs=1e-3)
        else:
            assert caption.error.startswith("too_long")


def test_sampled_captions_belong_to_key_and_seed(say) -> None:
    settings = ChatConfig(prompt="describe this image", num_captions=2)
    whole = say(settings)
    said = [caption for captions in whole for caption in captions]
    assert len({caption.text for caption in said}) > 6, "the pictures do not matter"
    assert all((caption.text is None) == (caption.error is not None) for caption in said)
    assert texts(say(settings, batch=3)) == texts(whole)
    assert [pair[:1] for pair in texts(whole)] == texts(say(ChatConfig(prompt="describe this image")))
    assert texts(say(ChatConfig(prompt="describe this image", num_captions=2, seed=1))) != texts(whole)
    assert texts(say(ChatConfig(prompt="a red dog", num_captions=2))) != texts(whole)


@pytest.mark.parametrize("kind", ["qwen2_vl", "idefics3"])
def test_other_families_share_a_batch_too(kind: str, tmp_path: Path, draw) -> None:
    model = save_tiny_vlm(tmp_path / kind, kind)
    captioner = HfCaptioner(str(model), ChatConfig(prompt="describe", num_captions=2, max_new_tokens=30), dtype="fp32")
    pictures = [draw(number, 40 + 12 * number) for number in range(4)]
    together = captioner.caption(pictures, KEYS[:4])
    alone = [captioner.caption([picture], [key])[0] for picture, key in zip(pictures, KEYS, strict=False)]
    assert texts(together) == texts(alone) and any(caption.text for pair in together for caption in pair)


def test_the_nucleus_is_top_p_of_the_tempered_share() -> None:
    from capfilt.caption.hf import _Speaker

    scores = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(2000, 4)
    keys = [str(number) for number in range(2000)]
    for top_p, expected in ((0.45, [1, 0, 0, 0]), (0.79, [0.625, 0.375, 0, 0]), (1.0, [0.5, 0.3, 0.15, 0.05])):
        speaker = _Speaker(ChatConfig(top_p=top_p, max_new_tokens=1), keys, {3})
        left = speaker(torch.zeros(2000, 1, dtype=torch.long), scores)
        chosen = torch.tensor([row[0] for row in speaker.said()])
        assert torch.equal(left.argmax(1), chosen) and left.isinf().sum() == 3 * 2000
        share = torch.bincount(chosen, minlength=4) / 2000
        assert share.tolist() == pytest.approx(expected, abs=0.04)
        assert torch.equal(speaker.done, chosen == 3)


def test_bf16_speaks_too(say) -> None:
    assert all(caption.text or caption.error for (caption,) in say(ChatConfig(max_new_tokens=8), dtype="bf16"))


def test_from_tar_to_table(shards, vlm: Path) -> None:
    data = shards(1, 6)
    config = CaptionConfig(str(data), f"hf:{vlm}", name="llava", device="cpu", batch_size=4)
    counts = caption_shards(config, progress=False)["counts"]
    rows = read_table(data / "captions/llava/00000.parquet").to_pylist()
    assert counts["pictures"] == len(rows) == 6 == counts["captions"] + counts.get("no_caption", 0)
    assert any(row["text"] for row in rows) and all(row["logprob"] < 0 for row in rows if row["text"])


def test_the_fingerprint_follows_the_files(vlm: Path, tmp_path: Path) -> None:
    first = captioner_fingerprint(f"hf:{vlm}")
    assert first == hf_fingerprint(str(vlm)) == open_captioner(f"hf:{vlm}").fingerprint
    assert hf_fingerprint(str(save_tiny_vlm(tmp_path / "other", seed=1))) != first
    copy = tmp_path / "models--a--b" / "snapshots" / "0123456789abcdef0123"
    copy.parent.mkdir(parents=True)
    copy.symlink_to(vlm)
    assert hf_fingerprint(str(copy)) == f"hf:{copy}@0123456789abcdef"


def test_without_a_chat_template_the_prompt_is_as_given(tmp_path: Path, draw) -> None:
    model = save_tiny_vlm(tmp_path / "plain", template=False)
    captioner = HfCaptioner(str(model), ChatConfig(prompt="<image> a red", max_new_tokens=8), dtype="fp32")
    assert captioner.prompt == "<image> a red"
    assert len(captioner.caption([draw(1), draw(2)], ["1", "2"])) == 2


def test_mistakes_are_sentences(vlm: Path, tmp_path: Path, tiny_captioner: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        hf_fingerprint(str(tmp_path))
    with pytest.raises(ValueError, match="is no image-text-to-text model that transformers can load"):
        HfCaptioner(str(tiny_captioner), ChatConfig())
    with pytest.raises(ValueError, match="Beam search is for BLIP"):
        HfCaptioner(str(vlm), ChatConfig(mode="beam"))
    with pytest.raises(ValueError, match=r"chat\.extra goes into requests to a server"):
        HfCaptioner(str(vlm), ChatConfig(extra={"top_k": 3}))
