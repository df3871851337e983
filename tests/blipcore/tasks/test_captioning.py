"""Captioning on a tiny random model; its numbers against the official code are in model/test_golden.py."""

import pytest
import torch
from PIL import Image
from tiny_tasks import START, TEXTS, WORDS, caption_samples

from blipcore.data.eval_batches import EvalBatches
from blipcore.data.transforms import EvalTransform
from blipcore.generate.config import GenerateConfig
from blipcore.tasks.captioning import CaptioningConfig, CaptioningTask, evaluate_captioning
from blipcore.tasks.task import replace_first


def test_captioning_does_not_score_the_prompt(model, tokenizer) -> None:
    prompted = CaptioningTask(model.select_parts("decode"), tokenizer, CaptioningConfig(prompt="a "))
    batch = prompted.collate(caption_samples(["red dog"] * 2))
    loss = prompted(batch, START)["loss_lm"]
    ids = replace_first(batch["input_ids"], tokenizer.bos)
    kv = model.text.image_kv(model.encode_image(batch["pixels"]))
    log_p = model.text.logits(model.text.decode(ids, batch["attention_mask"], kv)).log_softmax(-1)
    token_losses = [
        -(0.9 * log_p[b, t, ids[b, t + 1]] + 0.1 * log_p[b, t].mean())
        for b in range(2)
        for t in range(1, ids.shape[1] - 1)
    ]
    torch.testing.assert_close(loss, torch.stack(token_losses).mean().detach())


@pytest.fixture
def pictures(tmp_path):
    records = []
    for i, text in enumerate(TEXTS[:3]):
        path = tmp_path / f"{i}.png"
        Image.effect_noise((16, 16), 50 + 20 * i).convert("RGB").save(path)
        records.append({"key": f"{i}.png", "image": path, "texts": [text, f"{text} {WORDS[i]}"], "image_id": i})
    return EvalBatches(records, EvalTransform(16), batch_size=2)


def test_captioning_evaluation_names_every_picture(model, tokenizer, pictures) -> None:
    pytest.importorskip("pycocoevalcap")
    config = GenerateConfig(mode="greedy", prompt="", max_length=8, repetition_penalty=1.0)
    for record, domain in zip(pictures.records, ("in-domain", "in-domain", "out-domain"), strict=True):
        record["domain"] = domain
    captioner = model.select_parts("decode")
    scores, captions = evaluate_captioning(captioner, tokenizer, pictures, config, words="plain")
    assert [row.keys() for row in captions] == [{"image_id", "caption"}] * 3
    assert [row["image_id"] for row in captions] == [0, 1, 2]
    assert scores.keys() >= {"BLEU-4", "ROUGE-L", "CIDEr", "tokenizer", "in-domain", "out-domain"}
    for record in pictures.records:
        record["texts"] = []
    assert evaluate_captioning(captioner, tokenizer, pictures, config) == ({}, captions)
