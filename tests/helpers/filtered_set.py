"""A filtered set made without a model: drawn pictures, invented scores, verdicts by the real `capfilt filter`."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from blipcore.io.samples import TarSample
from capfilt.filter.config import FilterConfig
from capfilt.filter.stage import filter_shards
from capfilt.shards.format import CAPTIONS, IMAGES, scores_schema, write_shard
from capfilt.shards.manifest import Manifest
from capfilt.shards.tables import write_table

# Texts that try to leave their JSON or to become markup.
NASTY = [
    "</script><script>window.broken = 1</script>",
    "<img src=x onerror='window.broken = 2'>",
    "<b>bold</b> &amp; \"quoted\" 'single' <!-- comment",
    "{{script}} {{data}} \\u003c \u2028 \u0000 end",
    "שלום עולם, a dog",
    "红色的狗在左边",
    "long " * 300,
]
WORDS = ["red", "dog", "cat", "tree", "on", "the", "left", "of", "a", "green", "round", "thing"]


def write_set(
    folder: Path, drawn: Callable[[int], TarSample], pictures: int = 40, shards: int = 2, captioners: int = 1
) -> Path:
    """Write pictures, web texts, captions and scores, not filtered; the same arguments give the same set."""
    rng = random.Random(5)
    names = ["c", "second"][:captioners]
    for shard in range(shards):
        name = f"{shard:05d}"
        samples = [drawn(1000 * shard + number) for number in range(pictures)]
        web = [_web_text(rng, shard, number) for number in range(pictures)]
        captions = {source: [_caption(rng) for _ in samples] for source in names}
        for sample, text in zip(samples, web, strict=True):
            sample.text = text
        write_shard(folder / f"{name}.tar", samples)
        _write_images(folder, name, samples)
        for source, texts in captions.items():
            rows = [{"key": s.key, "index": 0, "text": t, "logprob": -1.0} for s, t in zip(samples, texts, strict=True)]
            write_table(folder / "captions" / source / f"{name}.parquet", pa.Table.from_pylist(rows, schema=CAPTIONS))
        _write_scores(folder, name, [sample.key for sample in samples], {"web": web, **captions}, rng)
    settings = {
        "sources": {"web": "in the shards"} | {source: "not recorded" for source in names},
        "fingerprint": "0123456789abcdef",
        "first_token": "enc",
        "dtype": "fp32",
        "clip": {"name": "tiny", "fingerprint": "fedcba"},
    }
    Manifest.begin(folder / "scores" / "s", "score", settings, images=folder).finish({"texts": 1})
    return folder


def filter_set(folder: Path, name: str = "r1", **options: Any) -> Path:
    """Filter a set of `write_set`; return `filtered/<name>`."""
    filter_shards(FilterConfig(data=str(folder), scores="s", name=name, **options), progress=False)
    return folder / "filtered" / name


def _web_text(rng: random.Random, shard: int, number: int) -> str | None:
    if shard == 0 and number < len(NASTY):
        return NASTY[number]
    if number % 10 == 8:
        return rng.choice(["", None, " !!! "])
    return "buy now" if number % 5 == 0 else " ".join(rng.choices(WORDS, k=rng.randrange(2, 12))) + "."


def _caption(rng: random.Random) -> str:
    return rng.choice(["a red dog", "a green tree", " ".join(rng.choices(WORDS, k=6)), "a cat on the left of a tree"])


def _write_images(folder: Path, name: str, samples: list[TarSample]) -> None:
    rows = [
        {"key": s.key, "url": f"https://www.host{n % 3}.example/{s.key}.jpg", "status": "ok", "sha256": f"{n:064x}"}
        for n, s in enumerate(samples)
    ]
    rows += [{"key": f"none{name}{n}", "url": "http://gone.example/x.jpg", "status": "not_found"} for n in range(3)]
    write_table(folder / f"{name}.parquet", pa.Table.from_pylist(rows, schema=IMAGES))


def _write_scores(
    folder: Path, name: str, keys: list[str], texts: dict[str, list[str | None]], rng: random.Random
) -> None:
    rows = []
    for position, key in enumerate(keys):
        for source, source_texts in texts.items():
            text, scores = source_texts[position], {}
            if (text or "").strip(" !"):
                itm = rng.choice([rng.random(), rng.betavariate(0.3, 0.3), 0.5])
                scores = {"itm": itm, "itc": rng.gauss(0.3, 0.1), "clip": rng.gauss(0.25, 0.05)}
            rows.append({"key": key, "source": source, "index": 0, "text": text, "error": None, **scores})
    schema = pa.schema([*scores_schema(["itm", "itc", "clip"]), ("error", pa.string())])
    write_table(
        folder / "scores" / "s" / f"{name}.parquet", pa.Table.from_pylist(rows, schema=schema), {"texts": len(rows)}
    )
