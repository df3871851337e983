"""Where files lie: a local path, or an object behind any fsspec URL (`s3://`, `gs://`, ...), under the same few names.

A `Remote` knows the part of `pathlib.Path` that the stages use, so these say `folder / "00000.parquet"` and `.exists()`
of both. Reading fetches ranges ahead of the reader; a file appears whole or not at all; every request is tried again
with growing waits before a run hears of a network's bad moment.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import posixpath
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")

TRIES = 5  # of a request, and FIRST_WAIT seconds before the second, doubled from there on
FIRST_WAIT = 0.5
BLOCK = 8 << 20  # bytes of a range request: enough for a full stream, little enough to repeat
AHEAD = 4  # blocks in flight beyond the one that is read
EXTRAS = {"s3": "s3", "s3a": "s3"}  # protocol -> extra of ours that brings its package
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
# What a file system says to a request that it does not know: CIFS to the fsync of a folder, NFS without locks to flock.
UNKNOWN = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
# A request that fails with one of these fails again.
PERMANENT = (FileNotFoundError, FileExistsError, PermissionError, NotADirectoryError, IsADirectoryError)
PERMANENT += (ValueError, TypeError, AttributeError, ImportError, NotImplementedError)


@dataclass(frozen=True, order=True)
class Remote:
    """A file or folder behind an fsspec URL."""

    url: str  # without a slash at the end

    def __truediv__(self, part: str) -> Remote:
        scheme, _, rest = self.url.partition("://")
        return Remote(f"{scheme}://{posixpath.normpath(posixpath.join(rest, part))}")

    def __str__(self) -> str:
        return self.url

    def __fspath__(self) -> str:
        raise TypeError(f"{self.url} is not a local file.")  # rather than a file of that name in the working folder

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def stem(self) -> str:
        return posixpath.splitext(self.name)[0]

    @property
    def parent(self) -> Remote:
        return self / ".."

    def with_name(self, name: str) -> Remote:
        return self.parent / name

    def resolve(self) -> Remote:
        return self

    def is_relative_to(self, other: Any) -> bool:
        return f"{self.url}/".startswith(f"{other}/")

    def exists(self) -> bool:
        return self._kind() is not None

    def is_file(self) -> bool:
        return self._kind() == "file"

    def is_dir(self) -> bool:
        return self._kind() == "directory"

    def _kind(self) -> str | None:
        """What lies there; fsspec's own questions answer no when the network has a bad moment."""
        try:
            return self._ask(lambda fs, path: fs.info(path)["type"])
        except FileNotFoundError:
            return None

    def iterdir(self) -> Iterator[Remote]:
        return (self / name for name in list_names(self))

    def glob(self, pattern: str) -> Iterator[Remote]:
        """Entries of this folder that match; no `**`."""
        return (self / name for name in list_names(self) if fnmatch.fnmatchcase(name, pattern))

    def read_bytes(self) -> bytes:
        return self._ask(lambda fs, path: fs.cat_file(path))

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def write_bytes(self, data: bytes) -> None:
        self._ask(lambda fs, path: fs.pipe_file(path, data))

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self._ask(lambda fs, path: fs.rm_file(path))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """The folder and those above it, where folders are more than the beginnings of names."""
        self._ask(lambda fs, path: _has_folders(fs) and fs.makedirs(path, exist_ok=True))

    def _ask(self, request: Callable[[Any, str], T]) -> T:
        """Ask the file system, which is told to trust no listing of its own memory: others write there too."""

        def attempt() -> T:
            fs, path = _file_system(self.url)
            fs.invalidate_cache()
            return request(fs, path)

        return _patiently(attempt, self.url)


AnyPath: TypeAlias = Path | Remote


def to_path(path: str | Path | Remote) -> AnyPath:
    """The place that a path or URL means; `~` and `file://` are local."""
    if isinstance(path, Remote | Path):
        return path
    scheme, separator, rest = path.partition("://")
    if not separator:
        return Path(path).expanduser()
    if scheme in ("file", "local"):
        return Path(rest)
    return Remote(f"{scheme}://{rest.rstrip('/')}")


def resolve_reference(folder: AnyPath, reference: str) -> AnyPath:
    """The place that `reference`, relative to `folder` or whole, means."""
    if "://" in reference or os.path.isabs(reference):
        return to_path(reference)
    return (folder / reference).resolve()


# ---------------------------------------------------------------------------------------------------- listing


def list_names(folder: AnyPath) -> list[str]:
    """Names in a folder, sorted, by one listing; none where there is no folder."""
    try:
        if isinstance(folder, Path):
            return sorted(os.listdir(folder))
        found = folder._ask(lambda fs, path: set(fs.ls(path, detail=False)) - {path, f"{path}/"})
    except FileNotFoundError:
        return []
    return sorted({name.rstrip("/").rpartition("/")[2] for name in found})


def existing(places: Iterable[AnyPath]) -> set[AnyPath]:
    """Those of the files that exist, by one listing for each folder whatever their number."""
    by_folder: dict[AnyPath, dict[str, AnyPath]] = {}
    for one in places:
        by_folder.setdefault(one.parent, {})[one.name] = one
    return {files[name] for folder, files in by_folder.items() for name in list_names(folder) if name in files}


def modified_time(path: AnyPath) -> float:
    """When a file was last written, by the clock of where it lies, in seconds since 1970."""
    if isinstance(path, Path):
        return path.stat().st_mtime
    return path._ask(lambda fs, inner: fs.modified(inner)).timestamp()


def file_size(path: AnyPath) -> int:
    """Bytes of a file."""
    return path.stat().st_size if isinstance(path, Path) else path._ask(lambda fs, inner: fs.info(inner)["size"])


def list_files(folder: AnyPath) -> dict[str, int]:
    """Name, seen from the folder, -> bytes of each file in it and in the folders in it; nothing that is hidden.

    A folder's own files come before those of the folders in it, both by name. A link to nowhere has -1 bytes, as has a
    folder that is not entered, closed or behind a link, whose name ends in a slash.
    """
    if isinstance(folder, Path):
        found: dict[str, int] = {}

        def closed(error: OSError) -> None:
            if Path(error.filename) == folder:
                raise error
            found[f"{Path(error.filename).relative_to(folder).as_posix()}/"] = -1

        for where, inside, here in os.walk(folder, onerror=closed):
            inside[:] = sorted(name for name in inside if not name.startswith("."))
            links = (path for path in (Path(where, name) for name in inside) if path.is_symlink())
            found.update((f"{path.relative_to(folder).as_posix()}/", -1) for path in links)
            for file in (Path(where, name) for name in sorted(here) if not name.startswith(".")):
                found[file.relative_to(folder).as_posix()] = file.stat().st_size if file.exists() else -1
        return found

    def listing(fs: Any, path: str) -> dict[tuple[str, ...], int]:
        there = fs.find(path, detail=True).items()
        return {tuple(name.removeprefix(path).strip("/").split("/")): about["size"] for name, about in there}

    sizes = folder._ask(listing)
    shown = [parts for parts in sizes if parts[-1] and not any(part.startswith(".") for part in parts)]
    shown.sort(key=lambda parts: [(place < len(parts) - 1, part) for place, part in enumerate(parts)])
    return {"/".join(parts): sizes[parts] for parts in shown}


# ---------------------------------------------------------------------------------------------------- reading


# ---------------------------------------------------------------------------------------------------- writing


# ---------------------------------------------------------------------------------------------------- requests


def _has_folders(fs: Any) -> bool:
    """Whether it is a file system, which can rename, rather than a store of objects, which copies and deletes."""
    from fsspec import AbstractFileSystem

    return type(fs).mv is not AbstractFileSystem.mv


def _file_system(url: str) -> tuple[Any, str]:
    import fsspec

    scheme = url.partition("://")[0]
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        extra = f"'capfilt[{EXTRAS[scheme]}]'" if scheme in EXTRAS else "the package that it names"
        raise ImportError(f"{scheme}:// cannot be used here ({error}); pip install {extra}") from None
    except ValueError as error:  # fsspec knows no such protocol
        raise ValueError(f"{url} is no place to read from or write to: {error}.") from None


def _patiently(request: Callable[[], T], url: str) -> T:
    """The answer to a request, tried again with growing waits; the error of the last try names the URL."""
    for attempt in range(TRIES):
        try:
            return request()
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, "No such file or folder", url) from None
        except PermissionError as error:
            raise PermissionError(errno.EACCES, f"Permission denied ({_one_line(error)})", url) from None
        except PERMANENT:
            raise
        except Exception as error:
            if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
                raise PermissionError(errno.EACCES, f"No access ({_one_line(error)})", url) from None
            if isinstance(error, OSError) and error.errno in FULL:  # of the temporary file
                raise
            if attempt == TRIES - 1:
                raise OSError(f"{url} does not answer after {TRIES} tries ({_one_line(error)}).") from None
            time.sleep(FIRST_WAIT * 2**attempt * random.uniform(0.5, 1.5))  # apart from the other workers
    raise AssertionError("the last try has returned or raised")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
