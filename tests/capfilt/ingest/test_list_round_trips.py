"""What pandas, pyarrow, csv, json and datasets write comes back equal."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.json
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capfilt.ingest.lists.list_files import ListOptions
from capfilt.ingest.lists.rows import open_list

Rows = list[tuple[str, str]]
# Captions as they are: quotes, delimiters, line ends, other scripts, empty ones, spaces outside.
PIECES = st.sampled_from(
    ['"', '""', ",", "\t", "\n", "\r\n", " ", ";", "|", "\\", "'", "a", "red dog", "é", "北京", "🐈", "55"]
)
CAPTIONS = st.lists(PIECES, max_size=6).map("".join)
LINES = CAPTIONS.map(lambda text: text.replace("\r", "").replace("\n", " ").replace("\t", " "))
FAST = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def rows_of(captions: list[str]) -> Rows:
    return [(f"http://x/{number}.jpg", caption) for number, caption in enumerate(captions)]


def read_back(name: str, content: bytes, options: ListOptions | None = None) -> Rows:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(content)
        rows = list(open_list(str(path), options).read(["url", "caption"]))
    assert [row.error for row in rows if row.error] == []
    return [row.cells for row in rows]


def frame(rows: Rows) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["url", "caption"])


def table(rows: Rows) -> pa.Table:
    return pa.table({"url": [url for url, _ in rows], "caption": [caption for _, caption in rows]})


def by_csv(delimiter: str, style: int) -> Callable[[Rows], bytes]:
    def write(rows: Rows) -> bytes:
        text = io.StringIO(newline="")
        writer = csv.writer(text, delimiter=delimiter, quoting=style)  # type: ignore[arg-type]
        writer.writerows([("url", "caption"), *rows])
        return text.getvalue().encode()

    return write


def by_pyarrow_csv(rows: Rows) -> bytes:
    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(table(rows), sink)
    return sink.getvalue().to_pybytes()


def by_parquet(rows: Rows) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table(rows), sink, row_group_size=3)
    return sink.getvalue()


def by_feather(rows: Rows) -> bytes:
    sink = io.BytesIO()
    pyarrow.feather.write_feather(table(rows), sink, compression="lz4")
    return sink.getvalue()


def by_stream(rows: Rows) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table(rows).schema) as writer:
        writer.write_table(table(rows), max_chunksize=2)
    return sink.getvalue()


WRITERS: dict[str, tuple[str, Callable[[Rows], bytes]]] = {
    "csv": ("a.csv", by_csv(",", csv.QUOTE_MINIMAL)),
    "csv, all quoted": ("a.csv", by_csv(",", csv.QUOTE_ALL)),
    "csv with semicolons": ("a.csv", by_csv(";", csv.QUOTE_ALL)),
    "csv with tabs": ("a.tsv", by_csv("\t", csv.QUOTE_MINIMAL)),
    "csv with tabs, all quoted": ("a.tsv", by_csv("\t", csv.QUOTE_ALL)),
    "pandas csv": ("a.csv", lambda rows: frame(rows).to_csv(index=False).encode()),
    "pandas csv as utf-16": ("a.csv", lambda rows: frame(rows).to_csv(index=False).encode("utf-16")),
    "pandas json": ("a.json", lambda rows: frame(rows).to_json().encode()),
    "pandas json records": ("a.json", lambda rows: frame(rows).to_json(orient="records").encode()),
    "pandas json lines": ("a.jsonl", lambda rows: frame(rows).to_json(orient="records", lines=True).encode()),
    "pyarrow csv": ("a.csv", by_pyarrow_csv),
    "parquet": ("a.parquet", by_parquet),
    "feather": ("a.feather", by_feather),
    "arrow stream": ("a.arrow", by_stream),
    "json": ("a.json", lambda rows: json.dumps([dict(url=u, caption=c) for u, c in rows], indent=1).encode()),
    "json lines named json": (
        "a.json",
        lambda rows: "\n".join(json.dumps({"url": u, "caption": c}, ensure_ascii=False) for u, c in rows).encode(),
    ),
}


@pytest.mark.parametrize("writer", WRITERS)
@FAST
@given(captions=st.lists(CAPTIONS, min_size=1, max_size=6))
def test_what_a_writer_has_written_comes_back(writer: str, captions: list[str]) -> None:
    name, write = WRITERS[writer]
    assert read_back(name, write(rows_of(captions))) == rows_of(captions)


@FAST
@given(captions=st.lists(LINES, min_size=1, max_size=6))
def test_a_tsv_without_quoting_comes_back_if_so_named(captions: list[str]) -> None:
    rows = rows_of(captions)
    content = "".join(f"{url}\t{caption}\n" for url, caption in [("url", "caption"), *rows]).encode()
    assert read_back("a.tsv", content, ListOptions(quoting="none")) == rows
