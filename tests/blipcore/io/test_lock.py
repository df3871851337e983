"""Two runs on one folder are told apart, however the first one ends; ranks share a folder; nothing is left behind."""

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
    """Both ways of holding a folder: with the file system's locks, and as if it had none."""
    if request.param == "lease":

        def flock(descriptor: int, operation: int) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", flock)
    return request.param


def test_a_second_run_leaves_with_a_sentence(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "captions" / "x"
    with lock_folder(folder):
        sentence = rf"captions/x is being written by process {os.getpid()} on .*; let it finish"
        with pytest.raises(FolderLockedError, match=sentence), lock_folder(folder):
            pytest.fail("both are in")
        (folder / "00000.parquet").write_bytes(b"")
    assert [path.name for path in folder.iterdir()] == ["00000.parquet"]
    with lock_folder(folder):
        pass


def test_an_empty_folder_goes_with_the_claim(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ValueError), lock_folder(tmp_path / "captions" / "x"):
        raise ValueError("a mistake that is found before anything is written")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with lock_folder(tmp_path / "mine"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_killed_run_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(capfilt.__file__).parents[1])}
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(FolderLockedError, match=f"process {process.pid} on"), lock_folder(tmp_path):
        pytest.fail("both are in")
    about = (tmp_path / ".lock").read_bytes()
    process.send_signal(signal.SIGKILL)
    process.wait()
    (tmp_path / ".lease.0123456789ab").write_bytes(about)  # what it would have left where there are no locks
    for way in ("flock", "lease"):
        if way == "lease":
            monkeypatch.setattr(lock, "_flocked", lock._leased)
        with lock_folder(tmp_path):
            assert (tmp_path / ".lock").exists() == (way == "flock")
    assert list(tmp_path.iterdir()) == []


def test_ranks_share_a_folder_and_nobody_else_does(tmp_path: Path, kind: str) -> None:
    with lock_folder(tmp_path, 0, 3), lock_folder(tmp_path, 2, 3):
        for rank, world_size in ((2, 3), (1, 4), (0, 1)):
            sentence = r"as rank [02] of 3; let it finish"
            with pytest.raises(FolderLockedError, match=sentence), lock_folder(tmp_path, rank, world_size):
                pytest.fail("all of them are in")
        with lock_folder(tmp_path, 1, 3):
            pass
    with lock_folder(tmp_path), pytest.raises(FolderLockedError), lock_folder(tmp_path, 1, 3):
        pytest.fail("a rank is in beside a run of its own")
    assert list(tmp_path.iterdir()) == []


def test_ranks_that_start_together_all_get_in(tmp_path: Path, kind: str) -> None:
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


def test_what_a_killed_run_has_written_is_not_of_the_rank_that_is_just_coming_in(tmp_path: Path) -> None:
    dead = {**lock._about(0, 1), "started": "long ago"}
    (tmp_path / ".lock").write_text(json.dumps(dead))
    with open(tmp_path / ".lock") as coming:
        fcntl.flock(coming, fcntl.LOCK_EX)  # and has not said yet who it is
        threading.Timer(0.2, lambda: fcntl.flock(coming, fcntl.LOCK_UN)).start()
        with lock_folder(tmp_path, 1, 3):
            pass


def test_a_lease_is_renewed_and_an_old_one_is_of_a_run_that_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_flocked", lock._leased)
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.02)
    elsewhere = tmp_path / ".lease.0123456789ab"
    elsewhere.write_text(json.dumps({"host": "elsewhere", "pid": 1, "rank": 0, "world_size": 1}))
    sentence = r"process 1 on elsewhere; .*last heard of \d+ s ago; if it was killed"
    with pytest.raises(FolderLockedError, match=sentence), lock_folder(tmp_path):
        pytest.fail("both are in")
    old = elsewhere.stat().st_mtime - lock.STALE_SECONDS - 10
    os.utime(elsewhere, (old, old))
    with lock_folder(tmp_path):
        (mine,) = tmp_path.glob(".lease.*")
        os.utime(mine, (old, old))
        renewed = threading.Event()
        for _ in range(500):
            if mine.stat().st_mtime > old or renewed.wait(0.02):
                break
        assert mine.stat().st_mtime > old
    assert list(tmp_path.iterdir()) == []


def test_leases_in_a_store_without_folders() -> None:
    folder = Remote("memory://test_lock/captions/x")
    sentence = "memory://test_lock/captions/x is being written by"
    with lock_folder(folder), pytest.raises(FolderLockedError, match=sentence), lock_folder(folder):
        pytest.fail("both are in")
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
