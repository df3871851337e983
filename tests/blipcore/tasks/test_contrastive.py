"""Momentum encoders, queues and settings that pre-training and retrieval share."""

import pytest
import torch
from tiny_tasks import START, TEXTS, caption_samples

from blipcore.tasks.pretrain import PretrainConfig, PretrainTask
from blipcore.tasks.retrieval import RetrievalConfig, RetrievalTask
from blipcore.tasks.task import Progress


def test_momentum_encoders_follow_the_model(model, tokenizer) -> None:
    task = PretrainTask(model, tokenizer, PretrainConfig(queue_size=8, momentum=0.9))
    momentum, weight = task.momentum.vision_proj.weight, model.vision_proj.weight
    old = momentum.clone()
    with torch.no_grad():
        weight.add_(1.0)
    task.before_step(START)
    torch.testing.assert_close(momentum, 0.9 * old + 0.1 * weight)


def test_queue_wraps_and_any_batch_size_fits(model, tokenizer) -> None:
    """The official queue stops when its length is no multiple of the batch (BLIP#101)."""
    task = PretrainTask(model, tokenizer, PretrainConfig(queue_size=6))
    old = task.image_queue.clone()
    out = task(task.collate(caption_samples()), START)
    task.after_step([out])
    assert task.queue_ptr.item() == 4
    torch.testing.assert_close(task.image_queue[:, :4], out["image_key"].T)
    torch.testing.assert_close(task.image_queue[:, 4:], old[:, 4:])
    task.after_step([out])
    assert task.queue_ptr.item() == 2
    torch.testing.assert_close(task.image_queue[:, [4, 5, 0, 1]], out["image_key"].T)


def test_queue_shorter_than_the_batch_keeps_the_newest_keys(model, tokenizer) -> None:
    task = PretrainTask(model, tokenizer, PretrainConfig(queue_size=3))
    out = task(task.collate(caption_samples()), START)
    task.after_step([out])
    torch.testing.assert_close(task.image_queue, out["image_key"][1:].T)


@pytest.mark.parametrize("bad", [{"queue_size": -1}, {"alpha_ramp_steps": -1}, {"itm_share": 2.0}, {"alpha": -0.1}])
def test_impossible_settings_are_refused(bad) -> None:
    for config in (PretrainConfig, RetrievalConfig):
        with pytest.raises(ValueError, match=next(iter(bad))):
            config(**bad)


def test_texts_of_one_image_share_its_keys_and_values(model, tokenizer) -> None:
    model.eval()
    ids, mask = tokenizer(TEXTS, max_length=30, first="enc")
    kv = model.text.image_kv(model.encode_image(torch.randn(2, 3, 16, 16)))
    shared = model.text.fuse(ids, mask, kv)
    torch.testing.assert_close(
        shared, model.text.fuse(ids, mask, kv.select(torch.tensor([0, 0, 1, 1]))), atol=1e-6, rtol=1e-5
    )


def test_alpha_ramps_up(model, tokenizer) -> None:
    task = PretrainTask(model, tokenizer, PretrainConfig(queue_size=4, alpha=0.4, alpha_ramp_steps=8))
    assert [task.alpha(Progress(step, 10)) for step in (0, 4, 8, 10)] == pytest.approx([0.0, 0.2, 0.4, 0.4])


def test_negatives_are_random_first_and_hard_later(model, tokenizer) -> None:
    """Texts 2 and 3 are candidates for image 0, and text 3 is far more similar to it."""
    task = PretrainTask(model, tokenizer, PretrainConfig(queue_size=4, random_negatives=0.5, negatives="argmax"))
    similarity = torch.zeros(4, 4)
    similarity[0, 3] = 10.0
    forbidden = torch.eye(4, dtype=torch.bool)
    forbidden[0, 1] = True
    for step, expected in ((0, 2), (5, 3)):
        _, text_for_image = task.draw_negatives(similarity, similarity.T, forbidden, Progress(step, 10))
        assert text_for_image[0] == expected


def test_momentum_and_queues_of_a_checkpoint_are_loaded_if_they_fit(model, tokenizer) -> None:
    source = RetrievalTask(model.select_parts("encode", "itc", "itm"), tokenizer, RetrievalConfig(queue_size=4))
    with torch.no_grad():
        source.momentum.text_proj.weight.fill_(0.5)
    source.idx_queue.fill_(7)
    for size, is_loaded in ((4, True), (6, False)):
        task = RetrievalTask(source.model, tokenizer, RetrievalConfig(queue_size=size))
        task.load_extra(source.state_dict())
        assert torch.equal(task.momentum.text_proj.weight, source.momentum.text_proj.weight)
        assert torch.equal(task.image_queue[:, :4], source.image_queue) == is_loaded
        assert task.idx_queue.eq(-100).all()  # the ids belong to other annotations
