"""Training that is killed, on one process and on two, and resumed: the result has the same bytes."""

import functools
import json
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from on_ranks import on_ranks, receive, start
from PIL import Image
from rank_work import TEXTS, Fatal, train_run
from toy_training import untimed_records

from blipcore.train.optim import Parallel

pytestmark = pytest.mark.timeout(900)  # on busy cores, processes wait for each other

POINTS = ("before", "after", "write", "publish")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for number in range(30):
        Image.new("RGB", (20, 20), (number * 8, number * 50 % 256, number * 90 % 256)).save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "caption": [TEXTS[number % 8], TEXTS[number % 7]]})
    (folder / "all.json").write_text(json.dumps(rows))
    return folder / "all.json"


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory) -> Callable[..., Path]:
    """Returns the folder of an uninterrupted run on a number of processes."""
    folders: dict[tuple[int, Parallel], Path] = {}

    def run(ranks: int, parallel: Parallel = "ddp") -> Path:
        if (ranks, parallel) not in folders:
            folders[ranks, parallel] = tmp_path_factory.mktemp("uninterrupted") / "run"
            on_ranks(ranks, train_run, data, folders[ranks, parallel], None, parallel)
        return folders[ranks, parallel]

    return run


def kill(ranks: int, data: Path, out: Path, fatal: Fatal, parallel: Parallel = "ddp") -> None:
    """Start the run, wait until the process of `fatal` is killed, and kill the others as a launcher does."""
    processes, receivers = start(ranks, functools.partial(train_run, data, out, fatal, parallel))
    result = receive(receivers[fatal.rank])
    for process in processes:
        process.kill()
        process.join()
    assert result is None, f"the process was not killed but returned {result}"


def results(out: Path) -> tuple[bytes, list[dict]]:
    """The bytes of the model, and the records of metrics.jsonl without times."""
    return (out / "model" / "model.safetensors").read_bytes(), untimed_records(out)


def kill_and_resume(ranks: int, data: Path, out: Path, kills: list[Fatal], parallel: Parallel = "ddp") -> None:
    for fatal in kills:
        kill(ranks, data, out, fatal, parallel)
    on_ranks(ranks, train_run, data, out, None, parallel)


def random_kills(seed: int, ranks: int, count: int) -> list[Fatal]:
    """Kills in ascending order of steps. Checkpoints are written after steps 4, 8 and 11; rank 0 publishes them."""
    draws = random.Random(seed)
    kills = []
    for step in sorted(draws.sample(range(11), count)):
        point = draws.choice(POINTS)
        rank = 0 if point == "publish" else draws.randrange(ranks)
        kills.append(Fatal(rank, step, point))
    return kills


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_killed_run_resumes_to_the_same_bytes(data, uninterrupted, tmp_path, ranks) -> None:
    kills = [Fatal(0, 5, "before"), Fatal(ranks - 1, 6, "write")]
    kill_and_resume(ranks, data, tmp_path / "run", kills)
    assert results(tmp_path / "run") == results(uninterrupted(ranks))


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_killed_anywhere_resumes_to_the_same_bytes(data, uninterrupted, tmp_path, ranks, seed, parallel) -> None:
    if ranks == 1 and parallel == "fsdp":
        pytest.skip("nothing to shard")
    kill_and_resume(ranks, data, tmp_path / "run", random_kills(seed, ranks, 2), parallel)
    assert results(tmp_path / "run") == results(uninterrupted(ranks, parallel))


def test_a_signal_to_one_process_stops_both_and_a_single_process_resumes(data, tmp_path, capfd) -> None:
    """Sharded over two processes, then on one: the data continues at the next sample, with a message."""
    codes = on_ranks(2, train_run, data, tmp_path / "run", Fatal(1, 5, signal=signal.SIGUSR1), "fsdp")
    assert codes == [128 + signal.SIGUSR1] * 2
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-000004", "step-000006"]
    summary, keys = train_run(data, tmp_path / "run")
    message = "the checkpoint is of 2 processes and this launch has 1: the data continues at sample 48, a step has 4"
    assert message in capfd.readouterr().err
    assert summary["steps"] == 11 and summary["pictures"] == 6 * 8 + 5 * 4
    ((_, keys_alone),) = on_ranks(1, train_run, data, tmp_path / "alone", steps=17)
    assert keys == keys_alone[6 * 8 :]
