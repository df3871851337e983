"""Pictures come out in tar order for any number of threads, across two tars; the waiting time is measured."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import capfilt
from blipcore.io.samples import TarSample, read_samples
from capfilt.pictures import read_ahead
from capfilt.pictures.read_ahead import ReadAhead, decode_threads, throughput
from capfilt.shards.format import write_shard


@pytest.fixture
def tar(tmp_path: Path, drawn) -> Path:
    pictures = [drawn(number) for number in range(20)]
    pictures[3] = TarSample("bad", b"junk", "a text")
    pictures[19] = TarSample("bad too", b"", None)
    write_shard(tmp_path / "00000.tar", pictures)
    return tmp_path / "00000.tar"


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("ahead", [1, 5, 64])
def test_pictures_keep_the_order_of_the_tar(tar: Path, threads: int, ahead: int) -> None:
    def prepare(image) -> tuple[int, int]:
        if image.getpixel((0, 0))[0] % 2:
            time.sleep(0.002)  # a later picture overtakes this one
        return image.size

    pictures = ReadAhead(tar, prepare, ahead=ahead, threads=threads)
    prepared = list(pictures)
    assert [picture.key for picture in prepared] == [
        f"{n:06d}" if n not in (3, 19) else "bad" + " too" * (n > 3) for n in range(20)
    ]
    assert [(picture.input, picture.error) for picture in prepared if picture.error is None] == [((40, 40), None)] * 18
    assert prepared[3].error == "not_a_picture" and prepared[3].text == "a text" and prepared[3].input is None
    assert pictures.counts == {
        "pictures": 20, "undecodable": 2, "undecodable/not_a_picture": 1, f"undecodable/{prepared[19].error}": 1
    }  # fmt: skip


def test_an_error_of_prepare_is_raised(tar: Path) -> None:
    def prepare(image) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        list(ReadAhead(tar, prepare))


@pytest.fixture
def two_tars(tar: Path, tmp_path: Path, drawn) -> tuple[Path, Path]:
    """A tar of 20 pictures and another of 10."""
    write_shard(tmp_path / "00001.tar", [drawn(number) for number in range(100, 110)])
    return tar, tmp_path / "00001.tar"


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("read", "decode"))]


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)
    return condition()


@pytest.mark.parametrize("ahead", [1, 7, 64])
def test_the_next_tar_is_read_in_the_remaining_room(two_tars, monkeypatch: pytest.MonkeyPatch, ahead: int) -> None:
    expected = [[(picture.key, picture.error) for picture in ReadAhead(tar, lambda image: 1)] for tar in two_tars]
    read, opened, in_flight, consumed = read_samples, [], [], []

    def counted(tar: Path, problems: list) -> Iterator[TarSample]:
        opened.append(tar)
        for picture in read(tar, problems):
            in_flight.append(len(in_flight) - len(consumed))  # pictures read earlier and not consumed
            yield picture

    def room_is_used() -> bool:
        return len(in_flight) == min(30, len(consumed) + 1 + ahead)

    monkeypatch.setattr(read_ahead, "read_samples", counted)
    first = ReadAhead(two_tars[0], lambda image: 1, ahead=ahead)
    following = first.prefetch(two_tars[1])
    for pictures in (first, following):
        for picture in pictures:
            assert wait_until(room_is_used)
            consumed.append((picture.key, picture.error))
    assert consumed == expected[0] + expected[1] and max(in_flight) <= ahead
    assert opened == list(two_tars)
    assert (first.counts["pictures"], following.counts) == (20, {"pictures": 10})
    assert wait_until(lambda: not threads())


def test_an_unreadable_tar_raises_in_place_of_its_pictures(two_tars, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = two_tars
    read = read_samples

    def breaks(tar: Path, problems: list) -> Iterator[TarSample]:
        for number, picture in enumerate(read(tar, problems)):
            if tar == second and number == 4:
                raise OSError("the network is away")
            yield picture

    monkeypatch.setattr(read_ahead, "read_samples", breaks)
    for tar, error, readable in ((second, "the network is away", 4), (first.with_name("none.tar"), "none.tar", 0)):
        pictures = ReadAhead(first, lambda image: 1)
        following, keys = pictures.prefetch(tar), []
        assert len(list(pictures)) == 20
        with pytest.raises(OSError, match=error):
            keys.extend(picture.key for picture in following)
        assert len(keys) == readable
        assert wait_until(lambda: not threads())


def test_leaving_ends_the_threads(two_tars) -> None:
    for ahead in (1, 64):
        for number, _ in enumerate(ReadAhead(two_tars[0], lambda image: 1, ahead=ahead)):
            if number == 2:
                break
        assert wait_until(lambda: not threads())
        pictures = ReadAhead(two_tars[0], lambda image: 1, ahead=ahead)
        following = pictures.prefetch(two_tars[1])
        assert threads()
        following.close()
        assert wait_until(lambda: not threads())


@pytest.mark.parametrize("stop", [None, signal.SIGINT])
def test_a_waiting_reader_does_not_keep_the_process_alive(
    two_tars, tmp_path: Path, stop: signal.Signals | None
) -> None:
    """One reader waits for room, the other for bytes that never come."""
    (tmp_path / "main.py").write_text(
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from capfilt.pictures.read_ahead import ReadAhead\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "pictures = ReadAhead(Path(sys.argv[1]), lambda image: 1, ahead=2)\n"
        "following = pictures.prefetch(Path(sys.argv[2]))\n"
        "print(next(iter(pictures)).key, flush=True)\n"
        "os.mkfifo(sys.argv[3])\n"
        "if sys.argv[4] == 'wait':\n"
        "    list(ReadAhead(Path(sys.argv[3]), lambda image: 1))\n"
    )
    command = [sys.executable, tmp_path / "main.py", *two_tars, tmp_path / "fifo", "wait" if stop else "end"]
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


def test_the_wait_for_pictures_is_measured(tar: Path) -> None:
    """The clock ticks at each reading: every picture and the end of the tar cost one second."""
    seconds = iter(range(100))
    pictures = ReadAhead(tar, lambda image: 1, clock=lambda: float(next(seconds)))
    assert len(list(pictures)) == 20
    assert pictures.times() == {"waited_ms": 21_000, "busy_ms": 42_000}


def test_the_time_of_the_consumer_is_no_wait(tar: Path) -> None:
    class Clock:
        now = 100.0

        def __call__(self) -> float:
            return self.now

    clock = Clock()
    pictures = ReadAhead(tar, lambda image: 1, clock=clock)
    for _ in pictures:
        clock.now += 10
    assert pictures.times() == {"waited_ms": 0, "busy_ms": 200_000}


def test_throughput_is_empty_without_pictures() -> None:
    assert throughput({"pictures": 50, "waited_ms": 100, "busy_ms": 1000}, 2.0, "pictures") == {
        "pictures_per_second": 25.0, "data_wait_share": 0.1
    }  # fmt: skip
    assert throughput({}, 2.0, "pictures") == {}


def test_at_most_sixteen_threads_decode() -> None:
    assert [decode_threads(cores) for cores in (0, 1, 6, 64)] == [1, 1, 6, 16]
