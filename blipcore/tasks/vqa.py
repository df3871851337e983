"""VQA: an encoder reads the question with the picture, a decoder of its own writes the answer (paper section 5.3).

The decoder attends to the question's states, not to the picture. Two ways to answer: write freely with a beam search,
or rank a list of candidates, the official way for VQA v2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from blipcore.data.eval_batches import Pictures
from blipcore.data.vqa_nlvr import Question
from blipcore.generate.config import GenerateConfig
from blipcore.generate.generate import generate_from
from blipcore.metrics.vqa import vqa_accuracy
from blipcore.model.attention import ImageKV
from blipcore.model.blip import Blip
from blipcore.model.text import TextTransformer
from blipcore.model.tokenizer import Tokenizer, clean_question
from blipcore.tasks.losses import IGNORE, text_losses
from blipcore.tasks.task import Batch, Outputs, Progress, Task

ROWS = 512  # candidate answers that go through the decoder at a time: each token of theirs has logits of all words
# The official beam search for answers.
WRITE_ANSWERS = GenerateConfig(mode="beam", prompt="", max_length=10, min_length=1, repetition_penalty=1.0)


@dataclass
class VQAConfig:
    """Lengths of a question and the smoothing of its answers' LM loss (official values)."""

    max_tokens: int = 35
    max_words: int = 50
    label_smoothing: float = 0.1


@dataclass
class CollateQuestions:
    """Samples {"key", "image", "text", "answers", "weights"} -> batch; `answer_of` says whose answer each row is."""

    tokenizer: Tokenizer
    config: VQAConfig
    longest_answer: int

    def __call__(self, samples: list[dict[str, Any]]) -> Batch:
        ids, mask = tokenize_questions(self.tokenizer, [s["text"] for s in samples], self.config)
        answers = [answer for s in samples for answer in s["answers"]]
        answer_ids, answer_mask = self.tokenizer(answers, max_length=self.longest_answer, first="dec")
        return {
            "keys": [s["key"] for s in samples],
            "pixels": torch.stack([s["image"] for s in samples]),
            "input_ids": ids,
            "attention_mask": mask,
            "answer_ids": answer_ids,
            "answer_mask": answer_mask,
            "answer_weights": torch.tensor([weight for s in samples for weight in s["weights"]]),
            "answer_of": torch.tensor([row for row, s in enumerate(samples) for _ in s["answers"]]),
        }


class VQATask(Task):
    """`loss` = `loss_lm`: of each answer the sum over its tokens, times its weight, summed; over questions the mean."""

    def __init__(self, model: Blip, tokenizer: Tokenizer, config: VQAConfig) -> None:
        super().__init__(model, tokenizer, config)
        self.collate = CollateQuestions(tokenizer, config, model.config.text.max_positions)

    def forward(self, batch: Batch, progress: Progress) -> Outputs:
        model, decoder = self.model, self.model.answer_decoder
        kv = question_kv(model, model.encode_image(batch["pixels"]), batch["input_ids"], batch["attention_mask"])
        ids, mask = batch["answer_ids"], batch["answer_mask"]
        decoded = decoder.decode(ids, mask, kv.select(batch["answer_of"]))
        labels = ids.masked_fill(mask == 0, IGNORE)
        losses = text_losses(decoder.logits(decoded), labels, self.config.label_smoothing)
        loss = (losses * batch["answer_weights"]).sum() / len(batch["pixels"])
        return {"loss": loss, "loss_lm": loss.detach()}


def tokenize_questions(tokenizer: Tokenizer, questions: Sequence[str], config: VQAConfig) -> tuple[Tensor, Tensor]:
    """Ids and mask of cleaned questions, [ENC] first."""
    texts = [clean_question(question, config.max_words) for question in questions]
    return tokenizer(texts, max_length=config.max_tokens, first="enc")


def question_kv(
    model: Blip, image_embeds: Tensor, ids: Tensor, mask: Tensor, image_of: Tensor | None = None
) -> ImageKV:
    """What the answer decoder attends to: states of questions (R, L) grounded in their images, padding masked.

    Question r is about image r, or with `image_of` (R,) about image `image_of[r]`.
    """
    kv = model.text.image_kv(image_embeds)
    states = model.text.fuse(ids, mask, kv if image_of is None else kv.select(image_of))
    return model.answer_decoder.image_kv(states, mask)


@torch.inference_mode()
def rank_answers(
    decoder: TextTransformer, kv: ImageKV, ids: Tensor, mask: Tensor, k: int, smoothing: float = 0.1
) -> Tensor:
    """For each of the R questions of `kv` the best (R,) of the candidate answers `ids` (A, L), which start with [DEC].

    The k answers with the likeliest first tokens are scored in full, by the training loss: the sum over tokens, label
    smoothing included and length not normalised, as in the official code.
    """
    start = ids[:1, :1].expand(len(kv), 1)
    first_token = decoder.logits(decoder.decode(start, None, kv)[:, 0]).float().softmax(1)
    shortlist = first_token[:, ids[:, 1]].topk(min(k, len(ids)), dim=1).indices  # (R, k)
    k, best = shortlist.shape[1], []
    for rows in torch.arange(len(kv), device=ids.device).split(max(1, ROWS // k)):
        chosen = shortlist[rows].flatten()
        length = int(mask[chosen].sum(1).max())
        answers, present = ids[chosen, :length], mask[chosen, :length]
        logits = decoder.logits(decoder.decode(answers, present, kv.select(rows)))
        losses = text_losses(logits, answers.masked_fill(present == 0, IGNORE), smoothing)
        best.append(losses.view(-1, k).argmin(1))
    return shortlist.gather(1, torch.cat(best)[:, None])[:, 0]


def by_picture(questions: Sequence[Question]) -> list[dict[str, Any]]:
    """Records {"image", "questions"}, so that a picture is read and encoded once for all that is asked about it."""
    pictures: dict[str, dict[str, Any]] = {}
    for question in questions:
        record = pictures.setdefault(question["key"], {"image": question["image"], "questions": []})
        record["questions"].append(question)
    return list(pictures.values())


@torch.inference_mode()
def evaluate_vqa(
    model: Blip,
    tokenizer: Tokenizer,
    pictures: Pictures,
    generate: GenerateConfig,
    candidates: Sequence[str] = (),
    k: int = 128,
    config: VQAConfig | None = None,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Answer the questions of `by_picture` records: the best of `candidates`, or what `generate` writes without any.

    Returns how many "questions" there are and the "accuracy" by VQA's measure over those that have answers, if any,
    and [{"question_id", "answer"}].
    """
    model.eval()
    config = config or VQAConfig()
    device = next(model.parameters()).device
    decoder = model.answer_decoder
    if candidates:
        longest = model.config.text.max_positions
        ids, mask = (x.to(device) for x in tokenizer(candidates, max_length=longest, first="dec"))
    results, accuracies = [], []
    for records, pixels in pictures:
        image_embeds = model.encode_image(pixels.to(device))
        everything = [(image, question) for image, record in enumerate(records) for question in record["questions"]]
        # As many at a time as pictures: each gets a copy of its picture's keys and values, 66 MB at 480 pixels.
        for start in range(0, len(everything), len(records)):
            images, questions = zip(*everything[start : start + len(records)], strict=True)
            asked = [x.to(device) for x in tokenize_questions(tokenizer, [q["question"] for q in questions], config)]
            image_of = torch.tensor(images, device=device) - images[0]
            kv = question_kv(model, image_embeds[images[0] : images[-1] + 1], *asked, image_of)
            if candidates:
                best = rank_answers(decoder, kv, ids, mask, k, config.label_smoothing)
                answers = [candidates[index] for index in best.tolist()]
            else:
                keys = [str(question["question_id"]) for question in questions]
                answers = [tokenizer.decode(row) for row in generate_from(decoder, kv, tokenizer, generate, keys).ids]
            for question, answer in zip(questions, answers, strict=True):
                results.append({"question_id": question["question_id"], "answer": answer})
                if question["answers"]:
                    accuracies.append(vqa_accuracy(answer, question["answers"]))
    scores: dict[str, float] = {"questions": len(results)}
    if accuracies:
        scores["accuracy"] = 100 * sum(accuracies) / len(accuracies)
    return scores, results
