"""Finds the files of a list, opens them, and splits text files into lines of bounded length."""

from __future__ import annotations

import codecs
import hashlib
import json
import lzma
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import pyarrow as pa

from blipcore.io.storage import Remote, list_files, open_file_system, to_path
from blipcore.io.text_encoding import BYTE_ORDER_MARKS
from capfilt.ingest.inputs.splits import file_split, select_split

# suffix -> format
FORMATS = {
    **{name: name for name in ("txt", "csv", "tsv", "json", "jsonl", "parquet", "arrow")},
    "tab": "tsv",
    "ndjson": "jsonl",
    "feather": "arrow",
}
COMPRESSIONS = {"gz": "gzip", "bz2": "bz2", "xz": "xz", "zst": "zstd"}  # suffix -> name in fsspec
BLOCK_BYTES = 1 << 20  # read at a time
MAX_LINE_BYTES = 1 << 22  # a longer line is one row that cannot be read
LFS_POINTER = b"version https://git-lfs"  # begins a file that Git LFS has not fetched
SAMPLE_BYTES = 1 << 20  # from which encoding, line ends, delimiter and header are found


@dataclass(frozen=True)
class ListOptions:
    """Settings for reading a list; empty ones are detected."""

    format: str = ""  # one of FORMATS
    no_header: bool = False
    columns: tuple[str, ...] = ()  # names of the columns of a list without a header
    quoting: Literal["", "none", "double", "backslash"] = ""
    encoding: str = ""
    split: str = ""  # of several files: one, several joined by "+", or "all"

    def __post_init__(self) -> None:
        if self.format and self.format not in FORMATS:
            raise ValueError(f"'{self.format}' is not a format of lists; it must be one of {', '.join(FORMATS)}.")
        if self.encoding:
            try:
                "".encode(self.encoding)
            except LookupError:
                raise ValueError(f"'{self.encoding}' is not a text encoding, such as cp1252 or utf-16.") from None

    def refuse(self, path: str, content: str, *names: str) -> None:
        """Raise ValueError if one of these options is given, because the `content` of a file has no use for it."""
        for name in names:
            if getattr(self, name):
                raise ValueError(f"--{name.replace('_', '-')} does not apply to {content} such as {path}.")


def split_names(names: str) -> tuple[str, ...]:
    """Return the names of columns that are joined by commas."""
    return tuple(name.strip() for name in names.split(",")) if names else ()


class ListRow(NamedTuple):
    """The cells of the requested columns in a row. With an `error`, cells that cannot be read are None."""

    cells: tuple[Any, ...]
    error: str | None = None  # file, line or row, and the reason


def list_format(path: str) -> str | None:
    """Return the format by the suffix of a path or URL, None if it has none of `FORMATS`."""
    return FORMATS.get(_suffixes(path)[0])


def _suffixes(path: str) -> tuple[str, str]:
    """Return the suffixes for the format and the compression, "" if missing. A URL may end with a query."""
    location = path.partition("::")[0]
    if location.startswith(("http://", "https://")):
        location = location.partition("#")[0].partition("?")[0]
    parts = location.rpartition("/")[2].lower().split(".")
    compression = parts.pop() if len(parts) > 1 and parts[-1] in COMPRESSIONS else ""
    return parts[-1] if len(parts) > 1 else "", compression


def find_list_files(path: str, file_format: str = "") -> list[str]:
    """Return the files of a list: a file, the files below a folder, or those that match a pattern, sorted.

    Patterns may have `*`, `?`, `[...]` and `{00..31}`. Raises FileNotFoundError or ValueError.
    """
    files = _existing_files(path)
    if len(files) == 1 and files[0] == path:
        return files
    if any(file.endswith("/state.json") for file in files):
        return _saved_dataset_files(path, files)
    visible = [file for file in files if not file.rpartition("/")[2].startswith((".", "_"))]
    formats: dict[str, list[str]] = {}
    for file in visible:
        formats.setdefault(list_format(file) or "", []).append(file)
    if file_format:
        return formats.get(FORMATS[file_format]) or visible
    formats.pop("", None)  # a README, a licence
    if len(formats) > 1:
        counts = ", ".join(f"{len(names)} {name}" for name, names in formats.items())
        most = max(formats, key=lambda name: len(formats[name]))
        pattern = f"{path}/**/*.{most}"
        raise ValueError(f"{path} holds files of several formats ({counts}); give a pattern, such as '{pattern}'.")
    if not formats:
        raise ValueError(f"{path} holds no list; the names of its files must end in .{', .'.join(FORMATS)}.")
    return next(iter(formats.values()))


def _saved_dataset_files(path: str, files: list[str]) -> list[str]:
    """Return the Arrow files of a dataset saved by Hugging Face `datasets`, in their order."""
    ordered = []
    for state in (file for file in files if file.endswith("/state.json")):
        content = json.loads(to_path(state).read_text(encoding="utf-8"))
        if content.get("_indices_files") or content.get("_indices_data_files"):
            raise ValueError(f"{path} selects rows of other files; save it with `flatten_indices()` first.")
        ordered += [f"{state.rpartition('/')[0]}/{file['filename']}" for file in content["_data_files"]]
    return ordered


def _existing_files(path: str) -> list[str]:
    location = to_path(path)
    if path.startswith(("http://", "https://")) or "::" in path:
        return [path]  # a "?" begins a query; access shows whether it exists
    if location.is_file():
        return [path]
    if location.is_dir():
        files = [str(location / name) for name, size in list_files(location).items() if size >= 0]
    elif any(character in path for character in "*?[{"):
        files = _match_pattern(path)
    else:
        raise FileNotFoundError(f"No file at {path}.")
    if not files:
        raise FileNotFoundError(f"No file matches {path}." if not location.exists() else f"{path} holds no files.")
    return sorted(files)


def _match_pattern(pattern: str) -> list[str]:
    from braceexpand import braceexpand

    try:
        patterns = list(dict.fromkeys(braceexpand(pattern)))
    except ValueError:  # a brace without its partner is a character
        patterns = [pattern]
    matches: list[str] = []
    for part in patterns:
        location = to_path(part)
        if isinstance(location, Remote):
            scheme = location.url.partition("://")[0]
            fs, inner = open_file_system(location.url)
            matches += [f"{scheme}://{name.lstrip('/')}" for name in fs.glob(inner)]
        else:
            import glob

            matches += [name for name in glob.glob(str(location), recursive=True) if Path(name).is_file()]
    return matches


def choose_files(files: list[str], options: ListOptions, path: str) -> tuple[list[str], tuple[str, ...]]:
    """Return the files of the chosen splits, and these splits; ValueError if there are several and none is chosen."""
    if len(files) == 1 and not options.split:
        return files, ()
    folder = os.path.commonpath(files) if len(files) > 1 else os.path.dirname(files[0])
    return select_split(files, lambda file: file_split(file[len(folder) + 1 :]), options.split or None, path)


def file_fingerprint(*paths: str) -> str:
    """Return 16 hex digits of the SHA-256 of a file, or of several."""
    digests = [_file_digest(file) for file in paths]
    return (digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest())[:16]


def _file_digest(path: str) -> str:
    import fsspec

    digest = hashlib.sha256()
    with fsspec.open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def is_damage(error: Exception) -> bool:
    """Return whether a reader's error is about the content of a file, not about access to it."""
    return not isinstance(error, OSError) or (error.errno is None and not isinstance(error, FileNotFoundError))


@contextmanager
def open_list_file(path: str) -> Iterator[BinaryIO]:
    """Open a file of a list, decompressed by its suffix."""
    import fsspec

    compression = COMPRESSIONS.get(_suffixes(path)[1])
    if compression != "zstd":
        with fsspec.open(path, "rb", compression=compression) as file:
            yield file
    else:
        with fsspec.open(path, "rb") as file, pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd") as stream:
            yield stream


@contextmanager
def name_damage(path: str, file_format: str) -> Iterator[None]:
    """Turn the errors of damaged content into a ValueError that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"No file at {path}.") from None
    except (pa.ArrowException, OSError, zlib.error, lzma.LZMAError, EOFError, UnicodeError) as error:
        if not is_damage(error):
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"{path} cannot be read as {file_format}: {reason}") from None


# ---------------------------------------------------------------------------------------------------- text


def find_encoding(start: bytes) -> tuple[str, int]:
    """Return the encoding of a file and the length of its byte order mark.

    Without a mark it is UTF-8, or UTF-16 if every second byte of the first lines is mostly zero.
    """
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if start.startswith(mark):
            return encoding, len(mark)
    head = start[:4096]
    if head[1::2].count(0) > len(head) // 5:
        return "utf-16-le", 0
    if head[::2].count(0) > len(head) // 5:
        return "utf-16-be", 0
    return "utf-8", 0


class Utf8File:
    """The content of a text file as UTF-8, from any encoding. Bytes that are no text stay invalid.

    `sample` is the first part of the content.
    """

    def __init__(self, file: BinaryIO, encoding: str = "") -> None:
        self._file = file
        start = file.read(SAMPLE_BYTES)
        found, mark = find_encoding(start)
        self.encoding = encoding or found
        if encoding and codecs.lookup(encoding).name.startswith(("utf-16", "utf-32")):
            self.encoding = found if found[:6] == codecs.lookup(encoding).name[:6] else encoding
        elif encoding and found != "utf-8":
            mark = 0
        self._decoder: codecs.IncrementalDecoder | None = None
        name = codecs.lookup(self.encoding).name
        if name not in ("utf-8", "ascii"):
            errors = "surrogatepass" if name.startswith(("utf-16", "utf-32")) else "surrogateescape"
            self._decoder = codecs.getincrementaldecoder(self.encoding)(errors)
        self.sample = self._pending = self._to_utf8(start[mark:])

    def read(self, size: int = BLOCK_BYTES) -> bytes:
        """Return the next bytes, about `size`; empty only at the end."""
        block, self._pending = self._pending, b""
        while not block:
            raw = self._file.read(size)
            block = self._to_utf8(raw)
            if not raw:
                break
        return block

    def seek(self, offset: int) -> None:
        """Skip to an offset of the UTF-8 content, directly after opening."""
        while offset > 0:
            block = self.read()
            if not block:
                break
            self._pending = block[offset:]
            offset -= len(block)

    def _to_utf8(self, raw: bytes) -> bytes:
        if self._decoder is None:
            return raw
        try:
            return self._decoder.decode(raw, final=not raw).encode("utf-8", "surrogatepass")
        except UnicodeDecodeError:  # half a character at the end of the file
            self._decoder = None
            return b"\xff"


def line_end(sample: bytes) -> bytes:
    """Return the character that ends lines: carriage returns end them only if the sample has no line feed."""
    return b"\r" if b"\n" not in sample and b"\r" in sample else b"\n"


def read_lines(file: Utf8File) -> Iterator[bytes | None]:
    """Yield the lines of a file without their ends, None for a line longer than MAX_LINE_BYTES."""
    end = line_end(file.sample)
    rest, too_long = b"", False
    while block := file.read():
        first, *lines = block.split(end)
        rest += first
        if len(rest) > MAX_LINE_BYTES:
            rest, too_long = b"", True
        if not lines:
            continue
        yield None if too_long else rest
        *complete, rest = lines
        too_long = False
        yield from complete
    if rest or too_long:
        yield None if too_long else rest


def decode_line(line: bytes) -> str:
    """Return a line as text. Invalid bytes become surrogates, which `has_invalid_bytes` finds."""
    return line.decode("utf-8", "surrogateescape")


def has_invalid_bytes(value: object) -> bool:
    """Return whether a text, or a text in a list or dict, has bytes that are not valid text."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON may also hold half of a surrogate pair
            return any("\udc80" <= character <= "\udcff" for character in value)
        return False
    if isinstance(value, (list, tuple)):
        return any(map(has_invalid_bytes, value))
    if isinstance(value, dict):
        return any(has_invalid_bytes(item) for pair in value.items() for item in pair)
    return False
