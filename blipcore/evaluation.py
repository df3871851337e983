"""Evaluates a checkpoint on an annotation file (`capfilt evaluate`, and the validation of `capfilt finetune`).

One function per task reads the annotations, before any weights are loaded, and returns an `Evaluator`. The scores come
from `evaluate_…` in `blipcore.tasks`.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from blipcore.checkpoints.load import load_model
from blipcore.checkpoints.numerics import Numerics
from blipcore.data.check_pictures import count, require_pictures
from blipcore.data.classes import read_classes, read_templates
from blipcore.data.eval_batches import EvalBatches, Record
from blipcore.data.eval_pictures import read_eval_pictures
from blipcore.data.picture_lists import default_root
from blipcore.data.transforms import EvalTransform
from blipcore.data.vqa_nlvr import read_answers, read_image_pairs, read_questions
from blipcore.device import Dtype, pick_device
from blipcore.generate.config import GenerateConfig
from blipcore.inference.prepare import keep_freed_memory, prepare_for_inference
from blipcore.io.memory import require_memory
from blipcore.metrics.captions import Words, cider_of_pictures, require_scorers
from blipcore.model.blip import Blip
from blipcore.model.tokenizer import Tokenizer
from blipcore.tasks.captioning import evaluate_captioning
from blipcore.tasks.classification import evaluate_classification, evaluate_classification_by_vqa
from blipcore.tasks.nlvr import evaluate_nlvr
from blipcore.tasks.retrieval import SAME_TEXT, evaluate_retrieval
from blipcore.tasks.vqa import WRITE_ANSWERS, evaluate_vqa, questions_by_picture

# Rows of a result file.
Results = list[dict[str, Any]]
EvaluateFunction = Callable[[Blip, Tokenizer, EvalBatches], tuple[dict[str, Any], Results]]


@dataclass
class ClassifyConfig:
    """Zero-shot classification, by ITC with texts made from class names or by ranking them as VQA answers."""

    # File of class names, in the order of the sorted folders or of the numeric labels.
    classes: str | None = None
    # Templates of texts, or a file with one template per line.
    templates: str | list[str] = field(default_factory=lambda: ["a photo of a {}"])
    by: Literal["itc", "vqa"] = "itc"
    # The question for `by="vqa"`.
    question: str = "what is in the picture?"


@dataclass
class EvaluateRun:
    """Settings of `capfilt evaluate TASK`."""

    task: Literal["caption", "retrieval", "vqa", "nlvr", "classify"]
    # For classify also a folder with a folder of pictures per class.
    annotations: str
    model: str
    tokenizer: str | None = None
    # Numbers of a Hugging Face model (see `blipcore.checkpoints.numerics`).
    numerics: Numerics = "official"
    image_size: int | None = None
    image_root: str | None = None
    # File for captions or answers, in the format of the COCO, NoCaps and VQA servers.
    results: str | None = None
    # Caption and retrieval: file for the scores of each picture, its CIDEr or its ranks.
    scores: str | None = None
    # VQA: file of candidate answers to rank (official for VQA v2). Default: answers are generated.
    answers: str | None = None
    # Shortlist: texts per image that ITM re-ranks (official: COCO 256, Flickr30k 128), or candidate answers (128).
    k: int = 128
    # Word splitting for caption scores: auto is COCO's tokenizer if Java is available, else plain.
    words: Words = "auto"
    generate: GenerateConfig = field(default_factory=lambda: GenerateConfig(mode="beam", repetition_penalty=1.0))
    # Generation of VQA answers.
    write: GenerateConfig = field(default_factory=lambda: WRITE_ANSWERS)
    classify: ClassifyConfig = field(default_factory=ClassifyConfig)
    batch_size: int = 64
    device: str = "auto"
    dtype: Dtype = "auto"


@dataclass
class ValidationConfig:
    """Validation during finetuning; RUN/best holds the best model. Fields are those of `EvaluateRun`."""

    # Default: no validation.
    annotations: str | None = None
    # Interval in steps; 0: one epoch, as in the official code.
    every: int = 0
    answers: str | None = None
    k: int = 128
    words: Words = "auto"
    # Its prompt is replaced by the task's.
    generate: GenerateConfig = field(default_factory=lambda: GenerateConfig(mode="beam", repetition_penalty=1.0))
    write: GenerateConfig = field(default_factory=lambda: WRITE_ANSWERS)
    batch_size: int = 64


class Evaluator(NamedTuple):
    """An evaluation with its records, for any model."""

    records: Sequence[Record]
    # Parts that the model must have (see `load_model`).
    needs: tuple[str, ...]
    evaluate: EvaluateFunction
    problems: Mapping[str, str] = MappingProxyType({})  # defects of the data: file -> reason
    # Turns results into rows of scores per picture, with its image_id; None for a task without.
    score_pictures: Callable[[Results], Results] | None = None

    def check_pictures(self, path: str, image_root: str | None) -> None:
        """Print the problems; raise ValueError if a picture of the records of `path` cannot be read."""
        for name, reason in self.problems.items():
            print(f"{path}: {name}: {reason}", file=sys.stderr)
        root = Path(image_root) if image_root is not None else default_root(Path(path))
        require_pictures(self.records, root, path)


def evaluate(run: EvaluateRun) -> dict[str, Any]:
    """Return the scores of `run.model` on `run.annotations`; write the results to `run.results`."""
    for path, name in ((run.results, "--results"), (run.scores, "scores")):
        if path:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            if Path(path).is_dir():
                raise ValueError(f"{path} is a folder; {name} needs the name of a file.")
    evaluator = make_evaluator(run.task, run.annotations, run.image_root, run, wants_results=bool(run.results))
    if run.scores and evaluator.score_pictures is None:
        raise ValueError(f"Evaluating {run.task} on {run.annotations} has no scores per picture: leave out scores.")
    evaluator.check_pictures(run.annotations, run.image_root)
    require_memory(0, "Evaluation")
    model, tokenizer = load_model(
        run.model,
        needs=evaluator.needs,
        tokenizer=run.tokenizer,
        image_size=run.image_size,
        numerics=run.numerics,
    )
    device = pick_device(run.device)
    model = prepare_for_inference(model, device, run.dtype)
    if device == "cpu":
        keep_freed_memory()
    batches = EvalBatches(evaluator.records, EvalTransform(model.config.vision.image_size), run.batch_size)
    scores, results = evaluator.evaluate(model, tokenizer, batches)
    if "shared_texts" in scores:
        print(
            f"{scores['shared_texts']} texts also belong to another picture. As in published numbers, i2t_... and "
            f"t2i_... count the other picture as wrong; {SAME_TEXT}... counts it as right.",
            file=sys.stderr,
        )
    if run.results:
        _write_rows(run.results, results)
    if run.scores and evaluator.score_pictures is not None:
        _write_rows(run.scores, evaluator.score_pictures(results))
    return {"task": run.task, "model": run.model, "pictures": len(evaluator.records), **scores}


def _write_rows(path: str, rows: Results) -> None:
    Path(path).write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def make_evaluator(
    task: str,
    path: str,
    image_root: str | None,
    config: EvaluateRun | ValidationConfig,
    wants_results: bool = False,
) -> Evaluator:
    """Read the annotations of `task` at `path`.

    Raises ValueError if they have no texts or answers to score against and no results are wanted, and if results are
    wanted from a task without any.
    """
    if config.k < 1 or config.batch_size < 1:
        raise ValueError(f"k and batch_size must be at least 1, not {config.k} and {config.batch_size}.")
    if task not in EVALUATORS:
        raise ValueError(f"Task '{task}' has no evaluator; tasks with one are {', '.join(EVALUATORS)}.")
    return EVALUATORS[task](path, image_root, config, wants_results)


def _caption(
    path: str, image_root: str | None, config: EvaluateRun | ValidationConfig, wants_results: bool
) -> Evaluator:
    records, problems = read_eval_pictures(path, image_root)
    without_texts = [record["key"] for record in records if not record["texts"]]
    if len(without_texts) == len(records) and not wants_results:
        raise _nothing_to_score(path, "captions")
    if len(without_texts) < len(records):
        if without_texts:
            raise ValueError(f"{path} has no caption for {without_texts[0]}: give all pictures captions, or none.")
        require_scorers(config.words)

    def evaluate(model: Blip, tokenizer: Tokenizer, batches: EvalBatches) -> tuple[dict[str, Any], Results]:
        return evaluate_captioning(model, tokenizer, batches, config.generate, config.words)

    def score_pictures(results: Results) -> Results:
        scores = cider_of_pictures([row["caption"] for row in results], [row["texts"] for row in records], config.words)
        return [{"image_id": row["image_id"], "cider": score} for row, score in zip(results, scores, strict=True)]

    return Evaluator(records, ("decode",), evaluate, problems, None if without_texts else score_pictures)


def _retrieval(
    path: str, image_root: str | None, config: EvaluateRun | ValidationConfig, wants_results: bool
) -> Evaluator:
    _refuse_results("retrieval", wants_results)
    records, problems = read_eval_pictures(path, image_root)
    without_texts = [record["key"] for record in records if not record["texts"]]
    if without_texts:
        raise ValueError(
            f"{path} has {count(len(without_texts), 'picture')} without a caption, the first {without_texts[0]}: "
            "retrieval needs a caption for each."
        )

    def evaluate(model: Blip, tokenizer: Tokenizer, batches: EvalBatches) -> tuple[dict[str, Any], Results]:
        return evaluate_retrieval(model, tokenizer, batches, config.k)

    return Evaluator(records, ("encode", "itc", "itm"), evaluate, problems, lambda ranks: ranks)


def _vqa(path: str, image_root: str | None, config: EvaluateRun | ValidationConfig, wants_results: bool) -> Evaluator:
    questions = read_questions(path, image_root, need_answers=False)
    if not wants_results and not any(question["answers"] for question in questions):
        raise _nothing_to_score(path, "answers")
    candidates = read_answers(config.answers) if config.answers else []

    def evaluate(model: Blip, tokenizer: Tokenizer, batches: EvalBatches) -> tuple[dict[str, Any], Results]:
        return evaluate_vqa(model, tokenizer, batches, config.write, candidates, config.k)

    return Evaluator(questions_by_picture(questions), ("encode", "vqa"), evaluate)


def _nlvr(path: str, image_root: str | None, config: EvaluateRun | ValidationConfig, wants_results: bool) -> Evaluator:
    _refuse_results("nlvr", wants_results)

    def evaluate(model: Blip, tokenizer: Tokenizer, batches: EvalBatches) -> tuple[dict[str, Any], Results]:
        return evaluate_nlvr(model, tokenizer, batches), []

    return Evaluator(read_image_pairs(path, image_root), ("encode", "nlvr"), evaluate)


def _classify(path: str, image_root: str | None, config: EvaluateRun, wants_results: bool) -> Evaluator:
    classify = config.classify
    records, names = read_classes(path, classify.classes, image_root)
    templates = read_templates(classify.templates)

    def evaluate(model: Blip, tokenizer: Tokenizer, batches: EvalBatches) -> tuple[dict[str, Any], Results]:
        if classify.by == "vqa":
            return evaluate_classification_by_vqa(model, tokenizer, batches, names, classify.question, config.k)
        return evaluate_classification(model, tokenizer, batches, names, templates)

    return Evaluator(records, ("encode", "vqa") if classify.by == "vqa" else ("encode", "itc"), evaluate)


EVALUATORS: dict[str, Callable[..., Evaluator]] = {
    "caption": _caption,
    "retrieval": _retrieval,
    "vqa": _vqa,
    "nlvr": _nlvr,
    "classify": _classify,
}


def _nothing_to_score(path: str, texts: str) -> ValueError:
    return ValueError(f"{path} has no {texts} to score against: use --results to write the model's.")


def _refuse_results(task: str, wants_results: bool) -> None:
    if wants_results:
        raise ValueError(f"Evaluating {task} writes no results: leave out --results.")
