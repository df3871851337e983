"""The embedded corpus on disk: noisy web pairs behind URLs, a small human-captioned set, held-out sets, and the truth.

In: a `CorpusConfig`. Out, in one folder:

    web/urls.parquet          url (relative), caption: the pairs to download, as a crawl gives them
    www/                      the pictures to serve; behaviour.json lists the slow and the opted-out ones
    human/images/             pictures of the human-captioned sets
    human/train.json          [{"image", "caption", "image_id"}], one row per caption
    human/validation.json     [{"image", "caption": [5 texts], "image_id"}], the references of a captioner's captions
    human/retrieval_validation.json   the same with complete texts, one picture per distinct description
    human/test.json, human/retrieval_test.json   likewise
    truth/web.parquet         url, kind, matches, fate, scene: the truth about each web pair
    truth/validation.json     {image: scene}
    truth/test.json           likewise
    corpus.json               the config and the numbers of pictures; written last, so it marks a complete corpus

Training reads only web/ and human/. Every file is a pure function of the config, byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from blipcore.io.config_diff import diff_configs
from blipcore.io.writing import write_json
from capfilt.demo import art
from capfilt.demo.language import reference_captions, write_caption
from capfilt.demo.noise import NOISE_MIX, web_text
from capfilt.demo.scenes import INVERSE, Scene, description, draw_scene, sample_scene

PICTURE_QUALITY = 92
FATES = ("dead", "corrupt", "slow", "opted_out")
REGIONS = (None, *INVERSE)  # of a thing in a picture: the whole picture, or one side
QuarterLabel = tuple[int, int, int]  # noun, number - 1, region
ROWS, COLUMNS = ("above", "below"), ("left of", "right of")  # regions of the rows and columns of quarters
ERROR_PAGE = b"<!doctype html><title>Sign in</title><p>Please sign in to see this picture.</p>\n"


@dataclass(frozen=True)
class CorpusConfig:
    """Numbers of pictures, and probabilities of bad URLs."""

    seed: int = 0
    nouns: int = 48
    web: int = 12000  # pictures with web text
    human: int = 2000  # pictures with human captions
    human_captions: int = 1  # per human picture
    validation: int = 500
    test: int = 1000
    px: int = 96
    lang: str = "en"  # "en" or "zh"
    dead: float = 0.01  # answered with 404
    corrupt: float = 0.01  # answered with a truncated JPEG or a page of HTML
    slow: float = 0.001  # answered after `delay` seconds
    opted_out: float = 0.005  # answered with X-Robots-Tag: noai
    delay: float = 2.0
    mix: dict[str, float] = field(default_factory=lambda: dict(NOISE_MIX))

    def __post_init__(self) -> None:
        if self.lang not in ("en", "zh"):
            raise ValueError(f"lang must be 'en' or 'zh', not '{self.lang}'.")
        art.nouns(self.nouns)  # raises ValueError if the number is too large
        if sum(self.fate_shares()) > 1:
            raise ValueError(f"The shares of {', '.join(FATES)} URLs add up to more than 1.")

    def fate_shares(self) -> list[float]:
        return [getattr(self, fate) for fate in FATES]


def write_corpus(config: CorpusConfig, out: Path) -> dict[str, int]:
    """Draw and write the corpus, unless it exists; return the number of pictures by part.

    Raises ValueError if the folder holds a corpus with another config.
    """
    out = Path(out)
    marker = out / "corpus.json"
    if marker.exists():
        existing = _read_json(marker)
        changes = diff_configs(existing["config"], asdict(config))
        if changes:
            raise ValueError(f"{out} holds another corpus ({'; '.join(changes)}); give another folder or remove it.")
        return existing["pictures"]
    nouns = art.nouns(config.nouns)
    _write_web(config, out, nouns)
    _write_human(config, out, nouns)
    for split in ("validation", "test"):
        _write_held_out(config, out, nouns, split)
    pictures = {part: getattr(config, part) for part in ("web", "human", "validation", "test")}
    write_json(marker, {"config": asdict(config), "pictures": pictures})
    return pictures


def url_table(out: Path, base_url: str) -> pa.Table:
    """Return the table of `web/urls.parquet` (url, caption) with absolute URLs."""
    table = pq.read_table(Path(out) / "web" / "urls.parquet")
    urls = [f"{base_url.rstrip('/')}/{url}" for url in table["url"].to_pylist()]
    return table.set_column(0, "url", pa.array(urls))


def labelled_pictures(
    seed: int, n: int, px: int, nouns: int = 48
) -> Iterator[tuple[Image.Image, list[list[QuarterLabel]]]]:
    """Yield n pictures of one or two things, for the pre-training of an image encoder, with a label per quarter.

    The label at [row][column] is (noun, number - 1, region): `noun` indexes `art.nouns(nouns)`, `region` indexes
    `REGIONS`. Two things in a relation have one half of the picture each.
    """
    names = art.nouns(nouns)
    index = yielded = 0
    while yielded < n:
        scene = sample_scene(seed, "classes", index, names)
        index += 1
        if len(scene.things) > 1 and not scene.relation:
            continue  # three things have no halves
        yielded += 1
        regions = [scene.relation, INVERSE[scene.relation]] if scene.relation else [None]
        labels = {
            region: (names.index(thing.noun), thing.count - 1, REGIONS.index(region))
            for thing, region in zip(scene.things, regions, strict=True)
        }
        quarters = [[_quarter_label(labels, row, column) for column in COLUMNS] for row in ROWS]
        yield draw_scene(scene, px), quarters


def _quarter_label(labels: dict[str | None, QuarterLabel], row: str, column: str) -> QuarterLabel:
    """Return the label of the one thing whose region includes a quarter."""
    return next(labels[region] for region in (None, row, column) if region in labels)


def _write_web(config: CorpusConfig, out: Path, nouns: Sequence[str]) -> None:
    rows: list[dict[str, Any]] = []
    behaviour: dict[str, Any] = {}
    shares = config.fate_shares()
    for index in range(config.web):
        scene = sample_scene(config.seed, "web", index, nouns)
        rng = Random(f"web {config.seed} {index}")
        text = web_text(config.seed, scene, rng, nouns, config.mix, config.lang)
        url = f"{index // 1000:03d}/{index:07d}.jpg"
        fate = rng.choices((*FATES, "ok"), [*shares, 1 - sum(shares)])[0]
        path = out / "www" / url
        if fate == "dead":
            path.unlink(missing_ok=True)  # an interrupted run with another config may have written it
        else:
            _save_jpeg(draw_scene(scene, config.px), path)
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
        _save_jpeg(draw_scene(scene, config.px), out / "human" / image)
        for caption in range(config.human_captions):
            text = write_caption(scene, Random(f"human {config.seed} {index} {caption}"), lang=config.lang)
            rows.append({"image": image, "caption": text, "image_id": index})
    write_json(out / "human" / "train.json", rows)


def _write_held_out(config: CorpusConfig, out: Path, nouns: Sequence[str], split: str) -> None:
    rows: list[dict[str, Any]] = []
    distinct: dict[str, dict[str, Any]] = {}
    truth: dict[str, Any] = {}
    for index in range(getattr(config, split)):
        scene = sample_scene(config.seed, split, index, nouns)
        image = f"images/{split}-{index:06d}.jpg"
        _save_jpeg(draw_scene(scene, config.px), out / "human" / image)
        row = {"image": image, "caption": reference_captions(scene, config.seed, lang=config.lang), "image_id": index}
        full = reference_captions(scene, config.seed, lang=config.lang, detail=1.0)
        rows.append(row)
        distinct.setdefault(description(scene), row | {"caption": full})
        truth[image] = scene.to_dict()
    write_json(out / "human" / f"{split}.json", rows)
    write_json(out / "human" / f"retrieval_{split}.json", list(distinct.values()))
    write_json(out / "truth" / f"{split}.json", truth)


def read_truth(out: Path, split: str) -> dict[str, Scene]:
    """Return the scenes of "validation" or "test" by the image path of the annotation file."""
    scenes = _read_json(Path(out) / "truth" / f"{split}.json")
    return {image: Scene.from_dict(scene) for image, scene in scenes.items()}


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _save_jpeg(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Subsampled colour planes would blur small objects at this size.
    picture.save(path, format="JPEG", quality=PICTURE_QUALITY, subsampling=0)


def _write_parquet(path: Path, rows: list[dict[str, Any]], columns: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({column: [row[column] for row in rows] for column in columns}), path, compression="zstd")
