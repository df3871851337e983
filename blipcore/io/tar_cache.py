"""A folder of a data set, on this machine or behind any fsspec URL (`s3://`, `gs://`, ...): its files by name.

In: a path or URL. Out: names, small files, and tars as local files. A tar has to be read through before a picture in it
can be found, so a remote one is copied whole, into the system's folder for temporary files (TMPDIR). All processes of
the machine share the copies: the first one that wants a tar fetches it, a thread fetches the next ones ahead, and only
the KEEP last used of a folder stay, so that the disk holds a few windows of a data set of any size.
"""

import contextlib
import fcntl
import os
import posixpath
import tempfile
import threading
import time
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO

KEEP = 32  # copies of a folder's tars; four windows of shards
TRIES = 6  # of a copy, with 1, 2, 4, ... seconds between
VERSIONS = ("ETag", "etag", "mtime", "created")  # what file systems call that by which a file differs from an older one


def is_remote(place: str | Path) -> bool:
    """True for a URL."""
    return "://" in str(place)


class Folder:
    """A folder whose files are named `name`; every problem with one is an OSError."""

    def __init__(self, place: str | Path) -> None:
        self.place = str(place).rstrip("/") if is_remote(place) else str(Path(place))
        if is_remote(place):
            self._open_remote()

    def _open_remote(self) -> None:
        import fsspec

        try:
            self._system, self._root = fsspec.core.url_to_fs(self.place)
        except (ImportError, ValueError) as error:
            raise ValueError(f"{self.place} cannot be reached: {error}") from error
        self._process = os.getpid()
        self._wanted: SimpleQueue[str] | None = None
        owner = f"blipcore-{os.getuid()}"
        self._copies = Path(tempfile.gettempdir()) / owner / blake2b(self.place.encode(), digest_size=8).hexdigest()

    @property
    def _files(self) -> Any:
        """The file system."""
        self._after_fork()
        return self._system

    def _after_fork(self) -> None:
        """In a process forked since, open the file system anew: fsspec's threads are not there, nor is ours."""
        if self._process != os.getpid():
            self._open_remote()

    def __getstate__(self) -> dict[str, Any]:
        return {"place": self.place}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["place"])

    def __str__(self) -> str:
        return self.place

    def __truediv__(self, part: str) -> "Folder":
        """The folder at `part`, seen from here; an absolute path or a URL is itself."""
        if is_remote(part) or not is_remote(self.place):
            return Folder(part if is_remote(part) else Path(self.place) / part)
        scheme, _, path = self.place.partition("://")
        return Folder(f"{scheme}://{posixpath.normpath(posixpath.join(path, part))}")

    def where(self, name: str) -> str:
        """What to call a file in a message."""
        return f"{self.place}/{name}"

    def exists(self) -> bool:
        """Whether there is such a folder."""
        return self._files.isdir(self._root) if is_remote(self.place) else Path(self.place).is_dir()

    def names(self, suffix: str) -> list[str]:
        """The files that end in `suffix`, sorted, without those that begin with a dot: these are being written."""
        if is_remote(self.place):
            found = (posixpath.basename(path) for path in self._files.ls(self._root, detail=False))
        else:
            found = os.listdir(self.place)
        return sorted(name for name in found if name.endswith(suffix) and not name.startswith("."))

    def open(self, name: str) -> BinaryIO:
        """A file to be read."""
        if is_remote(self.place):
            return self._files.open(f"{self._root}/{name}", "rb")
        return (Path(self.place) / name).open("rb")

    def local(self, name: str) -> Path:
        """A file on this machine, fetched first where it is not; it may go again when KEEP others have come."""
        if not is_remote(self.place):
            return Path(self.place) / name
        mine = self._copies.parent
        mine.mkdir(mode=0o700, parents=True, exist_ok=True)
        if mine.lstat().st_uid != os.getuid():  # who would decide what pictures we see, and what our lock truncates
            raise PermissionError(f"{mine} belongs to another user: set TMPDIR to a folder of your own")
        self._copies.mkdir(exist_ok=True)
        with (self._copies / f".{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for attempt in range(TRIES):
                try:
                    return self._copy(name)
                except FileNotFoundError:
                    raise FileNotFoundError(f"{self.where(name)} does not exist") from None
                except Exception as error:  # every file system behind fsspec has errors of its own
                    if attempt == TRIES - 1:
                        raise OSError(f"{self.where(name)} could not be fetched: {error}") from error
                    time.sleep(2**attempt)

    def prefetch(self, names: Iterable[str]) -> None:
        """Fetch files in the background, in this order; nothing to do where they are on this machine."""
        if not is_remote(self.place):
            return
        self._after_fork()
        if self._wanted is None:
            self._wanted = SimpleQueue()
            threading.Thread(target=self._fetch_ahead, args=(self._wanted,), daemon=True).start()
        for name in names:
            self._wanted.put(name)

    def _fetch_ahead(self, wanted: "SimpleQueue[str]") -> None:
        while True:
            with contextlib.suppress(OSError):  # whoever needs the file will meet the error
                self.local(wanted.get())

    def _copy(self, name: str) -> Path:
        """The copy of a file as it is there now, whole: another one of the same name must not pass for it."""
        there = f"{self._root}/{name}"
        about = self._files.info(there)
        marks = [about.get(mark) for mark in ("size", *VERSIONS)]
        copy = self._copies / f"{blake2b(repr(marks).encode(), digest_size=8).hexdigest()}-{name}"
        if copy.exists():
            os.utime(copy)
            return copy
        partial = copy.with_name(f".{name}.part")
        self._files.get_file(there, str(partial))
        if about.get("size") not in (None, partial.stat().st_size):
            raise OSError("it was cut short on its way")
        partial.rename(copy)
        copies = [path for path in self._copies.iterdir() if not path.name.startswith(".")]
        for old in sorted(copies, key=_last_used)[:-KEEP]:
            old.unlink(missing_ok=True)  # who has it open reads on
        return copy


def _last_used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another process has just removed it
        return 0.0
