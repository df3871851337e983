"""Local copies of remote tars, shared by all processes of a machine.

Training reads the pictures of a tar in random order, so a remote tar is downloaded whole, to TMPDIR. The first process
that needs a tar downloads it, and a thread downloads the next ones. Only the KEEP last used tars of a folder stay: the
disk space is that of a few shuffling windows, whatever the size of the dataset.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import threading
from collections.abc import Iterable
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from blipcore.io.storage import AnyPath, Remote

KEEP = 32  # copies per folder, four windows of shards
# Fields of fsspec file systems that change when a file is replaced.
VERSION_FIELDS = ("size", "ETag", "etag", "mtime", "created")


class TarCache:
    """The tars of one folder as local files; those of a local folder are not copied."""

    def __init__(self, folder: AnyPath) -> None:
        self.folder = folder
        digest = blake2b(str(folder).encode(), digest_size=8).hexdigest()
        self._copies = Path(tempfile.gettempdir()) / f"blipcore-{os.getuid()}" / digest
        self._queue: SimpleQueue[str] | None = None
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        TarCache.__init__(self, state["folder"])

    def local(self, name: str) -> Path:
        """Return the local file of a tar, downloaded if necessary.

        The copy is deleted once KEEP other tars have been used; a process that has it open can still read it.
        """
        if isinstance(self.folder, Path):
            return self.folder / name
        parent = self._copies.parent
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Another user could put other pictures there, or links in place of lock files.
        if parent.lstat().st_uid != os.getuid():
            raise PermissionError(f"{parent} belongs to another user: set TMPDIR to a folder of your own.")
        self._copies.mkdir(exist_ok=True)
        with (self._copies / f".{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return self._download(self.folder / name)

    def prefetch(self, names: Iterable[str]) -> None:
        """Download tars in the background, in this order; does nothing for a local folder."""
        if isinstance(self.folder, Path):
            return
        if self._queue is None or self._process != os.getpid():  # threads do not survive a fork
            self._queue, self._process = SimpleQueue(), os.getpid()
            threading.Thread(target=self._download_queued, args=(self._queue,), daemon=True).start()
        for name in names:
            self._queue.put(name)

    def _download_queued(self, queue: SimpleQueue[str]) -> None:
        while True:
            with suppress(OSError):  # raised again to the reader that needs the file
                self.local(queue.get())

    def _download(self, remote: Remote) -> Path:
        """Return a copy of the current version of a file; delete all but the KEEP last used copies."""
        info = remote.info()
        version = repr([info.get(name) for name in VERSION_FIELDS])
        copy = self._copies / f"{blake2b(version.encode(), digest_size=8).hexdigest()}-{remote.name}"
        if copy.exists():
            os.utime(copy)
            return copy
        partial = copy.with_name(f".{remote.name}.part")
        remote.download(partial)
        partial.rename(copy)
        copies = [path for path in self._copies.iterdir() if not path.name.startswith(".")]
        for unused in sorted(copies, key=_last_used)[:-KEEP]:
            unused.unlink(missing_ok=True)
        return copy


def _last_used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another process has just deleted it
        return 0.0
