"""Local and remote shard sets, and errors for folders that are none."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pytest

from blipcore.io import reading
from blipcore.io.samples import TarSample, read_samples
from blipcore.io.storage import Remote
from blipcore.io.writing import write_json
from capfilt.shards.format import CAPTIONS, IMAGES, write_shard
from capfilt.shards.manifest import image_folder
from capfilt.shards.shard_set import ShardSet
from capfilt.shards.tables import read_table, sum_footer_counts, write_table


def test_folders_that_are_no_shard_set(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No folder at"):
        ShardSet.open(tmp_path / "none")
    with pytest.raises(ValueError, match="not a shard set: it holds no"):
        ShardSet.open(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file"):
        ShardSet.open(tmp_path / "file")
    write_table(tmp_path / "00000.parquet", IMAGES.empty_table())
    with pytest.raises(ValueError, match="webdataset' output format"):
        ShardSet.open(tmp_path)


def test_shards_are_listed_when_they_are_finished(tmp_path: Path) -> None:
    for shard in ("00001", "00000"):
        write_shard(tmp_path / f"{shard}.tar", [TarSample("0", b"picture")])
    images = ShardSet.open(tmp_path)
    assert images.shards == ["00000", "00001"]
    assert (images.tar("00001"), images.table("00001")) == (tmp_path / "00001.tar", tmp_path / "00001.parquet")

    # `download` and `pack` write the table last.
    write_json(tmp_path / "manifest.json", {"stage": "download"})
    with pytest.raises(ValueError, match="no finished shard yet"):
        ShardSet.open(tmp_path)
    write_table(tmp_path / "00001.parquet", IMAGES.empty_table())
    assert ShardSet.open(tmp_path).shards == ["00001"]


def test_the_output_of_a_stage_names_its_shard_set(tmp_path: Path) -> None:
    scores = tmp_path / "scores" / "x"
    write_json(scores / "manifest.json", {"stage": "score", "images": "../.."})
    with pytest.raises(ValueError, match=f"output of 'score', not a shard set; its pictures are in {tmp_path}"):
        ShardSet.open(scores)
    assert image_folder(scores) == tmp_path
    with pytest.raises(ValueError, match=r"no manifest\.json"):
        image_folder(tmp_path)


def test_columns_of_a_shards_own_table(tmp_path: Path) -> None:
    images = ShardSet(tmp_path, ["0"])
    assert images.read_own_table("0", ["caption"]).column_names == []
    images.tar("0").with_name("0.parquet").write_bytes(b"PAR1" + bytes(100))
    assert images.read_own_table("0", ["caption"]).column_names == []
    write_table(tmp_path / "0.parquet", pa.table({"something": [1]}))
    assert images.read_own_table("0", ["caption"]).column_names == []
    write_table(tmp_path / "0.parquet", pa.table({"key": ["./a"], "caption": ["b"], "url": ["c"]}))
    assert images.read_own_table("0", ["caption", "sha256"]).to_pylist() == [{"key": "a", "caption": "b"}]


def test_a_remote_shard_set_reads_like_a_local_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "RANGE_BYTES", 1000)  # many ranges, with members across them
    folder = Remote("memory://shard_set")
    rng = random.Random(0)
    sizes = [rng.randrange(3000) for _ in range(40)]
    samples = [
        TarSample(f"{n:03d}", b"\xff\xd8\xff" + rng.randbytes(size), f"text {n}") for n, size in enumerate(sizes)
    ]
    for root in (folder, tmp_path):
        write_shard(root / "00000.tar", samples)
        write_table(root / "captions" / "c" / "00000.parquet", CAPTIONS.empty_table(), {"pictures": 40})
        write_json(root / "captions" / "c" / "manifest.json", {"stage": "caption", "images": "../.."})
    local, remote = ShardSet.open(tmp_path), ShardSet.open(str(folder))
    assert local.shards == remote.shards == ["00000"]
    assert local.tar("00000").read_bytes() == remote.tar("00000").read_bytes()
    assert list(read_samples(remote.tar("00000"))) == samples
    table = folder / "captions" / "c" / "00000.parquet"
    assert read_table(table, ["key"], optional=("text", "other")).column_names == ["key", "text"]
    assert sum_footer_counts([table]) == {"pictures": 40}
    assert image_folder(folder / "captions" / "c") == folder
    with pytest.raises(FileNotFoundError, match="No table at memory://"):
        read_table(folder / "none.parquet")
    with pytest.raises(FileNotFoundError, match="No folder at memory://"):
        ShardSet.open(folder / "none")
    with pytest.raises(ValueError, match="output of 'caption', not a shard set; its pictures are in memory://"):
        ShardSet.open(folder / "captions" / "c")
