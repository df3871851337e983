"""VQA and NLVR2 on tiny random models; their numbers against the official code are in model/test_golden.py."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from blipcore.data.eval_batches import EvalBatches
from blipcore.data.transforms import eval_transform
from blipcore.generate.generate import generate_texts
from blipcore.model.attention import ImageKV
from blipcore.model.blip import Blip
from blipcore.model.config import PRESETS, BlipConfig
from blipcore.model.tokenizer import Tokenizer, clean_question
from blipcore.tasks.losses import IGNORE_INDEX, lm_loss, lm_loss_per_text
from blipcore.tasks.nlvr import NLVRConfig, NLVRTask, swap_sides
from blipcore.tasks.task import Progress
from blipcore.tasks.vqa import (
    WRITE_ANSWERS,
    VQAConfig,
    VQATask,
    evaluate_vqa,
    question_kv,
    rank_answers,
    tokenize_questions,
)

WORDS = ["a", "red", "blue", "green", "dog", "cat", "left", "right", "what", "is", "?"]
START = Progress(0, 10)


@pytest.fixture
def tokenizer():
    return Tokenizer.from_vocab(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])


@pytest.fixture
def config(tokenizer) -> BlipConfig:
    tiny = PRESETS["tiny"]
    vision = replace(tiny.vision, image_size=16, width=48, depth=2, heads=2)
    sizes = dict(vocab_size=len(tokenizer), width=32, heads=2, depth=4, hidden=64, encoder_width=48)
    return replace(tiny, vision=vision, text=replace(tiny.text, **sizes), embed_dim=16)


@pytest.fixture
def pretrained(config) -> Blip:
    torch.manual_seed(0)
    model = Blip(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def questions() -> list[dict]:
    torch.manual_seed(1)
    rows = [("what is red ?", ["dog"], [1.0]), ("what ?", ["cat", "a blue cat"], [0.6, 0.4])]
    return [
        {"key": text, "image": torch.randn(3, 16, 16), "text": text, "answers": answers, "weights": weights}
        for text, answers, weights in rows
    ]


def pairs() -> list[dict]:
    torch.manual_seed(1)
    texts = ["a red dog is left", "a blue cat is right", "green dog left", "what"]
    return [
        {"key": str(n), "image": torch.randn(2, 3, 16, 16), "text": text, "label": bool(n % 2), "epoch": 0}
        for n, text in enumerate(texts)
    ]


def test_vqa_grows_from_a_pretraining_model(pretrained):
    model = pretrained.select_parts("encode", "vqa")
    own, grown = pretrained.state_dict(), model.state_dict()
    assert_close(grown["answer_decoder.lm_head.bias"], own["text.lm_head.bias"])
    assert_close(grown["answer_decoder.layers.1.decode.qkv.weight"], own["text.layers.1.decode.qkv.weight"])
    assert_close(grown["answer_decoder.layers.1.cross.kv.bias"], own["text.layers.1.cross.kv.bias"])
    # It reads states of the question, which are not as wide as the image's here: these rows alone are new.
    assert grown["answer_decoder.layers.1.cross.kv.weight"].shape == (64, 32)
    again = model.select_parts("encode", "vqa").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in grown.items())
    with pytest.raises(ValueError, match="cannot start"):
        pretrained.select_parts("encode").select_parts("encode", "vqa")


def test_nlvr_grows_from_a_pretraining_model(pretrained):
    model = pretrained.select_parts("encode", "nlvr")
    own, grown = pretrained.state_dict(), model.state_dict()
    for place in ("first", "second"):
        for part in ("query", "kv", "out"):
            source = own[f"text.layers.0.cross.{part}.weight"]
            assert_close(grown[f"text.layers.0.cross.{place}.{part}.weight"], source)
    merging = [layer.cross.merge is not None for layer in model.text.layers]
    assert merging == [False, False, True, True]
    # Below the merging layers two equal images are as good as one.
    torch.manual_seed(0)
    embeds, x = torch.randn(2, 5, 48), torch.randn(2, 3, 32)
    single, twin = pretrained.text.layers[0].cross, model.text.layers[0].cross
    pair = torch.stack([embeds, embeds], dim=1)
    assert_close(twin(x, twin.image_kv(pair), None, None), single(x, single.image_kv(embeds), None, None))


@pytest.mark.parametrize(
    ("preset", "head", "image_size", "expected"),
    [
        ("base", "vqa", 480, 361_478_972),
        ("large", "vqa", 480, 583_880_764),
        ("base", "nlvr", 384, 259_372_034),
        ("large", "nlvr", 384, 486_409_474),
    ],
)
def test_official_parameter_counts(preset, head, image_size, expected):
    config = PRESETS[preset].select_parts("encode", head)
    config = replace(config, vision=replace(config.vision, image_size=image_size))
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in Blip(config).parameters()) == expected


def test_vqa_loss_is_the_weighted_sum_of_its_answers(pretrained, tokenizer):
    task = VQATask(pretrained.select_parts("encode", "vqa"), tokenizer, VQAConfig())
    rows = questions()
    loss = task(task.collate(rows), START)["loss"]
    loss.backward()
    assert [name for name, p in task.model.named_parameters() if p.grad is None] == []
    alone = 0.0
    for row in rows:
        for answer, weight in zip(row["answers"], row["weights"], strict=True):
            alone += task(task.collate([row | {"answers": [answer], "weights": [weight]}]), START)["loss"]
    assert_close(loss, alone / len(rows), rtol=1e-4, atol=1e-5)


def test_losses_of_texts_add_up_to_the_mean_over_tokens():
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 5, 11), torch.randint(11, (3, 5))
    labels[1, 3:] = IGNORE_INDEX
    tokens = int((labels[:, 1:] != IGNORE_INDEX).sum())
    assert_close(lm_loss_per_text(logits, labels).sum() / tokens, lm_loss(logits, labels))


def test_padding_of_a_question_changes_nothing(pretrained, tokenizer):
    model = pretrained.select_parts("encode", "vqa").eval()
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
def test_ranking_scores_candidates_by_the_training_loss(pretrained, tokenizer, monkeypatch):
    monkeypatch.setattr("blipcore.tasks.vqa.ANSWERS_PER_PASS", 8)  # several passes
    task = VQATask(pretrained.select_parts("encode", "vqa"), tokenizer, VQAConfig()).eval()
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
def test_many_questions_about_a_picture_are_asked_a_few_at_a_time(
    pretrained, tokenizer, tmp_path, monkeypatch, candidates
):
    model, records = pretrained.select_parts("encode", "vqa"), []
    for number, count in enumerate((7, 0, 1, 2)):
        Image.effect_noise((16, 16), 50 + 20 * number).convert("RGB").save(tmp_path / f"{number}.png")
        asked = [
            {"question_id": f"{number}/{n}", "question": f"what is {WORDS[n]} ?", "answers": []} for n in range(count)
        ]
        records.append({"image": tmp_path / f"{number}.png", "questions": asked})

    def answers(batch_size: int) -> list[dict]:
        pictures = EvalBatches(records, eval_transform(16), batch_size)
        return evaluate_vqa(model, tokenizer, pictures, WRITE_ANSWERS, candidates)[1]

    alone = [row for record in records for row in answers_of(model, tokenizer, record, candidates)]
    rows, select = [], ImageKV.select
    monkeypatch.setattr(ImageKV, "select", lambda kv, index: rows.append(len(index)) or select(kv, index))
    assert answers(3) == answers(2) == alone
    if not candidates:  # else answers are selected too
        assert max(rows) <= 3


def answers_of(model: Blip, tokenizer: Tokenizer, record: dict, candidates: tuple[str, ...]) -> list[dict]:
    """Each question asked alone."""
    found = []
    for question in record["questions"]:
        pictures = EvalBatches([record | {"questions": [question]}], eval_transform(16), 1)
        found += evaluate_vqa(model, tokenizer, pictures, WRITE_ANSWERS, candidates)[1]
    return found


def test_nlvr_loss_reaches_every_parameter(pretrained, tokenizer):
    task = NLVRTask(pretrained.select_parts("encode", "nlvr"), tokenizer, NLVRConfig())
    task(task.collate(pairs()), START)["loss"].backward()
    assert [name for name, p in task.model.named_parameters() if p.grad is None] == []


def test_half_of_the_pairs_are_exchanged_with_their_words(tokenizer):
    rows = pairs()
    task = NLVRTask(Blip(PRESETS["tiny"].select_parts("encode", "nlvr")), tokenizer, NLVRConfig())
    exchanged = []
    for epoch in range(50):
        batch = task.collate([row | {"epoch": epoch} for row in rows])
        for n, row in enumerate(rows):
            flipped = torch.equal(batch["pixels"][n], row["image"].flip(0))
            assert flipped or torch.equal(batch["pixels"][n], row["image"])
            text = tokenizer.decode(batch["input_ids"][n])
            assert text == (swap_sides(row["text"]) if flipped else row["text"])
            exchanged.append(flipped)
    assert 0.35 < sum(exchanged) / len(exchanged) < 0.65
    assert swap_sides("the left one is right of it") == "the right one is left of it"


def test_questions_lose_characters_without_a_gap():
    assert clean_question('What "colour" is (the) dog?  ') == "what colour is the dog?"
    assert clean_question("no. 5; yes") == "no 5 yes"
    assert clean_question("a b c", max_words=2) == "a b"
