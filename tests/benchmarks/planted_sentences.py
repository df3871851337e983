"""Plants second sentences in texts of the demo, repairs them and counts what was cut: python planted_sentences.py DEMO.

Each text is a true caption of its picture and a second sentence: another true caption, a caption of another picture, or
a caption that is wrong in one point. The truth is the demo's.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from capfilt.demo.language import is_true, write_caption
from capfilt.demo.scenes import BACKGROUNDS, INVERSE, Scene
from capfilt.filter.config import FilterConfig
from capfilt.filter.stage import filter_shards
from capfilt.shards.format import CAPTIONS
from capfilt.shards.tables import read_table, write_table

KINDS = ("true", "other picture", "object", "count", "size", "relation", "background")
TRIES = 20


@dataclass
class Planted:
    """The ITM of both sentences of a text, and the kind of the second."""

    kind: str
    first: float
    second: float


def plant(scenes: dict[str, Scene], rng: Random) -> Iterator[tuple[str, str, str]]:
    """Yield key, kind and text: a true caption and a second sentence of that kind."""
    nouns = sorted({thing.noun for scene in scenes.values() for thing in scene.things})
    for key, scene in scenes.items():
        first = write_caption(scene, rng)
        for kind in KINDS:
            for _ in range(TRIES):
                second = second_sentence(scene, kind, list(scenes.values()), nouns, rng)
                if second and is_true(second, scene) == (kind == "true") and second.lower() != first.lower():
                    yield key, kind, f"{first}. {second[0].upper()}{second[1:]}."
                    break


def second_sentence(scene: Scene, kind: str, scenes: list[Scene], nouns: list[str], rng: Random) -> str | None:
    """Return a caption of the scene, of another one or of a changed one; None without a relation to change."""
    if kind == "true":
        return write_caption(scene, rng)
    if kind == "other picture":
        return write_caption(rng.choice(scenes), rng)
    things = list(scene.things)
    index = rng.randrange(len(things))
    if kind == "object":
        present = {thing.noun for thing in things}
        things[index] = replace(things[index], noun=rng.choice([noun for noun in nouns if noun not in present]))
    elif kind == "count":
        counts = [count for count in (1, 2, 3) if count != things[index].count]
        things[index] = replace(things[index], count=rng.choice(counts))
    elif kind == "size":
        things = [replace(thing, size="small" if thing.size == "large" else "large") for thing in things]
    elif kind == "background":
        others = [colour for colour in BACKGROUNDS if colour != scene.background]
        scene = replace(scene, background=rng.choice(others))
    elif scene.relation is None:
        return None
    else:
        scene = replace(scene, relation=INVERSE[scene.relation])
    return write_caption(replace(scene, things=tuple(things)), rng, 1.0)


def measure(demo: Path, model: Path, pictures: int, threshold: float, seed: int) -> list[Planted]:
    """Plant sentences in the first shard of a demo, score them and return them."""
    columns = ["url", "scene"]
    truth = {
        row["url"]: row["scene"]
        for row in pq.read_table(demo / "corpus/truth/web.parquet", columns=columns).to_pylist()
    }
    rows = read_table(demo / "data/00000.parquet", ["key", "url", "status"]).to_pylist()
    rows = [row for row in rows if row["status"] == "ok"][:pictures]
    scenes = {row["key"]: Scene.from_dict(json.loads(truth["/".join(row["url"].split("/")[-2:])])) for row in rows}
    with TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        for suffix in ("tar", "parquet"):
            shutil.copy(demo / f"data/00000.{suffix}", data)
        planted, kinds, captions = list(plant(scenes, Random(f"planted {seed}"))), {}, []
        for key, kind, text in planted:
            index = sum(caption["key"] == key for caption in captions[-len(KINDS) :])
            kinds[key, index] = kind
            captions.append({"key": key, "index": index, "text": text})
        write_table(data / "captions/long/00000.parquet", pa.Table.from_pylist(captions, CAPTIONS))
        settings = {"model": str(model), "sources": ["long"], "repair": True, "threshold": threshold}
        filtered = Path(filter_shards(FilterConfig(data=str(data), device="cpu", **settings))["out"])
        texts = read_table(filtered / "00000.parquet", ["key", "index", "sentences"]).to_pylist()
    return [
        Planted(kinds[text["key"], text["index"]], *(sentence["itm"] for sentence in text["sentences"]))
        for text in texts
    ]


def report(planted: list[Planted], threshold: float) -> list[str]:
    """Return a table per kind: texts, share of second sentences below the threshold, and AUC against true ones."""
    true = [text.second for text in planted if text.kind == "true"]
    lines = ["| second sentence | texts | below the threshold | AUC against true ones |", "|---|---|---|---|"]
    for kind in KINDS:
        scores = [text.second for text in planted if text.kind == kind]
        below = sum(score < threshold for score in scores) / len(scores)
        pairs = [(a > b) + (a == b) / 2 for a in true for b in scores[::7]]
        auc = "–" if kind == "true" else f"{sum(pairs) / len(pairs):.3f}"
        lines.append(f"| {kind} | {len(scores)} | {below:.1%} | {auc} |")
    for name, kinds in (("other pictures", KINDS[1:2]), ("one point", KINDS[2:]), ("all", KINDS[1:])):
        chosen = [text for text in planted if text.kind in ("true", *kinds)]
        cut = [text for text in chosen if text.second < threshold <= text.first]
        cut_first = sum(text.first < threshold <= text.second for text in chosen)
        false = [text for text in chosen if text.kind != "true"]
        removed = sum(text.second < threshold for text in false)
        precision = sum(text.kind != "true" for text in cut) / (len(cut) + cut_first)
        before = 1 - len(false) / (2 * len(chosen))
        kept = sum((text.first >= threshold) + (text.second >= threshold) for text in chosen)
        after = 1 - (len(false) - removed) / kept
        lines.append(
            f"{name}: {removed / len(false):.1%} of the false sentences are removed (recall), {precision:.1%} of the "
            f"sentences that are cut are false (precision), true sentences {before:.1%} before and {after:.1%} after"
        )
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path, help="output of `capfilt demo`")
    parser.add_argument("--model", type=Path, help="filter; default: that of the demo")
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model = options.model or options.demo / "runs/filter/model"
    result = measure(options.demo, model, options.pictures, options.threshold, options.seed)
    print("\n".join(report(result, options.threshold)))
