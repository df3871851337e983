"""Local copies of remote tars, shared by all processes of a machine.

Training reads the pictures of a tar in random order, so a remote tar is downloaded whole, into the folder for temporary
files (TMPDIR). The first process that needs a tar downloads it, a thread downloads the next ones, and only the KEEP
last used tars of a folder stay: a dataset of any size needs the disk space of a few shuffling windows.
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
# The marks by which file systems tell a file from an older one of the same name.
VERSION_FIELDS = ("size", "ETag", "etag", "mtime", "created")


class TarCache:
    """The tars of one folder as local files; a local folder's tars are used where they are."""

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

        The copy may be deleted after KEEP other tars have been used; a process that has it open can read on.
        """
        if isinstance(self.folder, Path):
            return self.folder / name
        parent = self._copies.parent
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Another user's folder could hold other pictures, and links in place of our lock files.
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
        """Return the copy of the current version of a file, and delete the copies that were not used for long."""
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
