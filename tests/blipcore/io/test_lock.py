"""A folder has one run at a time, or the ranks of one job; a lock leaves no files."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import capfilt
from blipcore.io import lock
from blipcore.io.lock import FolderLockedError, lock_folder
from blipcore.io.storage import Remote

HOLD = (
    "import sys, time\nfrom pathlib import Path\nfrom blipcore.io.lock import lock_folder\n"
    "with lock_folder(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
)


@pytest.fixture(params=["flock", "lease"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test with and without locks of the file system."""
    if request.param == "lease":

        def flock(descriptor: int, operation: int) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", flock)
    return request.param


def test_a_second_run_exits_with_an_error(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "captions" / "x"
    with lock_folder(folder):
        sentence = rf"captions/x is being written by process {os.getpid()} on .*; let it finish"
        with pytest.raises(FolderLockedError, match=sentence), lock_folder(folder):
            pytest.fail("both hold the lock")
        (folder / "00000.parquet").write_bytes(b"")
    assert [path.name for path in folder.iterdir()] == ["00000.parquet"]
    with lock_folder(folder):
        pass


def test_an_empty_new_folder_is_removed(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ValueError), lock_folder(tmp_path / "captions" / "x"):
        raise ValueError("an error before anything is written")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "existing").mkdir()
    with lock_folder(tmp_path / "existing"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["existing"]


def test_a_killed_run_holds_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(capfilt.__file__).parents[1])}
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(FolderLockedError, match=f"process {process.pid} on"), lock_folder(tmp_path):
        pytest.fail("both hold the lock")
    owner = (tmp_path / ".lock").read_bytes()
    process.send_signal(signal.SIGKILL)
    process.wait()
    (tmp_path / ".lease.0123456789ab").write_bytes(owner)  # as it would have left on a file system without locks
    for kind in ("flock", "lease"):
        if kind == "lease":
            monkeypatch.setattr(lock, "_file_lock", lock._lease_lock)
        with lock_folder(tmp_path):
            assert (tmp_path / ".lock").exists() == (kind == "flock")
    assert list(tmp_path.iterdir()) == []


def test_only_the_ranks_of_one_job_share_a_folder(tmp_path: Path, kind: str) -> None:
    with lock_folder(tmp_path, 0, 3), lock_folder(tmp_path, 2, 3):
        for rank, world_size in ((2, 3), (1, 4), (0, 1)):
            sentence = r"as rank [02] of 3; let it finish"
            with pytest.raises(FolderLockedError, match=sentence), lock_folder(tmp_path, rank, world_size):
                pytest.fail("another run holds the lock too")
        with lock_folder(tmp_path, 1, 3):
            pass
    with lock_folder(tmp_path), pytest.raises(FolderLockedError), lock_folder(tmp_path, 1, 3):
        pytest.fail("a rank holds the lock beside a single run")
    assert list(tmp_path.iterdir()) == []


def test_ranks_that_start_together_all_get_the_lock(tmp_path: Path, kind: str) -> None:
    together, failed = threading.Barrier(8), []

    def work(rank: int) -> None:
        together.wait()
        try:
            with lock_folder(tmp_path, rank, 8):
                together.wait()
        except Exception as error:
            failed.append(error)
            together.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert list(tmp_path.iterdir()) == []


def test_a_rank_waits_while_another_replaces_the_owner_of_a_killed_run(tmp_path: Path) -> None:
    dead = {**lock._describe_process(0, 1), "started": "long ago"}
    (tmp_path / ".lock").write_text(json.dumps(dead))
    with open(tmp_path / ".lock") as other_rank:
        fcntl.flock(other_rank, fcntl.LOCK_EX)  # it has not written its own name yet
        threading.Timer(0.2, lambda: fcntl.flock(other_rank, fcntl.LOCK_UN)).start()
        with lock_folder(tmp_path, 1, 3):
            pass


def test_a_lease_is_renewed_and_a_stale_one_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_file_lock", lock._lease_lock)
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.02)
    elsewhere = tmp_path / ".lease.0123456789ab"
    elsewhere.write_text(json.dumps({"host": "elsewhere", "pid": 1, "rank": 0, "world_size": 1}))
    sentence = r"process 1 on elsewhere; .*last renewed \d+ s ago; if it was killed"
    with pytest.raises(FolderLockedError, match=sentence), lock_folder(tmp_path):
        pytest.fail("both hold the lock")
    old = elsewhere.stat().st_mtime - lock.STALE_SECONDS - 10
    os.utime(elsewhere, (old, old))
    with lock_folder(tmp_path):
        (own_lease,) = tmp_path.glob(".lease.*")
        os.utime(own_lease, (old, old))
        renewed = threading.Event()
        for _ in range(500):
            if own_lease.stat().st_mtime > old or renewed.wait(0.02):
                break
        assert own_lease.stat().st_mtime > old
    assert list(tmp_path.iterdir()) == []


def test_leases_in_a_store_without_folders() -> None:
    folder = Remote("memory://test_lock/captions/x")
    sentence = "memory://test_lock/captions/x is being written by"
    with lock_folder(folder), pytest.raises(FolderLockedError, match=sentence), lock_folder(folder):
        pytest.fail("both hold the lock")
    with lock_folder(folder, 0, 2), lock_folder(folder, 1, 2):
        pass
    assert list(folder.iterdir()) == []


def test_a_full_disk_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left") as caught, lock_folder(tmp_path / "out"):
        pass
    assert caught.value.filename == str(tmp_path / "out" / ".lock")
    assert not (tmp_path / "out").exists()


def test_a_process_lock_is_not_inherited_by_forked_processes(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    hold = (
        "import os, sys\nfrom pathlib import Path\nfrom blipcore.io.lock import lock_for_process\n"
        "file = lock_for_process(Path(sys.argv[1]))\n"
        "if os.fork() == 0:\n    print('held', flush=True)\n    sys.stdin.read()\nelse:\n    os.wait()\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(capfilt.__file__).parents[1])}
    command = [sys.executable, "-c", hold, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        with pytest.raises(FolderLockedError, match="is being written by another process"):
            lock.lock_for_process(path)
        process.kill()
        process.wait()
        lock.lock_for_process(path).close()  # although the forked process is still alive
        assert process.stdin is not None
        process.stdin.close()
