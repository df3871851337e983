"""The choice of the deciding rule: learns `mix` from the labels, chooses the threshold or the limits of the strata.

All of these need the scores of all shards. A number as threshold needs none, without labels and strata.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from blipcore.io.storage import existing_paths, to_path
from capfilt.filter.computed import ComputedScore, append_computed, declare_computed
from capfilt.filter.config import FilterConfig
from capfilt.filter.labelled import LabelledTexts, read_labelled
from capfilt.filter.labels import LABELS_OF_RUN, read_labels
from capfilt.filter.mix import Mix, learn_mix, sum_scores
from capfilt.filter.score import ScoreResult
from capfilt.filter.strata import Strata
from capfilt.filter.threshold import (
    DecidedTexts,
    choose_by_fraction,
    choose_by_target,
    collect_decided,
    describe_threshold,
)
from capfilt.filter.threshold_table import Row, strata_table
from capfilt.shards.manifest import read_manifest
from capfilt.shards.shard_set import ShardSet
from capfilt.shards.tables import read_table


@dataclass(frozen=True)
class Choice:
    """The rule that decides about the texts: limits, computed scores and strata."""

    threshold: float
    limits: dict[str, float]
    # what the threshold keeps, for the summary
    why: str = ""
    # how well the deciding score tells right from wrong, for the summary
    signal: str = ""
    strata: Strata | None = None
    # rows of `strata_table`
    strata_rows: tuple[Row, ...] = ()
    mix: Mix | None = None

    def settings(self, config: FilterConfig) -> dict[str, Any]:
        """Return the settings for the manifest, without defaults."""
        settings: dict[str, Any] = {"limits": self.limits}
        settings |= {"score": config.score} if config.score != "itm" else {}
        return settings | ({"strata": self.strata.settings} if self.strata is not None else {})


def needs_all_scores(config: FilterConfig) -> bool:
    """Return whether the choice depends on the scores of all shards."""
    is_given = config.threshold != "auto" and config.top_fraction is None
    return not is_given or config.labels is not None or bool(config.strata) or config.uses_mix


def choose(config: FilterConfig, images: ShardSet, scored: ScoreResult, labels: pa.Table | None) -> Choice:
    """Return the rule of the settings. Raises ValueError, for example if no threshold reaches the target."""
    if not needs_all_scores(config):
        assert config.threshold != "auto"
        return Choice(config.threshold, config.limits(config.threshold))
    texts, mix, findings = read_decided(config, images, scored, labels)
    threshold, reason = choose_threshold(config, texts)
    strata = replace(texts.strata, limits=texts.limits(threshold)) if config.strata else None
    rows = tuple(strata_table(texts, threshold)) if config.strata or labels is not None else ()
    return Choice(threshold, config.limits(threshold), reason, "; ".join(findings), strata, rows, mix)


def choose_threshold(config: FilterConfig, texts: DecidedTexts) -> tuple[float, str]:
    """Return the threshold of the settings, and a description of it."""
    if config.top_fraction is not None:
        return choose_by_fraction(texts, config.top_fraction)
    if config.threshold == "auto":
        return choose_by_target(texts, config.target)
    return config.threshold, describe_threshold(texts, config.threshold)


def read_decided(
    config: FilterConfig, images: ShardSet, scored: ScoreResult, labels: pa.Table | None
) -> tuple[DecidedTexts, Mix | None, list[str]]:
    """Return the texts that the threshold decides about, `mix` if a setting names it, and findings on scores.

    Raises ValueError if some shards have no scores yet.
    """
    paths = [scored.table(shard) for shard in images.shards]
    missing = len(paths) - len(existing_paths(paths))
    if missing:
        raise ValueError(
            f"{missing} of {len(paths)} shards have no scores yet, and choosing a threshold needs all of them; run the "
            "same command with a number as --threshold first."
        )
    sources, stored = list(scored.folder.captions), scored.folder.columns
    computed = declare_computed(scored.folder.columns, scored.folder.captions)
    names = [*stored, *(score.name for score in computed)]

    def tables(computed: list[ComputedScore], needed: list[str]) -> Iterator[tuple[str, pa.Table]]:
        columns = ["key", "source", "index", "text", *(name for name in stored if name in needed), "error"]
        for path in paths:
            table = read_table(path, columns)
            table = table.filter(pc.is_in(table["source"], pa.array(sources)))
            yield path.stem, append_computed(table, path.stem, computed)

    labelled, held_out, mix, findings = None, None, None, []
    if labels is not None:
        fingerprint = scored.folder.settings.get("fingerprint")
        trained_on = _labels_of_model(scored)
        labelled = read_labelled(tables(computed, names), labels, fingerprint, trained_on)
        if config.uses_mix:
            mix, held_out = learn_mix(labelled, names, sources)
            computed = [*computed, mix]
        findings = describe_signal(config.score, labelled, names, sources, held_out)
        if trained_on is not None and not labelled.trained_on:
            findings.append(
                f"the filter's run has {LABELS_OF_RUN}, but it is of another filter or of other texts, and is not used"
            )
    elif config.uses_mix:
        mix = sum_scores(tables(computed, names))
        computed = [*computed, mix]
    best, limits = config.best_texts(), config.limits(0.0)
    needed = [*limits, best.score, *config.strata, *(mix.columns if mix else ())]
    used = [score for score in computed if score.name in needed or mix is not None]
    is_mix = config.score == "mix"
    texts = collect_decided(
        tables(used, ["itm", *needed]),
        sources,
        limits,
        best,
        config.score,
        list(config.strata),
        labels,
        labelled,
        held_out if is_mix else None,
    )
    return texts, mix, findings


def _labels_of_model(scored: ScoreResult) -> pa.Table | None:
    """Return the labels that the filter of the scores was trained on, see `head.py`; None without any."""
    model = (read_manifest(scored.folder.path) or {}).get("model")
    if model is None:
        return None
    path = to_path(model).parent / LABELS_OF_RUN
    return read_labels(path) if path.exists() else None


def describe_signal(
    score: str, labelled: LabelledTexts, names: list[str], sources: list[str], held_out: np.ndarray | None
) -> list[str]:
    """Describe how well the deciding score tells right from wrong, and beside it each score alone."""
    deciding = labelled.column(score) if score in names else held_out
    assert deciding is not None
    aucs = labelled.auc(deciding, sources)
    if not aucs:
        return ["no labelled text was drawn at random (column drawn), so nothing is measured"]
    findings = [
        f"{score} tells right from wrong texts with " + ", ".join(f"{group}: {auc}" for group, auc in aucs.items())
    ]
    unlabelled = [source for source in sources if source not in aucs]
    if unlabelled:
        findings.append(f"no labels of {', '.join(unlabelled)}: what is kept of these texts is not measured")
    weak = [group for group, auc in aucs.items() if not auc.has_signal]
    if weak:
        findings.append(
            f"no signal in {', '.join(weak)}: the interval holds 0.5, so there the threshold may drop right and "
            "wrong texts alike; label more texts or use another score"
        )
    if held_out is not None:
        alone = {name: labelled.auc(labelled.column(name), sources, draws=0) for name in names}
        for group in aucs:
            values = [f"{name} {auc[group].value:.3f}" for name, auc in alone.items() if not np.isnan(auc[group].value)]
            findings.append(f"alone, on {group}: {', '.join(values)}")
    if labelled.trained_on:
        findings.append(
            f"the filter was trained on {labelled.trained_on:,} of these labels, so their ITM is that of filters that "
            "have not seen their pictures"
        )
    return findings
