"""The rows of JSON files in every usual layout, in bounded memory; errors name the row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blipcore.io import json_rows
from capfilt.ingest.lists.rows import RowList, open_list

ROWS = [{"url": f"http://x/{number}", "caption": f'é {number} [{{"', "n": number} for number in range(30)]
LAYOUTS = {
    "a.json": json.dumps(ROWS),
    "indented.json": json.dumps(ROWS, indent=2, ensure_ascii=False),
    "a.jsonl": "\n".join(map(json.dumps, ROWS)),
    "list.jsonl": json.dumps(ROWS),
    "indented.jsonl": "\n".join(json.dumps(row, indent=1) for row in ROWS),
    "lines.json": "\n\n".join(map(json.dumps, ROWS)) + "\n",
    "adjacent.json": " ".join(map(json.dumps, ROWS)),
    "wrapped.json": json.dumps({"info": {"a": 1}, "ids": [1, 2], "rows": ROWS, "n": 5}, indent=1),
    "columns.json": json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}),
    "pandas.json": json.dumps({name: {str(i): row[name] for i, row in enumerate(ROWS)} for name in ROWS[0]}),
    "keys.json": json.dumps({f"k{i}": row for i, row in enumerate(ROWS)}),
}


def read(path: Path) -> tuple[RowList, list[dict]]:
    rows = open_list(str(path))
    return rows, [dict(zip(rows.names, row.cells, strict=True)) for row in rows.read(rows.names)]


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("chunk", [7, 1 << 20])
def test_rows_are_the_same_in_every_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, chunk: int
) -> None:
    monkeypatch.setattr(json_rows, "CHUNK_BYTES", chunk)
    (tmp_path / name).write_text(LAYOUTS[name])
    rows, found = read(tmp_path / name)
    assert found == ROWS and rows.names == ["url", "caption", "n"]


def test_many_rows_by_key_are_not_taken_for_columns(tmp_path: Path) -> None:
    rows = {str(number): {"url": f"http://{number}"} for number in range(1500)}
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert read(tmp_path / "a.json")[1] == list(rows.values())


def test_a_single_object_is_one_row(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"url": "http://x", "captions": ["a", "b"]}, indent=1))
    assert read(tmp_path / "a.json")[1] == [{"url": "http://x", "captions": ["a", "b"]}]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", "", "has no rows"),
        ("a.json", "[]", "has no rows"),
        ("a.json", "[{", "row 0 is not valid JSON, or cut short"),
        ("a.json", "{", "is not valid JSON, or cut short"),
        ("a.json", '{"a": [1, 2', "no comma before it, or the file ends here"),
        ("a.json", "[1]", "must be a list of objects"),
        ("a.json", "x", "must hold a list of rows, but begins with 'x'"),
        ("a.json", '[{"url": "a"} {"url": "b"}]', "row 1: no comma before it"),
        (
            "a.json",
            '{"images": [{"a": 1}], "annotations": [{"b": 1}]}',
            "several lists of rows .'images', 'annotations'.",
        ),
        ("a.json", '{"url": ["a", "b"], "caption": ["c"]}', "lists of different lengths .'url' 2, 'caption' 1."),
        ("a.jsonl", "[" * 200_000, "nested too deeply"),
    ],
)
def test_errors_are_one_sentence(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=words) as error:
        read(tmp_path / name)
    assert "\n" not in str(error.value) and name in str(error.value)


def test_rows_of_another_kind_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n"b"\nnonsense\n{"a": 2}\n')
    rows = list(open_list(str(tmp_path / "a.jsonl")).read(["a"]))
    assert [row.cells for row in rows] == [(1,), (None,), (None,), (2,)]
    assert [bool(row.error) for row in rows] == [False, True, True, False]
    assert "line 3: not valid JSON" in str(rows[2].error)
