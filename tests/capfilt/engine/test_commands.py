"""Child processes of a longer job: done once, named where they fail, ended where it is."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from capfilt.engine.commands import Step, StepFailedError, Steps, claim


def test_a_failed_step_says_which_and_why_and_is_not_done(tmp_path: Path) -> None:
    steps, step = Steps(tmp_path / "logs"), Step("first", ("pack", str(tmp_path / "nowhere"), str(tmp_path / "data")))
    with pytest.raises(StepFailedError, match=r"capfilt pack .*nowhere.* exited with 2: Error: .*first\.log"):
        steps.run(step)
    assert steps.summary(step) is None


def test_a_step_is_done_once_and_leaves_its_summary(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "photos").mkdir()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "photos" / "a.jpg")
    steps, step = Steps(tmp_path / "logs"), Step("pack", ("pack", str(tmp_path / "photos"), str(tmp_path / "data")))
    steps.run(step)
    summary = steps.summary(step)
    assert summary["rows"] == summary["ok"] == 1
    assert json.loads((tmp_path / "logs" / "pack.json").read_text()) == summary
    written = steps.log(step).stat().st_mtime_ns
    steps.run(step)
    assert steps.log(step).stat().st_mtime_ns == written


@pytest.fixture
def heard() -> Iterator[None]:
    """Ctrl-C is heard also where the tests were started with it ignored, as by a shell's `&`."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_interrupted_it_ends_what_it_started(tmp_path: Path, heard: None, number: signal.Signals, raised: type) -> None:
    steps = Steps(tmp_path / "logs")
    step = Step("served", ("demo", "--quick", "--out", str(tmp_path / "demo")))  # more than a minute's work

    me = threading.get_ident()
    threading.Timer(1, signal.pthread_kill, [me, number]).start()  # Ctrl-C, or the end of a batch job
    with pytest.raises(raised):
        steps.run(step)
    assert steps.summary(step) is None
    assert not [
        line
        for line in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout.splitlines()
        if str(tmp_path / "demo") in line
    ]


def test_a_step_that_outlived_its_job_is_not_started_beside_itself(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    steps, step = Steps(tmp_path / "logs"), Step("pack", ("pack", str(tmp_path / "photos"), str(tmp_path / "data")))
    code = (
        "import fcntl, sys; f = open(sys.argv[1], 'ab'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "logs" / "pack.json.partial")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as outliver:
        assert outliver.stdout and outliver.stdout.readline() == "1\n"
        with pytest.raises(
            StepFailedError, match=r"capfilt pack .* is still at work, started by a run that was killed"
        ):
            steps.run(step)
        outliver.communicate("\n")
    with pytest.raises(StepFailedError, match="exited with 2"):  # there are no photos
        steps.run(step)


def test_a_job_claims_its_folder(tmp_path: Path) -> None:
    claim(tmp_path / "job", "job.json", {"seed": 0}, "job")
    claim(tmp_path / "job", "job.json", {"seed": 0}, "job")
    with pytest.raises(ValueError, match=r"other settings \(seed: 0 -> 1\)"):
        claim(tmp_path / "job", "job.json", {"seed": 1}, "job")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no job"):
        claim(tmp_path / "other", "job.json", {"seed": 0}, "job")
