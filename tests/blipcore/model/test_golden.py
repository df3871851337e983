"""blipcore reproduces the outputs of the official BLIP code on tiny models (`tests/golden/README.md`)."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from golden import GOLDEN, TOLERANCE, assert_matches
from safetensors.torch import load_file

from blipcore.checkpoints.load import load_model, read_official
from blipcore.checkpoints.names import official_names
from blipcore.generate.config import GenerateConfig
from blipcore.generate.generate import generate, generate_texts
from blipcore.model.blip import Blip
from blipcore.model.tokenizer import Tokenizer
from blipcore.model.vit import resize_pos_embed
from blipcore.tasks.captioning import CaptioningConfig, CaptioningTask
from blipcore.tasks.nlvr import NLVRConfig, NLVRTask, pair_logits
from blipcore.tasks.pretrain import PretrainConfig, PretrainTask
from blipcore.tasks.retrieval import RetrievalConfig, RetrievalTask
from blipcore.tasks.task import Progress, replace_first
from blipcore.tasks.vqa import WRITE_ANSWERS, VQAConfig, VQATask, question_kv, rank_answers, tokenize_questions

START = Progress(step=0, steps=1)


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "golden.safetensors")


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    return json.loads((GOLDEN / "golden.json").read_text())


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(GOLDEN / "vocab.txt")


@pytest.fixture(scope="module")
def overrides(facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the model sizes, in the form that `load_model` takes."""
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
def load_golden(overrides: dict[str, dict[str, Any]]) -> Callable[[str], Blip]:
    """Return a function that loads a golden checkpoint by name."""

    def load(name: str) -> Blip:
        return load_model(GOLDEN / f"{name}.pth", tokenizer=GOLDEN / "vocab.txt", overrides=overrides)[0]

    return load


@pytest.fixture
def load_task(tokenizer: Tokenizer, overrides: dict[str, dict[str, Any]]) -> Callable[..., Any]:
    """Return a function that builds a task with the complete state of a golden checkpoint."""

    def build(task_type: Callable[..., Any], config: Any, name: str) -> Any:
        if name == "nlvr":
            # This checkpoint has more text layers than the others; the depth comes from its weights.
            overrides["text"].pop("depth")
        model_config, state, extra = read_official(GOLDEN / f"{name}.pth", overrides)
        if "image_queue" in extra:
            config.queue_size, config.negatives = extra["image_queue"].shape[1], "argmax"
        task = task_type(Blip(model_config), tokenizer, config)
        task.load_state_dict({f"model.{key}": tensor for key, tensor in state.items()} | extra)
        return task.train()

    return build


def make_samples(images: torch.Tensor, texts: list[str], image_ids: list[int] | None = None) -> list[dict[str, Any]]:
    """Return one sample per image and text; the image ids default to 0, 1, 2..."""
    ids = image_ids or range(len(texts))
    rows = zip(images, texts, ids, strict=True)
    return [{"key": str(i), "image": image, "text": text, "image_id": int(i)} for image, text, i in rows]


def test_token_ids_match(tensors: dict[str, torch.Tensor], facts: dict[str, Any], tokenizer: Tokenizer) -> None:
    assert facts["special"] == {name: getattr(tokenizer, name) for name in ("bos", "enc", "sep", "pad", "cls")}
    expected = tensors["pretrain.input_ids"]
    ids, mask = tokenizer(facts["captions"], max_length=expected.shape[1], pad_to_max=True)
    assert_matches(ids, expected)
    assert_matches(mask, tensors["pretrain.attention_mask"])
    ids, mask = tokenizer(facts["caption.train_texts"], max_length=40, first="dec")
    assert_matches(replace_first(tensors["caption.input_ids"], tokenizer.bos), ids)
    assert_matches(mask, tensors["caption.attention_mask"])
    assert len(tokenizer.prompt(facts["caption.prompt"])) == facts["caption.prompt_length"]


def test_resized_position_embeddings_match(tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
    patch = facts["vit"]["patch"]
    table = tensors["pos_embed.from"]
    assert_matches(resize_pos_embed(table, 2 * facts["image_size"], patch), tensors["pos_embed.to_double_size"])


@torch.no_grad()
def test_hidden_states_features_and_logits_of_the_pretraining_model_match(
    tensors: dict[str, torch.Tensor], tokenizer: Tokenizer, load_golden: Callable[[str], Blip]
) -> None:
    model = load_golden("pretrain")
    ids, mask = tensors["pretrain.input_ids"], tensors["pretrain.attention_mask"]
    image_embeds = model.encode_image(tensors["image"])
    assert_matches(image_embeds, tensors["pretrain.image_embeds"])
    assert_matches(model.image_feat(image_embeds), tensors["pretrain.image_feat"])
    hidden = model.text.encode(ids, mask)
    assert_matches(hidden, tensors["pretrain.text_hidden"])
    assert_matches(model.text_feat(hidden), tensors["pretrain.text_feat"])
    kv = model.text.image_kv(image_embeds)
    fused = model.text.fuse(replace_first(ids, tokenizer.enc), mask, kv)
    assert_matches(fused, tensors["pretrain.multimodal_hidden"])
    assert_matches(model.itm_logits(fused), tensors["pretrain.itm_logits"])
    decoded = model.text.decode(replace_first(ids, tokenizer.bos), mask, kv)
    assert_matches(model.text.logits(decoded), tensors["pretrain.decoder_logits"])


def test_one_pretraining_step_matches(
    tensors: dict[str, torch.Tensor], facts: dict[str, Any], load_task: Callable[..., Any]
) -> None:
    task = load_task(PretrainTask, PretrainConfig(), "pretrain")
    batch = task.collate(make_samples(tensors["image"], facts["captions"]))
    task.before_step(START)
    out = task(batch, START)
    out["loss"].backward()
    task.after_step([out])

    for name in ("loss_itc", "loss_itm", "loss_lm"):
        assert_matches(out[name], tensors[f"pretrain.{name}"])
    assert_matches(task.image_queue, tensors["pretrain.image_queue_after"])
    assert_matches(task.text_queue, tensors["pretrain.text_queue_after"])
    assert_matches(task.queue_ptr, tensors["pretrain.queue_ptr_after"])

    # A parameter of blipcore may hold several official ones (query, key, value), and each of these several names.
    unchecked = {name for name in tensors if name.startswith("pretrain.gradnorm.")}
    for name, parameter in task.model.named_parameters():
        parts = official_names(name)
        for aliases, grad in zip(parts, torch.atleast_1d(parameter.grad).chunk(len(parts)), strict=True):
            matches = {f"pretrain.gradnorm.{alias}" for alias in aliases} & set(tensors)
            assert matches, f"no official gradient for {name}"
            for match in matches:
                assert_matches(grad.norm(), tensors[match])
            unchecked -= matches
    assert not unchecked

    prefix = "pretrain.momentum_after."
    momentum = {
        name.removeprefix(prefix).replace("_m.", ".", 1): tensors[name] for name in tensors if name.startswith(prefix)
    }
    for name, parameter in task.momentum.named_parameters():
        parts = official_names(name, roles=["encode"])
        for aliases, rows in zip(parts, parameter.chunk(len(parts)), strict=True):
            for alias in set(aliases) & set(momentum):
                assert_matches(rows, momentum.pop(alias))
    assert not momentum


@torch.no_grad()
def test_caption_logits_and_loss_match(
    tensors: dict[str, torch.Tensor],
    facts: dict[str, Any],
    tokenizer: Tokenizer,
    load_golden: Callable[[str], Blip],
    load_task: Callable[..., Any],
) -> None:
    model = load_golden("caption")
    image_embeds = model.encode_image(tensors["image"])
    assert_matches(image_embeds, tensors["caption.image_embeds"])
    ids = replace_first(tensors["caption.input_ids"], tokenizer.bos)
    decoded = model.text.decode(ids, tensors["caption.attention_mask"], model.text.image_kv(image_embeds))
    assert_matches(model.text.logits(decoded), tensors["caption.logits"])

    prompt = facts["caption.prompt"]
    task = load_task(CaptioningTask, CaptioningConfig(prompt=prompt), "caption")
    batch = task.collate(
        make_samples(tensors["image"], [text.removeprefix(prompt) for text in facts["caption.train_texts"]])
    )
    assert_matches(task(batch, START)["loss"], tensors["caption.loss"])


def test_generated_captions_match(
    tensors: dict[str, torch.Tensor], facts: dict[str, Any], tokenizer: Tokenizer, load_golden: Callable[[str], Blip]
) -> None:
    model = load_golden("caption")
    prompt = facts["caption.prompt"]
    with torch.no_grad():
        image_embeds = model.encode_image(tensors["image"])
    names = [name for name in tensors if name.startswith("caption.generate.")]
    assert names
    for name in names:
        match = re.fullmatch(r"caption\.generate\.beams(\d+)\.max(\d+)\.min(\d+)", name)
        assert match, f"cannot read the settings in {name}"
        beams, max_length, min_length = map(int, match.groups())
        config = GenerateConfig(
            mode="beam" if beams > 1 else "greedy",
            prompt=prompt,
            beams=beams,
            max_length=max_length,
            min_length=min_length,
            repetition_penalty=1.0,
        )
        keys = [str(i) for i in range(len(image_embeds))]
        rows = [
            [*tokenizer.prompt(prompt), *ids, tokenizer.sep][:max_length]
            for ids in generate(model, image_embeds, tokenizer, config, keys).ids
        ]
        expected = tensors[name]
        padded = [row + [tokenizer.pad] * (expected.shape[1] - len(row)) for row in rows]
        assert padded == expected.tolist(), name


def test_one_retrieval_step_matches(
    tensors: dict[str, torch.Tensor], facts: dict[str, Any], load_task: Callable[..., Any]
) -> None:
    task = load_task(RetrievalTask, RetrievalConfig(), "retrieval")
    batch = task.collate(make_samples(tensors["image"], facts["captions"], tensors["retrieval.idx"].flatten().tolist()))
    task.before_step(START)
    out = task(batch, START)
    task.after_step([out])
    for name in ("loss_itc", "loss_itm"):
        assert_matches(out[name], tensors[f"retrieval.{name}"])
    assert_matches(task.image_queue, tensors["retrieval.image_queue_after"])
    assert_matches(task.idx_queue, tensors["retrieval.idx_queue_after"])


@torch.no_grad()
def test_itm_logits_and_itc_similarities_match(
    tensors: dict[str, torch.Tensor], facts: dict[str, Any], tokenizer: Tokenizer, load_golden: Callable[[str], Blip]
) -> None:
    model = load_golden("itm")
    image_embeds = model.encode_image(tensors["image"])
    kv = model.text.image_kv(image_embeds)
    for group, expected in (("captions", "captions"), ("negative_captions", "negatives")):
        # The official inference code does not replace [CLS] by [ENC].
        ids, mask = tokenizer(facts[group], max_length=35, first="cls")
        assert_matches(model.itm_logits(model.text.fuse(ids, mask, kv)), tensors[f"itm.itm_logits.{expected}"])
    ids, mask = tokenizer(facts["captions"], max_length=35)
    cosine = model.image_feat(image_embeds) @ model.text_feat(model.text.encode(ids, mask)).T
    assert_matches(cosine, tensors["itm.itc_sim.captions"])


def test_vqa_loss_matches(
    tensors: dict[str, torch.Tensor], facts: dict[str, Any], load_task: Callable[..., Any]
) -> None:
    task = load_task(VQATask, VQAConfig(), "vqa")
    rows = make_samples(tensors["image"], facts["vqa.questions"])
    weights = tensors["vqa.weights"].tolist()
    start = 0
    for row, count in zip(rows, facts["vqa.n"], strict=True):
        row["answers"], row["weights"] = facts["vqa.answers"][start : start + count], weights[start : start + count]
        start += count
    assert_matches(task(task.collate(rows), START)["loss"], tensors["vqa.loss"])


@torch.no_grad()
def test_vqa_answers_match(
    tensors: dict[str, torch.Tensor], facts: dict[str, Any], tokenizer: Tokenizer, load_golden: Callable[[str], Blip]
) -> None:
    model = load_golden("vqa")
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
    answers = generate_texts(model.answer_decoder, replace(kv, mask=None), tokenizer, WRITE_ANSWERS, keys)
    assert [tokenizer.decode(row) for row in answers.ids] == facts["vqa.generate"]


def test_nlvr_logits_and_loss_match(
    tensors: dict[str, torch.Tensor], facts: dict[str, Any], load_task: Callable[..., Any]
) -> None:
    task = load_task(NLVRTask, NLVRConfig(swap=False), "nlvr").eval()
    rows = make_samples(torch.stack([tensors["nlvr.image0"], tensors["nlvr.image1"]], dim=1), facts["nlvr.sentences"])
    for row, label in zip(rows, tensors["nlvr.targets"].flatten().tolist(), strict=True):
        row["label"] = label
    batch = task.collate(rows)
    assert_matches(task(batch, START)["loss"], tensors["nlvr.loss"])
    with torch.no_grad():
        logits = pair_logits(task.model, batch["pixels"], batch["input_ids"], batch["attention_mask"])
    assert_matches(logits, tensors["nlvr.logits"])


def test_the_comparison_rejects_one_wrong_value_in_any_tensor(tensors: dict[str, torch.Tensor]) -> None:
    for expected in tensors.values():
        assert_matches(expected.clone(), expected)
        wrong = expected.clone().flatten()
        wrong[-1] += 2 * TOLERANCE * max(1.0, expected.abs().max().item()) if expected.is_floating_point() else 1
        with pytest.raises(AssertionError):
            assert_matches(wrong.view_as(expected), expected)
