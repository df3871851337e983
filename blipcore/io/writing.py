"""Writes files atomically, on local disks and behind fsspec URLs."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from blipcore.io.storage import FULL, UNKNOWN, AnyPath, Remote, _file_system, _has_folders, list_names


@contextmanager
def _told_where(path: str | Path) -> Iterator[None]:
    """Says which disk it is when one is full, which a write by itself does not."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def atomic_write(path: AnyPath) -> Iterator[BinaryIO]:
    """A file that appears under `path`, in a folder that is there, only when the block has ended well."""
    # a name of its own for every attempt: a worker that outlives its run can then never publish a half of ours
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    if isinstance(path, Remote):
        with _uploaded(path, temporary) as file:
            yield file
        return
    try:
        with _told_where(path), open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in UNKNOWN:
            raise
    finally:
        os.close(folder)


@contextmanager
def _uploaded(path: Remote, temporary: Remote) -> Iterator[BinaryIO]:
    with tempfile.NamedTemporaryFile(prefix="capfilt-") as file:
        with _told_where(file.name):
            yield file  # type: ignore[misc]
            file.flush()
        if not path._ask(lambda fs, _: _has_folders(fs)):
            path._ask(lambda fs, target: fs.put_file(file.name, target))  # an object is there when it is complete
            return
        try:
            temporary._ask(lambda fs, target: fs.put_file(file.name, target))
            temporary._ask(lambda fs, source: fs.mv(source, _file_system(path.url)[1]))
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_text(path: AnyPath, content: str) -> None:
    """Write UTF-8 text atomically; creates the folder if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(content.encode("utf-8"))


def write_json(path: AnyPath, content: dict[str, Any]) -> None:
    """Write indented JSON atomically; creates the folder if it is missing."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path for a library to write a file or a folder to; it replaces `path` if no error is raised.

    `atomic_write` is the better choice for one file that can be written through an open file.
    """
    temporary, old = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")
    for leftover in (temporary, old):  # of a run that was killed
        _remove(leftover)
    path.parent.mkdir(parents=True, exist_ok=True)
    yield temporary
    for file in temporary.iterdir() if temporary.is_dir() else [temporary]:
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    if path.exists():
        path.rename(old)
    temporary.rename(path)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_temporary_files(folder: AnyPath, targets: Iterable[str] | None = None) -> None:
    """Remove temporary files that a killed run has left in `folder`: all, or those that were to become `targets`."""
    wanted = None if targets is None else set(targets)
    for name in list_names(folder):
        if name.startswith(".") and name.endswith(".tmp") and (wanted is None or name[1:-13] in wanted):
            (folder / name).unlink(missing_ok=True)
