"""Commands as child processes: run once, named in the error if they fail, ended with the job."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from capfilt.engine.commands import Command, CommandFailedError, CommandRunner, claim_folder


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
    assert not [
        line
        for line in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout.splitlines()
        if str(tmp_path / "demo") in line
    ]


def test_a_command_that_outlives_its_job_is_not_started_a_second_time(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    runner = CommandRunner(tmp_path / "logs")
    command = Command("pack", ("pack", str(tmp_path / "photos"), str(tmp_path / "data")))
    code = (
        "import fcntl, sys; f = open(sys.argv[1], 'ab'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "logs" / "pack.json.partial")]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as survivor:
        assert survivor.stdout and survivor.stdout.readline() == "1\n"
        with pytest.raises(
            CommandFailedError, match=r"capfilt pack .* is still running, started by a run that was killed"
        ):
            runner.run(command)
        survivor.communicate("\n")
    with pytest.raises(CommandFailedError, match="exited with 2"):  # there are no photos
        runner.run(command)


def test_a_job_refuses_a_folder_with_other_content(tmp_path: Path) -> None:
    claim_folder(tmp_path / "job", "job.json", {"seed": 0}, "job")
    claim_folder(tmp_path / "job", "job.json", {"seed": 0}, "job")
    with pytest.raises(ValueError, match=r"other settings \(seed: 0 -> 1\)"):
        claim_folder(tmp_path / "job", "job.json", {"seed": 1}, "job")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no job"):
        claim_folder(tmp_path / "other", "job.json", {"seed": 0}, "job")
