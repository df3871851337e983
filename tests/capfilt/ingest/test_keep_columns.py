"""Further columns of an input: chosen, renamed and typed over the whole input."""

from __future__ import annotations

import datetime
from typing import Any

import pyarrow as pa
import pytest

from capfilt.ingest.keep_columns import MAX_CELL_BYTES, FurtherColumns


def collect(*parts: list[dict[str, Any]], keep: list[str] | None = None, types: pa.Schema | None = None) -> pa.Schema:
    """Return the final columns of rows with these further cells, given in parts."""
    further = FurtherColumns(keep or [], types)
    for cells in parts:
        rows = [{"url": "u", "columns": dict(of_row)} for of_row in cells]
        table = further.take(rows)
        assert not any("columns" in row for row in rows)
        assert not table.column_names or len(table) == len(rows)
    return further.schema()


HAS_TYPES = pa.schema([])


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1", "", "-20"], pa.int64()),
        (["0.31", "2", "1e-3"], pa.float64()),
        (["007", "8"], pa.string()),
        (["1", "x"], pa.string()),
        (["", ""], pa.string()),
        (["9" * 19], pa.string()),
        (["True", "False"], pa.string()),
        (["nan"], pa.string()),
    ],
)
def test_numbers_of_a_text_format_are_recognised_only_if_they_lose_nothing(cells: list[str], expected: Any) -> None:
    assert collect([{"x": cell} for cell in cells]).field("x").type == expected
    assert collect(*([{"x": cell}] for cell in cells)).field("x").type == expected  # in parts


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1", "2"], pa.string()),
        ([1, None, 2**40], pa.int64()),
        ([1, 2.5], pa.float64()),
        ([1, "x"], pa.string()),
        ([None, None], pa.string()),
        ([True, None], pa.bool_()),
        ([[0.1, 0.2], []], pa.list_(pa.float64())),
        ([{"a": 1}, {"b": [2]}], pa.struct([("a", pa.int64()), ("b", pa.list_(pa.int64()))])),
        ([[{"box": [1, 2]}], None], pa.list_(pa.struct([("box", pa.list_(pa.int64()))]))),
        ([{"a": 1}, [1]], pa.string()),
        ([2**70], pa.string()),
        (["\ud83d"], pa.string()),
        ([datetime.date(2024, 1, 2)], pa.date32()),
        ([{}, {}], pa.string()),
    ],
)
def test_values_of_a_typed_format_keep_their_types(cells: list[Any], expected: Any) -> None:
    schema = collect([{"x": cell} for cell in cells], types=HAS_TYPES)
    assert schema.names == ["x"] and schema.field("x").type == expected


def test_parts_of_different_types_become_one() -> None:
    assert collect([{"x": 1}], [{"x": None}], [{"x": 2.5}], types=HAS_TYPES).field("x").type == pa.float64()
    assert collect([{"x": 1}], [{"x": "a"}], types=HAS_TYPES).field("x").type == pa.string()
    given = pa.schema([("x", pa.float32()), ("tag", pa.dictionary(pa.int8(), pa.string()))])
    schema = collect([{"x": 0.5, "tag": "a"}], types=given)
    assert (schema.field("x").type, schema.field("tag").type) == (pa.float32(), pa.string())


def test_names_that_clash_with_ours_get_a_word() -> None:
    names = ["uid", "width", "SHA256", "caption", "Text", "uid2", "UID", "clip", "itm_web", "image", ""]
    schema = collect([dict.fromkeys(names, "a")])
    assert schema.names == [
        "uid", "input_width", "input_SHA256", "input_caption", "input_Text", "uid2", "input_UID", "input_clip",
        "input_itm_web", "input_image", "input_",
    ]  # fmt: skip


def test_half_of_a_surrogate_pair_becomes_a_question_mark() -> None:
    assert collect([{"a\ud800": "b\udc00"}]).names == ["a?"]


def test_columns_are_chosen_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"uid": "a", "nsfw": "b"}
    assert collect([row], keep=["nsfw"]).names == ["nsfw"]
    assert collect([row], keep=["none"]).names == []
    with pytest.raises(
        ValueError, match=r"no further column 'UID' \(--keep-columns\); its further columns are uid, nsfw"
    ):
        collect([row], keep=["UID"])


def test_bytes_and_large_cells_are_left_out_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    further = FurtherColumns([], HAS_TYPES)
    rows = [{"mask": b"x", "ocr": "o" * size, "width": 1} for size in (10, MAX_CELL_BYTES + 1, 20)]
    table = further.take([{"columns": row} for row in rows])
    assert [cell and len(cell) for cell in table["ocr"].to_pylist()] == [10, None, 20]
    assert further.schema().names == ["ocr", "input_width"]
    further.report()
    said = capsys.readouterr().err
    assert "'mask' of the input holds bytes" in said and "'ocr': 1 cells of more than 65,536 bytes" in said
    assert "column 'width' of the input is kept as 'input_width'" in said
