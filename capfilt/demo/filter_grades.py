"""Grades of the demo's filter, against the truth about every text.

In: a filtered set and the `truth/` of the corpus. Out: what was kept, and the AUC of each score: of all texts, of those
that name one object or two, and among the captions of one picture. A pooled AUC can mislead: texts about one object
are right more often, so a score that only tells one object from two has a high one.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from blipcore.io.samples import read_samples
from capfilt.demo.intervals import Estimate, auc_over_pictures, mean_over_pictures, ratio_over_pictures
from capfilt.demo.language import exact_match, object_counts
from capfilt.demo.scenes import Scene
from capfilt.shards.format import WEB
from capfilt.shards.further_columns import score_columns
from capfilt.shards.shard_set import ShardSet
from capfilt.shards.tables import write_table

SYNTHETIC = "synthetic"
STRATA: dict[str, Callable[[int], bool]] = {"one_object": lambda n: n == 1, "two_objects": lambda n: n >= 2}


@dataclass(frozen=True, eq=False)  # compared by identity, which makes sets of texts fast
class GradedText:
    """A row of a filtered table, joined with the truth."""

    key: str
    source: str
    text: str
    scores: dict[str, float]
    keep: bool
    reason: str
    kind: str  # of a web text; SYNTHETIC for a captioner's
    matches: bool  # whether a perfect filter keeps it
    objects: int  # that the text names
    names_wrong: bool  # an object that is absent, or not one that is there

    @property
    def error(self) -> str:
        """The kind of error of a synthetic text: "object", or "detail" (count, relation or size)."""
        return "" if self.matches else "object" if self.names_wrong else "detail"


def read_texts(filtered: Path, corpus: Path) -> list[GradedText]:
    """Return the scored texts of a filtered set, joined with the truth by the URL of the picture."""
    truth = {row["url"]: row for row in pq.read_table(corpus / "truth" / "web.parquet").to_pylist()}
    texts = []
    for table in sorted(filtered.glob("*.parquet")):
        columns = score_columns(pq.read_schema(table).names)
        for row in pq.read_table(table).to_pylist():
            if row["itm"] is None:
                continue  # not scored: it has no text, or the picture cannot be read
            pair = truth["/".join(row["url"].split("/")[-2:])]
            scene = Scene.from_dict(json.loads(pair["scene"]))
            synthetic = row["source"] != WEB
            hits, named, drawn = object_counts(row["text"], scene)
            texts.append(
                GradedText(
                    row["key"],
                    row["source"],
                    row["text"],
                    {name: row[name] for name in columns if row[name] is not None},
                    row["keep"],
                    row["reason"],
                    SYNTHETIC if synthetic else pair["kind"],
                    exact_match(row["text"], scene) if synthetic else pair["matches"],
                    named,
                    not hits == named == drawn,
                )
            )
    return texts


def grade_filter(texts: Sequence[GradedText]) -> dict[str, dict[str, Any]]:
    """Return the grades of web texts and of synthetic texts, each {number, kept, right_before, right, recall, ...}.

    A synthetic text is right if it describes the scene exactly, which is stricter than being true of it. A number that
    is not defined is None: the share of right texts if none is kept, an AUC if all or no texts are right.
    """
    grades = {}
    for name in (WEB, SYNTHETIC):
        group = [text for text in texts if (text.source == WEB) == (name == WEB)]
        if group:
            grades[name] = _grade_group(group) | ({} if name == WEB else _grade_synthetic(group))
    return grades


def _grade_group(group: Sequence[GradedText]) -> dict[str, Any]:
    right = [text for text in group if text.matches]
    return {
        "texts": len(group),
        "kept_texts": sum(text.keep for text in group),
        "kept": share(group, lambda text: text.keep),
        "right_before": share(group, lambda text: text.matches),
        "right": share([text for text in group if text.keep], lambda text: text.matches),
        "recall": share(right, lambda text: text.keep),
        "auc": {name: _auc(group, name) for name in _score_names(group)},
    }


def _grade_synthetic(group: Sequence[GradedText]) -> dict[str, Any]:
    """Return the grades within strata, by kind of error and within a picture."""
    strata = {}
    for stratum, contains in STRATA.items():
        inside = {text for text in group if contains(text.objects)}
        strata[stratum] = {
            "share_before": share(group, inside.__contains__),
            "share_kept": share([text for text in group if text.keep], inside.__contains__),
            "right_before": share([text for text in group if text in inside], lambda text: text.matches),
            "right": share([text for text in group if text in inside and text.keep], lambda text: text.matches),
            "auc": {name: _auc([text for text in group if text in inside], name) for name in _score_names(group)},
        }
    errors = {}
    for error in ("object", "detail"):
        against = [text for text in group if text.error in ("", error)]
        errors[error] = {name: _auc(against, name) for name in _score_names(group)}
    within = {name: _auc_within_pictures(group, name) for name in _score_names(group)}
    pictures = {text.key: False for text in group} | {text.key: True for text in group if text.keep}
    kept = mean_over_pictures(list(pictures.values()))
    return {"pictures_kept": kept, "strata": strata, "auc_by_error": errors, "auc_within_picture": within}


def kept_by_kind(texts: Sequence[GradedText]) -> dict[str, dict[str, Any]]:
    """Return the number of web texts of each kind, and the share kept."""
    kinds: dict[str, list[GradedText]] = defaultdict(list)
    for text in texts:
        if text.source == WEB:
            kinds[text.kind].append(text)
    return {
        kind: {"texts": len(group), "kept": share(group, lambda text: text.keep)}
        for kind, group in sorted(kinds.items())
    }


def share(texts: Sequence[GradedText], condition: Callable[[GradedText], bool]) -> Estimate | None:
    """Return the share of texts that meet a condition, with its interval over pictures."""
    hits: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for text in texts:
        hits[text.key][0] += condition(text)
        hits[text.key][1] += 1
    return ratio_over_pictures(*zip(*hits.values(), strict=True)) if hits else None


def _score_names(texts: Sequence[GradedText]) -> list[str]:
    return list(dict.fromkeys(name for text in texts for name in text.scores))


def _auc(texts: Sequence[GradedText], score: str) -> Estimate | None:
    scored = [text for text in texts if score in text.scores]
    return auc_over_pictures(
        [text.scores[score] for text in scored], [text.matches for text in scored], [text.key for text in scored]
    )


def _auc_within_pictures(texts: Sequence[GradedText], score: str) -> Estimate | None:
    """Return the AUC over the pairs of a right and a wrong caption of one picture; None without such pairs."""
    pictures: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for text in texts:
        if score in text.scores:
            pictures[text.key][text.matches].append(text.scores[score])
    above, pairs = [], []
    for wrong, right in pictures.values():
        if wrong and right:
            difference = np.subtract.outer(right, wrong)
            above.append(float((difference > 0).sum() + (difference == 0).sum() / 2))
            pairs.append(difference.size)
    return ratio_over_pictures(above, pairs) if pairs else None


def write_oracle(filtered: Path, corpus: Path, out: Path) -> None:
    """Write a filtered set that keeps the right texts alone: the bound of what a filter can reach."""
    truth = {(text.key, text.source, text.text): text.matches for text in read_texts(filtered, corpus)}
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(filtered.glob("*.parquet")):
        table = pq.read_table(path)
        rows = zip(*(table[name].to_pylist() for name in ("key", "source", "text")), strict=True)
        right = [truth.get(row, False) for row in rows]
        reasons = ["kept" if keep else "wrong" for keep in right]
        for name, values in (("keep", right), ("reason", reasons)):
            column = table.schema.get_field_index(name)
            table = table.set_column(column, name, pa.array(values, table.schema.field(name).type))
        write_table(out / path.name, table)
    (out / "manifest.json").write_bytes((filtered / "manifest.json").read_bytes())


def sample_pictures(texts: Sequence[GradedText], data: Path, out: Path, n: int = 6) -> list[dict[str, object]]:
    """Write n pictures to `out`; return their texts, scores and verdicts.

    These are the first pictures of each combination of verdicts, so that none is picked by hand.
    """
    by_key: dict[str, list[GradedText]] = defaultdict(list)
    for text in texts:
        by_key[text.key].append(text)
    by_verdict: dict[tuple[bool, ...], list[str]] = defaultdict(list)
    for key, group in by_key.items():
        by_verdict[tuple(text.keep for text in group)].append(key)
    groups = [by_verdict[verdict] for verdict in sorted(by_verdict)]
    chosen = [key for tier in zip_longest(*groups) for key in tier if key is not None][:n]

    samples: list[dict[str, object]] = []
    out.mkdir(parents=True, exist_ok=True)
    images = ShardSet.open(data)
    for shard in images.shards:
        for picture in read_samples(images.tar(shard)):
            if picture.key in chosen:
                path = out / f"{picture.key}.jpg"
                path.write_bytes(picture.image)
                fields = ("source", "text", "keep", "reason", "kind", "matches")
                rows = [
                    {"itm": text.scores["itm"]} | {name: getattr(text, name) for name in fields}
                    for text in by_key[picture.key]
                ]
                samples.append({"picture": path.name, "texts": rows})
    return samples
