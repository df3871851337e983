"""Pictures come out in tar order whatever the threads do, and the wait for them is measured."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from capfilt import readahead
from capfilt.readahead import ReadAhead, decode_threads, speed
from capfilt.shards import Picture, read_pictures, write_shard


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
    assert [decode_threads(cores) for cores in (0, 1, 6, 64)] == [1, 1, 6, 8]
