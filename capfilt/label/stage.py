"""`capfilt label`: serves the labelling view of the report to a browser, and saves every answer.

report/label_texts.py   draws the texts
server.py               the page, its pictures and its answers over HTTP
label_file.py           the labels file
"""

from __future__ import annotations

import contextlib
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from capfilt.filter.filtered_set import FilteredSet
from capfilt.filter.labels import LabelMatcher
from capfilt.label.label_file import LabelFile, locked_labels
from capfilt.label.pictures import JpegReader
from capfilt.label.server import LabelServer
from capfilt.report.label_texts import DrawnText, draw_texts, propose_texts
from capfilt.report.label_view import describe_labelling
from capfilt.report.render import created_by, render
from capfilt.shards.shard_set import ShardSet

MAX_TEXTS = 10_000
PLACES = pa.schema([("shard", pa.string()), ("key", pa.string()), ("source", pa.string()), ("index", pa.int32())])
# In the order of their dependencies.
SCRIPTS = ("elements.js", "label_stores.js", "label.js", "label_page.js")


@dataclass
class LabelConfig:
    """Settings of `capfilt label`."""

    # filtered/<name>, or a shard set that was filtered once
    dataset: str
    # labels file, which may exist
    out: str = "labels.csv"
    # texts to label
    number: int = 300
    # of the draw of texts
    seed: int = 0
    # random: all at random; proposed: a quarter at random, the others by their scores, see `capfilt.filter.propose`
    order: Literal["random", "proposed"] = "random"
    # address to listen at; any other than 127.0.0.1 can be reached by other machines
    host: str = "127.0.0.1"
    # 0 for any that is free
    port: int = 8765

    def __post_init__(self) -> None:
        if not 1 <= self.number <= MAX_TEXTS:
            raise ValueError(f"number must be from 1 to {MAX_TEXTS:,}, not {self.number}.")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port must be from 0 to 65535, not {self.port}.")
        if "://" in self.out or not self.out.endswith(".csv") or Path(self.out).is_dir():
            raise ValueError(f"out is a local file whose name ends in .csv, such as labels.csv, not {self.out}.")


def label_texts(config: LabelConfig) -> dict[str, Any]:
    """Serve the labelling view until Ctrl-C; return a summary.

    Raises ValueError or FileNotFoundError for wrong inputs, FolderLockedError if another process writes the labels.
    """
    data = FilteredSet.open(config.dataset)
    with locked_labels(Path(config.out)) as labels:
        draw = propose_texts if config.order == "proposed" else draw_texts
        texts = draw(data, config.number, config.seed)
        _check_labels(labels, data)
        with open_server(config, data, texts, labels) as server:
            host = socket.gethostname() if config.host in ("0.0.0.0", "::") else config.host
            host = f"[{host}]" if ":" in host else host
            number = len(server.answers())
            _log(
                f"http://{host}:{server.server_port}/ shows {len(texts):,} texts, {number:,} of them labelled; "
                f"answers are saved in {config.out}. Ctrl-C ends."
            )
            if not server.is_local:
                _log("everybody who can reach this port can see the pictures and change the labels")
            with contextlib.suppress(KeyboardInterrupt):
                server.serve_forever(poll_interval=0.2)
            answers = list(server.answers().values())
        counts = {
            name: answers.count(answer) for name, answer in (("right", "1"), ("wrong", "0"), ("unsure", "unsure"))
        }
        left = len(texts) - len(answers)
        return {"stage": "label", "out": config.out, "texts": len(texts), **counts, "left": left, "labels": len(labels)}


def open_server(config: LabelConfig, data: FilteredSet, texts: list[DrawnText], labels: LabelFile) -> LabelServer:
    view = describe_labelling(data, texts, config.seed, config.out)

    def render_page(answers: dict[str, str]) -> str:
        label = {**view, "served": True, "answers": answers}
        content = {"datasets": [], "label": label, "created_by": created_by()}
        return render(content, "labels", data.folder.name, SCRIPTS, own_requests=True)

    pictures = JpegReader(ShardSet(data.images, [path.stem for path in data.tables]))
    try:
        return LabelServer((config.host, config.port), texts, labels, pictures, render_page)
    except OSError as error:
        raise ValueError(
            f"Cannot listen at {config.host}, port {config.port} ({error.strerror or error}); give another --port or "
            "--host."
        ) from None


def _check_labels(labels: LabelFile, data: FilteredSet) -> None:
    """Raise ValueError if no label of a file is of this data set; report the number of labels of other texts."""
    places = labels.places()
    matcher = LabelMatcher(pa.Table.from_pylist([place._asdict() for place in places], schema=PLACES))
    if places:
        for shard in data.read_shards():
            matcher.find(shard.shard, shard.table)
    others = len(places) - matcher.found_count
    if others and not matcher.found_count:
        raise ValueError(
            f"{labels.path} has labels of another data set, the first of key {places[0].key}; "
            "give another file with --out."
        )
    if others:
        _log(f"{labels.path} keeps {others:,} labels of texts that {data.folder.name} does not have")


def _log(message: str) -> None:
    print(f"label: {message}", file=sys.stderr, flush=True)
