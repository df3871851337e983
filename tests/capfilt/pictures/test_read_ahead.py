"""Pictures come out in tar order whatever the threads do, those of the next tar too; the wait for them is measured."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import capfilt
from blipcore.io.samples import Picture, read_pictures
from capfilt.pictures import read_ahead as readahead
from capfilt.pictures.read_ahead import ReadAhead, decode_threads, speed
from capfilt.shards.format import write_shard


@pytest.fixture
def tar(tmp_path: Path, drawn) -> Path:
    pictures = [drawn(number) for number in range(20)]
    pictures[3] = Picture("bad", b"junk", "a text")
    pictures[19] = Picture("bad too", b"", None)
    write_shard(tmp_path / "00000.tar", pictures)
    return tmp_path / "00000.tar"


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("ahead", [1, 5, 64])
def test_order_and_errors(tar: Path, threads: int, ahead: int) -> None:
    def prepare(image) -> tuple[int, int]:
        if image.getpixel((0, 0))[0] % 2:
            time.sleep(0.002)  # a later picture overtakes this one
        return image.size

    pictures = ReadAhead(tar, prepare, ahead=ahead, threads=threads)
    ready = list(pictures)
    assert [one.key for one in ready] == [
        f"{n:06d}" if n not in (3, 19) else "bad" + " too" * (n > 3) for n in range(20)
    ]
    assert [(one.input, one.error) for one in ready if one.error is None] == [((40, 40), None)] * 18
    assert ready[3].error == "not_a_picture" and ready[3].text == "a text" and ready[3].input is None
    assert pictures.counts == {
        "pictures": 20, "undecodable": 2, "undecodable/not_a_picture": 1, f"undecodable/{ready[19].error}": 1
    }  # fmt: skip


def test_batches_are_full_of_usable_pictures(tar: Path) -> None:
    batches = list(ReadAhead(tar, lambda image: 1).batches(4))
    assert [sum(one.error is None for one in batch) for batch in batches] == [4, 4, 4, 4, 2]
    assert sum(map(len, batches)) == 20


def test_a_mistake_in_preparing_is_no_bad_picture(tar: Path) -> None:
    def prepare(image) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        list(ReadAhead(tar, prepare))


@pytest.fixture
def two(tar: Path, tmp_path: Path, drawn) -> tuple[Path, Path]:
    """A tar of 20 pictures and another of 10."""
    write_shard(tmp_path / "00001.tar", [drawn(number) for number in range(100, 110)])
    return tar, tmp_path / "00001.tar"


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("read", "decode"))]


def wait_until(true, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.002)
    return true()


@pytest.mark.parametrize("ahead", [1, 7, 64])
def test_the_tar_that_follows_is_read_in_the_room_that_is_left(
    two, monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    expected = [[(one.key, one.error) for one in ReadAhead(tar, lambda image: 1)] for tar in two]
    read, opened, came, seen = read_pictures, [], [], []

    def counted(tar: Path, problems: list) -> Iterator[Picture]:
        opened.append(tar)
        for picture in read(tar, problems):
            came.append(len(came) - len(seen))  # pictures on their way and, beside them, one that is looked at
            yield picture

    def room_is_used() -> bool:
        return len(came) == min(30, len(seen) + 1 + ahead)

    monkeypatch.setattr(readahead, "read_pictures", counted)
    first = ReadAhead(two[0], lambda image: 1, ahead=ahead)
    following = first.then(two[1])
    for pictures in (first, following):
        for one in pictures:
            assert wait_until(room_is_used)
            seen.append((one.key, one.error))
    assert seen == expected[0] + expected[1] and max(came) <= ahead
    assert opened == list(two)
    assert (first.counts["pictures"], following.counts) == (20, {"pictures": 10})
    assert wait_until(lambda: not threads())


def test_a_tar_that_cannot_be_read_fails_where_it_is_asked_for(two, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = two
    read = read_pictures

    def breaks(tar: Path, problems: list) -> Iterator[Picture]:
        for number, picture in enumerate(read(tar, problems)):
            if tar == second and number == 4:
                raise OSError("the network is away")
            yield picture

    monkeypatch.setattr(readahead, "read_pictures", breaks)
    for tar, error, before in ((second, "the network is away", 4), (first.with_name("none.tar"), "none.tar", 0)):
        pictures = ReadAhead(first, lambda image: 1)
        following, seen = pictures.then(tar), []
        assert len(list(pictures)) == 20
        with pytest.raises(OSError, match=error):
            seen.extend(one.key for one in following)
        assert len(seen) == before
        assert wait_until(lambda: not threads())


def test_leaving_ends_the_threads(two) -> None:
    for ahead in (1, 64):
        for number, _ in enumerate(ReadAhead(two[0], lambda image: 1, ahead=ahead)):
            if number == 2:
                break
        assert wait_until(lambda: not threads())
        pictures = ReadAhead(two[0], lambda image: 1, ahead=ahead)
        following = pictures.then(two[1])
        assert threads()
        following.close()
        assert wait_until(lambda: not threads())


@pytest.mark.parametrize("stop", [None, signal.SIGINT])
def test_a_reader_that_waits_keeps_no_process(two, tmp_path: Path, stop: signal.Signals | None) -> None:
    """One waits for room, the other for bytes that do not come."""
    (tmp_path / "main.py").write_text(
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from capfilt.pictures.read_ahead import ReadAhead\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "pictures = ReadAhead(Path(sys.argv[1]), lambda image: 1, ahead=2)\n"
        "following = pictures.then(Path(sys.argv[2]))\n"
        "print(next(iter(pictures)).key, flush=True)\n"
        "os.mkfifo(sys.argv[3])\n"
        "if sys.argv[4] == 'wait':\n"
        "    list(ReadAhead(Path(sys.argv[3]), lambda image: 1))\n"
    )
    command = [sys.executable, tmp_path / "main.py", *two, tmp_path / "fifo", "wait" if stop else "end"]
    environment = os.environ | {"PYTHONPATH": str(Path(capfilt.__file__).parents[1])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout.readline() == b"000000\n"
        if stop:
            assert wait_until((tmp_path / "fifo").exists)
            time.sleep(0.2)
            process.send_signal(stop)
        _, errors = process.communicate(timeout=20)
    assert (process.returncode == 0) == (stop is None)
    assert (b"KeyboardInterrupt" in errors) == (stop is not None)


def test_the_wait_is_measured(tar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = ReadAhead(tar, lambda image: time.sleep(0.01), threads=1)
    list(slow)
    assert slow.times()["waited_ms"] > 100
    patient = ReadAhead(tar, lambda image: time.sleep(0.001), threads=2)
    for _ in patient:
        time.sleep(0.01)
    times = patient.times()
    assert times["waited_ms"] < times["busy_ms"] / 2

    def slow_reading(*_: object) -> Iterator[Picture]:
        for picture in pictures:
            time.sleep(0.01)
            yield picture

    pictures = list(read_pictures(tar))
    monkeypatch.setattr(readahead, "read_pictures", slow_reading)
    waiting = ReadAhead(tar, lambda image: 1, ahead=4)
    list(waiting)
    assert waiting.times()["waited_ms"] > 190
    assert speed({"pictures": 50, "waited_ms": 100, "busy_ms": 1000}, 2.0, "pictures") == {
        "pictures_per_second": 25.0, "data_wait_share": 0.1
    }  # fmt: skip
    assert speed({}, 2.0, "pictures") == {}
    assert [decode_threads(cores) for cores in (0, 1, 6, 64)] == [1, 1, 6, 16]
