"""What all inputs share: fingerprints, the account, and the rules for columns that may hold captions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from capfilt.ingest.inputs.input import (
    InputOptions,
    InputRow,
    PictureInput,
    caption_keys,
    file_row,
    looks_like_caption,
    may_hold_texts,
)


class ListedInput(PictureInput):
    """An input of these rows."""

    def __init__(self, rows: list[InputRow], options: InputOptions | None = None, **settings: Any) -> None:
        super().__init__(Path("photos"), "folder", settings.pop("files", []), options or InputOptions(), **settings)
        self.rows = rows

    def read_rows(self) -> Iterator[InputRow]:
        for row in self.rows:
            self.texts[".txt"] += bool(row["texts"])
            yield row


def test_the_fingerprint_depends_on_names_sizes_and_the_annotation_file() -> None:
    inputs = [
        ListedInput([], files=[("a.jpg", 1)]),
        ListedInput([], files=[("a.jpg", 2)]),
        ListedInput([], files=[("b.jpg", 1)]),
        ListedInput([], files=[("a.jpg", 1)], annotation_fingerprint="0123"),
    ]
    assert len({source.fingerprint for source in inputs}) == 4


def test_the_account_is_complete_at_the_end_of_the_rows() -> None:
    source = ListedInput([{"texts": ["a"]}, {"texts": [" "]}, {"texts": []}])
    rows = iter(source)
    next(rows)
    assert (source.account.rows, source.is_read) == (1, False)
    list(rows)
    assert (source.account.rows, source.account.rows_with_text, source.is_read) == (3, 1, True)
    assert source.account.texts == {".txt": 2}


def test_no_text_in_any_row_is_an_error_if_some_may_exist() -> None:
    list(ListedInput([{"texts": []}]))  # photos without any text
    source = ListedInput([{"texts": []}])
    source.unused["captions.csv"] += 1
    with pytest.raises(ValueError, match=r"no text .* but 'captions.csv' may hold texts"):
        list(source)
    told = ListedInput([{"texts": ["a"]}], InputOptions(caption_col=("none",)))
    told.unused["captions.csv"] += 1
    assert [row["texts"] for row in told] == [[]]
    with pytest.raises(ValueError, match=r"no text in 'title' in any of its 1 rows"):
        list(ListedInput([{"texts": ["a"]}], InputOptions(caption_col=("title",))))


def test_problems_are_counted_with_their_first_example() -> None:
    source = ListedInput([])
    for name in ("a", "b"):
        source.add_problem("files that cannot be read", name)
    assert source.account.notes == ("files that cannot be read: 2, such as a.",)


@pytest.mark.parametrize("value", ["a cat", "red", "2 dogs run", ["a cat"], [{"raw": "a cat"}]])
def test_texts_look_like_captions(value: Any) -> None:
    assert looks_like_caption(value)


@pytest.mark.parametrize(
    "value", ["https://x/1 2.jpg", '{"a": 1}', "photos/1.jpg", "9e107d9d37", "2024-01-01", "", 3, None]
)
def test_links_paths_digests_and_numbers_do_not(value: Any) -> None:
    assert not looks_like_caption(value)


def test_technical_names_hold_no_texts() -> None:
    assert not may_hold_texts("SHA256") and may_hold_texts("title")
    assert caption_keys({"key": "a b", "title": "a cat", "n": 3}) == ["title"]
    assert caption_keys({"caption": None, "title": "a cat"}) == []


def test_a_name_that_no_file_can_have_is_a_bad_url() -> None:
    assert file_row(Path("/x"), "a.jpg", ["t"]) == {"url": "a.jpg", "texts": ["t"], "body": b"/x/a.jpg"}
    assert file_row(Path("/x"), "\ud83d.jpg", [])["status"] == "bad_url"
