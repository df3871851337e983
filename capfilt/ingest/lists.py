"""A list in a file in, rows of the columns asked for out: the URL lists of `download`, the annotations of `pack`.

Reads txt (one value a line), csv, tsv, json, jsonl (each also .gz) and Parquet, from a path or an fsspec URL. Memory
holds a block of the file at a time, so a list may be as long as the disk allows.
"""

from __future__ import annotations

import csv
import hashlib
import json
import zlib
from codecs import BOM_UTF8, getincrementaldecoder
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from itertools import chain, islice
from json import JSONDecodeError
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq

FORMATS = ("txt", "csv", "tsv", "json", "jsonl", "parquet")
BLOCK = 1 << 22  # bytes of text parsed at a time; a single row must fit in
PARQUET_ROWS = 10_000  # read at a time
A_PAGE_AT_A_TIME = {"pre_buffer": False, "buffer_size": 1 << 20}  # or a row group, which may be all of the file
LONGEST_ITEM = 1 << 26  # characters of a JSON list's item
TO_FIND_NAMES = 1_000  # objects of a JSON list whose names count as its columns


class Column(NamedTuple):
    """A column to look for: by the name given, or else by names in use, compared in lower case."""

    what: str  # what it holds, for messages: "a URL"
    usual: tuple[str, ...]  # the commonest first
    given: str | None
    option: str  # by which the user names it
    needed: bool = True


def kind_of(path: str) -> str | None:
    """Which of FORMATS a file name says it is, None for another."""
    kind = path.removesuffix(".gz").rpartition(".")[2].lower()
    return kind if kind in FORMATS else None


def read_rows(path: str, columns: Sequence[Column]) -> Iterator[tuple[Any, ...]]:
    """Values of these columns, row by row, None for a column that is not there.

    Mistakes are ValueError or FileNotFoundError in one sentence: those about the file and its columns at once, those
    further down when their place is reached.
    """
    kind = kind_of(path)
    if "://" not in path and not Path(path).expanduser().is_file():
        raise FileNotFoundError(f"No file at {path}.")
    if kind is None:
        raise ValueError(f"{path} is of no known kind; its name must end in .{', '.join(FORMATS)} (or .gz after it).")
    rows = _read(path, kind, columns)
    first = next(rows, None)
    if first is None:
        raise ValueError(f"{path} has no rows.")
    return chain([first], rows)


def fingerprint(path: str) -> str:
    """sha256 of a file, its first 16 hex digits."""
    import fsspec

    with fsspec.open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()[:16]


def as_text(value: object) -> str | None:
    """A value as a text: what is neither text nor null is written as JSON."""
    if value is None:
        return None
    if isinstance(value, bytes):
        raise ValueError("The URL and caption columns must hold text, not bytes.")
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text.encode("utf-8", errors="replace").decode("utf-8")  # JSON may hold half of a surrogate pair


def _read(path: str, kind: str, columns: Sequence[Column]) -> Iterator[tuple[Any, ...]]:
    read = {"txt": _lines, "parquet": _parquet, "json": _json, "jsonl": _jsonl}.get(kind, _csv)
    try:
        yield from read(path, columns)
    except (
        pa.ArrowInvalid,
        OSError,
        zlib.error,
        EOFError,
        RecursionError,
        UnicodeDecodeError,
        JSONDecodeError,
    ) as error:
        if not is_damage(error):
            raise
        why = " ".join(str(error).split())[:300]
        if "straddling object" in why:  # arrow's words for a row that does not fit into a block
            why = f"a row is longer than {BLOCK >> 20} MB, as where a quote is not closed."
        raise ValueError(f"{path} cannot be read as {kind}: {why}") from None


def is_damage(error: Exception) -> bool:
    """Whether a reader's error is about what a file holds rather than how it is reached."""
    return not isinstance(error, OSError) or (error.errno is None and not isinstance(error, FileNotFoundError))


@contextmanager
def _open(path: str) -> Iterator[BinaryIO]:
    import fsspec

    with fsspec.open(path, "rb", compression="gzip" if path.endswith(".gz") else None) as file:
        yield file


# ---------------------------------------------------------------------------------------------------- the formats


def _lines(path: str, columns: Sequence[Column]) -> Iterator[tuple[Any, ...]]:
    nothing = (None,) * (len(columns) - 1)
    with _open(path) as file:
        for line in file:
            if value := line.removeprefix(BOM_UTF8).decode("utf-8", errors="replace").strip():
                yield value, *nothing


def _csv(path: str, columns: Sequence[Column]) -> Iterator[tuple[Any, ...]]:
    delimiter = "\t" if kind_of(path) == "tsv" else ","
    with _open(path) as file:
        header = file.readline().decode("utf-8-sig").rstrip("\r\n")
    names = next(csv.reader([header], delimiter=delimiter), [])
    wanted = choose(names, columns, path)
    suspicious: str | None = _swallowed(names, wanted[0], delimiter)
    as_strings = arrow_csv.ConvertOptions(
        column_types={name: pa.string() for name in names},
        strings_can_be_null=False,
        include_columns=list(dict.fromkeys(names)),  # a quote may swallow rows in a column that nobody wants
    )
    layout = arrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    blocks = arrow_csv.ReadOptions(block_size=BLOCK, use_threads=False)
    with (
        _open(path) as file,
        arrow_csv.open_csv(file, read_options=blocks, parse_options=layout, convert_options=as_strings) as reader,
    ):
        for batch in reader:
            if suspicious and (cell := _first_like(suspicious, batch)) is not None:
                _require_closed(path, delimiter, cell)
                suspicious = None  # well-formed all through: such cells are meant
            yield from _transposed(batch, wanted)


def _swallowed(names: Sequence[str], first: str | None, delimiter: str) -> str:
    """What a cell looks like that may have swallowed rows, since a quote in it is not closed: a regular expression.

    In a tsv that is a tab beside a line's end. Commas and line ends stand in captions too: there it is a line of as
    many cells as the file has columns, with a URL or a picture's name where the file has them.
    """
    if delimiter == "\t":
        return r"(?s)\t.*\n|\n.*\t"
    at = names.index(first) if first in names else 0
    named = r'[ "]*(?:[A-Za-z0-9]+://[^\n,]*|[^\n,]*\.(?i:jpe?g|png|webp|gif|bmp|tiff?|avif|heic)"? *)'
    return rf"\n(?:[^\n,]*,){{{at}}}{named}(?:,[^\n,]*){{{len(names) - 1 - at}}}(?:\n|$)"


def _first_like(pattern: str, batch: pa.RecordBatch) -> str | None:
    found = (column.filter(pc.match_substring_regex(column, pattern)) for column in batch.columns)
    return next((cells[0].as_py() for cells in found if len(cells)), None)


def _require_closed(path: str, delimiter: str, cell: str) -> None:
    """ValueError unless every quote of the file is closed at the end of its cell; `cell` looks as if one was not."""
    with _open(path) as file, TextIOWrapper(file, encoding="utf-8", errors="replace", newline="") as text:
        try:
            for _ in csv.reader(text, delimiter=delimiter, strict=True):
                pass
        except csv.Error:
            begun = f'"{cell[:60]}'.split("\n")[0]
            what = f"a quote that is not closed, in the cell that begins {begun!r}"
            raise ValueError(f"{path} has {what}; remove such quotes, or give JSON lines or Parquet.") from None


def _parquet(path: str, columns: Sequence[Column]) -> Iterator[tuple[Any, ...]]:
    with _open(path) as file, pq.ParquetFile(file, **A_PAGE_AT_A_TIME) as parquet:
        wanted = choose(parquet.schema_arrow.names, columns, path)
        # never the other columns: they may be large
        named = list(dict.fromkeys(filter(None, wanted)))
        for batch in parquet.iter_batches(PARQUET_ROWS, columns=named, use_threads=False):
            yield from _transposed(batch, wanted)


def _transposed(batch: pa.RecordBatch, wanted: Sequence[str | None]) -> Iterator[tuple[Any, ...]]:
    nothing = [None] * batch.num_rows
    return zip(*(nothing if name is None else batch.column(name).to_pylist() for name in wanted), strict=True)


def _jsonl(path: str, columns: Sequence[Column]) -> Iterator[tuple[Any, ...]]:
    with _open(path) as file:
        yield from _of_objects((json.loads(line) for line in file if line.strip()), columns, path)


def _json(path: str, columns: Sequence[Column]) -> Iterator[tuple[Any, ...]]:
    with _open(path) as file:
        yield from _of_objects(_items(file), columns, path)


def _of_objects(objects: Iterator[Any], columns: Sequence[Column], path: str) -> Iterator[tuple[Any, ...]]:
    head = list(islice(objects, TO_FIND_NAMES))
    if head and all(isinstance(item, str) for item in head):  # a list of strings is a list of the first column
        nothing = (None,) * (len(columns) - 1)
        for item in chain(head, objects):
            yield _require(item, str), *nothing
        return
    names = list(dict.fromkeys(name for item in head for name in _require(item, dict)))
    wanted = choose(names, columns, path) if head else []
    for item in chain(head, objects):
        yield tuple(None if name is None else _require(item, dict).get(name) for name in wanted)


def _require(item: Any, kind: type) -> Any:
    if not isinstance(item, kind):
        raise pa.ArrowInvalid("it must be a list of objects, one a row")
    return item


def _items(file: BinaryIO) -> Iterator[Any]:
    """Items of a JSON list one after the other; the file is never held as a whole."""
    decoder, blocks = json.JSONDecoder(), _decoded(file)
    text, at = next(blocks, ""), 0

    def mark() -> str:
        """The next character that is no blank, "" at the end of the file."""
        nonlocal text, at
        while True:
            while at < len(text) and text[at] in " \t\r\n\ufeff":
                at += 1
            if at < len(text):
                return text[at]
            text, at = next(blocks, ""), 0
            if not text:
                return ""

    def ended() -> bool:
        nonlocal at
        if mark() != "]":
            return False
        at += 1
        if mark():  # such as a second list, whose rows nobody would miss
            raise JSONDecodeError("Extra data", text, at)
        return True

    if mark() != "[":
        raise pa.ArrowInvalid("it must be a list of objects, one a row")
    at += 1
    if ended():
        return
    while True:
        mark()
        try:
            item, at = decoder.raw_decode(text, at)
        except JSONDecodeError:  # wrong, or cut by the end of the block
            more = next(blocks, "") if len(text) - at < LONGEST_ITEM else ""
            if not more:
                raise
            text, at = text[at:] + more, 0
            continue
        yield item
        if ended():
            return
        if mark() != ",":
            raise JSONDecodeError("Expecting ',' delimiter", text, at)
        at += 1


def _decoded(file: BinaryIO) -> Iterator[str]:
    decoder = getincrementaldecoder("utf-8")()
    while block := file.read(BLOCK):
        if text := decoder.decode(block):
            yield text
    decoder.decode(b"", final=True)


# ---------------------------------------------------------------------------------------------------- columns


def choose(names: Sequence[str], columns: Sequence[Column], path: str) -> list[str | None]:
    """The file's own name of each column; ValueError when one that is named or needed is not there."""
    chosen: list[str | None] = []
    for column in columns:
        if column.given is not None and column.given not in names:
            raise ValueError(f"{path} has no column '{column.given}' ({column.option}); it has {', '.join(names)}.")
        found = column.given or _usual(names, column.usual)
        if found is None and column.needed:
            looks = f"no column that looks like {column.what}; name it with {column.option}"
            raise ValueError(f"{path} has {looks}: {', '.join(names)}.")
        chosen.append(found)
    return chosen


def _usual(names: Sequence[str], usual: tuple[str, ...]) -> str | None:
    lower = {name.lower(): name for name in reversed(names)}
    return next((lower[name] for name in usual if name in lower), None)
