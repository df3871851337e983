"""The embedded corpus on disk: noisy web pairs behind URLs, a small human-written set, held-out sets, and their truth.

In: a `CorpusConfig`. Out, under one folder:

    web/urls.parquet          url (relative), caption: what a crawl would give, pairs to download
    www/                      the pictures as they are served; behaviour.json names the slow ones and the opted out
    human/images/             pictures of the human-written sets
    human/train.json          [{"image", "caption", "image_id"}], one row a caption
    human/validation.json     [{"image", "caption": [5 texts], "image_id"}], to compare a captioner's captions with
    human/retrieval_validation.json   the same without pictures that no caption tells apart; each text says all there is
    human/test.json, human/retrieval_test.json   likewise
    truth/web.parquet         url, kind, matches, fate, scene: what is known about each web pair
    truth/validation.json     {image: scene}
    truth/test.json           the same
    corpus.json               the config and the number of pictures; written last, so it means that all is there

Training reads web/ and human/ alone. Every file is a pure function of the config: written twice, the bytes are the
same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from blipcore.io.config_diff import diff_configs
from blipcore.io.writing import write_json
from capfilt.demo import art
from capfilt.demo.language import reference_captions, write_caption
from capfilt.demo.noise import NOISE_MIX, web_text
from capfilt.demo.scenes import INVERSE, Scene, description, draw_scene, sample_scene

JPEG = {
    "format": "JPEG",
    "quality": 92,
    "subsampling": 0,
}  # at this size, halved colour planes would blur small objects
FATES = ("dead", "corrupt", "slow", "opted_out")
REGIONS = (None, *INVERSE)  # of things in a picture: all over it, or on one side
ERROR_PAGE = b"<!doctype html><title>Sign in</title><p>Please sign in to see this picture.</p>\n"


@dataclass(frozen=True)
class CorpusConfig:
    """What to draw; the shares of bad URLs are probabilities per picture."""

    seed: int = 0
    nouns: int = 48
    web: int = 12000  # pictures with web text
    human: int = 2000  # pictures with human captions
    human_captions: int = 1  # captions a human picture
    validation: int = 500
    test: int = 1000
    px: int = 96
    lang: str = "en"  # "en" or "zh"
    dead: float = 0.01  # answered with 404
    corrupt: float = 0.01  # a JPEG cut short, or a page of HTML
    slow: float = 0.001  # answered after `delay` seconds
    opted_out: float = 0.005  # answered with X-Robots-Tag: noai
    delay: float = 2.0
    mix: dict[str, float] = field(default_factory=lambda: dict(NOISE_MIX))

    def __post_init__(self) -> None:
        if self.lang not in ("en", "zh"):
            raise ValueError(f"lang is '{self.lang}'; the embedded corpus speaks 'en' and 'zh'")
        art.nouns(self.nouns)  # refuses a number that the reviewed list cannot give
        if sum(self._fates()) > 1:
            raise ValueError(f"the shares of {', '.join(FATES)} URLs add up to more than 1")

    def _fates(self) -> list[float]:
        return [getattr(self, fate) for fate in FATES]


def write_corpus(config: CorpusConfig, out: Path) -> dict[str, int]:
    """Draw and write everything, unless it is there; returns the number of pictures by part."""
    out = Path(out)
    marker = out / "corpus.json"
    if marker.exists():
        there = _read_json(marker)
        if changes := diff_configs(there["config"], asdict(config)):
            raise ValueError(f"{out} holds another corpus ({'; '.join(changes)}); choose another folder or remove it")
        return there["pictures"]
    nouns = art.nouns(config.nouns)
    _write_web(config, out, nouns)
    _write_human(config, out, nouns)
    for split in ("validation", "test"):
        _write_held_out(config, out, nouns, split)
    pictures = {part: getattr(config, part) for part in ("web", "human", "validation", "test")}
    write_json(marker, {"config": asdict(config), "pictures": pictures})
    return pictures


def url_table(out: Path, base_url: str) -> pa.Table:
    """The table of `web/urls.parquet` with whole URLs: columns url, caption."""
    table = pq.read_table(Path(out) / "web" / "urls.parquet")
    urls = [f"{base_url.rstrip('/')}/{url}" for url in table["url"].to_pylist()]
    return table.set_column(0, "url", pa.array(urls))


def labelled_pictures(seed: int, n: int, px: int, nouns: int = 48) -> Iterator[tuple[Image.Image, list]]:
    """Pictures of one or two kinds of things, with labels [row][column] = (noun, number - 1, place) of each quarter.

    Made to pretrain an image encoder on. `noun` indexes `art.nouns(nouns)`, `place` indexes `REGIONS`: the side of the
    picture that the things are on. Where a relation says that two kinds share the picture, each has its half.
    """
    names = art.nouns(nouns)
    index = made = 0
    while made < n:
        scene = sample_scene(seed, "classes", index, names)
        index += 1
        if len(scene.things) > 1 and not scene.relation:
            continue  # three kinds have no halves
        made += 1
        places = [scene.relation, INVERSE[scene.relation]] if scene.relation else [None]
        labels = {
            place: (names.index(thing.noun), thing.count - 1, REGIONS.index(place))
            for thing, place in zip(scene.things, places, strict=True)
        }
        rows, columns = ("above", "below"), ("left of", "right of")
        yield (
            draw_scene(scene, px),
            [[next(labels[p] for p in (None, r, c) if p in labels) for c in columns] for r in rows],
        )


def _write_web(config: CorpusConfig, out: Path, nouns: Sequence[str]) -> None:
    rows, behaviour = [], {}
    shares = config._fates()
    for index in range(config.web):
        scene = sample_scene(config.seed, "web", index, nouns)
        rng = Random(f"web {config.seed} {index}")
        text = web_text(config.seed, scene, rng, nouns, config.mix, config.lang)
        url = f"{index // 1000:03d}/{index:07d}.jpg"
        fate = rng.choices((*FATES, "ok"), [*shares, 1 - sum(shares)])[0]
        path = out / "www" / url
        if fate == "dead":
            path.unlink(missing_ok=True)  # an interrupted run of another config may have left one
        else:
            _save(draw_scene(scene, config.px), path)
        if fate == "corrupt":
            path.write_bytes(rng.choice((ERROR_PAGE, path.read_bytes()[: path.stat().st_size // 3])))
        if fate == "slow":
            behaviour[url] = {"delay": config.delay}
        if fate == "opted_out":
            behaviour[url] = {"headers": {"X-Robots-Tag": "noai"}}
        row = {"url": url, "caption": text.text, "kind": text.kind, "matches": text.matches, "fate": fate}
        rows.append(row | {"scene": json.dumps(scene.to_dict())})
    write_json(out / "www" / "behaviour.json", behaviour)
    _write_parquet(out / "web" / "urls.parquet", rows, ("url", "caption"))
    _write_parquet(out / "truth" / "web.parquet", rows, ("url", "kind", "matches", "fate", "scene"))


def _write_human(config: CorpusConfig, out: Path, nouns: Sequence[str]) -> None:
    rows = []
    for index in range(config.human):
        scene = sample_scene(config.seed, "human", index, nouns)
        image = f"images/train-{index:06d}.jpg"
        _save(draw_scene(scene, config.px), out / "human" / image)
        for caption in range(config.human_captions):
            text = write_caption(scene, Random(f"human {config.seed} {index} {caption}"), lang=config.lang)
            rows.append({"image": image, "caption": text, "image_id": index})
    write_json(out / "human" / "train.json", rows)


def _write_held_out(config: CorpusConfig, out: Path, nouns: Sequence[str], split: str) -> None:
    rows, distinct, truth = [], {}, {}
    for index in range(getattr(config, split)):
        scene = sample_scene(config.seed, split, index, nouns)
        image = f"images/{split}-{index:06d}.jpg"
        _save(draw_scene(scene, config.px), out / "human" / image)
        row = {"image": image, "caption": reference_captions(scene, config.seed, lang=config.lang), "image_id": index}
        full = reference_captions(scene, config.seed, lang=config.lang, detail=1.0)
        rows.append(row)
        distinct.setdefault(description(scene), row | {"caption": full})
        truth[image] = scene.to_dict()
    write_json(out / "human" / f"{split}.json", rows)
    write_json(out / "human" / f"retrieval_{split}.json", list(distinct.values()))
    write_json(out / "truth" / f"{split}.json", truth)


def read_truth(out: Path, split: str) -> dict[str, Scene]:
    """The scenes of "validation" or "test" by image path as in the annotation file."""
    known = _read_json(Path(out) / "truth" / f"{split}.json")
    return {image: Scene.from_dict(scene) for image, scene in known.items()}


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **JPEG)


def _write_parquet(path: Path, rows: list[dict], columns: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({column: [row[column] for row in rows] for column in columns}), path, compression="zstd")
