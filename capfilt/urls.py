"""A list of URLs with or without captions in, a table of the columns `url` and `caption` out.

Reads txt, csv, tsv, json, jsonl (each also .gz) and Parquet. Also says which URLs are not worth a request.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import ipaddress
import json
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq

# Column names in use for the two, the commonest first; compared in lower case.
URL_NAMES = ("url", "image_url", "img_url", "imageurl", "image_link", "link", "src")
CAPTION_NAMES = ("caption", "text", "alt", "alt_text", "alttext", "title", "description", "txt")
FORMATS = ("txt", "csv", "tsv", "json", "jsonl", "parquet")


def read_urls(path: str | Path, url_col: str | None = None, caption_col: str | None = None) -> pa.Table:
    """Rows of the input in their order as strings: `url` and `caption`, null where there is none.

    Columns are found by their usual names unless named; mistakes are ValueError or FileNotFoundError in one sentence.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No URL list at {path}.")
    kind = path.name.removesuffix(".gz").rpartition(".")[2].lower()
    if kind not in FORMATS:
        raise ValueError(f"{path} is of no known kind; its name must end in .{', .'.join(FORMATS)} (or .gz after it).")
    try:
        with _open(path) as file:
            if kind == "txt":
                lines = (line.decode("utf-8", errors="replace").strip() for line in file)
                table = pa.table({"url": pa.array([line for line in lines if line], pa.string())})
            elif kind == "parquet":
                table = _read_parquet(file, url_col, caption_col, path)
            elif kind in ("csv", "tsv"):
                table = _read_csv(file, "," if kind == "csv" else "\t")
            else:
                table = _read_json(file, lines=kind == "jsonl")
    except (pa.ArrowInvalid, gzip.BadGzipFile, EOFError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read as {kind}: {' '.join(str(error).split())[:300]}") from None
    url, caption = _choose(table.column_names, url_col, caption_col, path)
    if table.num_rows == 0:
        raise ValueError(f"{path} has no rows.")
    captions = _strings(table[caption]) if caption else pa.nulls(table.num_rows, pa.string())
    return pa.table({"url": _strings(table[url]), "caption": captions})


def fingerprint(path: str | Path) -> str:
    """sha256 of a file, its first 16 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def wire_url(url: str | None) -> str:
    """The URL as it goes over the wire, percent-encoded and with an ASCII host; ValueError says why it is none."""
    url = (url or "").strip()
    if not url:
        raise ValueError("no URL")
    parts = urlsplit(url)  # ValueError for a broken IPv6 host
    if parts.scheme.lower() not in ("http", "https"):
        raise ValueError(f"not an http(s) URL: {url[:100]}")
    host = parts.hostname
    if not host or any(letter <= " " for letter in host):
        raise ValueError(f"no host in the URL: {url[:100]}")
    try:
        ascii_host = host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError:
        raise ValueError(f"not a host name: {host[:100]}") from None
    bracketed = f"[{ascii_host}]" if ":" in ascii_host else ascii_host
    place = bracketed if parts.port is None else f"{bracketed}:{parts.port}"
    # "%" stays: what is encoded already is not encoded twice
    path = quote(parts.path, safe="/%:@!$&'()*+,;=~-._")
    query = quote(parts.query, safe="/?%:@!$&'()*+,;=~-._[]|")
    return urlunsplit((parts.scheme.lower(), place, path, query, ""))


def is_public(address: str) -> bool:
    """Whether an IP address lies on the open internet: not private, loopback, link-local, reserved or multicast."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return ip.is_global and not ip.is_multicast


def is_private_host(host: str) -> bool:
    """Whether a URL's host says by itself that it is private; names are looked up later, when a connection is made."""
    if host.rstrip(".").lower() == "localhost" or host.rstrip(".").lower().endswith((".localhost", ".local")):
        return True
    try:
        return not is_public(host)
    except ValueError:
        return False


def _open(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.name.endswith(".gz") else open(path, "rb")


def _read_parquet(file: BinaryIO, url_col: str | None, caption_col: str | None, path: Path) -> pa.Table:
    with pq.ParquetFile(file) as parquet:
        wanted = _choose(parquet.schema_arrow.names, url_col, caption_col, path)
        return parquet.read(columns=[name for name in wanted if name])  # never the other columns: they may be large


def _read_csv(file: BinaryIO, delimiter: str) -> pa.Table:
    content = file.read()
    header = content.split(b"\n", 1)[0].decode("utf-8-sig").strip("\r")
    names = next(csv.reader([header], delimiter=delimiter), [])
    as_text = arrow_csv.ConvertOptions(column_types={name: pa.string() for name in names}, strings_can_be_null=False)
    layout = arrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    return arrow_csv.read_csv(pa.BufferReader(content), parse_options=layout, convert_options=as_text)


def _read_json(file: BinaryIO, lines: bool) -> pa.Table:
    rows = [json.loads(line) for line in file if line.strip()] if lines else json.load(file)
    if isinstance(rows, list) and all(isinstance(row, str) for row in rows):
        rows = [{"url": row} for row in rows]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise pa.ArrowInvalid("it must be a list of objects, each with its URL and caption")
    names: dict[str, None] = {name: None for row in rows[:1000] for name in row}
    return pa.table({name: pa.array([_text(row.get(name)) for row in rows], pa.string()) for name in names})


def _text(value: object) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", errors="replace").decode("utf-8")  # JSON may hold half of a surrogate pair


def _strings(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        raise ValueError("The URL and caption columns must hold text, not bytes.")
    return column.cast(pa.string())


def _choose(names: list[str], url_col: str | None, caption_col: str | None, path: Path) -> tuple[str, str | None]:
    url = _named(names, url_col, "--url-col", path) if url_col else _usual(names, URL_NAMES)
    caption = _named(names, caption_col, "--caption-col", path) if caption_col else _usual(names, CAPTION_NAMES)
    if url is None:
        raise ValueError(f"{path} has no column that looks like a URL; name it with --url-col: {', '.join(names)}.")
    return url, caption


def _named(names: list[str], name: str, option: str, path: Path) -> str:
    if name not in names:
        raise ValueError(f"{path} has no column '{name}' ({option}); it has {', '.join(names)}.")
    return name


def _usual(names: list[str], usual: tuple[str, ...]) -> str | None:
    lower = {name.lower(): name for name in reversed(names)}
    return next((lower[name] for name in usual if name in lower), None)
