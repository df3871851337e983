"""The labels file: written after every answer, read by `filter`, and never taken from another program."""

from __future__ import annotations

from pathlib import Path

import pytest

from blipcore.io.lock import FolderLockedError
from capfilt.filter.labels import read_labels
from capfilt.label.label_file import LabelFile, TextPlace, locked_labels

PLACES = [TextPlace("00000", "a,b", "web", 0), TextPlace("00001", 'q"1"', "c", 2), TextPlace("00001", "x\ny", "c", 0)]
HEADER = "shard,key,source,index,match,drawn,text\n"


def test_the_file_is_complete_after_every_answer_and_read_by_filter(tmp_path: Path) -> None:
    path = tmp_path / "new" / "labels.csv"
    labels = LabelFile(path)
    for place, answer in zip(PLACES, ("1", "unsure", "0"), strict=True):
        labels.set(place, answer, "random", "one\n  two, =three")
        assert [LabelFile(path).answer(known) for known in PLACES] == [labels.answer(known) for known in PLACES]
    assert read_labels(path).select(["shard", "key", "source", "index", "match"]).to_pylist() == [
        {**PLACES[0]._asdict(), "match": 1},
        {**PLACES[2]._asdict(), "match": 0},
    ]
    labels.set(PLACES[0], None, "random", "")
    labels.set(PLACES[1], "1", "uncertain", "")
    assert [LabelFile(path).answer(place) for place in PLACES] == [None, "1", "0"]
    assert LabelFile(path).places() == [PLACES[2], PLACES[1]]


def test_no_text_starts_a_formula_of_a_spreadsheet(tmp_path: Path) -> None:
    labels = LabelFile(tmp_path / "labels.csv")
    labels.set(PLACES[0], "1", "random", " =HYPERLINK(x)\u2028 \x00 end")
    assert labels.path.read_text().splitlines()[1] == '00000,"a,b",web,0,1,random,\'=HYPERLINK(x) end'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("key,match\na,1\n", "was not written by `capfilt label`, whose columns are shard, key"),
        ("", "was not written by `capfilt label`"),
        (
            "shard,key,source,index,match,drawn,text\n0,a,web,0,maybe,,\n",
            "Row 2 of .* is no label: 0, a, web, 0, maybe",
        ),
        (HEADER + "0,a,web,-1,1,,\n", "Row 2 of .* is no label"),
        (HEADER + f"0,a,web,{10**20},1,,\n", "Row 2 of .* is no label"),
        (HEADER + "0,a,web\n", "Row 2 of .* is no label"),
        (
            "shard,key,source,index,match,drawn,text\n0,a,web,0,1,,\n0,a,web,0,0,,\n",
            "labels 0 a web 0 twice, differently",
        ),
        (HEADER + '0,"a,web\n', "Cannot read .* as CSV"),
        (b"\xff\xfe\x00", "Cannot read .* as CSV in UTF-8"),
    ],
)
def test_other_files_are_refused_and_kept(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "labels.csv"
    stored = content.encode() if isinstance(content, str) else content
    path.write_bytes(stored)
    with pytest.raises(ValueError, match=message):
        LabelFile(path)
    assert path.read_bytes() == stored


def test_a_file_that_a_spreadsheet_saved_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(b"\xef\xbb\xbf" + (HEADER + "00000,0007,web,0,1,random,a text\n").replace("\n", "\r\n").encode())
    labels = LabelFile(path)
    assert labels.answer(TextPlace("00000", "0007", "web", 0)) == "1"
    labels.set(PLACES[0], "0", "random", "b")
    assert read_labels(path)["match"].to_pylist() == [1, 0]


def test_an_answer_that_cannot_be_written_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = LabelFile(tmp_path / "labels.csv")
    labels.set(PLACES[0], "1", "random", "")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("capfilt.label.label_file.write_text", fail)
    with pytest.raises(OSError, match="No space left"):
        labels.set(PLACES[0], "0", "random", "")
    assert labels.answer(PLACES[0]) == LabelFile(labels.path).answer(PLACES[0]) == "1"


def test_a_second_session_on_the_same_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    locked = pytest.raises(FolderLockedError, match=r"labels\.csv is being written by process \d+ on")
    with locked_labels(path), locked, locked_labels(path):
        pass
    (tmp_path / ".labels.csv.lock").mkdir()  # of a killed session
    with locked_labels(path):
        pass
    assert list(tmp_path.iterdir()) == []
