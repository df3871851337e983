"""VQA on tiny random models; its numbers against the official code are in model/test_golden.py."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from tiny_tasks import START, WORDS
from torch.testing import assert_close

from blipcore.data.eval_batches import EvalBatches
from blipcore.data.transforms import EvalTransform
from blipcore.generate.generate import generate_texts
from blipcore.model.attention import ImageKV
from blipcore.model.blip import Blip
from blipcore.model.config import PRESETS
from blipcore.model.tokenizer import Tokenizer, clean_question
from blipcore.tasks.vqa import (
    WRITE_ANSWERS,
    VQAConfig,
    VQATask,
    evaluate_vqa,
    question_kv,
    questions_by_picture,
    rank_answers,
    tokenize_questions,
)


def test_a_vqa_model_starts_from_a_pretraining_model(wide_model) -> None:
    model = wide_model.select_parts("encode", "vqa")
    source, target = wide_model.state_dict(), model.state_dict()
    assert_close(target["answer_decoder.lm_head.bias"], source["text.lm_head.bias"])
    assert_close(target["answer_decoder.layers.1.decode.qkv.weight"], source["text.layers.1.decode.qkv.weight"])
    assert_close(target["answer_decoder.layers.1.cross.kv.bias"], source["text.layers.1.cross.kv.bias"])
    # Question states are not as wide as image tokens here, so these weights are new.
    assert target["answer_decoder.layers.1.cross.kv.weight"].shape == (64, 32)
    again = model.select_parts("encode", "vqa").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in target.items())
    with pytest.raises(ValueError, match="cannot start"):
        wide_model.select_parts("encode").select_parts("encode", "vqa")


@pytest.mark.parametrize(
    ("preset", "image_size", "expected"), [("base", 480, 361_478_972), ("large", 480, 583_880_764)]
)
def test_official_parameter_counts(preset, image_size, expected) -> None:
    config = PRESETS[preset].select_parts("encode", "vqa")
    config = replace(config, vision=replace(config.vision, image_size=image_size))
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in Blip(config).parameters()) == expected


def questions() -> list[dict]:
    torch.manual_seed(1)
    rows = [("what is red ?", ["dog"], [1.0]), ("what ?", ["cat", "a blue cat"], [0.6, 0.4])]
    return [
        {"key": text, "image": torch.randn(3, 16, 16), "text": text, "answers": answers, "weights": weights}
        for text, answers, weights in rows
    ]


def test_vqa_loss_is_the_weighted_sum_of_its_answers(wide_model, tokenizer) -> None:
    task = VQATask(wide_model.select_parts("encode", "vqa"), tokenizer, VQAConfig())
    rows = questions()
    loss = task(task.collate(rows), START)["loss"]
    loss.backward()
    assert [name for name, p in task.model.named_parameters() if p.grad is None] == []
    alone = 0.0
    for row in rows:
        for answer, weight in zip(row["answers"], row["weights"], strict=True):
            alone += task(task.collate([row | {"answers": [answer], "weights": [weight]}]), START)["loss"]
    assert_close(loss, alone / len(rows), rtol=1e-4, atol=1e-5)


def test_padding_of_a_question_changes_nothing(wide_model, tokenizer) -> None:
    model = wide_model.select_parts("encode", "vqa").eval()
    embeds = model.encode_image(torch.randn(1, 3, 16, 16))
    short, _ = tokenize_questions(tokenizer, ["what ?"], VQAConfig())
    both, mask = tokenize_questions(tokenizer, ["what ?", "what is a red dog ?"], VQAConfig())
    assert short.shape[1] < both.shape[1]
    alone = question_kv(model, embeds, short, torch.ones_like(short))
    together = question_kv(model, embeds, both, mask, image_of_question=torch.tensor([0, 0]))
    answers, present = tokenizer(["a blue cat"], max_length=8, first="dec")
    first = model.answer_decoder.decode(answers, present, alone)
    second = model.answer_decoder.decode(answers, present, together.first(1))
    assert_close(first, second, rtol=1e-4, atol=1e-5)
    keys = ["0", "1"]
    written = generate_texts(model.answer_decoder, together, tokenizer, WRITE_ANSWERS, keys).ids
    assert written[0] == generate_texts(model.answer_decoder, alone, tokenizer, WRITE_ANSWERS, keys[:1]).ids[0]


@torch.no_grad()
def test_ranking_scores_candidates_by_the_training_loss(wide_model, tokenizer, monkeypatch) -> None:
    monkeypatch.setattr("blipcore.tasks.vqa.ANSWERS_PER_PASS", 8)  # several passes
    task = VQATask(wide_model.select_parts("encode", "vqa"), tokenizer, VQAConfig()).eval()
    candidates = ["dog", "a red dog", "blue", "a cat", "right"]
    rows = questions()
    loss = torch.tensor(
        [
            [task(task.collate([r | {"answers": [c], "weights": [1.0]}]), START)["loss"] for c in candidates]
            for r in rows
        ]
    )
    batch = task.collate(rows)
    kv = question_kv(task.model, task.model.encode_image(batch["pixels"]), batch["input_ids"], batch["attention_mask"])
    ids, mask = tokenizer(candidates, max_length=10, first="dec")
    assert rank_answers(task.model.answer_decoder, kv, ids, mask, k=128).tolist() == loss.argmin(1).tolist()


@pytest.mark.parametrize("candidates", [(), ("red dog", "blue", "a cat")])
def test_answers_do_not_depend_on_the_batch_and_few_questions_run_at_a_time(
    wide_model, tokenizer, tmp_path, monkeypatch, candidates
) -> None:
    model, records = wide_model.select_parts("encode", "vqa"), []
    for number, count in enumerate((7, 0, 1, 2)):
        Image.effect_noise((16, 16), 50 + 20 * number).convert("RGB").save(tmp_path / f"{number}.png")
        questions = [
            {"question_id": f"{number}/{n}", "question": f"what is {WORDS[n]} ?", "answers": []} for n in range(count)
        ]
        records.append({"image": tmp_path / f"{number}.png", "questions": questions})

    def answers(batch_size: int) -> list[dict]:
        pictures = EvalBatches(records, EvalTransform(16), batch_size)
        return evaluate_vqa(model, tokenizer, pictures, WRITE_ANSWERS, candidates)[1]

    alone = [row for record in records for row in answers_of(model, tokenizer, record, candidates)]
    rows, select = [], ImageKV.select
    monkeypatch.setattr(ImageKV, "select", lambda kv, index: rows.append(len(index)) or select(kv, index))
    assert answers(3) == answers(2) == alone
    if not candidates:  # candidates are selected as well
        assert max(rows) <= 3


def answers_of(model: Blip, tokenizer: Tokenizer, record: dict, candidates: tuple[str, ...]) -> list[dict]:
    """Answer each question alone."""
    results = []
    for question in record["questions"]:
        pictures = EvalBatches([record | {"questions": [question]}], EvalTransform(16), 1)
        results += evaluate_vqa(model, tokenizer, pictures, WRITE_ANSWERS, candidates)[1]
    return results


def test_questions_are_cleaned() -> None:
    assert clean_question('What "colour" is (the) dog?  ') == "what colour is the dog?"
    assert clean_question("no. 5; yes") == "no 5 yes"
    assert clean_question("a b c", max_words=2) == "a b"


def test_questions_are_grouped_by_picture() -> None:
    rows = [{"key": key, "image": f"/{key}", "question": question} for key, question in ("a1", "b2", "a3")]
    records = questions_by_picture(rows)
    assert [record["image"] for record in records] == ["/a", "/b"]
    assert [[row["question"] for row in record["questions"]] for record in records] == [["1", "3"], ["2"]]
