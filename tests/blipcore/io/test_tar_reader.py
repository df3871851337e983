"""Samples are read by key from any number of tars, few of which are open."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from pathlib import Path

import pytest
from tar_files import header, member, write_tar

from blipcore.io.tar_reader import TarReader, summarise_problems
from blipcore.io.tars import TarProblem


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files as Linux lists them")
def test_a_reader_holds_a_bounded_number_of_files(tmp_path: Path) -> None:
    paths = [str(write_tar(tmp_path / f"{number}.tar", {"a.jpg": str(number).encode()})) for number in range(6)]
    reader = TarReader(capacity=2)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        for number, path in enumerate(paths):
            assert reader.read_image(path, "a") == str(number).encode()
    assert len(os.listdir("/proc/self/fd")) == before + 2
    reader.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_forked_processes_read_one_open_tar_at_the_same_time(tmp_path: Path) -> None:
    """They share the position of the file, so reading must not use it."""
    images = {f"{number}.jpg": bytes([number]) * 3000 for number in range(50)}
    path = str(write_tar(tmp_path / "0.tar", images))
    reader = TarReader()
    reader.open(path)

    def read_all() -> None:
        for _ in range(20):
            for name, image in images.items():
                assert reader.read_image(path, name.removesuffix(".jpg")) == image

    processes = [multiprocessing.get_context("fork").Process(target=read_all) for _ in range(2)]
    for process in processes:
        process.start()
    read_all()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]


def test_pictures_that_cannot_be_read_are_errors_and_defects_of_tars_are_kept(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(member("0.txt", b"text") + header("1.jpg", 4000) + b"cut")
    reader = TarReader(locate=lambda name: tmp_path / name)
    with pytest.raises(FileNotFoundError, match="not in the tar"):
        reader.read_image("0.tar", "0")
    with pytest.raises(FileNotFoundError, match="not in the tar"):
        reader.read_image("0.tar", "2")
    with pytest.raises(OSError, match="truncated_tar"):
        reader.read_image("0.tar", "1")
    assert reader.problems == {"0.tar": "truncated_tar 1.jpg"}


def test_a_pickled_reader_opens_its_tars_again(tmp_path: Path) -> None:
    path = str(write_tar(tmp_path / "0.tar", {"a.jpg": b"A"}))
    reader = TarReader()
    reader.open(path)
    assert pickle.loads(pickle.dumps(reader)).read_image(path, "a") == b"A"


def test_problems_are_summarised_by_reason() -> None:
    problems = [
        TarProblem("unsafe_name", "/a"),
        TarProblem("foreign_member", "README"),
        TarProblem("unsafe_name", "/b"),
    ]
    assert (
        summarise_problems([*problems, TarProblem("truncated_tar", "c")])
        == "unsafe_name /a and 1 more; truncated_tar c"
    )
    assert summarise_problems(problems[1:2]) == ""
