"""The tasks on a tiny random model; their numbers against the official code are in model/test_golden.py."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from blipcore.data.eval_batches import Pictures
from blipcore.data.transforms import eval_transform
from blipcore.generate.config import GenerateConfig
from blipcore.model.blip import Blip
from blipcore.model.config import PRESETS
from blipcore.model.tokenizer import Tokenizer
from blipcore.tasks.captioning import CaptioningConfig, CaptioningTask, evaluate_captioning
from blipcore.tasks.pretrain import PretrainConfig, PretrainTask, same_text
from blipcore.tasks.retrieval import RetrievalConfig, RetrievalTask
from blipcore.tasks.task import Progress, with_first

WORDS = ["a", "red", "blue", "green", "dog", "cat", "and"]
TEXTS = ["a red dog", "a blue cat", "a green dog and a cat", "a red dog"]
START = Progress(0, 10)


@pytest.fixture
def tokenizer():
    return Tokenizer.from_vocab(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])


@pytest.fixture
def model(tokenizer):
    torch.manual_seed(0)
    config = PRESETS["tiny"]
    vision = replace(config.vision, image_size=16, width=32, depth=2, heads=2)
    text = replace(config.text, vocab_size=len(tokenizer), width=32, heads=2, hidden=64, encoder_width=32)
    return Blip(replace(config, vision=vision, text=text, embed_dim=16))


def samples(texts=TEXTS, ids=None):
    torch.manual_seed(1)
    ids = ids or range(len(texts))
    return [
        {"key": f"k{i}", "image": torch.randn(3, 16, 16), "text": text, "image_id": i}
        for i, text in zip(ids, texts, strict=True)
    ]


def test_pretraining_sums_its_losses_and_reaches_every_parameter(model, tokenizer):
    task = PretrainTask(model, tokenizer, PretrainConfig(queue_size=8, lm_weight=4.0))
    out = task(task.collate(samples()), START)
    torch.testing.assert_close(out["loss"], out["loss_itc"] + out["loss_itm"] + 4 * out["loss_lm"])
    out["loss"].backward()
    assert [name for name, p in task.model.named_parameters() if p.grad is None] == []
    assert all(p.grad is None for p in task.momentum.parameters())


def test_forward_has_no_side_effects(model, tokenizer):
    task = PretrainTask(model, tokenizer, PretrainConfig(queue_size=8, negatives="argmax"))
    before = {name: value.clone() for name, value in task.state_dict().items()}
    batch = task.collate(samples())
    first, second = task(batch, START)["loss"], task(batch, START)["loss"]
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())


def test_momentum_encoders_follow_the_model(model, tokenizer):
    task = PretrainTask(model, tokenizer, PretrainConfig(queue_size=8, momentum=0.9))
    slow, own = task.momentum.vision_proj.weight, model.vision_proj.weight
    old = slow.clone()
    with torch.no_grad():
        own.add_(1.0)
    task.before_step(START)
    torch.testing.assert_close(slow, 0.9 * old + 0.1 * own)


def test_queue_wraps_and_any_batch_size_fits(model, tokenizer):
    """The official queue stops when its length is no multiple of the batch (BLIP#101)."""
    task = PretrainTask(model, tokenizer, PretrainConfig(queue_size=6))
    old = task.image_queue.clone()
    out = task(task.collate(samples()), START)
    task.after_step([out])
    assert task.queue_ptr.item() == 4
    torch.testing.assert_close(task.image_queue[:, :4], out["image_key"].T)
    torch.testing.assert_close(task.image_queue[:, 4:], old[:, 4:])
    task.after_step([out])
    assert task.queue_ptr.item() == 2
    torch.testing.assert_close(task.image_queue[:, [4, 5, 0, 1]], out["image_key"].T)


def test_queue_shorter_than_the_batch_keeps_the_newest_keys(model, tokenizer):
    task = PretrainTask(model, tokenizer, PretrainConfig(queue_size=3))
    out = task(task.collate(samples()), START)
    task.after_step([out])
    torch.testing.assert_close(task.image_queue, out["image_key"][1:].T)


def test_equal_texts_are_no_negatives(tokenizer):
    ids, _ = tokenizer(TEXTS, max_length=30)
    expected = torch.eye(4, dtype=torch.bool)
    expected[0, 3] = expected[3, 0] = True
    assert torch.equal(same_text(ids, ids), expected)


def test_one_picture_is_too_few_for_itm(model, tokenizer):
    task = PretrainTask(model, tokenizer, PretrainConfig(queue_size=4))
    with pytest.raises(ValueError, match="must be at least 2"):
        task(task.collate(samples(TEXTS[:1])), START)


@pytest.mark.parametrize("bad", [{"queue_size": -1}, {"alpha_ramp_steps": -1}, {"itm_share": 2.0}, {"alpha": -0.1}])
def test_impossible_settings_are_refused(bad):
    for config in (PretrainConfig, RetrievalConfig):
        with pytest.raises(ValueError, match=next(iter(bad))):
            config(**bad)


def test_itm_on_a_share_of_the_batch_is_itm_on_a_smaller_batch(model, tokenizer):
    model.eval()
    both = samples()
    part = PretrainTask(model, tokenizer, PretrainConfig(queue_size=4, negatives="argmax", itm_share=0.5)).eval()
    whole = PretrainTask(model, tokenizer, PretrainConfig(queue_size=4, negatives="argmax")).eval()
    torch.testing.assert_close(
        part(part.collate(both), START)["loss_itm"], whole(whole.collate(both[:2]), START)["loss_itm"]
    )


def test_retrieval_shares_the_target_among_texts_of_one_image(model, tokenizer):
    task = RetrievalTask(model.only("encode", "itc", "itm"), tokenizer, RetrievalConfig(queue_size=4))
    batch = task.collate(samples(ids=[7, 8, 9, 7]))
    targets = task.positives(batch)
    torch.testing.assert_close(targets[0, :4], torch.tensor([0.5, 0, 0, 0.5]))
    task.after_step([task(batch, START)])
    assert task.idx_queue.tolist() == [[7, 8, 9, 7]]
    torch.testing.assert_close(task.positives(batch)[0], torch.tensor([0.25, 0, 0, 0.25, 0.25, 0, 0, 0.25]))


def test_captioning_does_not_score_the_prompt(model, tokenizer):
    prompted = CaptioningTask(model.only("decode"), tokenizer, CaptioningConfig(prompt="a "))
    batch = prompted.collate(samples(["red dog"] * 2))
    loss = prompted(batch, START)["loss_lm"]
    ids = with_first(batch["input_ids"], tokenizer.bos)
    kv = model.text.image_kv(model.encode_image(batch["pixels"]))
    log_p = model.text.logits(model.text.decode(ids, batch["attention_mask"], kv)).log_softmax(-1)
    scored = [
        -(0.9 * log_p[b, t, ids[b, t + 1]] + 0.1 * log_p[b, t].mean())
        for b in range(2)
        for t in range(1, ids.shape[1] - 1)
    ]
    torch.testing.assert_close(loss, torch.stack(scored).mean().detach())


def test_texts_of_one_image_share_its_keys_and_values(model, tokenizer):
    model.eval()
    ids, mask = tokenizer(TEXTS, max_length=30, first="enc")
    kv = model.text.image_kv(model.encode_image(torch.randn(2, 3, 16, 16)))
    shared = model.text.fuse(ids, mask, kv)
    torch.testing.assert_close(
        shared, model.text.fuse(ids, mask, kv.select(torch.tensor([0, 0, 1, 1]))), atol=1e-6, rtol=1e-5
    )


@pytest.fixture
def pictures(tmp_path):
    records = []
    for i, text in enumerate(TEXTS[:3]):
        path = tmp_path / f"{i}.png"
        Image.effect_noise((16, 16), 50 + 20 * i).convert("RGB").save(path)
        records.append({"key": f"{i}.png", "image": path, "texts": [text, f"{text} {WORDS[i]}"], "image_id": i})
    return Pictures(records, eval_transform(16), batch_size=2)


def test_captioning_evaluation_names_every_picture(model, tokenizer, pictures):
    pytest.importorskip("pycocoevalcap")
    config = GenerateConfig(mode="greedy", prompt="", max_length=8, repetition_penalty=1.0)
    for record, domain in zip(pictures.records, ("in-domain", "in-domain", "out-domain"), strict=True):
        record["domain"] = domain
    captioner = model.only("decode")
    scores, captions = evaluate_captioning(captioner, tokenizer, pictures, config, words="plain")
    assert [row.keys() for row in captions] == [{"image_id", "caption"}] * 3
    assert [row["image_id"] for row in captions] == [0, 1, 2]
    assert scores.keys() >= {"BLEU-4", "ROUGE-L", "CIDEr", "tokenizer", "in-domain", "out-domain"}
    for record in pictures.records:
        record["texts"] = []
    assert evaluate_captioning(captioner, tokenizer, pictures, config) == ({}, captions)


def test_an_unreadable_evaluation_picture_stops_with_its_name(model, tokenizer, pictures):
    pictures.records[1]["image"].write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"1\.png cannot be read"):
        list(pictures)
