"""Locks an output folder; a second run on it exits with an error.

On file systems with locks (local ones, NFS) it is an flock on `.lock`, which the kernel releases when the process ends.
Without locks, as in an object store, a run writes a lease `.lease.<id>` and renews it; a lease that is not renewed
belongs to a killed run. Ranks with one `--world-size` share a folder, each with its own shards.

A lock only prevents duplicate work: files are written atomically, and two runs write the same.
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

SHARED_WAIT_SECONDS = 5.0  # for other ranks, which hold the lock exclusively for a moment
RETRY_SECONDS = 0.02
RENEW_SECONDS = 20.0
STALE_SECONDS = 90.0  # long enough for several failed or late renewals

# The holder of a lock: host, pid, started, rank and world_size; empty if unreadable.
Owner = dict[str, Any]


class FolderLockedError(RuntimeError):
    """Another run holds the folder."""


@contextmanager
def lock_folder(folder: AnyPath, rank: int = 0, world_size: int = 1) -> Iterator[None]:
    """Lock `folder` while the block runs. Raises FolderLockedError if another run holds it.

    Missing folders are created, and removed again if they are empty at the end.
    """
    created = _create_folder(folder)
    try:
        owner = _describe_process(rank, world_size)
        with _lease_lock(folder, owner) if isinstance(folder, Remote) else _file_lock(folder, owner):
            yield
    finally:
        for path in created:
            with suppress(OSError):  # not empty
                path.rmdir()


def _create_folder(folder: AnyPath) -> list[Path]:
    """Create a folder; return the local folders that were missing, innermost first."""
    if isinstance(folder, Remote):
        folder.mkdir()
        return []
    if folder.is_file():
        raise ValueError(f"{folder} is a file; give a folder for the shards.")
    missing = []
    for path in (folder, *folder.parents):
        if path.exists():
            break
        missing.append(path)
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def lock_for_process(path: Path) -> BinaryIO:
    """Lock the file `path` until this process ends or the returned file is closed.

    A POSIX record lock, unlike those of `lock_folder`: forked processes, such as data loading workers, do not hold it,
    so it is free as soon as this process is killed. On a file system without locks nothing is locked. Raises
    FolderLockedError if another process holds it.
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


# ---------------------------------------------------------------------------------------------------- flock


@contextmanager
def _file_lock(folder: Path, owner: Owner) -> Iterator[None]:
    """Hold `.lock` exclusively; ranks share `.lock` and hold `.lock.<rank>` exclusively."""
    held: list[tuple[Path, int]] = []
    try:
        try:
            held.append(_acquire(folder / ".lock", owner, shared=owner["world_size"] > 1))
            if owner["world_size"] > 1:
                held.append(_acquire(folder / f".lock.{owner['rank']}", owner))
        except OSError as error:
            if error.errno not in UNSUPPORTED_ERRNOS:
                raise
            (folder / ".lock").unlink(missing_ok=True)
            with _lease_lock(folder, owner):
                yield
            return
        yield
    finally:
        for path, descriptor in reversed(held):
            with suppress(OSError):  # another rank still holds it and will remove the file
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            os.close(descriptor)


def _acquire(path: Path, owner: Owner, shared: bool = False) -> tuple[Path, int]:
    """Lock a file, exclusively or `shared` with other ranks, and write the owner into it."""
    deadline = time.monotonic() + (SHARED_WAIT_SECONDS if shared else 0)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if _try_lock(descriptor, owner, shared) and _is_same_file(path, descriptor):
                return path, descriptor
            other = _parse_owner(os.pread(descriptor, 4096, 0))
            other_job = other.get("world_size", owner["world_size"]) != owner["world_size"] and not _is_dead(other)
            give_up = not shared or other_job or time.monotonic() > deadline
            if _is_same_file(path, descriptor) and give_up:
                raise FolderLockedError(_locked_message(path.parent, other))
        except OSError as error:
            if error.errno in DISK_FULL_ERRNOS:  # this process holds the lock, and the file is empty
                path.unlink(missing_ok=True)
            os.close(descriptor)
            raise OSError(error.errno, error.strerror, str(path)) from None
        except BaseException:
            os.close(descriptor)
            raise
        # The file was removed before it was locked, or another rank holds it exclusively for a moment.
        os.close(descriptor)
        time.sleep(RETRY_SECONDS)


def _try_lock(descriptor: int, owner: Owner, shared: bool) -> bool:
    """Lock exclusively, which succeeds if the owner in the file is gone; then, if `shared`, downgrade."""
    with suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(owner).encode(), 0)
        if not shared:
            return True
    if not shared:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return _parse_owner(os.pread(descriptor, 4096, 0)).get("world_size") == owner["world_size"]


def _is_same_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


# ---------------------------------------------------------------------------------------------------- leases


@contextmanager
def _lease_lock(folder: AnyPath, owner: Owner) -> Iterator[None]:
    """Write a lease, then look for others: of two runs that start at once, at least one sees the other."""
    lease, content = folder / f".lease.{uuid.uuid4().hex[:12]}", json.dumps(owner).encode()
    finished = threading.Event()

    def renew() -> None:
        while not finished.wait(RENEW_SECONDS):
            with suppress(OSError):
                lease.write_bytes(content)

    renewer = threading.Thread(target=renew, daemon=True)
    lease.write_bytes(content)
    try:
        _require_no_other_lease(folder, lease, owner)
        renewer.start()
        yield
    finally:
        finished.set()
        if renewer.ident is not None:
            renewer.join()  # a renewal in progress would recreate the lease
        lease.unlink(missing_ok=True)


def _require_no_other_lease(folder: AnyPath, lease: AnyPath, owner: Owner) -> None:
    """Raise FolderLockedError for the lease of another run; remove leases of ended runs."""
    now = modified_time(lease)  # by the clock of the store, as for other leases
    for name in list_names(folder):
        other_lease = folder / name
        if not name.startswith(".lease.") or name == lease.name:
            continue
        with suppress(FileNotFoundError):  # removed in the meantime
            other, age = _read_lease(other_lease), now - modified_time(other_lease)
            same_job = other.get("world_size") == owner["world_size"] > 1 and other.get("rank") != owner["rank"]
            if age > STALE_SECONDS or _is_dead(other):
                other_lease.unlink(missing_ok=True)
            elif not same_job:
                raise FolderLockedError(_locked_message(folder, other, age))


def _read_lease(lease: AnyPath) -> Owner:
    """Return the owner of a lease; read again for a second while it is empty."""
    for _ in range(50):
        owner = _parse_owner(lease.read_bytes())
        if owner:
            return owner
        time.sleep(RETRY_SECONDS)
    return {}


# ---------------------------------------------------------------------------------------------------- owners


def _describe_process(rank: int, world_size: int) -> Owner:
    pid = os.getpid()
    return {"host": _host(), "pid": pid, "started": _start_time(pid), "rank": rank, "world_size": world_size}


def _host() -> str:
    """Return the name of this machine with its process namespace: containers may share the name."""
    with suppress(OSError):
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def _start_time(pid: int) -> str | None:
    """Return the start time of a process in kernel ticks; None if the process or /proc is missing."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _is_dead(owner: Owner) -> bool:
    """Return whether the owner is an ended process of this machine."""
    return owner.get("host") == _host() and _start_time(int(owner.get("pid", 0))) != owner.get("started")


def _parse_owner(content: bytes) -> Owner:
    try:
        owner = json.loads(content)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _locked_message(folder: AnyPath, owner: Owner, age: float | None = None) -> str:
    process = f"process {owner['pid']} on {owner['host'].split()[0]}" if "pid" in owner else "another process"
    if owner.get("world_size", 1) > 1:
        process += f" as rank {owner['rank']} of {owner['world_size']}"
    remedy = "let it finish, or choose another name"
    if age is not None:
        remedy += f" (last renewed {max(0, age):.0f} s ago; if it was killed, try again in {STALE_SECONDS:.0f} s)"
    return f"{folder} is being written by {process}; {remedy}."
