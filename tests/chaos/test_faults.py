"""Full and read-only disks, removed folders, few files, little memory, a faulty store: a sentence and a good rerun."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from chaos_commands import ENTRIES, Entry
from chaos_runner import Chaos
from s3 import S3Server, remote_contents, remove_contents, upload

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(0)]

BY_NAME = {entry.name: entry for entry in ENTRIES}
WRITERS = ["pack", "download", "caption", "filter", "report", "export --format webdataset", "export --format json"]
WRITERS += ["convert --to hf", "finetune caption", "pretrain"]
CGROUP = Path("/sys/fs/cgroup/memory")
# A program needs about 0.35 GB for its imports.
MEMORY_MB = (100, 250, 400)


def check_rerun(chaos: Chaos, entry: Entry) -> None:
    """Run the command again; check that its files are those of an uninterrupted run."""
    if not (entry.once and chaos.is_complete(entry)):
        assert chaos.run(entry) == 0, chaos.messages
    assert chaos.outputs(entry) == chaos.expected[entry.name]


def check_sentence(chaos: Chaos, code: int, *sentences: str) -> None:
    """Check that a command failed with one of the sentences and without a traceback."""
    assert code in (1, 2), chaos.messages
    assert "Traceback" not in chaos.messages, chaos.messages
    assert any(sentence in chaos.messages for sentence in sentences), chaos.messages


@pytest.fixture
def disk(chaos: Chaos) -> Iterator[Path]:
    """Mount a small disk as the folder in which commands work."""
    if os.geteuid() != 0:
        pytest.skip("mounting a disk needs root")
    chaos.work.mkdir(exist_ok=True)
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(chaos.work)], capture_output=True)
    if mount.returncode:
        pytest.skip(f"no disk can be mounted: {mount.stderr.decode()}")
    yield chaos.work
    subprocess.run(["umount", "--lazy", str(chaos.work)], check=True)


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk(chaos: Chaos, disk: Path, name: str) -> None:
    entry = BY_NAME[name]
    chaos.learn(entry)
    chaos.prepare(entry)
    before = shutil.disk_usage(disk).used
    chaos.run(entry)
    needed = shutil.disk_usage(disk).used - before
    chaos.prepare(entry)
    used = shutil.disk_usage(disk).used
    remount(disk, f"size={used + int(needed * chaos.random.uniform(0, 0.8))}")
    check_sentence(chaos, chaos.run(entry), "No space left on device", "disk is full", "disk space")
    remount(disk, "size=64m")
    check_rerun(chaos, entry)


@pytest.mark.parametrize("name", WRITERS)
def test_a_read_only_disk(chaos: Chaos, disk: Path, name: str) -> None:
    entry = BY_NAME[name]
    chaos.learn(entry)
    chaos.prepare(entry)
    remount(disk, "ro")
    try:
        check_sentence(chaos, chaos.run(entry), "Read-only file system", "read-only")
    finally:
        remount(disk, "rw")
    check_rerun(chaos, entry)


@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_that_is_removed_while_a_command_writes_it(chaos: Chaos, name: str) -> None:
    entry = BY_NAME[name]
    chaos.learn(entry)
    chaos.prepare(entry)
    pid = chaos.start(entry)
    time.sleep(chaos.random.uniform(0.1, 0.8) * chaos.seconds[name])
    for path in chaos.work.iterdir():
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
    code = chaos.wait(pid)
    assert "Traceback" not in chaos.messages, chaos.messages
    assert code in (0, 1, 2)
    chaos.prepare(entry)
    check_rerun(chaos, entry)


@pytest.mark.parametrize("files", [12, 20, 40])
@pytest.mark.parametrize("name", [name for name in WRITERS if name != "download"])
def test_few_open_files(chaos: Chaos, name: str, files: int) -> None:
    entry = BY_NAME[name]
    chaos.learn(entry)
    chaos.prepare(entry)
    code = chaos.run(entry, limits={"RLIMIT_NOFILE": files})
    if code:
        check_sentence(chaos, code, "Too many open files", "open files")
    check_rerun(chaos, entry)


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """Make a control group with little memory."""
    folder = CGROUP / f"chaos-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made: {error}")
    yield folder
    for _ in range(100):
        with suppress(OSError):
            folder.rmdir()
            break
        time.sleep(0.1)


@pytest.mark.parametrize("megabytes", MEMORY_MB)
@pytest.mark.parametrize("name", ["pack", "caption", "export --format parquet", "finetune caption"])
def test_too_little_memory(chaos: Chaos, cgroup: Path, name: str, megabytes: int) -> None:
    entry = BY_NAME[name]
    chaos.learn(entry)
    chaos.prepare(entry)
    (cgroup / "memory.limit_in_bytes").write_text(str(megabytes << 20))
    code = chaos.run(entry, exec=True, cgroup=str(cgroup))
    assert code in (0, 1, -signal.SIGKILL), chaos.messages  # the kernel kills without asking
    check_rerun(chaos, entry)


@pytest.fixture(scope="module")
def store() -> Iterator[S3Server]:
    pytest.importorskip("moto", reason="the store needs moto[s3]")
    server = S3Server()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.variables.items():
            patch.setenv(name, value)
        yield server
    server.close()


@pytest.mark.parametrize("name", ["caption", "filter", "filter --captioner", "export --format parquet", "report"])
def test_kills_on_a_store_that_fails(chaos: Chaos, store: S3Server, name: str) -> None:
    """Kill a command four times while the store fails 12 % of its requests; compare with an undisturbed run on it."""
    entry = BY_NAME[name]
    chaos.learn(entry)
    chaos.prepare(entry)
    url = "s3://chaos/" + name.replace(" ", "-")
    remote = replace(entry, arguments=tuple(argument.replace("{work}", url) for argument in entry.arguments))
    upload(chaos.work, url)
    assert chaos.run(remote, environment=store.variables) == 0, chaos.messages
    expected = remote_contents(url)
    remove_contents(url)
    upload(chaos.work, url)
    store.failure_rate = 0.12
    try:
        for _ in range(4):
            pid = chaos.start(remote, environment=store.variables)
            time.sleep(chaos.random.uniform(0, 2 * chaos.seconds[name]))
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            chaos.wait(pid)
        code = chaos.run(remote, environment=store.variables)
    finally:
        store.failure_rate = 0.0
    assert code == 0, chaos.messages
    assert store.failures > 0
    assert remote_contents(url) == expected
