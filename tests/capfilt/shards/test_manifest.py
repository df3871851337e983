"""A folder belongs to the settings that began it; other settings are refused with what differs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from capfilt.shards.format import images_of, read_manifest
from capfilt.shards.manifest import Manifest

CONFIG = {"model": "m", "generate": {"top_p": 0.9, "beams": (1, 2)}}


def test_same_settings_go_on_and_write_the_same_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "captions" / "x"
    manifest = Manifest.begin(folder, "caption", CONFIG, images=tmp_path, packages=["pillow", "nothing-of-that-name"])
    manifest.finish({"pictures": 3})
    bytes_then = (folder / "manifest.json").read_bytes()
    Manifest.begin(folder, "caption", CONFIG, images=tmp_path).finish({"pictures": 3})
    assert (folder / "manifest.json").read_bytes() == bytes_then
    content = read_manifest(folder)
    assert content["config"] == {"model": "m", "generate": {"top_p": 0.9, "beams": [1, 2]}}
    assert content["counts"] == {"pictures": 3}
    assert content["versions"]["nothing-of-that-name"] == "not installed"


def test_other_settings_are_refused_with_a_diff(tmp_path: Path) -> None:
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


def test_references_survive_a_move_of_the_set_but_not_of_work_elsewhere(tmp_path: Path) -> None:
    data = tmp_path / "data"
    Manifest.begin(data / "captions" / "x", "caption", CONFIG, images=data)
    Manifest.begin(data / "filtered" / "y", "filter", CONFIG, images=data, parents=[data / "captions" / "x"])
    Manifest.begin(tmp_path / "work" / "captions" / "x", "caption", CONFIG, images=data)
    assert read_manifest(data / "filtered" / "y")["parents"] == ["../../captions/x"]
    assert images_of(tmp_path / "work" / "captions" / "x") == data
    shutil.move(data, tmp_path / "moved")
    assert images_of(tmp_path / "moved" / "filtered" / "y") == tmp_path / "moved"


def test_leftovers_of_a_killed_run_are_swept(tmp_path: Path) -> None:
    (tmp_path / ".00000.parquet.0123abcd.tmp").write_bytes(b"half")
    Manifest.begin(tmp_path, "caption", CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
