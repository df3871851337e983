"""A folder written by img2dataset is a shard set: it is captioned and filtered as it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from web import Web

import capfilt
from capfilt.caption.stage import CaptionConfig, caption_shards
from capfilt.filter.config import FilterConfig
from capfilt.filter.stage import filter_shards
from capfilt.shards.shard_set import ShardSet
from capfilt.shards.tables import read_table

# Without its imports that are not needed here, which take seconds in each process.
IMG2DATASET = """
from capfilt.ingest.fetch.fetcher import _import_img2dataset

img2dataset = _import_img2dataset()
if __name__ == "__main__":
    img2dataset.download(
        url_list="list.parquet", input_format="parquet", url_col="link", caption_col="alt", output_folder="data",
        output_format="webdataset", resize_mode="no", number_sample_per_shard=5, processes_count=1, thread_count=4,
    )
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("img2dataset")
    with Web() as web:
        urls = [f"{web.url}/{'missing' if n == 3 else 'html' if n == 8 else 'good'}/{n}.jpg" for n in range(10)]
        texts = [f"a picture of one {'cat' if n % 2 else 'dog'}" if n else None for n in range(10)]
        pq.write_table(pa.table({"link": urls, "alt": texts}), folder / "list.parquet")
        (folder / "main.py").write_text(IMG2DATASET)
        environment = os.environ | {"PYTHONPATH": str(Path(capfilt.__file__).parents[1])}
        subprocess.run([sys.executable, "main.py"], cwd=folder, env=environment, check=True, capture_output=True)
    return folder / "data"


def test_img2dataset_folders_are_used_as_they_are(data: Path, tiny_captioner: Path, tiny_filter: Path) -> None:
    before = {path.name: path.read_bytes() for path in data.iterdir()}
    assert {"00000.tar", "00000.parquet", "00000_stats.json", "00001.tar"} <= set(before)
    assert ShardSet.open(data).shards == ["00000", "00001"]
    config = CaptionConfig(data=str(data), model=str(tiny_captioner), name="tiny", dtype="fp32")
    assert caption_shards(config, progress=False)["counts"]["pictures"] == 8
    summary = filter_shards(FilterConfig(data=str(data), model=str(tiny_filter), dtype="fp32"), progress=False)
    assert summary["shards"]["failed"] == {}
    assert {source: counts["texts"] for source, counts in summary["by_source"].items()} == {"web": 8, "tiny": 8}
    assert summary["by_source"]["web"]["dropped"]["no_text"] == 1
    for shard in ("00000", "00001"):
        downloaded = {str(row["key"]): row for row in read_table(data / f"{shard}.parquet").to_pylist()}
        for row in read_table(data / "filtered" / "capfilt" / f"{shard}.parquet").to_pylist():
            assert (row["url"], row["sha256"]) == (downloaded[row["key"]]["url"], downloaded[row["key"]]["sha256"])
            assert downloaded[row["key"]]["status"] == "success"
            if row["source"] == "web":
                assert (row["text"] or None) == downloaded[row["key"]]["caption"]
    assert {path.name: path.read_bytes() for path in data.iterdir() if path.is_file()} == before
