"""Local paths and fsspec URLs (`s3://`, `gs://`, ...) behind one interface.

`to_path` turns a string into an `AnyPath`: a `pathlib.Path`, or a `Remote` with some of its methods. Every remote
request is retried here and only here, so temporary failures of a network do not reach callers.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import posixpath
import random
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from blipcore.io.messages import one_line

T = TypeVar("T")

TRIES = 5  # per request
FIRST_WAIT = 0.5  # seconds before the second try, doubled for each further one
EXTRAS = {"s3": "s3", "s3a": "s3"}  # protocol -> extra of capfilt that installs its package
DISK_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT})
# CIFS refuses fsync of a folder, NFS without locks refuses flock.
UNSUPPORTED_ERRNOS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
# Not retried.
PERMANENT_ERRORS: tuple[type[Exception], ...] = (
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    NotADirectoryError,
    IsADirectoryError,
    ValueError,
    TypeError,
    AttributeError,
    ImportError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True, order=True)
class Remote:
    """A file or folder behind an fsspec URL, with the methods of `pathlib.Path` that the stages use.

    The URL may be a member of an archive, as `zip://MEMBER::ARCHIVE`.
    """

    url: str  # without a trailing slash

    def __truediv__(self, part: str) -> Remote:
        scheme, _, rest = self.url.partition("://")
        path, chain, archive = rest.partition("::")
        return Remote(f"{scheme}://{posixpath.normpath(posixpath.join(path, part))}{chain}{archive}")

    def __str__(self) -> str:
        return self.url

    def __fspath__(self) -> str:
        # Without an error, `open` would create a local file of that name.
        raise TypeError(f"{self.url} is not a local file.")

    @property
    def name(self) -> str:
        return self.url.partition("::")[0].rpartition("/")[2]

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
        """Return "file", "directory" or None. Unlike this, fsspec's `exists` turns a network failure into False."""
        try:
            return self.info()["type"]
        except FileNotFoundError:
            return None

    def info(self) -> dict[str, Any]:
        """Return size, type and version fields of a file, as its file system reports them."""
        return self.request(lambda fs, path: fs.info(path))

    def iterdir(self) -> Iterator[Remote]:
        return (self / name for name in list_names(self))

    def glob(self, pattern: str) -> Iterator[Remote]:
        """Yield the entries of this folder that match; `**` is not supported."""
        return (self / name for name in list_names(self) if fnmatch.fnmatchcase(name, pattern))

    def read_bytes(self) -> bytes:
        return self.request(lambda fs, path: fs.cat_file(path))

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def write_bytes(self, data: bytes) -> None:
        self.request(lambda fs, path: fs.pipe_file(path, data))

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self.request(lambda fs, path: fs.rm_file(path))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Create the folder and its parents; do nothing in an object store, which has no folders."""
        self.request(lambda fs, path: can_rename(fs) and fs.makedirs(path, exist_ok=True))

    def download(self, target: Path) -> None:
        """Copy the file to a local one. A copy of the wrong size is a temporary failure."""

        def copy(fs: Any, path: str) -> None:
            size = fs.info(path).get("size")
            fs.get_file(path, str(target))
            copied = target.stat().st_size
            if size not in (None, copied):
                raise OSError(f"{copied} of {size} bytes were received")

        with name_full_disk(target):
            self.request(copy)

    def upload(self, source: str) -> None:
        self.request(lambda fs, path: fs.put_file(source, path))

    def rename(self, target: Remote) -> None:
        self.request(lambda fs, path: fs.mv(path, open_file_system(target.url)[1]))

    def request(self, operation: Callable[[Any, str], T]) -> T:
        """Return `operation(file system, path)`, retried after temporary failures.

        Each try looks up the file system, because fsspec must open a new one after a fork, and drops its cache of
        listings, because other machines write to the same folders.
        """

        def attempt() -> T:
            fs, path = open_file_system(self.url)
            fs.invalidate_cache()
            return operation(fs, path)

        return _retry(attempt, self.url)


AnyPath: TypeAlias = Path | Remote


def to_path(path: str | Path | Remote) -> AnyPath:
    """Return the path for a string; `~` and `file://` are local."""
    if isinstance(path, Remote | Path):
        return path
    scheme, separator, rest = path.partition("://")
    if not separator:
        return Path(path).expanduser()
    if scheme in ("file", "local"):
        return Path(rest)
    return Remote(f"{scheme}://{rest.rstrip('/')}")


def resolve_reference(folder: AnyPath, reference: str) -> AnyPath:
    """Return the path of `reference`: a URL, an absolute path or one relative to `folder`."""
    if "://" in reference or os.path.isabs(reference):
        return to_path(reference)
    return (folder / reference).resolve()


# ---------------------------------------------------------------------------------------------------- listing


def list_names(folder: AnyPath) -> list[str]:
    """Return the sorted names in a folder, by one request; an empty list for a missing folder."""
    try:
        if isinstance(folder, Path):
            return sorted(os.listdir(folder))
        names = folder.request(lambda fs, path: set(fs.ls(path, detail=False)) - {path, f"{path}/"})
    except FileNotFoundError:
        return []
    return sorted({name.rstrip("/").rpartition("/")[2] for name in names})


def existing_paths(paths: Iterable[AnyPath]) -> set[AnyPath]:
    """Return the existing paths among `paths`, by one listing per folder."""
    by_folder: dict[AnyPath, dict[str, AnyPath]] = {}
    for path in paths:
        by_folder.setdefault(path.parent, {})[path.name] = path
    return {files[name] for folder, files in by_folder.items() for name in list_names(folder) if name in files}


def modified_time(path: AnyPath) -> float:
    """Return the time of the last write in seconds since 1970, by the file system's clock."""
    if isinstance(path, Path):
        return path.stat().st_mtime
    return path.request(lambda fs, inner: fs.modified(inner)).timestamp()


def file_size(path: AnyPath) -> int:
    """Return the size of a file in bytes."""
    return path.stat().st_size if isinstance(path, Path) else path.info()["size"]


def list_files(folder: AnyPath) -> dict[str, int]:
    """Return relative name -> bytes for all files below a folder, except hidden ones.

    A folder's own files come before its subfolders', both sorted by name. A broken link has -1 bytes, and so has a
    subfolder that is a link or cannot be read, under its name with a trailing slash.
    """
    return _list_local(folder) if isinstance(folder, Path) else _list_remote(folder)


def _list_local(folder: Path) -> dict[str, int]:
    sizes: dict[str, int] = {}

    def record_unreadable(error: OSError) -> None:
        if Path(error.filename) == folder:
            raise error
        sizes[f"{Path(error.filename).relative_to(folder).as_posix()}/"] = -1

    for root, subfolders, files in os.walk(folder, onerror=record_unreadable):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for path in (Path(root, name) for name in subfolders):
            if path.is_symlink():
                sizes[f"{path.relative_to(folder).as_posix()}/"] = -1
        for path in (Path(root, name) for name in sorted(files) if not name.startswith(".")):
            sizes[path.relative_to(folder).as_posix()] = path.stat().st_size if path.exists() else -1
    return sizes


def _list_remote(folder: Remote) -> dict[str, int]:
    def find(fs: Any, path: str) -> dict[tuple[str, ...], int]:
        entries = fs.find(path, detail=True).items()
        return {tuple(name.removeprefix(path).strip("/").split("/")): entry["size"] for name, entry in entries}

    sizes = folder.request(find)
    visible = [parts for parts in sizes if parts[-1] and not any(part.startswith(".") for part in parts)]
    visible.sort(key=lambda parts: [(depth < len(parts) - 1, part) for depth, part in enumerate(parts)])
    return {"/".join(parts): sizes[parts] for parts in visible}


# ---------------------------------------------------------------------------------------------------- requests


def can_rename(fs: Any) -> bool:
    """Return False for an object store, where renaming is a copy and a deletion."""
    from fsspec import AbstractFileSystem

    return type(fs).mv is not AbstractFileSystem.mv


def open_file_system(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL and the path in it."""
    import fsspec

    scheme, _, rest = url.partition("://")
    if scheme == "zip" and "::" in rest:
        member, _, archive = rest.partition("::")
        version = os.stat(archive).st_mtime_ns if "://" not in archive else 0
        return _open_zip(archive, version, os.getpid()), "" if member == "." else member
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = f"'capfilt[{EXTRAS[scheme]}]'" if scheme in EXTRAS else "the package that it names"
        raise ImportError(f"{scheme}:// cannot be used here ({error}); pip install {package}") from None
    except ValueError as error:  # an unknown protocol
        raise ValueError(f"{url} cannot be read or written: {error}.") from None


@lru_cache(maxsize=2)
def _open_zip(archive: str, version: int, process: int) -> Any:
    """Return the file system of a zip archive, kept open: fsspec would read its list of members for each file.

    `version` and `process` make a changed archive, and one of a forked process, open again.
    """
    from fsspec.implementations.zip import ZipFileSystem

    try:
        return ZipFileSystem(archive)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{archive} is not a whole zip archive ({one_line(error)}).") from None


@contextmanager
def name_full_disk(path: str | Path) -> Iterator[None]:
    """Add the path to the error of a full disk, which a failed write lacks."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL_ERRNOS and error.filename is None:
            error.filename = str(path)
        raise


def _retry(attempt: Callable[[], T], url: str) -> T:
    """Return the result of `attempt`, retried with growing waits. The last error names the URL."""
    for number in range(TRIES):
        try:
            return attempt()
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, "No such file or folder", url) from None
        except PermissionError as error:
            raise PermissionError(errno.EACCES, f"Permission denied ({one_line(error)})", url) from None
        except PERMANENT_ERRORS:
            raise
        except Exception as error:
            if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
                raise PermissionError(errno.EACCES, f"No access ({one_line(error)})", url) from None
            if isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS:  # of the local file
                raise
            if number == TRIES - 1:
                raise OSError(f"{url} does not answer after {TRIES} tries ({one_line(error)}).") from None
            # Random, so that workers do not retry at the same moment.
            time.sleep(FIRST_WAIT * 2**number * random.uniform(0.5, 1.5))
    raise AssertionError("unreachable: the last try returns or raises")
