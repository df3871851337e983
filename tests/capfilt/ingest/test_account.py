"""An account says how an input is read, and refuses one without the texts that it should have."""

from __future__ import annotations

from dataclasses import replace

import pytest

from capfilt.ingest.account import Account

ACCOUNT = Account(
    "URL list", 2, "csv", picture="'url'", texts={"caption": 3}, unused=("title",), rows=9, rows_with_text=3
)


def test_lines_name_what_applies() -> None:
    assert ACCOUNT.to_lines() == [
        "input     URL list of 2 files",
        "format    csv",
        "picture   'url'",
        "texts     caption (3 rows)",
        "not used  title",
        "rows      9, 3 with a text",
    ]
    many = replace(ACCOUNT, unused=tuple(f"c{number}" for number in range(30)), notes=("A note.",))
    assert (
        any(line.endswith("c19 and 10 more") for line in many.to_lines()) and many.to_lines()[-1] == "note      A note."
    )


def test_an_account_comes_back_from_a_manifest() -> None:
    assert Account.from_dict(ACCOUNT.to_dict()) == ACCOUNT
    assert Account.from_dict(ACCOUNT.to_dict() | {"of_a_later_version": 1}) == ACCOUNT


def test_missing_texts_are_an_error_with_the_remedy() -> None:
    ACCOUNT.require_texts("a.csv", ["caption"])
    with pytest.raises(ValueError, match=r"a.csv has no text in 'alt' in any of its 9 rows; --caption-col may name"):
        ACCOUNT.require_texts("a.csv", ["alt"])
    empty = replace(ACCOUNT, texts={"caption": 0}, rows_with_text=0)
    with pytest.raises(ValueError, match=r"no text in 'caption' in any of its 9 rows, but 'title' may hold texts"):
        empty.require_texts("a.csv", [])
    replace(empty, unused=()).require_texts("a.csv", [])
    replace(empty, rows=0).require_texts("a.csv", ["caption"])
