"""`capfilt evaluate`: annotations and a checkpoint in, scores out, and where asked for a file of captions or answers.

One function a task reads what a model is judged on, before any weights are loaded, and says which parts of a model it
needs and how that is scored: also what `capfilt finetune` validates by. The scores come from the tasks' `evaluate_*`.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from blipcore.checkpoints.load import load_model
from blipcore.data.annotations import read_captions
from blipcore.data.classes import read_classes, read_templates
from blipcore.data.eval_batches import Pictures, Record
from blipcore.data.transforms import eval_transform
from blipcore.data.vqa_nlvr import read_answers, read_pairs, read_questions
from blipcore.device import Dtype, pick_device
from blipcore.generate.config import GenerateConfig
from blipcore.inference.prepare import for_inference, keep_memory
from blipcore.metrics.captions import Words, require_scorers
from blipcore.model.blip import Blip
from blipcore.model.tokenizer import Tokenizer
from blipcore.tasks.captioning import evaluate_captioning
from blipcore.tasks.classification import evaluate_classification, evaluate_classification_by_vqa
from blipcore.tasks.nlvr import evaluate_nlvr
from blipcore.tasks.retrieval import evaluate_retrieval
from blipcore.tasks.vqa import WRITE_ANSWERS, by_picture, evaluate_vqa

Results = list[dict[str, Any]]  # rows of a result file


@dataclass
class ClassifyConfig:
    """Zero-shot classification: by ITC with the texts that templates make of class names, or as answers of VQA."""

    classes: str | None = None  # file of class names, in the order of the sorted folders or of the numbers
    templates: str | list[str] = field(default_factory=lambda: ["a photo of a {}"])  # or a file of them, one a line
    by: Literal["itc", "vqa"] = "itc"
    question: str = "what is in the picture?"  # asked by VQA, which ranks the class names as answers


@dataclass
class EvaluateRun:
    """`capfilt evaluate TASK`: scores of a checkpoint on an annotation file of the task."""

    task: Literal["caption", "retrieval", "vqa", "nlvr", "classify"]
    annotations: str  # for classify also a folder with a folder of pictures for each class
    model: str
    tokenizer: str | None = None
    image_size: int | None = None
    image_root: str | None = None
    results: str | None = None  # where to write captions or answers, as the servers of COCO, NoCaps and VQA take them
    answers: str | None = None  # VQA: list of candidates to rank (official for VQA v2); without it, answers are written
    k: int = 128  # shortlist: by ITC for ITM to re-rank (official: COCO 256, Flickr30k 128), of VQA's candidates (128)
    words: Words = "auto"  # how captions are split for scoring: by COCO's tokenizer where there is Java; plain for ours
    generate: GenerateConfig = field(default_factory=lambda: GenerateConfig(mode="beam", repetition_penalty=1.0))
    write: GenerateConfig = field(default_factory=lambda: WRITE_ANSWERS)  # how VQA's answers are written
    classify: ClassifyConfig = field(default_factory=ClassifyConfig)
    batch_size: int = 64
    device: str = "auto"
    dtype: Dtype = "auto"


@dataclass
class Validation:
    """What a finetuning run is judged by while it trains: the best model so far is kept in RUN/best."""

    annotations: str | None = None  # none: no validation
    every: int = 0  # steps; 0 = an epoch, as official
    answers: str | None = None  # as in EvaluateRun, and what follows too
    k: int = 128
    words: Words = "auto"
    # Captions begin with the prompt of the task, whatever is said here.
    generate: GenerateConfig = field(default_factory=lambda: GenerateConfig(mode="beam", repetition_penalty=1.0))
    write: GenerateConfig = field(default_factory=lambda: WRITE_ANSWERS)
    batch_size: int = 64


class Exam(NamedTuple):
    """What a model is asked."""

    records: Sequence[Record]
    needs: tuple[str, ...]  # parts of the model
    mark: Callable[[Blip, Tokenizer, Pictures], tuple[dict[str, Any], Results]]


def evaluate(run: EvaluateRun) -> dict[str, Any]:
    """Scores of `run.model` on `run.annotations`; captions, answers or classes are written to `run.results`."""
    if run.results:
        Path(run.results).parent.mkdir(parents=True, exist_ok=True)
        if Path(run.results).is_dir():
            raise ValueError(f"{run.results} is a folder: give a file for the results")
    exam = open_exam(run.task, run.annotations, run.image_root, run, to_score=not run.results)
    model, tokenizer = load_model(run.model, needs=exam.needs, tokenizer=run.tokenizer, image_size=run.image_size)
    device = pick_device(run.device)
    model = for_inference(model, device, run.dtype)
    if device == "cpu":
        keep_memory()
    pictures = Pictures(exam.records, eval_transform(model.config.vision.image_size), run.batch_size)
    scores, results = exam.mark(model, tokenizer, pictures)
    if run.results:
        Path(run.results).write_text(json.dumps(results, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return {"task": run.task, "model": run.model, "pictures": len(exam.records), **scores}


def open_exam(
    task: str, path: str, image_root: str | None, how: EvaluateRun | Validation, to_score: bool = True
) -> Exam:
    """The exam of `task` on the annotations at `path`; ValueError where it is `to_score` against what they do not have.

    Not `to_score` means that results are wanted: a ValueError for a task that has none.
    """
    if how.k < 1 or how.batch_size < 1:
        raise ValueError(f"k and batch_size must be at least 1, not {how.k} and {how.batch_size}")
    return EXAMS[task](path, image_root, how, to_score)


def _caption(path: str, image_root: str | None, how: EvaluateRun | Validation, to_score: bool) -> Exam:
    records = read_captions(path, image_root, need_texts=False)
    bare = [record["key"] for record in records if not record["texts"]]
    _worthwhile(path, not to_score or len(bare) < len(records), "captions")
    if len(bare) < len(records):
        if bare:
            raise ValueError(f"{path} has no caption to score against for {bare[0]}: leave it out, or all captions")
        require_scorers(how.words)
    return Exam(
        records,
        ("decode",),
        lambda model, tokenizer, pictures: evaluate_captioning(model, tokenizer, pictures, how.generate, how.words),
    )


def _retrieval(path: str, image_root: str | None, how: EvaluateRun | Validation, to_score: bool) -> Exam:
    _no_results("retrieval", to_score)
    return Exam(
        read_captions(path, image_root),
        ("encode", "itc", "itm"),
        lambda model, tokenizer, pictures: (evaluate_retrieval(model, tokenizer, pictures, how.k), []),
    )


def _vqa(path: str, image_root: str | None, how: EvaluateRun | Validation, to_score: bool) -> Exam:
    questions = read_questions(path, image_root, need_answers=False)
    _worthwhile(path, not to_score or any(question["answers"] for question in questions), "answers")
    candidates = read_answers(how.answers) if how.answers else []
    return Exam(
        by_picture(questions),
        ("encode", "vqa"),
        lambda model, tokenizer, pictures: evaluate_vqa(model, tokenizer, pictures, how.write, candidates, how.k),
    )


def _nlvr(path: str, image_root: str | None, how: EvaluateRun | Validation, to_score: bool) -> Exam:
    _no_results("nlvr", to_score)
    return Exam(
        read_pairs(path, image_root),
        ("encode", "nlvr"),
        lambda model, tokenizer, pictures: (evaluate_nlvr(model, tokenizer, pictures), []),
    )


def _classify(path: str, image_root: str | None, how: EvaluateRun, to_score: bool) -> Exam:
    config = how.classify
    records, names = read_classes(path, config.classes, image_root)
    templates = read_templates(config.templates)

    def mark(model: Blip, tokenizer: Tokenizer, pictures: Pictures) -> tuple[dict[str, Any], Results]:
        if config.by == "vqa":
            return evaluate_classification_by_vqa(model, tokenizer, pictures, names, config.question, how.k)
        return evaluate_classification(model, tokenizer, pictures, names, templates)

    return Exam(records, ("encode", "vqa") if config.by == "vqa" else ("encode", "itc"), mark)


EXAMS: dict[str, Callable[..., Exam]] = {
    "caption": _caption,
    "retrieval": _retrieval,
    "vqa": _vqa,
    "nlvr": _nlvr,
    "classify": _classify,
}


def _worthwhile(path: str, something: bool, what: str) -> None:
    if not something:
        raise ValueError(f"{path} has no {what} to score against: say with --results where to write ours")


def _no_results(task: str, to_score: bool) -> None:
    if not to_score:
        raise ValueError(f"evaluating {task} writes no results: leave out --results")
