"""Rows of JSON files equal those of json.loads, from any start and in bounded memory; errors name the row."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from collections import deque
from pathlib import Path

import pytest

from blipcore.io import json_rows
from blipcore.io.json_rows import first_character, read_json_rows

ROWS = [{"image": f"å{i}.jpg", "caption": "日本" * (i % 7) + 'x\n"[{', "n": [1, 2.5, None]} for i in range(50)]
ROWS += ["text", [], [1.5], {}]


def files(tmp_path: Path) -> list[Path]:
    """Write the same rows in every layout that the reader accepts."""
    texts = {
        "dense.json": json.dumps(ROWS, separators=(",", ":")),
        "plain.json": json.dumps(ROWS, ensure_ascii=False),
        "indented.json": "\ufeff \n" + json.dumps(ROWS, ensure_ascii=False, indent=2) + "\n",
        "lines.jsonl": "\n".join(map(json.dumps, ROWS)) + "\n\n",
        "windows.jsonl": "\r\n".join(map(json.dumps, ROWS)),
    }
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text.encode())
    return [tmp_path / name for name in texts]


@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 1 << 20])
def test_rows_are_the_same_in_every_layout_and_chunk_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(json_rows, "CHUNK_BYTES", chunk)
    for path in files(tmp_path):
        starts, rows = zip(*read_json_rows(path), strict=True)
        assert list(rows) == ROWS and [start.number for start in starts] == list(range(len(ROWS)))
        for start in starts[::9]:
            again = list(read_json_rows(path, start))
            assert [row for _, row in again] == ROWS[start.number :] and again[0][0] == start


def test_an_empty_list_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(" [ ] ")
    (tmp_path / "a.jsonl").write_text("\n")
    assert list(read_json_rows(tmp_path / "a.json")) == list(read_json_rows(tmp_path / "a.jsonl")) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "list of rows, but begins with ''"),
        (b'{"image": 1}', "list of rows, but begins with"),
        (b"[", "row 0 is not valid JSON, or cut short"),
        (b'[{"a": 1}', "row 1: the file ends here"),
        (b'[{"a": 1},', "row 1 is not valid JSON, or cut short"),
        (b'[{"a": 1}, {"a": ', "row 1 is not valid JSON, or cut short"),
        (b'[{"a": 1} {"a": 2}]', "row 1: no comma"),
        (b'[{"a": 1}, {a: 2}]', "row 1 is not valid JSON.*property name"),
        (b'[{"a": 1}] [2]', "continues after the end"),
        (b'[{"a": "\xff"}]', "row 0 or one of the next is not UTF-8"),
        (b"[" + b"[" * 200_000, "row 0 is nested too deeply"),
    ],
)
def test_errors_name_file_and_row(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "rows.json").write_bytes(content)
    with pytest.raises(ValueError, match=words) as error:
        list(read_json_rows(tmp_path / "rows.json"))
    assert "rows.json" in str(error.value) and "\n" not in str(error.value)


def test_rows_before_an_error_are_read(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n{"a": 2}\nnonsense\n')
    rows = read_json_rows(tmp_path / "rows.jsonl")
    assert [next(rows)[1], next(rows)[1]] == [{"a": 1}, {"a": 2}]
    with pytest.raises(ValueError, match="row 2 is not valid JSON"):
        next(rows)


def test_an_unterminated_string_does_not_load_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "CHUNK_BYTES", 100)
    monkeypatch.setattr(json_rows, "MAX_ROW_CHARACTERS", 1000)
    (tmp_path / "rows.json").write_text('["' + "x" * 1_000_000)
    tracemalloc.start()
    with pytest.raises(ValueError, match="cut short: Unterminated string"):
        list(read_json_rows(tmp_path / "rows.json"))
    assert (
        tracemalloc.get_traced_memory()[1] < 200_000
    )  # with the buffer of the file, 131,072 bytes from Python 3.14 on
    tracemalloc.stop()


def test_first_character(tmp_path: Path) -> None:
    for text, first in (("  [1]", "["), ('\ufeff\n{"a": 1}', "{"), ("", "")):
        (tmp_path / "a.json").write_text(text, encoding="utf-8")
        assert first_character(tmp_path / "a.json") == first
    with pytest.raises(FileNotFoundError, match="No annotation file at"):
        first_character(tmp_path / "missing.json")


def write_long_list(path: Path, rows: int) -> int:
    with path.open("w") as file:
        for i in range(rows):
            row = {"image": f"/data/cc3m/{i:012d}.jpg", "caption": f"a man rides wave {i} on top of a surfboard"}
            file.write((", " if i else "[") + json.dumps(row))
        file.write("]")
    return path.stat().st_size


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    size = write_long_list(tmp_path / "long.json", 60_000)
    tracemalloc.start()
    ((last, _),) = deque(read_json_rows(tmp_path / "long.json"), maxlen=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert last.number == 59_999 and [start for start, _ in read_json_rows(tmp_path / "long.json", last)] == [last]
    assert size > 5e6 and peak < 4.5e6  # a window of a megabyte, its text, and the copies while it moves on


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_list_of_ten_million_rows_loads_in_bounded_memory(tmp_path: Path) -> None:
    """Peak resident memory of a process that splits a gigabyte of rows and loads one part."""
    size = write_long_list(tmp_path / "long.json", 10_000_000)
    code = """
import resource, sys
from pathlib import Path
from blipcore.data.shard_datasets import open_dataset
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
source = open_dataset(Path(sys.argv[1]))
assert sum(source.counts) == 10_000_000 and len(source.load(7)) == source.counts[7]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "long.json")]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) * 1024
    print(f"{size / 1e6:.0f} MB of JSON, {grown / 1e6:.0f} MB of memory")
    assert size > 8e8 and grown < 2e8
