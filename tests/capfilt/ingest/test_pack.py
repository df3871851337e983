"""`capfilt pack` resumes after any end, refuses other settings, and writes the same bytes every time."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from folders import contents, rows_of
from packing import pack_folder, write_annotations, write_pictures
from web import picture

from blipcore.io.samples import TarSample
from blipcore.io.storage import to_path
from capfilt.filter.config import FilterConfig
from capfilt.filter.stage import filter_shards
from capfilt.ingest.pack import PackConfig, pack
from capfilt.shards.format import write_shard
from capfilt.shards.shard_set import ShardSet
from capfilt.shards.tables import read_table


def test_a_second_run_resumes_or_is_refused(tmp_path: Path) -> None:
    photos = write_pictures(tmp_path / "photos", [f"{number:02d}.jpg" for number in range(25)])
    summary = pack_folder(photos, tmp_path / "data", shard_size=10, workers=2)
    assert summary["shards"] == {"done": 3, "skipped": 0, "failed": {}}
    assert [row["key"] for row in rows_of(tmp_path / "data")][9:12] == ["000009", "000010", "000011"]
    before = {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()}
    assert pack_folder(photos, tmp_path / "data", shard_size=10)["shards"] == {"done": 0, "skipped": 3, "failed": {}}
    (tmp_path / "data" / "00001.parquet").unlink()  # as after a kill before the last file
    (tmp_path / "data" / "manifest.json").write_bytes(
        before["manifest.json"].replace(b',\n  "counts": {\n    "ok": 25,\n    "rows": 25\n  }', b"")
    )
    assert pack_folder(photos, tmp_path / "data", shard_size=10)["shards"] == {"done": 1, "skipped": 2, "failed": {}}
    assert {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()} == before
    with pytest.raises(ValueError, match=r"other settings.*\n  image_size: 512 -> 64$"):
        pack_folder(photos, tmp_path / "data", shard_size=10, image_size=64)


def test_a_deleted_shard_is_written_again(tmp_path: Path) -> None:
    photos = write_pictures(tmp_path / "photos", [f"{number}.jpg" for number in range(4)])
    pack_folder(photos, tmp_path / "data", shard_size=2)
    before = contents(tmp_path / "data")
    (tmp_path / "data" / "00001.parquet").unlink()
    assert pack_folder(photos, tmp_path / "data", shard_size=2)["shards"] == {"done": 1, "skipped": 1, "failed": {}}
    assert contents(tmp_path / "data") == before


def test_shards_can_be_written_to_an_fsspec_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    photos = write_pictures(tmp_path / "photos", ["a.jpg", "b.jpg"])
    pack(PackConfig(str(photos), "memory://bucket/data", shard_size=1, workers=1), progress=False)
    pack_folder(photos, tmp_path / "data", shard_size=1)
    remote = {path.name: path.read_bytes() for path in to_path("memory://bucket/data").iterdir()}
    assert remote == {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()}
    assert not any((tmp_path / "cache").rglob("*.parquet"))
    assert ShardSet.open("memory://bucket/data").shards == ["00000", "00001"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")])
def test_a_run_that_ends_at_any_file_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    write_pictures(tmp_path, ["a.jpg", "deep/b c.jpg"])
    source = write_annotations(tmp_path / "list.json", "coco")
    pack_folder(source, tmp_path / "whole", shard_size=2)
    whole, replace = contents(tmp_path / "whole"), os.replace
    for last in range(1, 100):
        data, renames = tmp_path / f"data{last}", iter(range(1, 100))

        def replace_or_end(old: str, new: str, last: int = last, renames: Iterator[int] = renames) -> None:
            if next(renames) == last:
                raise error
            replace(old, new)

        monkeypatch.setattr(os, "replace", replace_or_end)
        try:
            pack_folder(source, data, shard_size=2)
            break
        except type(error):
            monkeypatch.undo()
        files = contents(data)
        finished = [name for name in files if not name.startswith(".staging") and not name.endswith("manifest.json")]
        assert all(files[name] == whole[name] for name in finished)
        pack_folder(source, data, shard_size=2)
        assert contents(data) == whole, last
    assert last > 10


def test_further_texts_are_filtered_too(tmp_path: Path, tiny_filter: Path) -> None:
    photos = write_pictures(tmp_path / "photos", ["a.jpg", "deep/b c.jpg"])
    pack_folder(photos, tmp_path / "data", annotations=str(write_annotations(tmp_path / "list.json", "coco")))
    filter_shards(FilterConfig(data=str(tmp_path / "data"), model=str(tiny_filter), dtype="fp32"), progress=False)
    table = read_table(tmp_path / "data" / "filtered" / "capfilt" / "00000.parquet", ["source", "text"])
    assert [tuple(row.values()) for row in table.to_pylist()] == [("web", "one"), ("more", "uno"), ("web", "two")]


def write_folder(root: Path) -> Path:
    """Write three pictures with texts, at a fixed time."""
    write_pictures(root, ["a.jpg", "b.jpg", "c.jpg"])
    for name in "abc":
        (root / f"{name}.txt").write_text(f"text {name}")
    return root


def edit_text(root: Path) -> None:
    (root / "b.txt").write_text("text x")  # as long as before


def replace_picture(root: Path) -> None:
    (root / "b.jpg").write_bytes((root / "b.jpg").read_bytes())  # the same bytes at another time


def remove_text(root: Path) -> None:
    (root / "b.txt").unlink()


def remove_picture(root: Path) -> None:
    (root / "b.jpg").rename(root / "z.jpg")


@pytest.mark.parametrize("change", [edit_text, replace_picture, remove_text, remove_picture])
def test_a_changed_folder_is_refused_and_the_row_named(tmp_path: Path, change: Callable[[Path], None]) -> None:
    photos = write_folder(tmp_path / "photos")
    pack_folder(photos, tmp_path / "data")
    before = contents(tmp_path / "data")
    assert pack_folder(photos, tmp_path / "data")["shards"]["skipped"] == 1
    change(photos)
    with pytest.raises(ValueError, match=r"photos is not what .*data was made from: row 2 \([bc]\.jpg\)"):
        pack_folder(photos, tmp_path / "data")
    assert contents(tmp_path / "data") == before


def test_a_tar_with_another_text_of_any_length_is_refused(tmp_path: Path) -> None:
    for text in ("a dig in the sun", "a dog that lies in the sun"):  # tars of the same padded size
        write_shard(tmp_path / "in" / "0.tar", [TarSample("k", picture(1), text), TarSample("l", picture(2), "a")])
        if text == "a dig in the sun":
            pack_folder(tmp_path / "in", tmp_path / "data")
    with pytest.raises(ValueError, match=r"row 1 \(0\.tar/k\) is new or has changed"):
        pack_folder(tmp_path / "in", tmp_path / "data")


def test_an_edited_annotation_file_is_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a.jpg", "deep/b c.jpg"])
    source = write_annotations(tmp_path / "list.csv", "csv")
    pack_folder(source, tmp_path / "data")
    source.write_text(source.read_text().replace("uno", "una"))
    with pytest.raises(ValueError, match=r"list.csv is not what .* was made from: row 1 \(a.jpg\)"):
        pack_folder(source, tmp_path / "data")


def test_new_pictures_extend_a_set_by_new_shards(tmp_path: Path) -> None:
    photos = write_folder(tmp_path / "photos")
    pack_folder(photos, tmp_path / "data", shard_size=2)
    before = contents(tmp_path / "data")
    for name in ("aa", "d"):  # between the earlier ones, and after them
        (photos / f"{name}.jpg").write_bytes(picture(9))
        (photos / f"{name}.txt").write_text(name)
    summary = pack_folder(photos, tmp_path / "data", shard_size=2)
    assert summary["shards"] == {"done": 1, "skipped": 2, "failed": {}} and summary["rows"] == 5
    rows = rows_of(tmp_path / "data")
    assert [(row["key"], row["caption"]) for row in rows] == [
        ("000000", "text a"), ("000001", "text b"), ("000010", "text c"), ("000020", "aa"), ("000021", "d"),
    ]  # fmt: skip
    after = contents(tmp_path / "data")
    assert all(after[name] == before[name] for name in before if name.endswith((".tar", ".parquet")))
    assert pack_folder(photos, tmp_path / "data", shard_size=2)["shards"]["skipped"] == 3
    (photos / "e.jpg").write_bytes(picture(10))
    assert pack_folder(photos, tmp_path / "data", shard_size=2)["shards"] == {"done": 1, "skipped": 3, "failed": {}}
    (tmp_path / "data" / "00001.parquet").unlink()
    with pytest.raises(ValueError, match="was extended, and a shard of it or its staging folder was deleted since"):
        pack_folder(photos, tmp_path / "data", shard_size=2)
