"""Writes files atomically, on local disks and behind fsspec URLs: a file that exists is complete."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from blipcore.io.storage import UNSUPPORTED_ERRNOS, AnyPath, Remote, can_rename, list_names, name_full_disk

OPEN_FILES = Path("/proc/self/fd")
# Names of the temporary files of `atomic_write`; `atomic_path` removes its own.
_TEMPORARY_NAME = re.compile(r"\.(.+)\.[0-9a-f]{8}\.tmp", re.DOTALL)
FULL_BYTES = 1 << 16  # free space of a disk on which a write has just failed


@contextmanager
def atomic_write(path: AnyPath) -> Iterator[IO[bytes]]:
    """Open a file for writing; it appears at `path` only if the block succeeds. Its folder must exist."""
    # The random part separates runs: a worker may outlive its run.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    if isinstance(path, Remote):
        with _upload_when_complete(path, temporary.name) as file:
            yield file
        return
    try:
        with name_full_disk(path), open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in UNSUPPORTED_ERRNOS:
            raise
    finally:
        os.close(folder)


@contextmanager
def _upload_when_complete(path: Remote, temporary_name: str) -> Iterator[IO[bytes]]:
    with _open_temporary() as file:
        with name_full_disk(tempfile.gettempdir()):
            yield file
            file.flush()
        source = f"{OPEN_FILES}/{file.fileno()}" if OPEN_FILES.is_dir() else file.name
        if not path.request(lambda fs, _: can_rename(fs)):
            path.upload(source)  # an object appears when its upload is complete
            return
        temporary = path.with_name(temporary_name)
        try:
            temporary.upload(source)
            temporary.rename(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _open_temporary() -> IO[bytes]:
    """Open a file that the kernel removes with this process; only Linux can open it again by a path."""
    if OPEN_FILES.is_dir():
        return tempfile.TemporaryFile(prefix="capfilt-")
    return cast(IO[bytes], tempfile.NamedTemporaryFile(prefix="capfilt-"))


def write_text(path: AnyPath, content: str) -> None:
    """Write UTF-8 text atomically; create a missing folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(content.encode("utf-8"))


def write_json(path: AnyPath, content: Mapping[str, Any] | Sequence[Any]) -> None:
    """Write indented JSON atomically; create a missing folder."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path for a file or folder; it replaces `path` if the block succeeds.

    For libraries that need a path; otherwise use `atomic_write`.
    """
    temporary, old = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")
    for leftover in (temporary, old):  # of a run that was killed
        _remove_path(leftover)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        for file in temporary.iterdir() if temporary.is_dir() else [temporary]:
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    except BaseException as error:
        is_full = _is_full(temporary.parent, error)
        _remove_path(temporary)
        if is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise
    if path.exists():
        path.rename(old)
    temporary.rename(path)
    _remove_path(old)


def _is_full(folder: Path, error: BaseException) -> bool:
    """Return whether a library's error, which is no OSError, comes from a full disk. torch's error does not say it."""
    if isinstance(error, OSError) or not isinstance(error, Exception):
        return False
    return f"os error {errno.ENOSPC}" in str(error) or shutil.disk_usage(folder).free < FULL_BYTES


def _remove_path(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_temporary_files(folder: AnyPath, targets: Iterable[str] | None = None) -> None:
    """Remove the files of `atomic_write` that killed runs left in `folder`, or only those for the names `targets`."""
    wanted = None if targets is None else set(targets)
    for name in list_names(folder):
        match = _TEMPORARY_NAME.fullmatch(name)
        if match and (wanted is None or match[1] in wanted):
            (folder / name).unlink(missing_ok=True)
