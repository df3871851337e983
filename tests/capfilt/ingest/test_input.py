"""Helpers of inputs: fingerprints and the texts of a cell."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from capfilt.ingest.input import InputRow, PictureInput, file_row
from capfilt.ingest.lists import cell_texts


class EmptyInput(PictureInput):
    def __iter__(self) -> Iterator[InputRow]:
        return iter(())


def test_the_fingerprint_depends_on_names_sizes_and_the_annotation_file() -> None:
    inputs = [
        EmptyInput("folder", [("a.jpg", 1)]),
        EmptyInput("folder", [("a.jpg", 2)]),
        EmptyInput("folder", [("b.jpg", 1)]),
        EmptyInput("folder", [("a.jpg", 1)], "0123"),
    ]
    assert len({source.fingerprint for source in inputs}) == 4
    assert inputs[0].fingerprint == EmptyInput("other", [("a.jpg", 1)]).fingerprint


def test_a_cell_holds_a_text_a_list_or_objects() -> None:
    assert cell_texts("a") == ["a"]
    assert cell_texts(["a", ["b"], None]) == ["a", "b", None]
    assert cell_texts([{"raw": "a"}, {"caption": "b"}, {"tokens": ["c"]}]) == ["a", "b", None]
    assert cell_texts(b"a") == ["a"]


def test_a_name_that_no_file_can_have_is_a_bad_url() -> None:
    assert file_row(Path("/x"), "a.jpg", ["t"]) == {"url": "a.jpg", "texts": ["t"], "body": b"/x/a.jpg"}
    assert file_row(Path("/x"), "\ud83d.jpg", [])["status"] == "bad_url"
