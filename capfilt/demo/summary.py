"""The results of a demo, as stored in `summary.json`: each figure with its 95% interval over pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from capfilt.bootstrap.gauges import gauge_texts, rare_words
from capfilt.bootstrap.rounds import best_round, describe_rounds, has_stopped_rising, read_scores
from capfilt.demo.filter_grades import GradedText, grade_filter, kept_by_kind, read_texts, sample_pictures
from capfilt.demo.grading import CaptionGrades, grade_captions, grade_retrieval
from capfilt.demo.intervals import Estimate, mean_over_pictures
from capfilt.demo.paper import grade_variant, variants
from capfilt.demo.plan import (
    BOOTSTRAPPED,
    CAPTIONER_ONLY,
    FILTER_ONLY,
    FROZEN,
    HUMAN_ONLY,
    HUMAN_SHARE,
    NOISY,
    ORACLE,
    DemoPlan,
    captions_name,
    round_row,
)
from capfilt.engine.commands import CommandRunner

COMPARED_WITH = (NOISY, HUMAN_ONLY, FILTER_ONLY, CAPTIONER_ONLY)  # rows that row "bootstrapped" is compared with


def summarise(plan: DemoPlan, runner: CommandRunner, rows: Sequence[str]) -> dict[str, Any]:
    """Return the results of all rows, rounds and filters, without the seconds of the run."""
    grader = RowGrader(plan, runner)
    filtered = {name: read_texts(plan.filtered(name), plan.corpus) for name in rows if plan.filtered(name).is_dir()}
    main = filtered[BOOTSTRAPPED]
    summary: dict[str, Any] = {
        "config": {name: str(value) if name == "out" else value for name, value in asdict(plan.config).items()},
        "recipe": asdict(plan.recipe) | {"human_share": HUMAN_SHARE},
        "download": runner.named_summary("download"),
        "rows": {row: grader.grade(row) for row in rows},
        "differences": {
            f"{row} - {other}": grader.compare(row, other)
            for row, others in _comparisons(rows, plan.config.rounds).items()
            for other in others
        },
        "filter": grade_filter(main),
        "web_texts": kept_by_kind(main),
        "samples": sample_pictures(main, plan.data, plan.out / "samples"),
    }
    for name, texts in filtered.items():
        summary["rows"][name]["texts_kept"] = sum(text.keep for text in texts)
    if ORACLE in rows:
        summary["oracle_gain_reached"] = _gain_reached(summary["rows"])
    if plan.config.rounds > 1:
        summary |= _summarise_rounds(plan, [filtered[round_row(n)] for n in range(1, plan.config.rounds + 1)])
    if plan.config.table:
        summary["tables"] = [
            {"table": variant.table, "label": variant.label, "row": variant.row}
            | grade_variant(plan, variant)
            | {"published": variant.published._asdict()}
            for variant in variants(plan.config.table)
        ]
    return summary


def _comparisons(rows: Sequence[str], rounds: int) -> dict[str, list[str]]:
    """Return row -> rows that its held-out pictures are compared with."""
    comparisons = {BOOTSTRAPPED: [row for row in COMPARED_WITH if row in rows]}
    for number in range(2, rounds + 1):
        comparisons[round_row(number)] = [NOISY, round_row(number - 1)]
    return comparisons


class RowGrader:
    """Grades the finetuned models of rows, and their models without finetuning, on the test pictures."""

    def __init__(self, plan: DemoPlan, runner: CommandRunner) -> None:
        self.plan, self.runner = plan, runner

    def grade(self, row: str) -> dict[str, Any]:
        """Return {"finetuned": grades, "zero_shot": grades}."""
        grades = {"finetuned": self._estimates(row, self.plan.captioner(row), self.plan.retriever(row))}
        if not self.plan.config.quick:
            grades["zero_shot"] = self._estimates(f"{row}-zero_shot", self.plan.runs / row, self.plan.runs / row)
        return grades

    def compare(self, row: str, other: str) -> dict[str, Estimate | None]:
        """Return the mean difference per picture of two rows, finetuned, with its interval."""
        first, second = self._per_picture(row), self._per_picture(other)
        return {name: mean_over_pictures(first[name] - second[name]) for name in first}

    def _per_picture(self, row: str) -> dict[str, np.ndarray]:
        captioner, retriever = self.plan.captioner(row), self.plan.retriever(row)
        captions = self._captions(captioner)
        return {
            "exact_match": captions.exact.astype(float),
            "cider": captions.cider,
            "mean_recall": grade_retrieval(retriever / "test_ranks.json"),
        }

    @cache  # noqa: B019  # one grader per summary
    def _captions(self, run: Path) -> CaptionGrades:
        return grade_captions(run / "test_captions.json", run / "test_cider.json", self.plan.corpus, "test")

    def _estimates(self, name: str, captioner: Path, retriever: Path) -> dict[str, Any]:
        retrieval = self.runner.named_summary(f"evaluate-retrieval-{name}") or {}
        return {
            **self._captions(captioner).estimates(),
            "mean_recall": mean_over_pictures(grade_retrieval(retriever / "test_ranks.json")),
            "bleu4": (self.runner.named_summary(f"evaluate-caption-{name}") or {}).get("BLEU-4"),
            "retrieval": {key: value for key, value in retrieval.items() if "r@" in key or "recall" in key},
        }


def _gain_reached(rows: dict[str, Any]) -> dict[str, float | None]:
    """Return the share of the oracle's gain over the noisy row that the filter reaches."""
    reached = {}
    for measure in ("exact_match", "cider", "mean_recall"):
        noisy, bootstrapped, oracle = (
            rows[row]["finetuned"][measure]["value"] for row in (NOISY, BOOTSTRAPPED, ORACLE)
        )
        reached[measure] = (bootstrapped - noisy) / (oracle - noisy) if oracle > noisy else None
    return reached


def _summarise_rounds(plan: DemoPlan, texts: Sequence[Sequence[GradedText]]) -> dict[str, Any]:
    """Return the gauges, filter grades and held-out scores of the rounds, and the best round."""
    held_out = [
        read_scores(plan.captioner(round_row(number)) / "validation_cider.json")
        for number in range(plan.config.rounds + 1)
    ]
    rounds = describe_rounds(held_out)
    human = json.loads((plan.human / "train.json").read_text(encoding="utf-8"))
    rare = rare_words(row["caption"] for row in human)
    for number, row in enumerate(rounds):
        row["row"] = round_row(number)
        if number:
            source, row_texts = captions_name(number), texts[number - 1]
            row["gauges"] = gauge_texts(plan.filtered(round_row(number)), source, rare)
            own = [text for text in row_texts if text.source in ("web", source)]
            row["filter"] = grade_filter(own)
        if number > 1:
            frozen = read_texts(plan.filtered(round_row(number) + FROZEN), plan.corpus)
            row["first_filter"] = grade_filter(frozen)
            row["stops"] = has_stopped_rising(held_out[: number + 1])
    return {"rounds": rounds, "best_round": best_round(held_out)}
