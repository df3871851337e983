"""`capfilt inspect`: shows how an input would be read, and its first rows. Nothing is fetched or written."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal

import pyarrow.compute as pc

from blipcore.io.storage import AnyPath, existing_paths, list_names, to_path
from capfilt.ingest.account import Account
from capfilt.ingest.inputs.input import InputOptions
from capfilt.ingest.inputs.open import open_input
from capfilt.ingest.lists.list_files import ListOptions, list_format, split_names
from capfilt.ingest.lists.url_list import UrlList
from capfilt.shards.format import IMAGES, SCORES, VERDICT, WEB
from capfilt.shards.manifest import image_folder, read_manifest
from capfilt.shards.shard_set import ShardSet
from capfilt.shards.tables import read_table

MAX_ROWS = 1_000_000  # read at most for the counts
FIRST_ROWS = 5
OPTIONS_OF_LISTS = ("--columns", "--caption-col", "--split")  # an error that names one is about a list of URLs
LIST_KIND = "list"  # of --kind: a list of URLs


@dataclass
class InspectConfig:
    """Settings of `capfilt inspect`: those of `download` and `pack` that say how to read an input."""

    source: str
    kind: str = ""  # default: found from the input
    split: str = ""
    annotations: str | None = None
    url_col: str | None = None
    image_col: str | None = None
    caption_col: list[str] = field(default_factory=list)
    no_header: bool = False
    columns: str = ""
    quoting: Literal["", "none", "double", "backslash"] = ""
    encoding: str = ""

    def list_options(self) -> ListOptions:
        """Return how to read a list."""
        return ListOptions("", self.no_header, split_names(self.columns), self.quoting, self.encoding, self.split)


@dataclass
class Inspection:
    """An account, the first rows, the command that reads this input, and why that would refuse it."""

    account: Account
    rows: list[dict[str, Any]]
    command: str
    problem: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON summary."""
        return {
            "stage": "inspect",
            "account": self.account.to_dict(),
            "rows": [_to_json(row) for row in self.rows],
            "command": self.command,
            "problem": self.problem,
        }


def inspect(config: InspectConfig) -> Inspection:
    """Find what an input is; FileNotFoundError or ValueError if it is nothing that can be read."""
    path = to_path(config.source)
    manifest = read_manifest(path) if path.is_dir() else None
    if manifest is not None and manifest["stage"] == "filter":
        return _inspect_filtered_set(path)
    if manifest is not None and manifest["stage"] in ("download", "pack"):
        return _inspect_shard_set(path, manifest)
    if manifest is not None:
        raise ValueError(f"{path} holds tables of '{manifest['stage']}'; inspect their shards, {image_folder(path)}.")
    urls = _open_urls(config, path)
    return _inspect_input(config) if urls is None else _inspect_urls(config, urls)


# ---------------------------------------------------------------------------------------------------- inputs


def _open_urls(config: InspectConfig, path: AnyPath) -> UrlList | None:
    """Open the source as a list of URLs, None if it is another input."""
    wanted = config.kind == LIST_KIND or config.url_col is not None
    if not wanted and (config.kind or config.annotations or config.image_col or not _may_be_list(config.source, path)):
        return None
    try:
        urls = UrlList(config.source, config.url_col, config.caption_col, config.list_options())
    except (ValueError, FileNotFoundError) as error:
        if wanted or "*" in config.source or any(option in str(error) for option in OPTIONS_OF_LISTS):
            raise
        return None
    return urls if wanted or not urls.list.byte_columns else None


def _may_be_list(source: str, path: AnyPath) -> bool:
    if path.is_dir():
        names = [name for name in list_names(path) if not name.startswith((".", "_"))]
        return bool(names) and all(list_format(name) in ("parquet", "csv", "tsv", "jsonl", "arrow") for name in names)
    return list_format(source) is not None


def _inspect_urls(config: InspectConfig, urls: UrlList) -> Inspection:
    rows = urls.rows()
    first = [
        {"url": row["url"], "text": row["caption"], "further texts": row["more"], **row.get("columns", {})}
        | ({"error": row["error"]} if row.get("error") else {})
        for row in islice(rows, FIRST_ROWS)
    ]
    complete = _exhaust(rows)
    try:
        urls.check()
        problem = None
    except ValueError as error:
        problem = str(error)
    return Inspection(_note_part(urls.account, complete), first, _command("download", config), problem)


def _command(name: str, config: InspectConfig) -> str:
    """Return the command that reads the source, with the given options."""
    words = ["capfilt", name, config.source, "DATA"]
    for option, value in vars(config).items():
        if value and option != "source" and (option, value) != ("kind", LIST_KIND):
            flag = f"--{option.replace('_', '-')}"
            for item in value if isinstance(value, list) else [value]:
                words += [flag] if item is True else [flag, item]
    return shlex.join(words)


def _inspect_input(config: InspectConfig) -> Inspection:
    options = InputOptions(
        annotations=config.annotations,
        image_col=config.image_col,
        caption_col=tuple(config.caption_col),
        kind=config.kind or None,
        split=config.split or None,
        encoding=config.encoding or None,
        no_header=config.no_header,
        columns=split_names(config.columns),
        quoting=config.quoting,
    )
    source = open_input(config.source, options)
    rows, first, problem, complete = iter(source), [], None, True
    try:
        for row in islice(rows, FIRST_ROWS):
            texts = [text for text in row["texts"] if text is not None]
            shown = {"picture": row["url"], "text": texts[0] if texts else None, "further texts": texts[1:]}
            first.append(shown | row.get("columns", {}) | ({"error": row["error"]} if row.get("error") else {}))
        complete = _exhaust(rows)
    except ValueError as error:
        problem = str(error)
    return Inspection(_note_part(source.account, complete), first, _command("pack", config), problem)


def _exhaust(rows: Iterator[Any]) -> bool:
    """Read further rows for the counts, and return whether these were all."""
    read = sum(1 for _ in islice(rows, MAX_ROWS))
    return read < MAX_ROWS


def _note_part(account: Account, complete: bool) -> Account:
    if complete:
        return account
    return replace(account, notes=(*account.notes, f"The counts are those of the first {account.rows:,} rows."))


# ---------------------------------------------------------------------------------------------------- sets of capfilt


def _inspect_shard_set(path: AnyPath, manifest: dict[str, Any]) -> Inspection:
    data = ShardSet.open(path)
    first: list[dict[str, Any]] = []
    outcomes: Counter[str] = Counter()
    with_text = 0
    tables, complete = _some_tables([data.table(shard) for shard in data.shards])
    kept: dict[str, None] = {}
    for table in tables:
        rows = read_table(table)
        kept.update(dict.fromkeys(name for name in rows.column_names if name not in IMAGES.names))
        outcomes.update(rows["status"].to_pylist())
        with_text += _count_texts(rows["caption"])
        if len(first) < FIRST_ROWS:
            names = [name for name in rows.column_names if name not in ("dhash", "sha256", "bytes")]
            first += rows.select(names).slice(0, FIRST_ROWS - len(first)).to_pylist()
    texts = {WEB: with_text}
    for name in _subfolders(path / "captions"):
        captions = existing_paths(path / "captions" / name / table.name for table in tables)
        texts[name] = sum(_count_texts(read_table(table, ["text"])["text"]) for table in captions)
    filtered = _subfolders(path / "filtered")
    notes = [f"outcomes: {', '.join(f'{count:,} {outcome}' for outcome, count in outcomes.most_common())}"]
    notes += [f"filtered sets: {', '.join(filtered)}"] * bool(filtered)
    account = Account(
        f"shard set made by `capfilt {manifest['stage']}`",
        len(data.shards),
        "tars with a table each",
        picture="members of the tars",
        texts=texts,
        kept=tuple(kept),
        rows=sum(outcomes.values()),
        rows_with_text=with_text,
        notes=tuple(notes + _part_note(complete)),
    )
    return Inspection(account, first, f"capfilt caption {path} --model M")


def _inspect_filtered_set(path: AnyPath) -> Inspection:
    names = [name for name in list_names(path) if name.endswith(".parquet")]
    tables, complete = _some_tables([path / name for name in sorted(names)])
    first: list[dict[str, Any]] = []
    reasons: Counter[str] = Counter()
    texts: Counter[str] = Counter()
    with_text, kept = 0, dict[str, None]()
    for table in tables:
        rows = read_table(table)
        kept.update(dict.fromkeys(name for name in rows.column_names if name not in {*SCORES.names, *VERDICT.names}))
        reasons.update(rows["reason"].to_pylist())
        texts.update(rows.filter(rows["keep"])["source"].to_pylist())
        with_text += _count_texts(rows["text"])
        if len(first) < FIRST_ROWS:
            columns = [name for name in rows.column_names if name != "sha256"]
            first += rows.select(columns).slice(0, FIRST_ROWS - len(first)).to_pylist()
    account = Account(
        "filtered set",
        len(names),
        "a table per shard, one row per text",
        picture=f"the shard set {image_folder(path)}",
        texts=dict(texts),
        kept=tuple(kept),
        rows=sum(reasons.values()),
        rows_with_text=with_text,
        notes=(
            "texts are the kept ones by source",
            f"reasons: {', '.join(f'{count:,} {reason}' for reason, count in reasons.most_common())}",
            *_part_note(complete),
        ),
    )
    return Inspection(account, first, f"capfilt export {path} OUT")


def _some_tables(tables: list[AnyPath]) -> tuple[list[AnyPath], bool]:
    """Return the existing tables up to 100, and whether these are all."""
    return sorted(existing_paths(tables[:100]), key=str), len(tables) <= 100


def _part_note(complete: bool) -> list[str]:
    return [] if complete else ["The counts are those of the first 100 shards."]


def _count_texts(column: Any) -> int:
    return pc.sum(pc.not_equal(pc.utf8_trim_whitespace(column.cast("string")), "")).as_py() or 0


def _subfolders(path: AnyPath) -> list[str]:
    return [name for name in list_names(path) if not name.startswith(".") and (path / name).is_dir()]


# ---------------------------------------------------------------------------------------------------- printing


def print_inspection(inspection: Inspection) -> None:
    """Print the account and a table of the first rows on stdout."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=160)
    print("\n".join([*inspection.account.to_lines(), f"{'read by':<8}  {inspection.command}"]), flush=True)
    if not inspection.rows:
        return
    cells = (cell for row in inspection.rows for cell in row.items())
    names = list(dict.fromkeys(name for name, value in cells if value not in (None, [])))
    table = Table(*map(escape, names), title="first rows", title_justify="left")
    for row in inspection.rows:
        table.add_row(*(escape(_cell(row.get(name))) for name in names))
    console.print(table)


def _cell(value: Any) -> str:
    text = "" if value is None else " | ".join(map(str, value)) if isinstance(value, list) else str(value)
    text = "".join(character if character.isprintable() else " " for character in text)
    return text if len(text) <= 200 else text[:200] + "…"


def _to_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _to_json(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_json(item) for item in value]
    if isinstance(value, float) and value != value:
        return None
    return value if value is None or isinstance(value, (str, int, float)) else str(value)
