"""What the demo can know because it drew the pictures: exact answers where a real run has only estimates.

In: the tables and captions that the public commands wrote, and the corpus' `truth/`. Out: plain numbers for the
demo's tables and `summary.json`.
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
class Pair:
    """A row of a filtered table with what is true about it."""

    key: str
    source: str
    text: str
    itm: float | None
    keep: bool
    reason: str
    kind: str  # kind of web text; "synthetic" for a captioner's
    matches: bool  # whether a perfect filter keeps it


def grade_captions(results: Path, corpus: Path, split: str) -> dict[str, float | None]:
    """`exact_match`, `true` (nothing false said) and `object_f1` of the captions that `capfilt evaluate` wrote."""
    captions = {row["image_id"]: row["caption"] for row in json.loads(results.read_text(encoding="utf-8"))}
    scenes = read_truth(corpus, split)
    texts = [captions[index] for index in range(len(scenes))]
    judged = list(zip(texts, scenes.values(), strict=True))
    return {
        "exact_match": _share(exact_match(text, scene) for text, scene in judged),
        "true": _share(is_true(text, scene) for text, scene in judged),
        "object_f1": object_f1(texts, list(scenes.values())),
    }


def read_pairs(filtered: Path, corpus: Path) -> list[Pair]:
    """All pairs of a filtered data set, joined with the truth about their picture through its URL."""
    truth = {row["url"]: row for row in pq.read_table(corpus / "truth" / "web.parquet").to_pylist()}
    pairs = []
    for table in sorted(filtered.glob("*.parquet")):
        for row in pq.read_table(table).to_pylist():
            if row["itm"] is None:
                continue  # no text, or no picture: the filter's model never saw it
            known = truth["/".join(row["url"].split("/")[-2:])]
            kind, matches = known["kind"], known["matches"]
            if row["source"] != WEB:
                kind = "synthetic"
                matches = exact_match(row["text"], Scene.from_dict(json.loads(known["scene"])))
            pairs.append(
                Pair(row["key"], row["source"], row["text"], row["itm"], row["keep"], row["reason"], kind, matches)
            )
    return pairs


def grade_filter(pairs: list[Pair]) -> dict[str, dict[str, float | None]]:
    """For web and synthetic texts: kept share, precision, recall, ITM AUC, share that matched before and after.

    A synthetic text matches when it describes the scene exactly, which is stricter than being true of it. None is what
    cannot be told: the precision of nothing, an AUC where no text matches.
    """
    report = {}
    for name, wanted in (("web", True), ("synthetic", False)):
        group = [pair for pair in pairs if (pair.source == WEB) == wanted]
        if not group:
            continue
        kept = [pair for pair in group if pair.keep]
        right = [pair for pair in group if pair.matches]
        auc = roc_auc([pair.itm for pair in group], [pair.matches for pair in group])
        report[name] = {
            "texts": len(group),
            "kept": len(kept) / len(group),
            "matching_before": len(right) / len(group),
            "precision": _share(pair.matches for pair in kept),
            "recall": _share(pair.keep for pair in right),
            "itm_auc": None if math.isnan(auc) else auc,
        }
    return report


def kept_share_by_kind(pairs: list[Pair]) -> dict[str, dict[str, float | None]]:
    """Share kept of each kind of web text, and how many there were."""
    kinds = defaultdict(list)
    for pair in pairs:
        if pair.source == WEB:
            kinds[pair.kind].append(pair.keep)
    return {kind: {"texts": len(keeps), "kept": _share(keeps)} for kind, keeps in sorted(kinds.items())}


def sample_pictures(pairs: list[Pair], data: Path, out: Path, n: int = 6) -> list[dict[str, object]]:
    """Write n pictures with a web and a synthetic text to `out` and return their texts, scores and verdicts.

    They are the first ones of the data set for each combination of verdicts, so that none is picked for its looks.
    """
    texts = defaultdict(list)
    for pair in pairs:
        texts[pair.key].append(pair)
    by_verdict = defaultdict(list)
    for key, group in texts.items():
        by_verdict[tuple(pair.keep for pair in group)].append(key)
    groups = [by_verdict[verdict] for verdict in sorted(by_verdict)]
    chosen = [key for tier in zip_longest(*groups) for key in tier if key is not None][:n]

    wanted, samples = set(chosen), []
    out.mkdir(parents=True, exist_ok=True)
    images = ShardSet.open(data)
    for shard in images.shards:
        for picture in read_samples(images.tar(shard)):
            if picture.key in wanted:
                path = out / f"{picture.key}.jpg"
                path.write_bytes(picture.image)
                fields = ("source", "text", "itm", "keep", "reason", "kind", "matches")
                rows = [{field: getattr(pair, field) for field in fields} for pair in texts[picture.key]]
                samples.append({"picture": path.name, "texts": rows})
    return samples


def _share(flags: Iterable[bool]) -> float | None:
    flags = list(flags)
    return sum(flags) / len(flags) if flags else None
