"""Pre-training on a tiny random model; its numbers against the official code are in model/test_golden.py."""

import pytest
import torch
from tiny_tasks import START, TEXTS, caption_samples

from blipcore.tasks.pretrain import PretrainConfig, PretrainTask, equal_texts


def test_pretraining_sums_its_losses_and_reaches_every_parameter(model, tokenizer) -> None:
    task = PretrainTask(model, tokenizer, PretrainConfig(queue_size=8, lm_weight=4.0))
    out = task(task.collate(caption_samples()), START)
    torch.testing.assert_close(out["loss"], out["loss_itc"] + out["loss_itm"] + 4 * out["loss_lm"])
    out["loss"].backward()
    assert [name for name, p in task.model.named_parameters() if p.grad is None] == []
    assert all(p.grad is None for p in task.momentum.parameters())


def test_forward_has_no_side_effects(model, tokenizer) -> None:
    task = PretrainTask(model, tokenizer, PretrainConfig(queue_size=8, negatives="argmax"))
    before = {name: value.clone() for name, value in task.state_dict().items()}
    batch = task.collate(caption_samples())
    first, second = task(batch, START)["loss"], task(batch, START)["loss"]
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())


def test_equal_texts_are_no_negatives(tokenizer) -> None:
    ids, _ = tokenizer(TEXTS, max_length=30)
    expected = torch.eye(4, dtype=torch.bool)
    expected[0, 3] = expected[3, 0] = True
    assert torch.equal(equal_texts(ids, ids), expected)


def test_one_picture_is_too_few_for_itm(model, tokenizer) -> None:
    task = PretrainTask(model, tokenizer, PretrainConfig(queue_size=4))
    with pytest.raises(ValueError, match="must be at least 2"):
        task(task.collate(caption_samples(TEXTS[:1])), START)


def test_itm_on_a_share_of_the_batch_is_itm_on_a_smaller_batch(model, tokenizer) -> None:
    model.eval()
    samples = caption_samples()
    part = PretrainTask(model, tokenizer, PretrainConfig(queue_size=4, negatives="argmax", itm_share=0.5)).eval()
    task = PretrainTask(model, tokenizer, PretrainConfig(queue_size=4, negatives="argmax")).eval()
    torch.testing.assert_close(
        part(part.collate(samples), START)["loss_itm"], task(task.collate(samples[:2]), START)["loss_itm"]
    )
