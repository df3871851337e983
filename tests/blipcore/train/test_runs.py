"""Pre-training and finetuning runs from their settings, and the scores of their models, on one-colour pictures."""

import functools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from colour_pictures import COLOURS, colour_folders, write_colours
from PIL import Image
from safetensors.torch import save_file
from torch.testing import assert_close

from blipcore import evaluation
from blipcore.checkpoints import load as convert
from blipcore.checkpoints.load import load_model
from blipcore.checkpoints.names import to_official
from blipcore.evaluation import ClassifyConfig, EvaluateRun, ValidationConfig, evaluate
from blipcore.generate.config import GenerateConfig
from blipcore.model.config import VisionConfig
from blipcore.model.tokenizer import BERT_SPECIALS
from blipcore.model.vit import VisionTransformer
from blipcore.tasks.captioning import CaptioningConfig, evaluate_captioning
from blipcore.tasks.pretrain import PretrainConfig
from blipcore.tasks.retrieval import RetrievalConfig
from blipcore.train.optim import TrainConfig
from blipcore.train.runs import AugmentConfig, FinetuneRun, PretrainRun, finetune, pretrain
from blipcore.train.trainer import Trainer

SMALL = {
    "vision": {"image_size": 16, "width": 32, "heads": 2, "depth": 1},
    "text": {"width": 32, "heads": 2, "depth": 1},
}
TRAIN = TrainConfig(steps=2, batch_size=4, lr=1e-3, device="cpu", dtype="fp32")
PLAIN = AugmentConfig(1.0, False, 0.0)


@pytest.fixture(scope="module")
def annotations(tmp_path_factory) -> Path:
    return write_colours(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="module")
def pretrained(annotations, tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("runs") / "pretrained"
    run = PretrainRun([str(annotations)], "tiny", SMALL, tokenizer="train:60", augment=PLAIN, train=TRAIN)
    run.task = PretrainConfig(queue_size=8)
    assert pretrain(run, out)["steps"] == 2
    return str(out / "model")


def test_a_pretrained_model_has_every_part(pretrained) -> None:
    model, tokenizer = load_model(pretrained, needs=("encode", "decode", "itc", "itm"))
    assert model.config.vision.image_size == 16
    assert len(tokenizer) == model.config.text.vocab_size


def test_a_finetuned_captioner_has_the_decoder_alone(pretrained, annotations, tmp_path) -> None:
    run = FinetuneRun("caption", [str(annotations)], pretrained, augment=PLAIN, train=TRAIN, dropout=0.25)
    run.validation = ValidationConfig(str(annotations), words="plain")
    assert finetune(run, tmp_path / "captioner")["best"].keys() >= {"step", "value", "CIDEr", "BLEU-4"}
    model, _ = load_model(tmp_path / "captioner" / "model", needs=("decode",))
    assert model.config.text.roles == ("decode",) and model.config.heads == ()
    assert model.config.text.dropout == 0.25
    scores = evaluate(
        EvaluateRun(
            "caption",
            str(annotations),
            str(tmp_path / "captioner" / "model"),
            results=str(tmp_path / "r.json"),
            words="plain",
        )
    )
    assert scores["pictures"] == len(json.loads((tmp_path / "r.json").read_text())) == len(COLOURS)
    with pytest.raises(ValueError, match="is a captioner"):
        evaluate(EvaluateRun("retrieval", str(annotations), str(tmp_path / "captioner" / "model")))


def test_validation_captions_start_with_the_prompt_of_the_task(pretrained, annotations, tmp_path, monkeypatch) -> None:
    configs: list[GenerateConfig] = []

    def recording_evaluation(model, tokenizer, pictures, config, *options) -> tuple:
        configs.append(config)
        return evaluate_captioning(model, tokenizer, pictures, config, *options)

    monkeypatch.setattr(evaluation, "evaluate_captioning", recording_evaluation)
    run = FinetuneRun("caption", [str(annotations)], pretrained, augment=PLAIN, train=TRAIN)
    run.caption = CaptioningConfig(prompt="this is ")
    run.validation = ValidationConfig(str(annotations), words="plain", generate=GenerateConfig(mode="greedy"))
    finetune(run, tmp_path / "captioner")
    assert configs and {(config.mode, config.prompt) for config in configs} == {("greedy", "this is ")}


def test_a_filter_learns_to_tell_colours(pretrained, annotations, tmp_path) -> None:
    run = FinetuneRun("retrieval", [str(annotations)], pretrained, augment=PLAIN)
    run.train = TrainConfig(steps=80, batch_size=6, lr=3e-3, device="cpu", dtype="fp32", save_every=1000)
    run.retrieval = RetrievalConfig(queue_size=0, alpha=0.0, random_negatives=1.0)
    run.validation = ValidationConfig(str(annotations), every=40)
    before = evaluate(EvaluateRun("retrieval", str(annotations), pretrained))["mean_recall"]
    summary = finetune(run, tmp_path / "filter")
    best = evaluate(EvaluateRun("retrieval", str(annotations), str(tmp_path / "filter" / "best")))["mean_recall"]
    assert summary["best"]["step"] in (40, 80) and summary["best"]["value"] == pytest.approx(best)
    after = evaluate(EvaluateRun("retrieval", str(annotations), str(tmp_path / "filter" / "model")))["mean_recall"]
    assert after > max(90, before)
    classes = EvaluateRun("classify", colour_folders(tmp_path), str(tmp_path / "filter" / "model"))
    classes.classify.templates = ["a {} square", "something {}"]
    assert evaluate(classes)["accuracy"] > 80


def test_a_filter_learns_from_judged_texts(pretrained, annotations, tmp_path) -> None:
    names = [row["image"] for row in json.loads(annotations.read_text())]
    rows = [{"image": name, "text": f"text {n}", "match": n % 2} for name in names[:4] for n in range(2)]
    table = annotations.parent / "judged.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = FinetuneRun("retrieval", [str(annotations)], init=pretrained, augment=PLAIN, train=TRAIN)
    run.retrieval = RetrievalConfig(queue_size=8, judged_texts=[str(table)])
    assert finetune(run, tmp_path / "run")["losses"]["loss_judged"] > 0
    recorded = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert recorded["retrieval"]["judged_share"] == 0.25
    with pytest.raises(ValueError, match="has no judged picture"):
        finetune(replace(run, train=replace(TRAIN, batch_size=2)), tmp_path / "other")


def test_near_misses_are_made_once_and_resume_with_the_run(pretrained, annotations, tmp_path) -> None:
    run = FinetuneRun("retrieval", [str(annotations)], init=pretrained, augment=PLAIN, train=TRAIN)
    run.retrieval = RetrievalConfig(queue_size=8, near_misses=2, near_miss_samples=2, max_tokens=10)
    first = finetune(run, tmp_path / "run")
    table = tmp_path / "run" / "near_misses.parquet"
    written = table.stat().st_mtime_ns
    assert first["losses"]["loss_judged"] > 0
    assert finetune(run, tmp_path / "run") == first and table.stat().st_mtime_ns == written
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["retrieval"]["near_misses"] == 2
    with pytest.raises(ValueError, match="Near misses are sampled from the decoder of the starting checkpoint"):
        finetune(replace(run, init=str(tmp_path / "run" / "model")), tmp_path / "other")


def test_settings_of_judged_texts_are_recorded_only_with_a_table(pretrained, annotations, tmp_path) -> None:
    run = FinetuneRun("retrieval", [str(annotations)], init=pretrained, augment=PLAIN, train=TRAIN)
    run.retrieval = RetrievalConfig(queue_size=8)
    finetune(run, tmp_path / "run")
    assert "judged_share" not in yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["retrieval"]


def test_a_run_with_init_starts_from_the_weights_of_the_checkpoint(pretrained, annotations, tmp_path) -> None:
    no_update = TrainConfig(steps=1, batch_size=4, lr=0.0, weight_decay=0.0, device="cpu", dtype="fp32")
    run = PretrainRun(
        [str(annotations)], init=pretrained, augment=PLAIN, train=no_update, task=PretrainConfig(queue_size=8)
    )
    pretrain(run, tmp_path / "again")
    first, _ = load_model(pretrained)
    second, _ = load_model(tmp_path / "again" / "model")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_training_loads_the_momentum_encoders_and_queues_of_an_official_file(
    pretrained, annotations, tmp_path, monkeypatch
) -> None:
    """As the official finetuning does, with a non-strict load."""
    model, _ = load_model(pretrained)
    momentum = {
        f"momentum.{name}": -tensor for name, tensor in model.select_parts("encode", "itc").state_dict().items()
    }
    del momentum["momentum.temp"]
    queues = {name: torch.randn(model.config.embed_dim, 8) for name in ("image_queue", "text_queue")}
    extra = momentum | queues | {"queue_ptr": torch.tensor([3])}
    torch.save({"model": to_official({**model.state_dict(), **extra})}, tmp_path / "pretrain.pth")
    heads = {"vision": {"heads": 2}, "text": {"heads": 2}}
    monkeypatch.setattr(convert, "read_checkpoint", functools.partial(convert.read_checkpoint, overrides=heads))
    tasks = []

    def record_task(trainer: Trainer) -> dict:
        tasks.append(trainer.task)
        return {}

    monkeypatch.setattr(Trainer, "fit", record_task)
    settings = {"init": str(tmp_path / "pretrain.pth"), "tokenizer": pretrained, "augment": PLAIN, "train": TRAIN}
    # The position table is resized; a queue of another length is not loaded.
    for size, image_size in ((8, 32), (16, 16)):
        run = FinetuneRun("retrieval", [str(annotations)], image_size=image_size, **settings)
        run.retrieval = RetrievalConfig(queue_size=size)
        finetune(run, tmp_path / "filter")
        pretrain(PretrainRun([str(annotations)], task=PretrainConfig(queue_size=size), **settings), tmp_path / "again")
    for task in tasks:
        assert_close(task.momentum.text_proj.weight, momentum["momentum.text_proj.weight"], rtol=0, atol=0)
        assert (task.image_queue.shape == (model.config.embed_dim, 8)) == torch.equal(
            task.image_queue[:, :8], queues["image_queue"]
        )
    assert tasks[0].momentum.visual_encoder.pos_embed.shape == tasks[0].model.visual_encoder.pos_embed.shape
    assert tasks[0].idx_queue.eq(-100).all() and len(tasks) == 4


def test_a_tokenizer_to_train_needs_a_number(annotations, tmp_path) -> None:
    run = PretrainRun([str(annotations)], "tiny", SMALL, tokenizer="train:many", train=TRAIN)
    with pytest.raises(ValueError, match="number of word pieces"):
        pretrain(run, tmp_path / "run")


def test_a_mixture_needs_a_filtered_set_and_is_recorded_only_if_given(annotations, pretrained, tmp_path) -> None:
    run = PretrainRun([str(annotations)], "tiny", SMALL, tokenizer="train:60", train=TRAIN, mixture="web=1")
    with pytest.raises(ValueError, match=r"The mixture 'web=1' is for filtered sets, and none is among .*json"):
        pretrain(run, tmp_path / "run")
    recorded = yaml.safe_load((Path(pretrained).parent / "config.yaml").read_text())
    assert "mixture" not in recorded and "numerics" not in recorded and recorded["preset"] == "tiny"


@pytest.fixture
def parts(tmp_path) -> tuple[VisionTransformer, Path, Path]:
    """An image encoder, the file of its weights, and a BERT folder as on the hub."""
    encoder = VisionTransformer(VisionConfig(16, 8, 64, 1, 1))
    save_file(encoder.state_dict(), tmp_path / "vit.safetensors")
    vocab = [*BERT_SPECIALS, "a", "square", "something", *COLOURS, "猫"]
    layer = {"attention.self.query": (32, 32), "attention.self.key": (32, 32), "attention.self.value": (32, 32)}
    layer |= {"attention.output.dense": (32, 32), "intermediate.dense": (48, 32), "output.dense": (32, 48)}
    state = {"bert.embeddings.word_embeddings.weight": torch.randn(len(vocab), 32)}
    state["bert.embeddings.position_embeddings.weight"] = torch.randn(40, 32)
    for name, shape in layer.items():
        state[f"bert.encoder.layer.0.{name}.weight"] = torch.randn(shape) * 0.1
        state[f"bert.encoder.layer.0.{name}.bias"] = torch.zeros(shape[0])
    for norm in ("embeddings", "encoder.layer.0.attention.output", "encoder.layer.0.output"):
        state |= {f"bert.{norm}.LayerNorm.gamma": torch.ones(32), f"bert.{norm}.LayerNorm.beta": torch.zeros(32)}
    folder = tmp_path / "bert"
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "num_attention_heads": 4}))
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')  # as in bert-base-chinese
    return encoder, tmp_path / "vit.safetensors", folder


def test_a_new_model_starts_from_a_vit_and_a_bert(annotations, parts, tmp_path) -> None:
    """Without a preset, sizes, heads and vocabulary come from them."""
    encoder, vision, text = parts
    run = PretrainRun([str(annotations)], vision=str(vision), text=str(text), augment=PLAIN)
    run.model = {"vision": {"image_size": 16}, "embed_dim": 8}
    run.train, run.task = replace(TRAIN, steps=1, lr=1e-12), PretrainConfig(queue_size=8)
    pretrain(run, tmp_path / "run")
    model, tokenizer = load_model(tmp_path / "run" / "model", needs=("encode", "decode", "itc", "itm"))
    vision_sizes, text_sizes = model.config.vision, model.config.text
    assert (vision_sizes.width, vision_sizes.depth, vision_sizes.heads, vision_sizes.patch_size) == (64, 1, 1, 8)
    assert (text_sizes.width, text_sizes.depth, text_sizes.heads, text_sizes.hidden) == (32, 1, 4, 48)
    assert (text_sizes.max_positions, text_sizes.vocab_size, len(tokenizer)) == (40, 17, 17)
    assert not tokenizer.settings()["do_lower_case"]
    assert_close(model.visual_encoder.pos_embed, encoder.pos_embed)
    assert_close(model.text.layers[0].decode.qkv.weight, model.text.layers[0].encode.qkv.weight)


def test_parts_and_checkpoints_of_another_size_are_refused(annotations, parts, pretrained, tmp_path) -> None:
    _, vision, text = parts

    def error_of(**options) -> str:
        run = PretrainRun([str(annotations)], augment=PLAIN, train=TRAIN, **options)
        with pytest.raises(ValueError) as error:
            pretrain(run, tmp_path / "run")
        return str(error.value)

    tiny = {"preset": "tiny", "model": {"vision": {"image_size": 16}}, "tokenizer": str(text)}
    assert "vit.safetensors has width 64, depth 1, but the model has width 128, depth 3" in error_of(
        vision=str(vision), **tiny
    )
    assert "bert has width 32, depth 1, hidden 48" in error_of(text=str(text), **tiny)
    assert "has vision width 32, not the requested 768" in error_of(init=pretrained, preset="base")
    assert "has text depth 1, not the requested 6" in error_of(init=pretrained, model={"text": {"depth": 6}})


@pytest.fixture(scope="module")
def questions(annotations) -> Path:
    rows = [["what colour is it?", colour, n] for n, colour in enumerate(COLOURS)]
    rows += [[f"is it {colour}?", "yes", n] for n, colour in enumerate(COLOURS)]
    rows += [[f"is it {COLOURS[n - 1]}?", "no", n] for n in range(len(COLOURS))]
    (annotations.parent / "images").mkdir()
    for n, colour in enumerate(COLOURS):
        Image.new("RGB", (20, 20), colour).save(annotations.parent / "images" / f"{n}.png")
    (annotations.parent / "questions.json").write_text(json.dumps(rows))
    return annotations.parent / "questions.json"


def test_a_new_vqa_model_learns_its_questions(questions, tmp_path) -> None:
    run = FinetuneRun("vqa", [str(questions)], preset="tiny", model=SMALL, tokenizer="train:80", augment=PLAIN)
    run.train = TrainConfig(steps=120, batch_size=18, lr=5e-3, device="cpu", dtype="fp32", save_every=1000)
    run.validation = ValidationConfig(str(questions), every=60)
    best = finetune(run, tmp_path / "vqa")["best"]
    accuracy = evaluate(EvaluateRun("vqa", str(questions), str(tmp_path / "vqa" / "best")))["accuracy"]
    assert best["step"] in (60, 120) and best["value"] == best["accuracy"] == pytest.approx(accuracy)
    model = str(tmp_path / "vqa" / "model")
    (tmp_path / "answers.txt").write_text("\n".join([*COLOURS, "yes", "no"]))
    written = evaluate(EvaluateRun("vqa", str(questions), model, results=str(tmp_path / "r.json")))
    ranked = evaluate(EvaluateRun("vqa", str(questions), model, answers=str(tmp_path / "answers.txt")))
    assert (written["pictures"], written["questions"]) == (6, 18)
    assert written["accuracy"] > 90 and ranked["accuracy"] > 90
    classes = EvaluateRun("classify", colour_folders(tmp_path), model, results=str(tmp_path / "c.json"))
    classes.classify = ClassifyConfig(by="vqa", question="what colour is it?")
    scores, rows = evaluate(classes), json.loads((tmp_path / "c.json").read_text())
    assert scores["pictures"] == len(rows) == 6 and scores["accuracy"] == scores["mean_class_accuracy"] > 80
    assert scores["accuracy"] == pytest.approx(100 / 6 * sum(row["label"] == row["prediction"] for row in rows))
    results = json.loads((tmp_path / "r.json").read_text())
    assert sorted(row["question_id"] for row in results) == list(range(18))
    assert results[0].keys() == {"question_id", "answer"}


def test_vqa_starts_from_a_pretrained_or_a_vqa_model(pretrained, questions, annotations, tmp_path) -> None:
    run = FinetuneRun("vqa", [str(questions)], pretrained, augment=PLAIN, train=TRAIN, drop_path=0.1)
    finetune(run, tmp_path / "vqa")
    model, _ = load_model(tmp_path / "vqa" / "model", needs=("encode", "vqa"))
    assert model.config.heads == ("vqa",) and model.config.vision.drop_path == 0.1
    again = FinetuneRun("vqa", [str(questions)], str(tmp_path / "vqa" / "model"), augment=PLAIN, train=TRAIN)
    assert finetune(again, tmp_path / "again")["steps"] == 2
    with pytest.raises(ValueError, match="is a VQA model; captioning needs"):
        finetune(replace(again, task="caption", annotations=[str(annotations)]), tmp_path / "captioner")
    with pytest.raises(ValueError, match="is a pre-training model; answering needs"):
        evaluate(EvaluateRun("vqa", str(questions), pretrained))


def test_nlvr_is_finetuned_from_a_pretrained_model(pretrained, annotations, tmp_path) -> None:
    rows = [
        {"images": [f"{left}.png", f"{right}.png"], "sentence": "both are red", "label": str(left == right == "red")}
        for left in COLOURS[:2]
        for right in COLOURS[:2]
    ]
    (annotations.parent / "nlvr.json").write_text(json.dumps(rows))
    pairs = str(annotations.parent / "nlvr.json")
    run = FinetuneRun("nlvr", [pairs], pretrained, augment=PLAIN)
    run.train = TrainConfig(steps=60, batch_size=4, lr=3e-3, device="cpu", dtype="fp32", save_every=1000)
    run.validation = ValidationConfig(pairs, every=60)
    best = finetune(run, tmp_path / "nlvr")["best"]
    assert best == {"step": 60, "value": 100.0, "accuracy": 100.0}
    scores = evaluate(EvaluateRun("nlvr", pairs, str(tmp_path / "nlvr" / "model")))
    assert scores["pictures"] == 4 and scores["accuracy"] == 100
    with pytest.raises(ValueError, match="is an NLVR model"):
        evaluate(EvaluateRun("retrieval", str(annotations), str(tmp_path / "nlvr" / "model")))


def test_finetuning_needs_a_checkpoint_or_a_preset() -> None:
    for start in ({}, {"init": ""}, {"init": "a", "preset": "tiny"}):
        with pytest.raises(ValueError, match="from a checkpoint or from a new model"):
            FinetuneRun("vqa", ["x.json"], **start)
