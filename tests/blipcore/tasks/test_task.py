"""What all tasks share: progress, batches, and the model that they save."""

from pathlib import Path

import pytest
import torch
from tiny_tasks import caption_samples

from blipcore.checkpoints.load import load_model
from blipcore.model.blip import Blip
from blipcore.model.tokenizer import Tokenizer
from blipcore.tasks.task import Batch, Collate, Outputs, Progress, Task, replace_first


class Constant(Task):
    """A task that defines only what it must."""

    def forward(self, batch: Batch, progress: Progress) -> Outputs:
        return {"loss": torch.tensor(1.0)}


def test_progress_is_a_share_of_the_steps() -> None:
    assert [Progress(step, 8).fraction for step in (0, 2, 8)] == [0, 0.25, 1]
    assert Progress(0, 0).fraction == 0


def test_a_batch_holds_cleaned_and_padded_texts(tokenizer: Tokenizer) -> None:
    samples = caption_samples(["A RED dog!", "cat"], ids=[7, 8])
    del samples[1]["image_id"]
    batch = Collate(tokenizer, max_tokens=10, prompt="the ")(samples)
    assert batch["keys"] == ["k7", "k8"] and batch["image_ids"].tolist() == [7, -1]
    assert torch.equal(batch["pixels"], torch.stack([sample["image"] for sample in samples]))
    assert [tokenizer.decode(ids) for ids in batch["input_ids"]] == ["the a red dog", "the cat"]
    assert batch["attention_mask"].sum(1).tolist() == [6, 4]
    assert batch["input_ids"].shape == (2, 6) and (batch["input_ids"][:, 0] == tokenizer.cls).all()


def test_texts_are_cut_to_the_words_and_tokens_of_the_task(tokenizer: Tokenizer) -> None:
    samples = caption_samples(["red dog and blue cat"])
    ids = Collate(tokenizer, max_tokens=20, max_words=2)(samples)["input_ids"]
    assert [tokenizer.decode(row) for row in ids] == ["red dog"]
    assert Collate(tokenizer, max_tokens=4)(samples)["input_ids"].shape == (1, 4)


def test_the_first_token_is_replaced_in_a_copy() -> None:
    ids = torch.tensor([[1, 5], [1, 6]])
    assert replace_first(ids, 9).tolist() == [[9, 5], [9, 6]] and ids[:, 0].tolist() == [1, 1]


def test_a_task_saves_its_model_with_the_tokenizer(model: Blip, tokenizer: Tokenizer, tmp_path: Path) -> None:
    task = Constant(model, tokenizer, config=None)
    task.before_step(Progress(0, 1))
    task.after_step([task({}, Progress(0, 1))])
    task.save(tmp_path / "model", model)
    saved, saved_tokenizer = load_model(tmp_path / "model")
    assert all(torch.equal(a, b) for a, b in zip(saved.parameters(), model.parameters(), strict=True))
    assert saved_tokenizer.backend.to_str() == tokenizer.backend.to_str()


def test_a_task_must_define_its_losses(model: Blip, tokenizer: Tokenizer) -> None:
    with pytest.raises(TypeError, match="abstract method"):
        Task(model, tokenizer, None)  # type: ignore[abstract]  # on purpose
