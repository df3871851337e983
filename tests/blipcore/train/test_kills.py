"""Training that is killed, on one process and on two: the run that goes on ends in the same bytes."""

import functools
import json
import random
import signal
from pathlib import Path

import pytest
from on_ranks import on_ranks, receive, start
from PIL import Image
from rank_work import TEXTS, Fatal, train_run

pytestmark = pytest.mark.timeout(900)  # several processes: on busy cores each waits for the others

PLACES = ("before", "after", "write", "publish")


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
def whole(data, tmp_path_factory):
    """The folder of an uninterrupted run on so many processes."""
    made: dict[tuple[int, str], Path] = {}

    def run(ranks: int, how: str = "ddp") -> Path:
        if (ranks, how) not in made:
            made[ranks, how] = tmp_path_factory.mktemp("whole") / "run"
            on_ranks(ranks, train_run, data, made[ranks, how], None, how)
        return made[ranks, how]

    return run


def kill(ranks: int, data: Path, out: Path, fatal: Fatal, how: str = "ddp") -> None:
    """Launch the run, and when the process that is to die has died, do to the others what a launcher does."""
    processes, answers = start(ranks, functools.partial(train_run, data, out, fatal, how))
    told = receive(answers[fatal.rank])
    for process in processes:
        process.kill()
        process.join()
    assert told is None, f"it was to be killed, but told {told}"


def results(out: Path) -> tuple[bytes, list[dict]]:
    """The model's bytes, and what metrics.jsonl says apart from the time."""
    timed = ("seconds", "images_per_second", "data_wait_share", "memory_gb")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    records = [{name: value for name, value in line.items() if name not in timed} for line in lines]
    return (out / "model" / "model.safetensors").read_bytes(), records


def kill_and_go_on(ranks: int, data: Path, out: Path, kills: list[Fatal], how: str = "ddp") -> None:
    for fatal in kills:
        kill(ranks, data, out, fatal, how)
    on_ranks(ranks, train_run, data, out, None, how)


def at_random(seed: int, ranks: int, count: int) -> list[Fatal]:
    """Deaths in ascending order of steps; checkpoints are written after steps 4, 8 and 11, by rank 0 made public."""
    draws = random.Random(seed)
    deaths = []
    for step in sorted(draws.sample(range(11), count)):
        place = draws.choice(PLACES)
        rank = 0 if place == "publish" else draws.randrange(ranks)
        deaths.append(Fatal(rank, step, place))
    return deaths


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_killed_run_goes_on_to_the_same_bytes(data, whole, tmp_path, ranks):
    kills = [Fatal(0, 5, "before"), Fatal(ranks - 1, 6, "write")]
    kill_and_go_on(ranks, data, tmp_path / "run", kills)
    assert results(tmp_path / "run") == results(whole(ranks))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_anywhere(data, whole, tmp_path, ranks, seed, how):
    if ranks == 1 and how == "fsdp":
        pytest.skip("nothing to shard")
    kill_and_go_on(ranks, data, tmp_path / "run", at_random(seed, ranks, 2), how)
    assert results(tmp_path / "run") == results(whole(ranks, how))


def test_one_processs_signal_makes_all_save_and_leave_and_one_process_goes_on(data, tmp_path, capfd):
    """Sharded over two, then whole on one: the data goes on at the next sample, and that is said."""
    codes = on_ranks(2, train_run, data, tmp_path / "run", Fatal(1, 5, signal=signal.SIGUSR1), "fsdp")
    assert codes == [128 + signal.SIGUSR1] * 2
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-000004", "step-000006"]
    summary, seen = train_run(data, tmp_path / "run")
    said = "the checkpoint is of 2 processes, now there are 1: the data goes on at sample 48, a step has 4 pictures"
    assert said in capfd.readouterr().err
    assert summary["steps"] == 11 and summary["pictures"] == 6 * 8 + 5 * 4
    (alone,) = on_ranks(1, train_run, data, tmp_path / "alone", steps=17)
    assert seen == alone[1][6 * 8 :]
