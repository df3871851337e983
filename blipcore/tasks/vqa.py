"""VQA: the encoder fuses question and picture, a second decoder writes the answer (paper section 5.3).

The decoder attends to the states of the question, not to the picture. Answers are written with beam search, or chosen
from a list of candidates by their loss, as the official code does for VQA v2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from blipcore.data.eval_batches import EvalBatches
from blipcore.data.vqa_nlvr import Question
from blipcore.generate.config import GenerateConfig
from blipcore.generate.generate import generate_texts
from blipcore.metrics.vqa import vqa_accuracy
from blipcore.model.attention import ImageKV
from blipcore.model.blip import Blip
from blipcore.model.text import TextTransformer
from blipcore.model.tokenizer import Tokenizer, clean_question
from blipcore.tasks.losses import IGNORE_INDEX, lm_loss_per_text
from blipcore.tasks.task import Batch, Outputs, Progress, Task

# Candidate answers per pass of the decoder, whose logits take (tokens x vocabulary) each.
ANSWERS_PER_PASS = 512
# The official beam search.
WRITE_ANSWERS = GenerateConfig(mode="beam", prompt="", max_length=10, min_length=1, repetition_penalty=1.0)


@dataclass
class VQAConfig:
    """Settings of VQA; the defaults are the official ones."""

    max_tokens: int = 35
    max_words: int = 50
    label_smoothing: float = 0.1


@dataclass
class CollateQuestions:
    """Turns samples {"key", "image", "text", "answers", "weights"} into a batch.

    Answers of all questions are rows (A, L); `question_of_answer` (A,) is the index of each answer's question.
    """

    tokenizer: Tokenizer
    config: VQAConfig
    max_answer_tokens: int

    def __call__(self, samples: list[dict[str, Any]]) -> Batch:
        ids, mask = tokenize_questions(self.tokenizer, [sample["text"] for sample in samples], self.config)
        answers = [answer for sample in samples for answer in sample["answers"]]
        weights = [weight for sample in samples for weight in sample["weights"]]
        question_of_answer = [index for index, sample in enumerate(samples) for _ in sample["answers"]]
        answer_ids, answer_mask = self.tokenizer(answers, max_length=self.max_answer_tokens, first="dec")
        return {
            "keys": [sample["key"] for sample in samples],
            "pixels": torch.stack([sample["image"] for sample in samples]),
            "input_ids": ids,
            "attention_mask": mask,
            "answer_ids": answer_ids,
            "answer_mask": answer_mask,
            "answer_weights": torch.tensor(weights),
            "question_of_answer": torch.tensor(question_of_answer),
        }


class VQATask(Task):
    """`loss` and `loss_lm`: weighted LM losses of answers, summed over tokens and answers, mean over questions."""

    def __init__(self, model: Blip, tokenizer: Tokenizer, config: VQAConfig) -> None:
        super().__init__(model, tokenizer, config)
        self.collate = CollateQuestions(tokenizer, config, model.config.text.max_positions)

    def forward(self, batch: Batch, progress: Progress) -> Outputs:
        model, decoder = self.model, answer_decoder(self.model)
        kv = question_kv(model, model.encode_image(batch["pixels"]), batch["input_ids"], batch["attention_mask"])
        ids, mask = batch["answer_ids"], batch["answer_mask"]
        decoded = decoder.decode(ids, mask, kv.select(batch["question_of_answer"]))
        labels = ids.masked_fill(mask == 0, IGNORE_INDEX)
        losses = lm_loss_per_text(decoder.logits(decoded), labels, self.config.label_smoothing)
        loss = (losses * batch["answer_weights"]).sum() / len(batch["pixels"])
        return {"loss": loss, "loss_lm": loss.detach()}


def answer_decoder(model: Blip) -> TextTransformer:
    assert model.answer_decoder is not None, "the model was built without the VQA head"
    return model.answer_decoder


def tokenize_questions(tokenizer: Tokenizer, questions: Sequence[str], config: VQAConfig) -> tuple[Tensor, Tensor]:
    """Return ids and mask (R, L) of cleaned questions, with [ENC] first."""
    texts = [clean_question(question, config.max_words) for question in questions]
    return tokenizer(texts, max_length=config.max_tokens, first="enc")


def question_kv(
    model: Blip, image_embeds: Tensor, ids: Tensor, mask: Tensor, image_of_question: Tensor | None = None
) -> ImageKV:
    """Return the answer decoder's keys and values: states of questions (R, L) fused with their images.

    Question r is about image `image_of_question[r]`, by default about image r. Padding of the questions is masked.
    """
    kv = model.text.image_kv(image_embeds)
    if image_of_question is not None:
        kv = kv.select(image_of_question)
    return answer_decoder(model).image_kv(model.text.fuse(ids, mask, kv), mask)


@torch.inference_mode()
def rank_answers(
    decoder: TextTransformer, kv: ImageKV, ids: Tensor, mask: Tensor, k: int, smoothing: float = 0.1
) -> Tensor:
    """Return the index (R,) of the best candidate answer for each of the R questions of `kv`.

    Candidates are `ids` and `mask` (A, L), with [DEC] first. The k answers with the likeliest first tokens are scored
    by the training loss: summed over tokens, with label smoothing, not normalized by length, as in the official code.
    """
    start = ids[:1, :1].expand(len(kv), 1)
    first_token = decoder.logits(decoder.decode(start, None, kv)[:, 0]).float().softmax(1)
    shortlist = first_token[:, ids[:, 1]].topk(min(k, len(ids)), dim=1).indices  # (R, k)
    k, best = shortlist.shape[1], []
    for questions in torch.arange(len(kv), device=ids.device).split(max(1, ANSWERS_PER_PASS // k)):
        rows = shortlist[questions].flatten()
        length = int(mask[rows].sum(1).max())
        answers, answer_mask = ids[rows, :length], mask[rows, :length]
        logits = decoder.logits(decoder.decode(answers, answer_mask, kv.select(questions)))
        losses = lm_loss_per_text(logits, answers.masked_fill(answer_mask == 0, IGNORE_INDEX), smoothing)
        best.append(losses.view(-1, k).argmin(1))
    return shortlist.gather(1, torch.cat(best)[:, None])[:, 0]


def questions_by_picture(questions: Sequence[Question]) -> list[dict[str, Any]]:
    """Group questions into records {"image", "questions"}, to read and encode a picture once."""
    records: dict[str, dict[str, Any]] = {}
    for question in questions:
        record = records.setdefault(question["key"], {"image": question["image"], "questions": []})
        record["questions"].append(question)
    return list(records.values())


@torch.inference_mode()
def evaluate_vqa(
    model: Blip,
    tokenizer: Tokenizer,
    pictures: EvalBatches,
    generate: GenerateConfig,
    candidates: Sequence[str] = (),
    k: int = 128,
    config: VQAConfig | None = None,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Answer the questions of `questions_by_picture` records with the best of `candidates`, or by generation.

    Returns the number of "questions", the VQA "accuracy" in percent over those with reference answers (if any), and
    the answers [{"question_id", "answer"}].
    """
    model.eval()
    config = config or VQAConfig()
    device = next(model.parameters()).device
    decoder = answer_decoder(model)
    if candidates:
        max_length = model.config.text.max_positions
        candidate_ids, candidate_mask = tokenizer(candidates, max_length=max_length, first="dec")
        candidate_ids, candidate_mask = candidate_ids.to(device), candidate_mask.to(device)
    results, accuracies = [], []
    for records, pixels in pictures:
        image_embeds = model.encode_image(pixels.to(device))
        pairs = [(image, question) for image, record in enumerate(records) for question in record["questions"]]
        # No more questions at a time than pictures: each copies its picture's keys and values, 66 MB at 480 pixels.
        for start in range(0, len(pairs), len(records)):
            images, questions = zip(*pairs[start : start + len(records)], strict=True)
            ids, mask = tokenize_questions(tokenizer, [question["question"] for question in questions], config)
            image_of_question = torch.tensor(images, device=device) - images[0]
            embeds = image_embeds[images[0] : images[-1] + 1]
            kv = question_kv(model, embeds, ids.to(device), mask.to(device), image_of_question)
            if candidates:
                best = rank_answers(decoder, kv, candidate_ids, candidate_mask, k, config.label_smoothing)
                answers = [candidates[index] for index in best.tolist()]
            else:
                keys = [str(question["question_id"]) for question in questions]
                answers = [tokenizer.decode(row) for row in generate_texts(decoder, kv, tokenizer, generate, keys).ids]
            for question, answer in zip(questions, answers, strict=True):
                results.append({"question_id": question["question_id"], "answer": answer})
                if question["answers"]:
                    accuracies.append(vqa_accuracy(answer, question["answers"]))
    scores: dict[str, float] = {"questions": len(results)}
    if accuracies:
        scores["accuracy"] = 100 * sum(accuracies) / len(accuracies)
    return scores, results
