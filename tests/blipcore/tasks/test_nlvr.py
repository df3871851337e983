"""NLVR2 on tiny random models; its numbers against the official code are in model/test_golden.py."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from tiny_tasks import START
from torch.testing import assert_close

from blipcore.data.eval_batches import EvalBatches
from blipcore.data.transforms import EvalTransform
from blipcore.model.blip import Blip
from blipcore.model.config import PRESETS
from blipcore.tasks.nlvr import NLVRConfig, NLVRTask, evaluate_nlvr, pair_logits, swap_sides


def test_an_nlvr_model_starts_from_a_pretraining_model(wide_model) -> None:
    model = wide_model.select_parts("encode", "nlvr")
    source, target = wide_model.state_dict(), model.state_dict()
    for side in ("first", "second"):
        for part in ("query", "kv", "out"):
            expected = source[f"text.layers.0.cross.{part}.weight"]
            assert_close(target[f"text.layers.0.cross.{side}.{part}.weight"], expected)
    merging = [layer.cross.merge is not None for layer in model.text.layers]
    assert merging == [False, False, True, True]
    # Below the merging layers, a pair of equal images gives the states of a single one.
    torch.manual_seed(0)
    embeds, x = torch.randn(2, 5, 48), torch.randn(2, 3, 32)
    single, twin = wide_model.text.layers[0].cross, model.text.layers[0].cross
    pair = torch.stack([embeds, embeds], dim=1)
    assert_close(twin(x, twin.image_kv(pair), None, None), single(x, single.image_kv(embeds), None, None))


@pytest.mark.parametrize(
    ("preset", "image_size", "expected"), [("base", 384, 259_372_034), ("large", 384, 486_409_474)]
)
def test_official_parameter_counts(preset, image_size, expected) -> None:
    config = PRESETS[preset].select_parts("encode", "nlvr")
    config = replace(config, vision=replace(config.vision, image_size=image_size))
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in Blip(config).parameters()) == expected


def pairs() -> list[dict]:
    torch.manual_seed(1)
    texts = ["a red dog is left", "a blue cat is right", "green dog left", "what"]
    return [
        {"key": str(n), "image": torch.randn(2, 3, 16, 16), "text": text, "label": bool(n % 2), "epoch": 0}
        for n, text in enumerate(texts)
    ]


def test_nlvr_loss_reaches_every_parameter(wide_model, tokenizer) -> None:
    task = NLVRTask(wide_model.select_parts("encode", "nlvr"), tokenizer, NLVRConfig())
    task(task.collate(pairs()), START)["loss"].backward()
    assert [name for name, p in task.model.named_parameters() if p.grad is None] == []


def test_half_of_the_pairs_are_swapped_with_their_words(tokenizer) -> None:
    rows = pairs()
    task = NLVRTask(Blip(PRESETS["tiny"].select_parts("encode", "nlvr")), tokenizer, NLVRConfig())
    swapped = []
    for epoch in range(50):
        batch = task.collate([row | {"epoch": epoch} for row in rows])
        for n, row in enumerate(rows):
            flipped = torch.equal(batch["pixels"][n], row["image"].flip(0))
            assert flipped or torch.equal(batch["pixels"][n], row["image"])
            text = tokenizer.decode(batch["input_ids"][n])
            assert text == (swap_sides(row["text"]) if flipped else row["text"])
            swapped.append(flipped)
    assert 0.35 < sum(swapped) / len(swapped) < 0.65
    assert swap_sides("the left one is right of it") == "the right one is left of it"


def test_evaluation_counts_correct_predictions_of_unswapped_pairs(wide_model, tokenizer, tmp_path) -> None:
    model = wide_model.select_parts("encode", "nlvr").eval()
    records = []
    for number, sentence in enumerate(("a red dog is left", "a cat", "green")):
        images = [tmp_path / f"{number}{side}.png" for side in "lr"]
        for path in images:
            Image.effect_noise((16, 16), 50 + 20 * number).convert("RGB").save(path)
        records.append({"images": images, "sentence": sentence, "label": bool(number % 2)})
    pictures = EvalBatches(records, EvalTransform(16), batch_size=2)
    correct = 0
    with torch.no_grad():
        for (record,), pixels in EvalBatches(records, EvalTransform(16), batch_size=1):
            ids, mask = tokenizer([record["sentence"]], max_length=20, first="enc")
            correct += int(pair_logits(model, pixels, ids, mask).argmax()) == record["label"]
    assert evaluate_nlvr(model, tokenizer, pictures) == {"accuracy": pytest.approx(100 * correct / 3)}
