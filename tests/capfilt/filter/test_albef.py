"""The ALBEF scorer equals the arithmetic of the official code, written out step by step, on tiny random weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from filter_runs import rows, run
from tiny_filters import LAYERS, VOCAB, albef_state, save_tiny_albef
from torch import Tensor

from blipcore.data.transforms import EvalTransform
from capfilt.filter.albef import AlbefScorer, clean_albef_caption
from capfilt.filter.scorer import FilterSettings, Runtime

TEXTS = [["a red dog", "Two green trees-on the left!!"], [], ["a picture of the cat", "the", "a red dog"]]
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Official:
    """ALBEF in the words of its models/vit.py, xbert.py and model_retrieval.py, one pair at a time."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = {re.sub(r"^text_encoder\.bert\.", "text_encoder.", name): x for name, x in state.items()}

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"], eps)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention with heads of 64 channels, of states (L, D) over (N, D)."""
        q, k, v = (x.view(len(x), -1, 64).transpose(0, 1) for x in (q, k, v))
        return ((q @ k.transpose(1, 2)) / 8).softmax(-1).matmul(v).transpose(0, 1).flatten(1)

    def image(self, pixels: Tensor) -> Tensor:
        patches = F.conv2d(
            pixels[None],
            self.state["visual_encoder.patch_embed.proj.weight"],
            self.state["visual_encoder.patch_embed.proj.bias"],
            stride=8,
        )
        x = torch.cat([self.state["visual_encoder.cls_token"][0], patches[0].flatten(1).T])
        x = x + self.state["visual_encoder.pos_embed"][0]
        for block in ("visual_encoder.blocks.0", "visual_encoder.blocks.1"):
            q, k, v = self.linear(f"{block}.attn.qkv", self.norm(f"{block}.norm1", x, 1e-6)).chunk(3, -1)
            x = x + self.linear(f"{block}.attn.proj", self.attend(q, k, v))
            hidden = F.gelu(self.linear(f"{block}.mlp.fc1", self.norm(f"{block}.norm2", x, 1e-6)))
            x = x + self.linear(f"{block}.mlp.fc2", hidden)
        return self.norm("visual_encoder.norm", x, 1e-6)

    def text(self, ids: list[int]) -> Tensor:
        tables = "text_encoder.embeddings"
        x = self.state[f"{tables}.word_embeddings.weight"][ids]
        x = x + self.state[f"{tables}.token_type_embeddings.weight"][0]
        x = x + self.state[f"{tables}.position_embeddings.weight"][: len(ids)]
        x = self.norm(f"{tables}.LayerNorm", x, 1e-12)
        for index in range(LAYERS // 2):
            x = self.layer(index, x, None)
        return x

    def fuse(self, x: Tensor, image: Tensor) -> Tensor:
        for index in range(LAYERS // 2, LAYERS):
            x = self.layer(index, x, image)
        return x

    def layer(self, index: int, x: Tensor, image: Tensor | None) -> Tensor:
        layer = f"text_encoder.encoder.layer.{index}"
        for kind, source in (("attention", x), ("crossattention", image)):
            if source is not None:
                states = x if kind == "attention" else source
                q = self.linear(f"{layer}.{kind}.self.query", x)
                k, v = (self.linear(f"{layer}.{kind}.self.{part}", states) for part in ("key", "value"))
                context = self.linear(f"{layer}.{kind}.output.dense", self.attend(q, k, v))
                x = self.norm(f"{layer}.{kind}.output.LayerNorm", context + x, 1e-12)
        hidden = F.gelu(self.linear(f"{layer}.intermediate.dense", x))
        return self.norm(f"{layer}.output.LayerNorm", self.linear(f"{layer}.output.dense", hidden) + x, 1e-12)

    def score(self, pixels: Tensor, ids: list[int]) -> tuple[float, float]:
        image, text = self.image(pixels), self.text(ids)
        feats = (
            F.normalize(self.linear("vision_proj", image[0]), dim=0),
            F.normalize(self.linear("text_proj", text[0]), dim=0),
        )
        itm = self.linear("itm_head", self.fuse(text, image)[0]).softmax(-1)[1]
        return itm.item(), (feats[0] @ feats[1]).item()


def token_ids(text: str) -> list[int]:
    words = [piece for word in text.split() for piece in ([word] if word in VOCAB else [word[:-1], "##s"])]
    return [VOCAB.index(word) for word in ("[CLS]", *words, "[SEP]")]


@pytest.mark.parametrize("pretrained", [True, False], ids=["pre-training", "retrieval"])
def test_scores_equal_the_official_arithmetic(tmp_path: Path, draw, pretrained: bool) -> None:
    path, vocab = save_tiny_albef(tmp_path, pretrained)
    scorer = AlbefScorer(str(path), FilterSettings(tokenizer=str(vocab)))
    scorer.load(Runtime())
    scores = scorer.score([scorer.prepare(draw(number)) for number in range(3)], TEXTS)
    official, seen = Official(albef_state(pretrained)), []
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    for number, texts in enumerate(TEXTS):
        pixels = (EvalTransform(32)(draw(number)).float() / 255 - mean) / std
        for index, text in enumerate(texts):
            itm, itc = official.score(pixels, token_ids(clean_albef_caption(text)))
            assert scores["itm"][number][index] == pytest.approx(itm, abs=1e-5)
            assert scores["itc"][number][index] == pytest.approx(itc, abs=1e-5)
            seen.append(itm)
    assert max(seen) - min(seen) > 0.01, "the scores of different pairs differ"


def test_captions_are_cleaned_as_in_albef() -> None:
    assert (
        clean_albef_caption("Don't stop: a red-and/blue <person>'s  DOG!\n") == "dont stop a red and blue persons dog"
    )
    assert clean_albef_caption("word " * 40).count("word") == 30


def test_albef_filters_a_shard_set(shards, tmp_path: Path) -> None:
    path, vocab = save_tiny_albef(tmp_path / "model")
    summary = run(shards(1, 5), path, tokenizer=str(vocab), threshold=0)
    assert summary["kept"] == 5 and Path(summary["scores"]).name.startswith("albef-")
    assert len({row["itm"] for row in rows(summary)}) == 5


def remove(*starts: str) -> Any:
    return lambda state: [state.pop(name) for name in list(state) if name.startswith(starts)]


HEADS = {"cls_head.0.weight": torch.ones(2, 2)}
LAYER_17 = {"text_encoder.encoder.layer.17.output.dense.bias": torch.ones(2)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state.update({"text_decoder.bert.x": torch.ones(1)}),
            "is an ALBEF VQA model, which cannot score",
        ),
        (lambda state: state.update(HEADS), "is an ALBEF visual entailment model"),
        (lambda state: state.update(HEADS | LAYER_17), "is an ALBEF NLVR2 model"),
        (
            lambda state: state.update({"ta_head.weight": torch.ones(1)}),
            "is an ALBEF checkpoint of pre-training for NLVR2",
        ),
        (remove("itm_head"), "is an ALBEF model without ITM and ITC heads"),
        (remove("text_encoder.encoder.layer.3.crossattention"), "its upper text layers have no cross-attention"),
        (remove("text_encoder.encoder.layer.1.output.dense.bias"), r"missing: text_encoder\.encoder\.layer\.1"),
        (lambda state: state.update(extra=torch.ones(1)), "unexpected: extra"),
    ],
)
def test_other_albef_files_are_refused_by_name(tmp_path: Path, shards, change, message: str) -> None:
    path, vocab = save_tiny_albef(tmp_path / "model", pretrained=False)
    content = torch.load(path)
    change(content["model"])
    torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        run(shards(1, 1), path, tokenizer=str(vocab))


def test_a_grounding_model_is_told_by_its_config(tmp_path: Path, shards) -> None:
    path, vocab = save_tiny_albef(tmp_path / "model", pretrained=False)
    torch.save(torch.load(path) | {"config": {"refcoco_data": "data", "image_res": 384}}, path)
    with pytest.raises(ValueError, match="is an ALBEF model for grounding"):
        run(shards(1, 1), path, tokenizer=str(vocab))
