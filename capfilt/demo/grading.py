"""Grades of the demo's captions and of its filter. They are exact, because the content of every picture is known.

In: tables and captions written by the public commands, and the `truth/` of the corpus. Out: the numbers of the demo's
tables and of `summary.json`.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import pyarrow.parquet as pq

from blipcore.io.samples import read_samples
from blipcore.metrics.ranking import roc_auc
from capfilt.demo.corpus import read_truth
from capfilt.demo.language import exact_match, is_true, object_f1
from capfilt.demo.scenes import Scene
from capfilt.shards.format import WEB
from capfilt.shards.shard_set import ShardSet


@dataclass(frozen=True)
class GradedPair:
    """A row of a filtered table, joined with the truth."""

    key: str
    source: str
    text: str
    itm: float
    keep: bool
    reason: str
    kind: str  # of a web text; "synthetic" for a captioner's
    matches: bool  # whether a perfect filter keeps it


def grade_captions(results: Path, corpus: Path, split: str) -> dict[str, float | None]:
    """Return `exact_match`, `true` (nothing false) and `object_f1` of the captions that `capfilt evaluate` wrote."""
    captions = {row["image_id"]: row["caption"] for row in json.loads(results.read_text(encoding="utf-8"))}
    scenes = read_truth(corpus, split)
    texts = [captions[index] for index in range(len(scenes))]
    graded = list(zip(texts, scenes.values(), strict=True))
    return {
        "exact_match": _share(exact_match(text, scene) for text, scene in graded),
        "true": _share(is_true(text, scene) for text, scene in graded),
        "object_f1": object_f1(texts, list(scenes.values())),
    }


def read_pairs(filtered: Path, corpus: Path) -> list[GradedPair]:
    """Return the scored pairs of a filtered set, joined with the truth by the URL of the picture."""
    truth = {row["url"]: row for row in pq.read_table(corpus / "truth" / "web.parquet").to_pylist()}
    pairs = []
    for table in sorted(filtered.glob("*.parquet")):
        for row in pq.read_table(table).to_pylist():
            if row["itm"] is None:
                continue  # not scored: it has no text, or the picture cannot be read
            web_pair = truth["/".join(row["url"].split("/")[-2:])]
            kind, matches = web_pair["kind"], web_pair["matches"]
            if row["source"] != WEB:
                kind = "synthetic"
                matches = exact_match(row["text"], Scene.from_dict(json.loads(web_pair["scene"])))
            pairs.append(
                GradedPair(
                    row["key"], row["source"], row["text"], row["itm"], row["keep"], row["reason"], kind, matches
                )
            )
    return pairs


def grade_filter(pairs: list[GradedPair]) -> dict[str, dict[str, float | None]]:
    """Return kept share, share that matched before, precision, recall and ITM AUC of web and of synthetic texts.

    A synthetic text matches if it describes the scene exactly, which is stricter than being true of it. A number that
    is not defined is None: a precision if no text is kept, an AUC if all or no texts match.
    """
    grades: dict[str, dict[str, float | None]] = {}
    for name, is_web in (("web", True), ("synthetic", False)):
        group = [pair for pair in pairs if (pair.source == WEB) == is_web]
        if not group:
            continue
        kept = [pair for pair in group if pair.keep]
        matching = [pair for pair in group if pair.matches]
        auc = roc_auc([pair.itm for pair in group], [pair.matches for pair in group])
        grades[name] = {
            "texts": len(group),
            "kept": len(kept) / len(group),
            "matching_before": len(matching) / len(group),
            "precision": _share(pair.matches for pair in kept),
            "recall": _share(pair.keep for pair in matching),
            "itm_auc": None if math.isnan(auc) else auc,
        }
    return grades


def kept_share_by_kind(pairs: list[GradedPair]) -> dict[str, dict[str, float | None]]:
    """Return the number of web texts of each kind, and the share kept."""
    kinds: dict[str, list[bool]] = defaultdict(list)
    for pair in pairs:
        if pair.source == WEB:
            kinds[pair.kind].append(pair.keep)
    return {kind: {"texts": len(keeps), "kept": _share(keeps)} for kind, keeps in sorted(kinds.items())}


def sample_pictures(pairs: list[GradedPair], data: Path, out: Path, n: int = 6) -> list[dict[str, object]]:
    """Write n pictures to `out`; return their texts, scores and verdicts.

    These are the first pictures of each combination of verdicts, so that none is picked by hand.
    """
    texts: dict[str, list[GradedPair]] = defaultdict(list)
    for pair in pairs:
        texts[pair.key].append(pair)
    by_verdict: dict[tuple[bool, ...], list[str]] = defaultdict(list)
    for key, group in texts.items():
        by_verdict[tuple(pair.keep for pair in group)].append(key)
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
                fields = ("source", "text", "itm", "keep", "reason", "kind", "matches")
                rows = [{field: getattr(pair, field) for field in fields} for pair in texts[picture.key]]
                samples.append({"picture": path.name, "texts": rows})
    return samples


def _share(flags: Iterable[bool]) -> float | None:
    flags = list(flags)
    return sum(flags) / len(flags) if flags else None
