"""Tables have stable bytes and carry their counts; the error of a bad table is one sentence."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from capfilt.shards.format import CAPTIONS
from capfilt.shards.tables import read_footer_counts, read_table, sum_footer_counts, write_table


def test_tables_have_stable_bytes_and_carry_their_counts(tmp_path: Path) -> None:
    rows = {"key": ["0", "1"], "index": [0, 0], "text": ["a", None], "logprob": [0.5, None], "error": [None, "empty"]}
    table = pa.table(rows, schema=CAPTIONS)
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for path in paths:
        write_table(path, table, counts={"pictures": 2, "empty": 1})
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert read_table(paths[0]) == table
    assert read_table(paths[0], ["text"]).column_names == ["text"]
    assert read_footer_counts(paths) == [{"pictures": 2, "empty": 1}] * 2
    assert sum_footer_counts(paths) == {"empty": 2, "pictures": 4}
    assert pq.ParquetFile(paths[0]).metadata.row_group(0).column(2).compression == "ZSTD"


def test_a_large_footer_is_read_completely(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", pa.table({f"column {n}": [n] for n in range(2000)}), {"rows": 1})
    assert (tmp_path / "a.parquet").stat().st_size > 2 * (64 << 10)
    assert sum_footer_counts([tmp_path / "a.parquet"]) == {"rows": 1}


def test_a_table_in_a_folder_that_was_deleted_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_table(tmp_path / "deleted" / "a.parquet", CAPTIONS.empty_table(), make_folder=False)
    write_table(tmp_path / "new" / "a.parquet", CAPTIONS.empty_table())


def test_the_error_of_a_bad_table_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No table at"):
        read_table(tmp_path / "x.parquet")
    write_table(tmp_path / "x.parquet", CAPTIONS.empty_table())
    with pytest.raises(ValueError, match="has no column 'itm'; its columns are key, index, text, logprob"):
        read_table(tmp_path / "x.parquet", ["key", "itm"])
    intact = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "x.parquet").write_bytes(intact[:-20])
    with pytest.raises(ValueError, match="not a readable Parquet file"):
        read_table(tmp_path / "x.parquet")
