"""Outputs of the official code at tiny size, reproduced: every number here was computed by it, sizes included.

The folder comes from BLIPCORE_GOLDEN; without it, from `shared/golden` beside the repository. Absent, all is skipped.
"""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from blipcore.checkpoints.load import load_model, read_official
from blipcore.checkpoints.names import official_names
from blipcore.generate.config import GenerateConfig
from blipcore.generate.generate import generate, generate_from
from blipcore.model.blip import Blip
from blipcore.model.tokenizer import Tokenizer
from blipcore.model.vit import resize_pos_embed
from blipcore.tasks.captioning import CaptioningConfig, CaptioningTask
from blipcore.tasks.nlvr import NLVRConfig, NLVRTask, pair_logits
from blipcore.tasks.pretrain import PretrainConfig, PretrainTask
from blipcore.tasks.retrieval import RetrievalConfig, RetrievalTask
from blipcore.tasks.task import Progress, with_first
from blipcore.tasks.vqa import WRITE_ANSWERS, VQAConfig, VQATask, question_kv, rank_answers, tokenize_questions

FOLDER = Path(os.environ.get("BLIPCORE_GOLDEN") or Path(__file__).resolve().parents[4] / "shared" / "golden")
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no golden outputs of the official code in {FOLDER}")

START = Progress(step=0, steps=1)


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert_close(actual.detach(), expected, atol=2e-5, rtol=2e-4)


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return load_file(FOLDER / "golden.safetensors")


@pytest.fixture(scope="module")
def facts() -> dict:
    return json.loads((FOLDER / "golden.json").read_text())


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(FOLDER / "vocab.txt")


@pytest.fixture(scope="module")
def overrides(facts) -> dict:
    vit, text = facts["vit"], facts["text"]
    return {
        "vision": {
            "image_size": facts["image_size"],
            "width": vit["vit_width"],
            "depth": vit["vit_depth"],
            "heads": vit["vit_heads"],
            "patch_size": vit["patch"],
        },
        "text": {
            "width": text["hidden"],
            "depth": text["layers"],
            "heads": text["heads"],
            "hidden": text["inter"],
            "dropout": 0.0,
        },
    }


@pytest.fixture
def model_of(overrides):
    def load(name: str) -> Blip:
        return load_model(FOLDER / f"{name}.pth", tokenizer=FOLDER / "vocab.txt", overrides=overrides)[0]

    return load


@pytest.fixture
def task_of(tokenizer, overrides):
    """A task that stands where an official checkpoint stands: weights, momentum copies, queues."""

    def build(task, config, name: str):
        if name == "nlvr":  # has more text layers than the others, so that its upper half is there
            overrides["text"].pop("depth")
        model_config, state, extra = read_official(FOLDER / f"{name}.pth", overrides)
        if "image_queue" in extra:
            config.queue_size, config.negatives = extra["image_queue"].shape[1], "argmax"
        built = task(Blip(model_config), tokenizer, config)
        built.load_state_dict({f"model.{key}": tensor for key, tensor in state.items()} | extra)
        return built.train()

    return build


def samples(images: torch.Tensor, texts: list[str], image_ids: list[int] | None = None) -> list[dict]:
    ids = image_ids or range(len(texts))
    rows = zip(images, texts, ids, strict=True)
    return [{"key": str(i), "image": image, "text": text, "image_id": int(i)} for image, text, i in rows]


def test_golden_tokens(tensors, facts, tokenizer):
    special = facts["special"]
    own = {"bos": tokenizer.bos, "enc": tokenizer.enc, "sep": tokenizer.sep, "pad": tokenizer.pad, "cls": tokenizer.cls}
    assert own == special
    expected = tensors["pretrain.input_ids"]
    ids, mask = tokenizer(facts["captions"], max_length=expected.shape[1], pad_to_max=True)
    assert_close(ids, expected)
    assert_close(mask, tensors["pretrain.attention_mask"])
    ids, mask = tokenizer(facts["caption.train_texts"], max_length=40, first="dec")
    assert_close(with_first(tensors["caption.input_ids"], tokenizer.bos), ids)
    assert_close(mask, tensors["caption.attention_mask"])
    assert len(tokenizer.prompt(facts["caption.prompt"])) == facts["caption.prompt_length"]


def test_golden_position_table(tensors, facts):
    patch = facts["vit"]["patch"]
    table = tensors["pos_embed.from"]
    close(resize_pos_embed(table, 2 * facts["image_size"], patch), tensors["pos_embed.to_double_size"])


@torch.no_grad()
def test_golden_pretrain_modes(tensors, tokenizer, model_of):
    model = model_of("pretrain")
    ids, mask = tensors["pretrain.input_ids"], tensors["pretrain.attention_mask"]
    image_embeds = model.encode_image(tensors["image"])
    close(image_embeds, tensors["pretrain.image_embeds"])
    close(model.image_feat(image_embeds), tensors["pretrain.image_feat"])
    hidden = model.text.encode(ids, mask)
    close(hidden, tensors["pretrain.text_hidden"])
    close(model.text_feat(hidden), tensors["pretrain.text_feat"])
    kv = model.text.image_kv(image_embeds)
    fused = model.text.fuse(with_first(ids, tokenizer.enc), mask, kv)
    close(fused, tensors["pretrain.multimodal_hidden"])
    close(model.itm_logits(fused), tensors["pretrain.itm_logits"])
    decoded = model.text.decode(with_first(ids, tokenizer.bos), mask, kv)
    close(model.text.logits(decoded), tensors["pretrain.decoder_logits"])


def test_golden_pretrain_step(tensors, facts, task_of):
    task = task_of(PretrainTask, PretrainConfig(), "pretrain")
    batch = task.collate(samples(tensors["image"], facts["captions"]))
    task.before_step(START)
    out = task(batch, START)
    out["loss"].backward()
    task.after_step([out])

    for name in ("loss_itc", "loss_itm", "loss_lm"):
        close(out[name], tensors[f"pretrain.{name}"])
    close(task.image_queue, tensors["pretrain.image_queue_after"])
    close(task.text_queue, tensors["pretrain.text_queue_after"])
    assert_close(task.queue_ptr, tensors["pretrain.queue_ptr_after"])

    unseen = {name for name in tensors if name.startswith("pretrain.gradnorm.")}
    for ours, parameter in task.model.named_parameters():
        parts = official_names(ours)
        for aliases, grad in zip(parts, torch.atleast_1d(parameter.grad).chunk(len(parts)), strict=True):
            found = [name for alias in aliases if (name := f"pretrain.gradnorm.{alias}") in tensors]
            assert found, f"no official gradient for {ours}"
            close(grad.norm(), tensors[found[0]])
            unseen -= set(found)
    assert not unseen

    after = "pretrain.momentum_after."
    moved = {
        name.removeprefix(after).replace("_m.", ".", 1): tensors[name] for name in tensors if name.startswith(after)
    }
    for ours, parameter in task.momentum.named_parameters():
        parts = official_names(ours, roles=["encode"])
        for aliases, rows in zip(parts, parameter.chunk(len(parts)), strict=True):
            for alias in set(aliases) & set(moved):
                close(rows, moved.pop(alias))
    assert not moved


@torch.no_grad()
def test_golden_caption_logits_and_loss(tensors, facts, tokenizer, model_of, task_of):
    model = model_of("caption")
    image_embeds = model.encode_image(tensors["image"])
    close(image_embeds, tensors["caption.image_embeds"])
    ids = with_first(tensors["caption.input_ids"], tokenizer.bos)
    decoded = model.text.decode(ids, tensors["caption.attention_mask"], model.text.image_kv(image_embeds))
    close(model.text.logits(decoded), tensors["caption.logits"])

    prompt = facts["caption.prompt"]
    task = task_of(CaptioningTask, CaptioningConfig(prompt=prompt), "caption")
    batch = task.collate(
        samples(tensors["image"], [text.removeprefix(prompt) for text in facts["caption.train_texts"]])
    )
    close(task(batch, START)["loss"], tensors["caption.loss"])


def test_golden_caption_generate(tensors, facts, tokenizer, model_of):
    model = model_of("caption")
    prompt = facts["caption.prompt"]
    cases = {name: re.fullmatch(r"caption\.generate\.beams(\d+)\.max(\d+)\.min(\d+)", name) for name in tensors}
    cases = {name: [int(number) for number in match.groups()] for name, match in cases.items() if match}
    assert cases
    with torch.no_grad():
        image_embeds = model.encode_image(tensors["image"])
    for name, (beams, longest, shortest) in cases.items():
        config = GenerateConfig(
            mode="beam" if beams > 1 else "greedy",
            prompt=prompt,
            beams=beams,
            max_length=longest,
            min_length=shortest,
            repetition_penalty=1.0,
        )
        keys = [str(i) for i in range(len(image_embeds))]
        rows = [
            [*tokenizer.prompt(prompt), *ids, tokenizer.sep][:longest]
            for ids in generate(model, image_embeds, tokenizer, config, keys).ids
        ]
        expected = tensors[name]
        padded = [row + [tokenizer.pad] * (expected.shape[1] - len(row)) for row in rows]
        assert padded == expected.tolist(), name


def test_golden_retrieval_step(tensors, facts, task_of):
    task = task_of(RetrievalTask, RetrievalConfig(), "retrieval")
    batch = task.collate(samples(tensors["image"], facts["captions"], tensors["retrieval.idx"].flatten().tolist()))
    task.before_step(START)
    out = task(batch, START)
    task.after_step([out])
    for name in ("loss_itc", "loss_itm"):
        close(out[name], tensors[f"retrieval.{name}"])
    close(task.image_queue, tensors["retrieval.image_queue_after"])
    assert_close(task.idx_queue, tensors["retrieval.idx_queue_after"])


@torch.no_grad()
def test_golden_itm(tensors, facts, tokenizer, model_of):
    model = model_of("itm")
    image_embeds = model.encode_image(tensors["image"])
    kv = model.text.image_kv(image_embeds)
    for group, expected in (("captions", "captions"), ("negative_captions", "negatives")):
        ids, mask = tokenizer(facts[group], max_length=35, first="cls")  # as the official inference code leaves it
        close(model.itm_logits(model.text.fuse(ids, mask, kv)), tensors[f"itm.itm_logits.{expected}"])
    ids, mask = tokenizer(facts["captions"], max_length=35)
    cosine = model.image_feat(image_embeds) @ model.text_feat(model.text.encode(ids, mask)).T
    close(cosine, tensors["itm.itc_sim.captions"])


def test_golden_vqa_loss(tensors, facts, task_of):
    task = task_of(VQATask, VQAConfig(), "vqa")
    rows = samples(tensors["image"], facts["vqa.questions"])
    answers, weights = iter(facts["vqa.answers"]), iter(tensors["vqa.weights"].tolist())
    for row, count in zip(rows, facts["vqa.n"], strict=True):
        row["answers"], row["weights"] = ([next(column) for _ in range(count)] for column in (answers, weights))
    close(task(task.collate(rows), START)["loss"], tensors["vqa.loss"])


@torch.no_grad()
def test_golden_vqa_answers(tensors, facts, tokenizer, model_of):
    model = model_of("vqa")
    image_embeds = model.encode_image(tensors["image"])
    ids, mask = tokenize_questions(tokenizer, facts["vqa.questions"], VQAConfig())
    kv = question_kv(model, image_embeds, ids, mask)
    candidates = tokenizer(facts["vqa.candidates"], max_length=len(tokenizer), first="dec")
    cases = {name: int(name.removeprefix("vqa.rank.k")) for name in tensors if name.startswith("vqa.rank.k")}
    assert cases
    for name, k in cases.items():
        assert rank_answers(model.answer_decoder, kv, *candidates, k).tolist() == tensors[name].flatten().tolist(), name

    # The official beam search lets answers attend to the padding of shorter questions.
    keys = [str(row) for row in range(len(ids))]
    written = generate_from(model.answer_decoder, replace(kv, mask=None), tokenizer, WRITE_ANSWERS, keys)
    assert [tokenizer.decode(row) for row in written.ids] == facts["vqa.generate"]


def test_golden_nlvr(tensors, facts, task_of):
    task = task_of(NLVRTask, NLVRConfig(swap=False), "nlvr").eval()
    rows = samples(torch.stack([tensors["nlvr.image0"], tensors["nlvr.image1"]], dim=1), facts["nlvr.sentences"])
    for row, label in zip(rows, tensors["nlvr.targets"].flatten().tolist(), strict=True):
        row["label"] = label
    batch = task.collate(rows)
    close(task(batch, START)["loss"], tensors["nlvr.loss"])
    with torch.no_grad():
        logits = pair_logits(task.model, batch["pixels"], batch["input_ids"], batch["attention_mask"])
    close(logits, tensors["nlvr.logits"])
