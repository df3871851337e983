"""A folder keeps its settings; others are refused with the difference."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from capfilt.shards.format import CAPTIONS
from capfilt.shards.manifest import Manifest, image_folder, read_manifest, recorded_backend, remove_manifest_if_empty
from capfilt.shards.tables import write_table

CONFIG = {"model": "m", "generate": {"top_p": 0.9, "beams": (1, 2)}}


def test_the_same_settings_resume_and_write_the_same_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "captions" / "x"
    manifest = Manifest.begin(folder, "caption", CONFIG, images=tmp_path, packages=["pillow", "nothing-of-that-name"])
    manifest.finish({"pictures": 3})
    first_bytes = (folder / "manifest.json").read_bytes()
    Manifest.begin(folder, "caption", CONFIG, images=tmp_path).finish({"pictures": 3})
    assert (folder / "manifest.json").read_bytes() == first_bytes
    content = read_manifest(folder)
    assert content is not None
    assert content["config"] == {"model": "m", "generate": {"top_p": 0.9, "beams": [1, 2]}}
    assert content["counts"] == {"pictures": 3}
    assert content["versions"]["nothing-of-that-name"] == "not installed"


def test_other_settings_are_refused_with_the_difference(tmp_path: Path) -> None:
    Manifest.begin(tmp_path, "caption", CONFIG)
    before = (tmp_path / "manifest.json").read_bytes()
    with pytest.raises(ValueError) as caught:
        Manifest.begin(tmp_path, "caption", {"model": "n", "generate": {"top_p": 0.8, "beams": [1, 2]}})
    lines = str(caught.value).split("\n  ")
    assert "other settings; give another name or folder" in lines[0]
    assert lines[1:] == ["model: 'm' -> 'n'", "generate.top_p: 0.9 -> 0.8"]
    with pytest.raises(ValueError, match="stage: 'caption' -> 'filter'"):
        Manifest.begin(tmp_path, "filter", CONFIG)
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_references_inside_the_set_survive_its_move(tmp_path: Path) -> None:
    data = tmp_path / "data"
    Manifest.begin(data / "captions" / "x", "caption", CONFIG, images=data)
    Manifest.begin(data / "filtered" / "y", "filter", CONFIG, images=data, parents=[data / "captions" / "x"])
    Manifest.begin(tmp_path / "work" / "captions" / "x", "caption", CONFIG, images=data)
    filtered = read_manifest(data / "filtered" / "y")
    assert filtered is not None and filtered["parents"] == ["../../captions/x"]
    assert image_folder(tmp_path / "work" / "captions" / "x") == data
    shutil.move(data, tmp_path / "moved")
    assert image_folder(tmp_path / "moved" / "filtered" / "y") == tmp_path / "moved"


def test_temporary_files_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".00000.parquet.0123abcd.tmp").write_bytes(b"half")
    Manifest.begin(tmp_path, "caption", CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_counts_are_recorded_when_every_table_exists(tmp_path: Path) -> None:
    tables = {shard: tmp_path / f"{shard}.parquet" for shard in ("0", "1")}
    manifest = Manifest.begin(tmp_path, "caption", CONFIG)
    write_table(tables["0"], CAPTIONS.empty_table(), {"pictures": 2})
    assert manifest.record_run(tables, ["0", "1"], {"1": "a reason"}, changed=True) == {"pictures": 2}
    assert manifest.content["failed"] == {"1": "a reason"} and "counts" not in manifest.content
    write_table(tables["1"], CAPTIONS.empty_table(), {"pictures": 3})
    assert manifest.record_run(tables, ["1"], {}, changed=True) == {"pictures": 5}
    assert manifest.content["counts"] == {"pictures": 5} and "failed" not in manifest.content
    tables["1"].write_bytes(b"not read again")
    assert manifest.record_run(tables, [], {}, changed=False) == {"pictures": 5}
    manifest.drop_counts()
    assert "counts" not in manifest.content


def test_a_folder_without_tables_may_get_other_settings(tmp_path: Path) -> None:
    assert recorded_backend(tmp_path) is None
    Manifest.begin(tmp_path, "caption", CONFIG | {"backend": "openvino"})
    assert recorded_backend(tmp_path) == "openvino"
    remove_manifest_if_empty(tmp_path)
    assert read_manifest(tmp_path) is None
    Manifest.begin(tmp_path, "caption", CONFIG)
    write_table(tmp_path / "0.parquet", CAPTIONS.empty_table())
    remove_manifest_if_empty(tmp_path)
    assert recorded_backend(tmp_path) == "torch"


def test_manifests_of_other_programs_are_ignored(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None
    (tmp_path / "manifest.json").write_text('{"name": "another program"}')
    assert read_manifest(tmp_path) is None
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_manifest(tmp_path)
