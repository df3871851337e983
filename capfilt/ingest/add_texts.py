"""`capfilt pack --texts`: adds texts to a shard set, or replaces its web texts, without touching its pictures.

The texts become captions/NAME, one table per shard, like those of a captioner; `capfilt filter` and the trainer read
them from there. The name `web` stands for the web texts: captions/web holds those of all pictures, new or as they were,
and replaces the texts in the tars.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from blipcore.io.lock import lock_folder
from blipcore.io.samples import IndexedTar, choose_text
from blipcore.io.storage import AnyPath
from capfilt.engine.run import run_shards
from capfilt.engine.worker import Worker
from capfilt.ingest.lists.list_files import ListOptions, file_fingerprint
from capfilt.ingest.lists.rows import ListColumn, cell_texts, find_columns, open_list
from capfilt.ingest.lists.urls import CAPTION_COLUMNS, URL_COLUMNS
from capfilt.shards.format import CAPTIONS, WEB
from capfilt.shards.manifest import Manifest
from capfilt.shards.shard_set import ShardSet
from capfilt.shards.tables import write_table

KEY_COLUMNS = ("key", "__key__")

TextId = tuple[str | None, str]  # shard, None for any, and key; or "url" and the URL


@dataclass
class TextsConfig:
    """Settings of `capfilt pack --texts`."""

    # shard set to add texts to
    data: str
    # list with a column of keys or URLs and one or more of texts
    texts: str
    # of the texts, `web` to replace the web texts; default: the file's name
    name: str = ""
    # columns of texts; default: one of the usual names
    caption_col: list[str] = field(default_factory=list)
    # of text files; default: by a byte order mark, else UTF-8
    encoding: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            self.name = re.sub(r"[^\w+-]|^\W+", "", PurePosixPath(self.texts).name.partition(".")[0])
        if not re.fullmatch(r"\w[\w.+-]*", self.name):
            raise ValueError(f"name must consist of letters, digits and . _ + -, not '{self.name}'.")


@dataclass
class TextsStage:
    """Writes the texts of the pictures of a shard."""

    images: ShardSet
    folder: AnyPath
    texts: dict[TextId, list[str]]
    by_url: bool
    found: dict[TextId, str]  # texts of a key and the shard that has it
    name: str = "texts"

    def output(self, shard: str) -> AnyPath:
        return self.folder / f"{shard}.parquet"

    def setup(self, device: str) -> None:
        """Load nothing."""

    def run(self, shard: str, worker: Worker) -> dict[str, int]:
        rows = [
            {"key": key, "index": index, "text": text}
            for key, texts in self._texts_of_pictures(shard)
            for index, text in enumerate(texts)
        ]
        counts = {"captions": len(rows)}
        write_table(self.output(shard), pa.Table.from_pylist(rows, schema=CAPTIONS), counts, make_folder=False)
        return counts

    def _texts_of_pictures(self, shard: str) -> Iterator[tuple[str, list[str]]]:
        own = self.images.read_own_table(shard, ("url", "caption")).to_pylist()
        rows = {row["key"]: row for row in own}
        replaces = self.folder.name == WEB
        with IndexedTar(self.images.tar(shard)) as tar:
            for key, members in tar.samples.items():
                if members.image is None:
                    continue
                row = rows.get(key, {})
                metadata = tar.read_metadata(members) if replaces or (self.by_url and "url" not in row) else {}
                texts = self._find(shard, key, row.get("url", metadata.get("url")))
                if texts is None and replaces:
                    text = choose_text(tar.read_text(members, metadata), row.get("caption"))
                    texts = [] if text is None else [text]
                yield key, texts or []

    def _find(self, shard: str, key: str, url: object) -> list[str] | None:
        """Return the new texts of a picture, None if it has none."""
        ids: list[TextId] = [("url", str(url))] if self.by_url else [(shard, key), (None, key)]
        for text_id in ids:
            if text_id in self.texts:
                other = self.found.setdefault(text_id, shard)
                if other != shard and not self.by_url:
                    raise ValueError(
                        f"The key {key} exists in {other} and in {shard}; add a column 'shard' with the tar's name."
                    )
                return self.texts[text_id]
        return None


def add_texts(config: TextsConfig, *, progress: bool = True) -> dict[str, Any]:
    """Write the texts to captions/NAME of a shard set; return a summary.

    Raises ValueError or FileNotFoundError for a list without keys, URLs or texts, and if it has no picture of the set.
    """
    images = ShardSet.open(config.data)
    texts, by_url = _read_texts(config)
    folder = images.path / "captions" / config.name
    settings = {"texts_sha256": file_fingerprint(config.texts), "caption_col": config.caption_col}
    with lock_folder(folder):
        manifest = Manifest.begin(folder, "caption", settings, images=images.path, packages=("pyarrow",))
        stage = TextsStage(images, folder, texts, by_url, {})
        run = run_shards(stage, images.shards, device="cpu", progress=progress)
        if run.done == len(images.shards) and not stage.found:
            shutil.rmtree(str(folder), ignore_errors=True)
            first = next(iter(texts))[1]
            raise ValueError(
                f"None of the {len(texts):,} {'URLs' if by_url else 'keys'} of {config.texts} is in {config.data}; "
                f"the first is {first}."
            )
        counts = manifest.record_run(
            {shard: stage.output(shard) for shard in images.shards}, images.shards, run.failed, changed=run.done > 0
        )
    # A resumed run does not know what its earlier part has found.
    unused = [] if run.skipped else [text_id[1] for text_id in texts if text_id not in stage.found]
    return {
        "stage": "texts",
        "name": config.name,
        "out": str(folder),
        "listed": len(texts),
        "not_in_the_set": {"number": len(unused), "first": unused[0]} if unused else {},
        "shards": {"done": run.done, "skipped": run.skipped, "failed": run.failed},
        "counts": counts,
    }


def _read_texts(config: TextsConfig) -> tuple[dict[TextId, list[str]], bool]:
    """Return the texts by picture, and whether pictures are named by URLs."""
    rows = open_list(config.texts, ListOptions(encoding=config.encoding))
    key, shard, url = find_columns(
        rows,
        [
            ListColumn("a key", KEY_COLUMNS, None, "", required=False),
            ListColumn("a shard", ("shard",), None, "", required=False),
            ListColumn("a URL", URL_COLUMNS, None, "", required=False),
        ],
    )
    if key is None and url is None:
        raise ValueError(f"{config.texts} has no column 'key' or 'url'; its columns are {', '.join(rows.names)}.")
    wanted = [ListColumn("a text", (), name, "--caption-col") for name in config.caption_col]
    columns = find_columns(rows, wanted or [ListColumn("a text", CAPTION_COLUMNS, None, "--caption-col")])
    texts: dict[TextId, list[str]] = {}
    bad, first_error = 0, None
    names = [key or url, *([shard] if key and shard else []), *filter(None, columns)]
    for row in rows.read([name for name in names if name]):
        if row.error is not None or row.cells[0] is None:
            bad, first_error = bad + 1, first_error or row.error or "a row without a key or URL"
            continue
        cells = list(row.cells[1:])
        of_shard = PurePosixPath(str(cells.pop(0))).stem if key and shard else None
        text_id = (of_shard, str(row.cells[0])) if key else ("url", str(row.cells[0]))
        texts.setdefault(text_id, []).extend(text for cell in cells for text in cell_texts(cell) if text is not None)
    if bad:
        raise ValueError(f"{bad:,} rows of {config.texts} cannot be used; the first: {first_error}. Correct the list.")
    if not any(text.strip() for of_picture in texts.values() for text in of_picture):
        raise ValueError(f"{config.texts} has no text in any row; name the column with --caption-col.")
    return texts, key is None
