"""The on-disk format, all of it: tars of pictures in, tables beside them out, present means complete.

A shard set is img2dataset's webdataset layout: `00000.tar` with `key.jpg key.txt key.json`, and `00000.parquet` with
one row an input row. Stages add tables next to it and never touch the tars. Every file has one writer and appears
under its name only when it is whole. Bad data is named, never an exception; a bad path is one sentence.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Container, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from capfilt.storage import Place, Remote, committed, join, names, open_read, place, read_tail

# Columns of the four kinds of tables. SCORES are followed by one float32 column a score; a filtered table is a table of
# scores followed by VERDICT.
IMAGES = pa.schema(
    [
        ("key", pa.string()),
        ("url", pa.string()),
        ("caption", pa.string()),  # the web text as it came; null where the input had none
        ("status", pa.string()),  # "ok" or the outcome that kept the picture away
        ("error", pa.string()),  # the raw message behind the outcome
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("sha256", pa.string()),  # of the stored bytes
        ("dhash", pa.string()),  # difference hash, 16 hex digits: pictures that look alike differ in few bits
        ("bytes", pa.int64()),
    ]
)
CAPTIONS = pa.schema(
    [
        ("key", pa.string()),
        ("index", pa.int32()),
        ("text", pa.string()),  # null exactly where `error` says why there is none
        ("logprob", pa.float32()),  # null where the captioner does not tell
        ("error", pa.string()),
    ]
)
SCORES = pa.schema([("key", pa.string()), ("source", pa.string()), ("index", pa.int32()), ("text", pa.string())])
VERDICT = pa.schema([("keep", pa.bool_()), ("reason", pa.string()), ("url", pa.string()), ("sha256", pa.string())])

WEB = "web"  # the `source` of a text that came with the picture; any other source is a captioner's name
ROW_GROUP = 10_000
PICTURE_SUFFIXES = frozenset(["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2", "ppm"])


def scores_schema(columns: Iterable[str]) -> pa.Schema:
    """Schema of a `scores/<name>` table with these score columns (float32)."""
    return pa.schema([*SCORES, *((name, pa.float32()) for name in columns)])


def filtered_schema(columns: Iterable[str]) -> pa.Schema:
    """Schema of a `filtered/<name>` table with these score columns (float32)."""
    return pa.schema([*scores_schema(columns), *VERDICT])


# ---------------------------------------------------------------------------------------------------- shard sets


@dataclass(frozen=True)
class ShardSet:
    """A folder of `NNNNN.tar` files, with or without tables beside them."""

    path: Place
    shards: list[str]

    @staticmethod
    def open(path: str | Place) -> ShardSet:
        """List the shards of a folder; FileNotFoundError or ValueError in one sentence when it is no shard set.

        One listing, however many shards: no tar and no table is opened.
        """
        folder = place(path)
        if isinstance(folder, Path) and folder.is_file():
            raise ValueError(f"{folder} is a file; give the folder that holds the .tar shards.")
        listed = [name for name in names(folder) if not name.startswith(".")]
        if not listed and (isinstance(folder, Remote) or not folder.exists()):
            raise FileNotFoundError(f"No folder at {folder}.")
        manifest = read_manifest(folder)
        shards = [name[: -len(".tar")] for name in listed if name.endswith(".tar")]
        if manifest is not None and manifest.get("stage") in ("download", "pack"):
            tables = set(listed)  # these commit the table last: a tar without one is not finished
            shards = [shard for shard in shards if f"{shard}.parquet" in tables]
        if not shards:
            raise ValueError(_why_no_shards(folder, listed, manifest))
        return ShardSet(folder, shards)

    def tar(self, shard: str) -> Place:
        return self.path / f"{shard}.tar"

    def table(self, shard: str) -> Place:
        """Where the shard's image table lies, if it has one."""
        return self.path / f"{shard}.parquet"

    def about(self, shard: str, columns: Iterable[str]) -> pa.Table:
        """`key` and those of these columns that the shard's own table has; no columns where it tells nothing.

        In a set of others the table may be missing, cut short or of another kind, and the pictures are there all the
        same.
        """
        try:
            table = read_table(self.table(shard), [], optional=("key", *columns))
        except (FileNotFoundError, ValueError):
            return pa.table({})
        return table if "key" in table.column_names else pa.table({})


def _why_no_shards(folder: Place, names: list[str], manifest: dict | None) -> str:
    if manifest is not None and "images" in manifest:
        stage, images = manifest["stage"], join(folder, manifest["images"])
        return f"{folder} is the output of '{stage}', not a shard set; its pictures are in {images}."
    if manifest is not None:
        return f"{folder} has no finished shard yet; run the same `capfilt {manifest['stage']}` again to finish it."
    if any(name.endswith(".parquet") for name in names):
        return f"{folder} holds Parquet but no .tar shards; a shard set needs img2dataset's 'webdataset' output format."
    return f"{folder} is not a shard set: it holds no .tar files."


# ---------------------------------------------------------------------------------------------------- reading tars


@dataclass
class Picture:
    """One sample of a shard; `image` is empty exactly when `error` names why its bytes cannot be had."""

    key: str
    image: bytes
    text: str | None = None
    meta: dict = field(default_factory=dict)
    error: str | None = None


class Problem(NamedTuple):
    """Something in a tar that is no sample: `reason` from a closed list, `member` the name it concerns."""

    reason: str  # truncated_tar, corrupt_tar, link_member, unsafe_name, duplicate_member, foreign_member
    member: str


class Member(NamedTuple):
    """A regular file inside a tar: where its bytes lie."""

    name: str
    offset: int
    size: int


def read_pictures(
    tar_path: str | Place, problems: list[Problem] | None = None, keys: Container[str] | None = None
) -> Iterator[Picture]:
    """Samples of a tar in the order of their first members, each key once; what is wrong is appended to `problems`.

    With `keys` only these, and of the others no more than the headers is read. A key is the member's name up to the
    first dot of its basename, as webdataset has it. Members of one sample need not be adjacent. A sample without a
    readable picture comes with `error` = `no_picture` or `truncated_tar`.
    """
    problems = [] if problems is None else problems
    with open_read(place(tar_path)) as file:
        end = file.seek(0, io.SEEK_END)
        for key, parts in index_pictures(file, end, problems).items():
            if keys is not None and key not in keys:
                continue
            text, meta = read_words(file, end, parts)
            image = _read_member(file, end, parts.get("image"))
            if image is None:
                yield Picture(key, b"", text, meta, error="truncated_tar" if "image" in parts else "no_picture")
            else:
                yield Picture(key, image, text, meta)


def index_pictures(file: BinaryIO, end: int, problems: list[Problem]) -> dict[str, dict[str, Member]]:
    """Key -> its members ("image", "text", "meta") of a tar of `end` bytes, in the order of their first members."""
    samples: dict[str, dict[str, Member]] = {}
    for member in walk_tar(file, end, problems):
        split = _split(member.name, problems)
        if split is None:
            continue
        key, part = split
        parts = samples.setdefault(key, {})
        first = parts.setdefault(part, member)
        if _dotted(first) and not _dotted(member):
            parts[part] = member
        elif first is not member and _dotted(first) == _dotted(member):
            problems.append(Problem("duplicate_member", member.name))
    return samples


def _dotted(member: Member) -> bool:
    """Whether a name has more dots than one: beside 0.jpg, 0.depth.png is another field; alone it is the picture."""
    return member.name.rpartition("/")[2].count(".") > 1


def read_words(file: BinaryIO, end: int, parts: dict[str, Member]) -> tuple[str | None, dict]:
    """The text and the JSON object of a sample; the text may lie in the object as its "caption"."""
    raw_text, raw_meta = _read_member(file, end, parts.get("text")), _read_member(file, end, parts.get("meta"))
    try:
        meta = json.loads(raw_meta) if raw_meta else {}
    except (ValueError, RecursionError):  # covers JSON and Unicode mistakes, and brackets in brackets
        meta = {}
    meta = meta if isinstance(meta, dict) else {}
    text = meta.get("caption") if raw_text is None else raw_text.decode("utf-8", errors="replace")
    if not isinstance(text, str):
        return None, meta
    return text.encode("utf-8", errors="replace").decode("utf-8"), meta  # JSON may hold half of a surrogate pair


def _read_member(file: BinaryIO, end: int, member: Member | None) -> bytes | None:
    if member is None or member.offset + member.size > end:
        return None
    file.seek(member.offset)
    return file.read(member.size)


def _split(name: str, problems: list[Problem]) -> tuple[str, str] | None:
    """("00012", "image" | "text" | "meta") of a member, None for what is none of ours."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    if name.startswith("/") or ".." in name.split("/"):
        problems.append(Problem("unsafe_name", name))
        return None
    stem, dot, suffix = base.partition(".")
    last = suffix.rpartition(".")[2].lower()
    part = "image" if last in PICTURE_SUFFIXES else {"txt": "text", "json": "meta"}.get(last)
    if not stem or not dot:  # .DS_Store, README
        problems.append(Problem("foreign_member", name))
        return None
    if part is None:  # another field of the sample, as webdataset allows: 00012.cls
        return None
    return folder + slash + stem, part


def walk_tar(file: BinaryIO, end: int, problems: list[Problem], position: int = 0) -> Iterator[Member]:
    """Regular members of a tar of `end` bytes by walking its headers (ustar, GNU long names, PAX paths).

    Our own walk, since the standard library's stops without a word at a damaged header.
    """
    long_name, member = None, ""
    while position + 512 <= end:
        file.seek(position)
        header = file.read(512)
        if header.count(0) == 512:  # the end mark; what follows is padding
            return
        size = _number(header[124:136])
        if size is None or size < 0 or not _checksum_fits(header):  # below 0 the walk would go back for ever
            problems.append(Problem("corrupt_tar", f"byte {position}, after {member!r}"))
            return
        kind, data = header[156:157], position + 512
        position = data + -(-size // 512) * 512
        if kind in b"LxgK":
            content = file.read(min(size, 1 << 20))
            if kind == b"L":
                long_name = content.rstrip(b"\0").decode("utf-8", errors="replace")
            elif kind == b"x":
                long_name = _pax_path(content) or long_name
            continue
        member, long_name = long_name or _header_name(header), None
        if kind in (b"0", b"\0", b"7"):
            yield Member(member, data, size)
        elif kind != b"5":
            problems.append(Problem("link_member", member))
    problems.append(Problem("truncated_tar", member))


def _number(raw: bytes) -> int | None:
    if raw[:1] == b"\x80":
        return int.from_bytes(raw[1:], "big")
    try:
        return int(raw.split(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        return None


def _checksum_fits(header: bytes) -> bool:
    return _number(header[148:156]) == sum(header) - sum(header[148:156]) + 8 * 32


def _header_name(header: bytes) -> str:
    name = header[:100].split(b"\0")[0]
    prefix = header[345:500].split(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", errors="replace")


def _pax_path(content: bytes) -> str | None:
    found = re.search(rb"(?:^|\n)\d+ path=([^\n]*)\n", content)
    return found.group(1).decode("utf-8", errors="replace") if found else None


# ---------------------------------------------------------------------------------------------------- writing


def write_table(
    path: Place, table: pa.Table, counts: dict[str, int] | None = None, *, make_folder: bool = True
) -> None:
    """Write Parquet with the same bytes for the same rows; `counts` travel in its footer, see `read_counts`.

    Without `make_folder` one that was removed during a run does not come back with half of its tables.
    """
    if make_folder:
        path.parent.mkdir(parents=True, exist_ok=True)
    footer = {b"capfilt": json.dumps(counts, sort_keys=True).encode()} if counts is not None else None
    with committed(path) as file:
        pq.write_table(table.replace_schema_metadata(footer), file, compression="zstd", row_group_size=ROW_GROUP)


def read_table(path: Place, columns: list[str] | None = None, optional: Iterable[str] = ()) -> pa.Table:
    """Read a table, or the named columns of it and those of the `optional` ones that it has.

    An unreadable file or a missing column is one ValueError sentence.
    """
    try:
        source = io.BytesIO(path.read_bytes()) if isinstance(path, Remote) else open_read(path)
    except (FileNotFoundError, IsADirectoryError):
        raise FileNotFoundError(f"No table at {path}.") from None
    try:
        with source, pq.ParquetFile(source) as file:
            there = file.schema_arrow.names
            missing = [name for name in columns or () if name not in there]
            if missing:
                raise ValueError(f"{path} has no column '{missing[0]}'; it has {', '.join(there)}.")
            wanted = None if columns is None else [*columns, *(name for name in optional if name in there)]
            return file.read(columns=wanted).replace_schema_metadata(None)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is not a readable Parquet file ({_one_line(error)}).") from None


def counts_of_each(paths: Iterable[Place]) -> list[dict[str, int]]:
    """The counts in the footers of tables."""

    def counts(path: Place) -> dict[str, int]:
        # a reader starts at the end of a file, so that the tail is a Parquet file to it
        tail = read_tail(path)
        footer = int.from_bytes(tail[-8:-4], "little") + 8
        schema = pq.read_schema(pa.BufferReader(tail if footer <= len(tail) else read_tail(path, footer)))
        return json.loads((schema.metadata or {}).get(b"capfilt", b"{}"))

    with ThreadPoolExecutor(16, thread_name_prefix="counts") as pool:  # a remote footer costs a round trip
        return list(pool.map(counts, paths))


def read_counts(paths: Iterable[Place]) -> dict[str, int]:
    """Sum of the counts in the footers of tables: the same however many runs it took to write them."""
    total: dict[str, int] = {}
    for of_table in counts_of_each(paths):
        for name, count in of_table.items():
            total[name] = total.get(name, 0) + count
    return dict(sorted(total.items()))


def write_json(path: Place, content: dict) -> None:
    """Write indented JSON, atomically, into a folder that is made if need be."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Place, content: str) -> None:
    """Write UTF-8, atomically, into a folder that is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with committed(path) as file:
        file.write(content.encode("utf-8"))


def suffix_of(data: bytes) -> str:
    """File suffix that belongs to the bytes: jpg, png, webp, gif, ...; jpg where it is unknown."""
    if data[:3] == b"\xff\xd8\xff":
        return "jpg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return {b"GIF8": "gif", b"II*\0": "tif", b"MM\0*": "tif"}.get(data[:4], "bmp" if data[:2] == b"BM" else "jpg")


def write_shard(path: Place, pictures: Iterable[Picture], *, make_folder: bool = True) -> None:
    """Write a tar of `key.jpg`, `key.txt` (where there is a text) and `key.json`: same pictures, same bytes."""
    from webdataset import TarWriter  # imports torch, so only where it is used

    if make_folder:
        path.parent.mkdir(parents=True, exist_ok=True)
    with committed(path) as file, TarWriter(file, encoder=False, mtime=0, format="PAX_FORMAT") as tar:
        for picture in pictures:
            sample = {"__key__": picture.key, suffix_of(picture.image): picture.image}
            if picture.text is not None:
                sample["txt"] = picture.text.encode("utf-8", errors="replace")
            if picture.meta:
                sample["json"] = json.dumps(picture.meta, ensure_ascii=False).encode("utf-8", errors="replace")
            tar.write(sample)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


# ---------------------------------------------------------------------------------------------------- manifests

MANIFEST = "manifest.json"


def read_manifest(folder: Place) -> dict | None:
    """The manifest of an output folder of ours, None where there is none (an img2dataset folder, say)."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        raise ValueError(f"{folder / MANIFEST} is not valid JSON; delete the folder and run again.") from None
    return content if isinstance(content, dict) and "stage" in content else None


def images_of(folder: Place) -> Place:
    """The shard set that a table folder of ours was made from."""
    manifest = read_manifest(folder)
    if manifest is None or "images" not in manifest:
        raise ValueError(f"{folder} has no manifest.json that says where its pictures are.")
    return join(folder, manifest["images"])
