"""Several training processes, started with `--nproc 2` and with `torchrun`."""

import getpass
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

import capfilt
from blipcore.io.lock import FolderLockedError
from blipcore.train.finite import NonFiniteLossError
from blipcore.train.launch import TrainingFailedError, _first_error

pytestmark = pytest.mark.timeout(600)  # on busy cores

TRAIN = ("--preset", "tiny", "--tokenizer", "train:60", "--device", "cpu", "--dtype", "fp32", "--batch-size", "4")
TRAIN += ("--steps", "3", "--set", "task.queue_size=16", "--json")
NPROC = ("-m", "capfilt")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "capfilt")

NO_MEMORY = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried ..."

# Sent to the launcher, eight times since a deadlock on exit once happened in a third of the runs, and to all processes
# at once, as Slurm and Ctrl-C do.
SIGNALS = [(signal.SIGUSR1, os.kill)] * 8 + [(signal.SIGTERM, os.killpg), (signal.SIGINT, os.killpg)]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for number, colour in enumerate(("red", "green", "blue", "white", "yellow", "purple", "orange", "black") * 2):
        Image.new("RGB", (48, 48), colour).save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "caption": f"a {colour} wall, number {number}"})
    (folder / "walls.json").write_text(json.dumps(rows))
    return folder / "walls.json"


def train(launcher: tuple[str, ...], *arguments: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {"PYTHONPATH": str(Path(capfilt.__file__).parents[1]), "OMP_NUM_THREADS": "1"} | more
    command = [sys.executable, *launcher, "pretrain", *map(str, arguments), *TRAIN]
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=300)


@pytest.fixture(scope="module")
def nproc_run(data, tmp_path_factory) -> Path:
    """The folder of a run under `--nproc 2`."""
    out = tmp_path_factory.mktemp("nproc") / "run"
    temporary = tmp_path_factory.mktemp("temporary")
    process = train(NPROC, data, "--out", out, "--nproc", "2", TMPDIR=str(temporary))
    assert process.returncode == 0, process.stderr
    assert {path.name for path in temporary.iterdir()} <= {f"torchinductor_{getpass.getuser()}"}  # a cache of torch
    summary = json.loads(process.stdout)
    assert (summary["steps"], summary["pictures"]) == (3, 3 * 4 * 2)
    assert json.loads((out / "launches.jsonl").read_text())["processes"] == 2
    return out


def test_nproc_trains_on_two_processes_and_prints_one_summary(nproc_run) -> None:
    assert (nproc_run / "model" / "model.safetensors").is_file()


@pytest.mark.slow
def test_torchrun_trains_the_same_bytes(nproc_run, data, tmp_path) -> None:
    process = train(TORCHRUN, data, "--out", tmp_path / "run")
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout)["pictures"] == 3 * 4 * 2
    file = Path("model") / "model.safetensors"
    assert (tmp_path / "run" / file).read_bytes() == (nproc_run / file).read_bytes()


@pytest.mark.slow
def test_a_mistake_on_two_processes_is_one_sentence(data, tmp_path) -> None:
    process = train(NPROC, tmp_path / "nowhere.json", "--out", tmp_path / "run", "--nproc", "2")
    assert process.returncode == 2, process.stderr
    assert (
        process.stderr.count("Error: ") == 1 and "nowhere.json" in process.stderr and "Traceback" not in process.stderr
    )


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("NonFiniteLossError: The loss is not finite.", NonFiniteLossError("The loss is not finite.")),
        (
            "PermissionError: [Errno 13] Permission denied: 'run'",
            PermissionError("[Errno 13] Permission denied: 'run'"),
        ),
        ("FolderLockedError: Another process trains.", FolderLockedError("Another process trains.")),
        (f"RuntimeError: {NO_MEMORY}", MemoryError(NO_MEMORY)),
        ("KeyError: 'loss'", TrainingFailedError("Process 0 failed: Traceback")),
    ],
)
def test_an_error_that_a_user_can_fix_comes_without_a_traceback(tmp_path, message, error) -> None:
    file = tmp_path / "error.json"
    file.write_text(
        json.dumps({"message": {"message": message, "extraInfo": {"py_callstack": "Traceback", "timestamp": "0"}}})
    )
    result = _first_error(ChildFailedError("train", {0: ProcessFailure(0, 1, 1, str(file))}))
    assert (type(result), str(result)) == (type(error), str(error))


@pytest.mark.slow
@pytest.mark.parametrize("number, send", SIGNALS)
def test_a_signal_saves_and_ends_all_processes(data, tmp_path, number, send) -> None:
    out = tmp_path / "run"
    command = [sys.executable, *NPROC, "pretrain", str(data), "--out", str(out), "--nproc", "2", *TRAIN]
    variables = os.environ | {"PYTHONPATH": str(Path(capfilt.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--steps", "500", "--set", "train.log_every=1", "--set", "train.workers=1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=variables,
        start_new_session=True,
    )
    metrics = out / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size) and process.poll() is None:
        time.sleep(0.05)
    send(process.pid, number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number, stderr
    assert "stopped and saved at step" in stderr and any((out / "checkpoints").iterdir())


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_training_process(pid: int) -> bool:
    """Return whether a process is a rank: multiprocessing also starts a tracker."""
    return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to find the children")
@pytest.mark.parametrize("moment", ["launch", "import", "rendezvous", "first step", "save"])
def test_processes_end_with_a_killed_launcher(data, tmp_path, moment) -> None:
    out = tmp_path / "run"
    command = [sys.executable, *NPROC, "pretrain", str(data), "--out", str(out), "--nproc", "2", *TRAIN]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    variables = os.environ | {"PYTHONPATH": str(Path(capfilt.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    variables["TMPDIR"] = str(temporary)
    settings = ["--steps", "5000", "--set", "train.log_every=1", "--set", "train.workers=1"]
    process = subprocess.Popen(
        [*command, *settings, "--set", "train.save_every=1"], stderr=subprocess.PIPE, env=variables
    )
    ranks: list[int] = []
    while len(ranks) < 2:
        ranks = [pid for pid in children_of(process.pid) if is_training_process(pid)]
        time.sleep(0.01)
    if moment == "import":
        time.sleep(1.5)
    elif moment == "rendezvous":
        os.kill(ranks[1], signal.SIGSTOP)  # rank 0 waits for it
        time.sleep(8)
    elif moment in ("first step", "save"):
        present = out / "metrics.jsonl" if moment == "first step" else out / "checkpoints" / ".step-000003"
        while not present.exists():
            time.sleep(0.001)
    process.kill()
    os.kill(ranks[1], signal.SIGCONT)
    # Every process holds the other end of the pipe: it closes when the last one has ended.
    process.communicate(timeout=60)
    assert list(temporary.glob("capfilt_launch_*")) == []
