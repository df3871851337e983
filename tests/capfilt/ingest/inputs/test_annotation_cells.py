"""Captions that are keys of an object, such as one per language."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from input_rows import JPEG, read_input, texts_by_url, write_files, write_parquet
from tar_files import write_tar

from capfilt.ingest.inputs.annotation_cells import column_of, keys_of_texts, value_at

CAPTIONS = {"en": "a dog", "de": ["ein Hund", "der Hund"], "n": 3}


def write_input(folder: Path, form: str) -> Path:
    """Write a picture with `CAPTIONS` in the column or key "caption"."""
    row = {"image": "0.jpg", "caption": CAPTIONS}
    if form == "tar":
        return write_tar(folder / "0.tar", [("0.jpg", JPEG), ("0.json", json.dumps(row).encode())])
    if form == "parquet":
        return write_parquet(folder / "0.parquet", jpg=[JPEG], caption=[CAPTIONS])
    names = {"folder": "0.json", "imagefolder": "metadata.jsonl"}
    return write_files(folder, {"0.jpg": JPEG, names[form]: json.dumps(row).encode()})


@pytest.mark.parametrize("form", ["tar", "parquet", "folder", "imagefolder"])
def test_an_object_of_captions_is_read_by_its_keys(tmp_path: Path, form: str) -> None:
    source = write_input(tmp_path, form)
    for names in ((), ("caption",)):
        with pytest.raises(ValueError, match=r"'caption\.en', 'caption\.de'"):
            read_input(source, names)
    assert [*texts_by_url(source, "caption.en").values()] == [["a dog"]]
    _, (row,) = read_input(source, ("caption.de", "caption.en"))
    assert row["texts"] == ["ein Hund", "der Hund", "a dog"]
    assert row["columns"]["caption"] == CAPTIONS


@pytest.mark.parametrize(
    ("cells", "name", "value"),
    [
        ({"a": {"b": 1}}, "a.b", 1),
        ({"a": {"b": {"c": 1}}}, "a.b.c", 1),
        ({"a": [{"b": 1}, {"b": 2}, None]}, "a.b", [1, 2]),
        ({"a.b": 1, "a": {"b": 2}}, "a.b", 1),
        ({"a": "text"}, "a.b", None),
        ({}, "a", None),
    ],
)
def test_a_name_with_dots_leads_into_objects(cells: dict[str, Any], name: str, value: Any) -> None:
    assert value_at(cells, name) == value


def test_a_column_with_the_whole_name_comes_first() -> None:
    assert column_of("a.b", ["a", "c"]) == "a"
    assert column_of("a.b", ["a", "a.b"]) == column_of("a.b", ["c"]) == "a.b"


def test_a_caption_in_the_usual_form_has_no_keys_to_choose_from() -> None:
    assert keys_of_texts("x", {"caption": "a dog", "other": "b"}) == keys_of_texts("x", "a dog") == []
    assert keys_of_texts("x", [{"user": "?", "assistant": "a dog"}]) == ["x.user", "x.assistant"]
