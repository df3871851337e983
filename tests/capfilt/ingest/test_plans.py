"""Rows of an input that become one picture."""

from __future__ import annotations

import pytest

from capfilt.ingest.plans import group_by_url


@pytest.mark.parametrize(
    ("keep", "columns"),
    [([], ['{"uid": 1, "n": 1}']), (["n"], ['{"n": 1}']), (["none"], None)],
)
def test_the_kept_columns_of_later_rows_go_with_their_texts(keep: list[str], columns: list[str] | None) -> None:
    rows = [{"url": "u", "caption": str(n), "columns": {"uid": n, "n": n, "empty": None}} for n in range(2)]
    (row,) = group_by_url(rows, keep)
    assert (row["caption"], row["more"], row["more_columns"]) == ("0", ["1"], columns)
    assert row["columns"] == {"uid": 0, "n": 0, "empty": None}
