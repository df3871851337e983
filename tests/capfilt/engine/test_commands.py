"""Commands as child processes: run once, named in the error if they fail, ended with the job."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import capfilt
from blipcore.io.lock import FolderLockedError
from capfilt.engine import commands
from capfilt.engine.commands import Command, CommandFailedError, CommandRunner, claim_folder

ROOT = Path(capfilt.__file__).parents[1]


def test_a_failed_command_is_named_with_its_reason_and_is_not_done(tmp_path: Path) -> None:
    runner = CommandRunner(tmp_path / "logs")
    command = Command("first", ("pack", str(tmp_path / "nowhere"), str(tmp_path / "data")))
    with pytest.raises(CommandFailedError, match=r"capfilt pack .*nowhere.* exited with 2: Error: .*first\.log"):
        runner.run(command)
    assert runner.summary(command) is None


def test_a_command_runs_once_and_leaves_its_summary(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "photos").mkdir()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "photos" / "a.jpg")
    runner = CommandRunner(tmp_path / "logs")
    command = Command("pack", ("pack", str(tmp_path / "photos"), str(tmp_path / "data")))
    runner.run(command)
    summary = runner.summary(command)
    assert summary["rows"] == summary["ok"] == 1
    assert json.loads((tmp_path / "logs" / "pack.json").read_text()) == summary
    modified = runner.log(command).stat().st_mtime_ns
    runner.run(command)
    assert runner.log(command).stat().st_mtime_ns == modified


@pytest.fixture
def default_sigint() -> Iterator[None]:
    """Handle Ctrl-C even if the tests run with it ignored, as after a shell's `&`."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.parametrize(("number", "exception"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_an_interrupted_run_ends_its_commands(
    tmp_path: Path, default_sigint: None, number: signal.Signals, exception: type
) -> None:
    runner = CommandRunner(tmp_path / "logs")
    command = Command("demo", ("demo", "--quick", "--out", str(tmp_path / "demo")))  # takes more than a minute

    thread = threading.get_ident()
    threading.Timer(1, signal.pthread_kill, [thread, number]).start()  # Ctrl-C, or the end of a batch job
    with pytest.raises(exception):
        runner.run(command)
    assert runner.summary(command) is None
    assert not processes_with(str(tmp_path / "demo"))


def processes_with(argument: str) -> list[int]:
    """Return the running processes with an argument that contains `argument`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if argument.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def test_commands_end_with_a_killed_job(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from capfilt.engine.commands import Command, CommandRunner\n"
        "out = Path(sys.argv[1])\n"
        "CommandRunner(out / 'logs').run(Command('demo', ('demo', '--quick', '--out', str(out / 'demo'))))"
    )
    job = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], env=os.environ | {"PYTHONPATH": str(ROOT)})
    wait_until(lambda: processes_with(str(tmp_path / "demo")), "the command has not started")
    job.kill()  # perhaps while the command is still importing
    job.wait()
    wait_until(lambda: not processes_with(str(tmp_path / "demo")), "the command has outlived its job")


def wait_until(condition: Callable[[], object], problem: str) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, problem
        time.sleep(0.05)


def test_the_next_job_waits_for_a_command_that_is_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "logs").mkdir()
    runner = CommandRunner(tmp_path / "logs")
    command = Command("pack", ("pack", str(tmp_path / "photos"), str(tmp_path / "data")))
    code = (
        "import fcntl, sys; f = open(sys.argv[1], 'ab'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "logs" / "pack.json.partial")]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as survivor:
        assert survivor.stdout and survivor.stdout.readline() == "1\n"
        with monkeypatch.context() as patch:
            patch.setattr(commands, "SECONDS_TO_END", 0.2)
            with pytest.raises(CommandFailedError, match=r"capfilt pack .* of an earlier run has not ended in"):
                runner.run(command)
        threading.Timer(0.5, survivor.communicate, ["\n"]).start()
        with pytest.raises(CommandFailedError, match="exited with 2"):  # there are no photos
            runner.run(command)
    assert "waiting for capfilt pack" in capsys.readouterr().err


def test_a_job_refuses_a_folder_with_other_content(tmp_path: Path) -> None:
    for _ in range(2):
        with claim_folder(tmp_path / "job", "job.json", {"seed": 0}, "job"):
            pass
    with (
        pytest.raises(ValueError, match=r"other settings \(seed: 0 -> 1\)"),
        claim_folder(tmp_path / "job", "job.json", {"seed": 1}, "job"),
    ):
        pass
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with (
        pytest.raises(ValueError, match="is not empty and holds no job"),
        claim_folder(tmp_path / "other", "job.json", {"seed": 0}, "job"),
    ):
        pass
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.txt"]


def test_a_second_job_in_a_folder_names_the_first(tmp_path: Path) -> None:
    with (
        claim_folder(tmp_path / "job", "job.json", {"seed": 0}, "job"),
        pytest.raises(FolderLockedError, match=rf"is being written by process {os.getpid()} on"),
        claim_folder(tmp_path / "job", "job.json", {"seed": 0}, "job"),
    ):
        pass
