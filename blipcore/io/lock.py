"""Who is at work in an output folder: a second run on the same folder is told apart and leaves with a sentence.

On file systems with locks (local ones, NFS) it is `flock` on `.lock`, which the kernel lets go of however a process
ends. Where there is none, as in an object store, a run leaves a lease `.lease.<id>` that it renews; one that has not
been renewed for a while belongs to a run that was killed. Ranks of one `--world-size` share a folder, each with its own
part of the shards. No lock guards the bytes, only the work: tables appear whole, and two runs write the same ones.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from blipcore.io.storage import DISK_FULL_ERRNOS, UNSUPPORTED_ERRNOS, AnyPath, Remote, list_names, modified_time

MEET_SECONDS = 5.0  # in which ranks that start together get past each other
RENEW_SECONDS = 20.0
STALE_SECONDS = 90.0  # several renewals may fail or be late


class FolderLockedError(RuntimeError):
    """Another run is at work in the folder."""


@contextmanager
def lock_folder(folder: AnyPath, rank: int = 0, world_size: int = 1) -> Iterator[None]:
    """Hold `folder`, making it if need be, while the block runs; `FolderLockedError` when another run holds it.

    A folder that is empty at the end goes, and what of it was made goes too.
    """
    made = _make(folder)
    try:
        with _locked(folder, rank, world_size):
            yield
    finally:
        for path in made:
            with suppress(OSError):  # not empty: there is something to keep
                path.rmdir()


def _make(folder: AnyPath) -> list[Path]:
    """Make a folder; returns what had to be made, innermost first."""
    if isinstance(folder, Remote):
        folder.mkdir()
        return []
    if folder.is_file():
        raise ValueError(f"{folder} is a file; give a folder for the shards.")
    made = []
    for path in (folder, *folder.parents):
        if path.exists():
            break
        made.append(path)
    folder.mkdir(parents=True, exist_ok=True)
    return made


def lock_for_process(path: Path) -> BinaryIO:
    """Lock the file `path` until this process ends or the returned file is closed.

    This is a POSIX record lock, unlike the locks of `lock_folder`: processes forked while it is held, such as data
    loading workers, do not hold it, so it is free as soon as this process is killed. On a file system without locks
    nothing is locked. Raises FolderLockedError if another process holds it.
    """
    file = path.open("wb")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.close()
        raise FolderLockedError(f"{path.parent} is being written by another process.") from None
    except OSError as error:
        if error.errno not in UNSUPPORTED_ERRNOS:
            raise
    return file


@contextmanager
def _locked(folder: AnyPath, rank: int, world_size: int) -> Iterator[None]:
    me = _about(rank, world_size)
    with _leased(folder, me) if isinstance(folder, Remote) else _flocked(folder, me):
        yield


# ---------------------------------------------------------------------------------------------------- flock


@contextmanager
def _flocked(folder: Path, me: dict[str, Any]) -> Iterator[None]:
    """`.lock` for a run of its own; ranks hold `.lock` together and `.lock.<rank>` each."""
    held: list[tuple[Path, int]] = []
    try:
        try:
            held.append(_take(folder / ".lock", me, shared=me["world_size"] > 1))
            if me["world_size"] > 1:
                held.append(_take(folder / f".lock.{me['rank']}", me))
        except OSError as error:
            if error.errno not in UNSUPPORTED_ERRNOS:
                raise
            (folder / ".lock").unlink(missing_ok=True)
            with _leased(folder, me):
                yield
            return
        yield
    finally:
        for path, descriptor in reversed(held):
            with suppress(OSError):  # the last one out takes the file away; whoever has it open opens it anew
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            os.close(descriptor)


def _take(path: Path, me: dict[str, Any], shared: bool = False) -> tuple[Path, int]:
    """Lock a file, alone or together with the other ranks, and write down who we are."""
    deadline = time.monotonic() + (MEET_SECONDS if shared else 0)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if _lock(descriptor, me, shared) and _same(path, descriptor):
                return path, descriptor
            there = _read(os.pread(descriptor, 4096, 0))
            other = there.get("world_size", me["world_size"]) != me["world_size"] and not _is_dead(there)
            lasting = other or time.monotonic() > deadline
            if _same(path, descriptor) and (not shared or lasting):
                raise FolderLockedError(_sentence(path.parent, there, me))
        except OSError as error:
            if error.errno in DISK_FULL_ERRNOS:  # it is ours, and empty
                path.unlink(missing_ok=True)
            os.close(descriptor)
            raise OSError(error.errno, error.strerror, str(path)) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # taken away between our opening and our locking, or another rank is just coming in
        time.sleep(0.02)


def _lock(descriptor: int, me: dict[str, Any], shared: bool) -> bool:
    """Alone at first, which shows that what is written there is of the past; then, for ranks, together."""
    with suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(me).encode(), 0)
        if not shared:
            return True
    if not shared:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return _read(os.pread(descriptor, 4096, 0)).get("world_size") == me["world_size"]


def _same(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


# ---------------------------------------------------------------------------------------------------- leases


@contextmanager
def _leased(folder: AnyPath, me: dict[str, Any]) -> Iterator[None]:
    """Write our lease, then look for others: of two that come at once at least one sees the other and leaves."""
    lease, content = folder / f".lease.{uuid.uuid4().hex[:12]}", json.dumps(me).encode()
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(RENEW_SECONDS):
            with suppress(OSError):
                lease.write_bytes(content)

    renewing = threading.Thread(target=renew, daemon=True)
    lease.write_bytes(content)
    try:
        _require_alone(folder, lease, me)
        renewing.start()
        yield
    finally:
        ended.set()
        if renewing.ident is not None:
            renewing.join()  # a renewal on its way would bring the lease back
        lease.unlink(missing_ok=True)


def _require_alone(folder: AnyPath, lease: AnyPath, me: dict[str, Any]) -> None:
    now = modified_time(lease)  # the store's clock, like the times of the others
    for name in list_names(folder):
        other = folder / name
        if not name.startswith(".lease.") or name == lease.name:
            continue
        with suppress(FileNotFoundError):  # it has ended meanwhile
            about, age = _read_lease(other), now - modified_time(other)
            together = about.get("world_size") == me["world_size"] > 1 and about.get("rank") != me["rank"]
            if age > STALE_SECONDS or _is_dead(about):
                other.unlink(missing_ok=True)
            elif not together:
                raise FolderLockedError(_sentence(folder, about, me, age))


def _read_lease(lease: AnyPath) -> dict[str, Any]:
    """What a lease says; a file that is empty is just being written, so it is read again for a second."""
    for _ in range(50):
        if about := _read(lease.read_bytes()):
            return about
        time.sleep(0.02)
    return {}


def _is_dead(about: dict[str, Any]) -> bool:
    """Whether the run has ended for certain: it was of this machine, and its process is gone."""
    return about.get("host") == _host() and _started(int(about.get("pid", 0))) != about.get("started")


# ---------------------------------------------------------------------------------------------------- words


def _about(rank: int, world_size: int) -> dict[str, Any]:
    pid = os.getpid()
    return {"host": _host(), "pid": pid, "started": _started(pid), "rank": rank, "world_size": world_size}


def _host() -> str:
    """This machine and, where containers share its name, this container: whose process numbers they are."""
    with suppress(OSError):
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def _started(pid: int) -> str | None:
    """When a process of this machine began, in the kernel's ticks; None when there is none, or no /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _read(content: bytes) -> dict[str, Any]:
    try:
        about = json.loads(content)
    except ValueError:
        about = {}
    return about if isinstance(about, dict) else {}


def _sentence(folder: AnyPath, about: dict[str, Any], me: dict[str, Any], age: float | None = None) -> str:
    who = f"process {about['pid']} on {about['host'].split()[0]}" if "pid" in about else "another process"
    if about.get("world_size", 1) > 1:
        who += f" as rank {about['rank']} of {about['world_size']}"
    what = "let it finish, or choose another name"
    if age is not None:
        what += f" (last heard of {max(0, age):.0f} s ago; if it was killed, try again in {STALE_SECONDS:.0f} s)"
    return f"{folder} is being written by {who}; {what}."
