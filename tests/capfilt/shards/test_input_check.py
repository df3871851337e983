"""Changed inputs of tables that a run would reuse are noticed, copies are not taken for changes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filtered_set import filter_set, write_set
from folders import contents

from blipcore.io.samples import TarSample, read_samples
from capfilt.export.stage import ExportConfig, export_shards
from capfilt.filter.config import FilterConfig
from capfilt.filter.stage import filter_shards
from capfilt.pictures.shard_pass import PictureReader
from capfilt.shards.format import write_shard
from capfilt.shards.input_check import input_digests, require_same_inputs
from capfilt.shards.shard_set import ShardSet
from capfilt.shards.tables import write_table


def change_key(samples: list[TarSample]) -> None:
    samples[1] = replace(samples[1], key="other")


def change_text(samples: list[TarSample]) -> None:
    samples[1] = replace(samples[1], text="dig")


def change_picture(samples: list[TarSample]) -> None:
    samples[1] = replace(samples[1], image=samples[1].image + b"x")


def remove_last(samples: list[TarSample]) -> None:
    samples.pop()


@pytest.fixture
def images(tmp_path: Path) -> ShardSet:
    for name in ("a", "b"):
        samples = [TarSample(str(number), b"p" * 1000, "dog") for number in range(3)]
        write_shard(tmp_path / "data" / f"{name}.tar", samples)
    return ShardSet.open(tmp_path / "data")


def write_outputs(images: ShardSet) -> dict[Path, list[Path]]:
    """Write a table per shard; return their inputs."""
    inputs = {images.path / "c" / f"{shard}.parquet": [images.tar(shard)] for shard in images.shards}
    for output, tars in inputs.items():
        write_table(output, pa.table({"x": [1]}), inputs=input_digests(tars))
    return inputs


@pytest.mark.parametrize("change", [change_key, change_text, change_picture, remove_last])
def test_a_replaced_tar_of_the_same_padded_size_is_named(
    images: ShardSet, change: Callable[[list[TarSample]], None]
) -> None:
    inputs = write_outputs(images)
    require_same_inputs(inputs, "x")
    size, samples = images.tar("b").stat().st_size, list(read_samples(images.tar("b")))
    change(samples)
    write_shard(images.tar("b"), samples)
    assert images.tar("b").stat().st_size == size
    with pytest.raises(ValueError, match=r"b\.tar has changed since .*b\.parquet was made from it; delete it\."):
        require_same_inputs(inputs, "delete it")
    (images.path / "c" / "b.parquet").unlink()  # deleted to be made again
    require_same_inputs(inputs, "delete it")
    require_same_inputs(write_outputs(images), "delete it")


def test_a_copied_or_touched_set_is_not_taken_for_a_changed_one(images: ShardSet, tmp_path: Path) -> None:
    write_outputs(images)
    shutil.copytree(images.path, tmp_path / "copy", copy_function=shutil.copyfile)
    for tar in images.path.glob("*.tar"):
        os.utime(tar)
        os.utime(tmp_path / "copy" / tar.name)
    before = contents(images.path)
    for folder in (images.path, tmp_path / "copy"):
        inputs = {output: [folder / f"{output.stem}.tar"] for output in (folder / "c").iterdir()}
        assert len(inputs) == 2
        require_same_inputs(inputs, "x")
        assert contents(folder) == before
        tar = folder / "a.tar"
        assert max(tar.stat().st_mtime_ns, tar.stat().st_ctime_ns) <= (folder / "c" / "a.parquet").stat().st_mtime_ns


def test_a_pass_over_the_pictures_has_the_digest_of_their_tar(images: ShardSet) -> None:
    with PictureReader(images, ahead=4).open("a", lambda image: image) as pictures:
        assert len(list(pictures.batches(2))) > 0
        assert pictures.inputs == input_digests([images.tar("a")])


def test_tables_of_older_versions_are_reused_without_a_comparison(images: ShardSet) -> None:
    inputs = write_outputs(images)
    for output in inputs:
        write_table(output, pa.table({"x": [1]}))
        write_shard(images.tar(output.stem), [])
    require_same_inputs(inputs, "x")


def edit(table: Path) -> None:
    """Change the last text of a table."""
    rows = pq.read_table(table)
    texts = [*rows["text"].to_pylist()[:-1], "edited"]
    index = rows.column_names.index("text")
    pq.write_table(rows.set_column(index, "text", pa.array(texts)), table)


def test_scores_captions_and_filtered_tables_are_compared(tmp_path: Path, drawn) -> None:
    data = write_set(tmp_path / "data", drawn, pictures=8)
    filtered, export = filter_set(data), ExportConfig(str(data / "filtered" / "r1"), str(tmp_path / "out"))
    export_shards(export, progress=False)
    before = contents(tmp_path / "out")
    assert export_shards(export, progress=False)["shards"]["skipped"] == 2
    edit(filtered / "00001.parquet")
    with pytest.raises(
        ValueError, match=r"r1/00001\.parquet has changed since .*00001\.parquet was made .*give another"
    ):
        export_shards(export, progress=False)
    assert contents(tmp_path / "out") == before
    config = FilterConfig(data=str(data), scores="s", name="r2")
    filter_shards(config, progress=False)
    assert filter_shards(config, progress=False)["shards"]["skipped"] == 2
    edit(data / "captions" / "c" / "00000.parquet")
    with pytest.raises(ValueError, match=r"captions/c/00000\.parquet has changed since .*r2/00000\.parquet was made"):
        filter_shards(config, progress=False)


def test_another_filtered_set_of_the_same_name_is_noticed_by_export(tmp_path: Path, drawn) -> None:
    data = write_set(tmp_path / "data", drawn, pictures=8)
    export = ExportConfig(str(filter_set(data)), str(tmp_path / "out"))
    export_shards(export, progress=False)
    shutil.rmtree(data / "filtered")
    filter_set(data, threshold=0.9)
    with pytest.raises(ValueError, match=r"r1/00000\.parquet has changed"):
        export_shards(export, progress=False)
