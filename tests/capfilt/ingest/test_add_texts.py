"""`capfilt pack --texts`: texts are added or replaced by key or URL; filter and trainer read them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from folders import contents, rows_of
from packing import pack_folder
from typer.testing import CliRunner
from web import picture

from blipcore.data.shard_datasets import open_dataset
from blipcore.io.samples import TarSample
from capfilt.cli import app
from capfilt.filter.config import FilterConfig
from capfilt.filter.stage import filter_shards
from capfilt.ingest.add_texts import TextsConfig, add_texts
from capfilt.shards.format import write_shard


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Pack three pictures with texts in two shards."""
    (tmp_path / "photos").mkdir()
    for number, name in enumerate("abc"):
        (tmp_path / "photos" / f"{name}.jpg").write_bytes(picture(number))
        (tmp_path / "photos" / f"{name}.txt").write_text(f"old {name}")
    pack_folder(tmp_path / "photos", tmp_path / "data", shard_size=2)
    return tmp_path / "data"


def write_list(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def captions(folder: Path) -> list[tuple[str, int, str]]:
    return [(row["key"], row["index"], row["text"]) for row in rows_of(folder)]


def test_texts_are_added_by_key_or_url_without_touching_the_shards(
    data: Path, tmp_path: Path, tiny_filter: Path
) -> None:
    before = contents(data)
    rows = [
        {"key": "000000", "text": "new a"},
        {"key": "000010", "text": ["new c", "another c"]},
        {"key": "9", "text": "x"},
    ]
    summary = add_texts(TextsConfig(str(data), str(write_list(tmp_path / "recap.jsonl", rows))), progress=False)
    assert summary["counts"] == {"captions": 3} and summary["not_in_the_set"] == {"number": 1, "first": "9"}
    by_key = captions(data / "captions" / "recap")
    assert by_key == [("000000", 0, "new a"), ("000010", 0, "new c"), ("000010", 1, "another c")]
    (tmp_path / "list.csv").write_text("url,caption\na.jpg,new a\nc.jpg,new c\nc.jpg,another c\n")
    add_texts(TextsConfig(str(data), str(tmp_path / "list.csv"), name="by_url"), progress=False)
    assert captions(data / "captions" / "by_url") == by_key
    assert {name: content for name, content in contents(data).items() if not name.startswith("captions")} == before
    config = FilterConfig(data=str(data), model=str(tiny_filter), dtype="fp32", sources=["web", "recap"])
    assert filter_shards(config, progress=False)["by_source"]["recap"]["texts"] == 3


def test_web_texts_are_replaced_for_filter_and_trainer(data: Path, tmp_path: Path, tiny_filter: Path) -> None:
    rows = [{"url": "b.jpg", "text": "new b"}, {"url": "c.jpg", "text": ""}]
    config = FilterConfig(data=str(data), model=str(tiny_filter), dtype="fp32", name="before")
    filter_shards(config, progress=False)
    add_texts(TextsConfig(str(data), str(write_list(tmp_path / "new.jsonl", rows)), name="web"), progress=False)
    dataset = open_dataset(data)
    entries = [entry for shard in range(2) for entry in dataset.load(shard)]
    assert [(entry.key, entry.texts) for entry in entries] == [("000000", ("old a",)), ("000001", ("new b",))]
    assert dataset.counts == [2, 0]
    with pytest.raises(ValueError, match="captions 'web' have changed since they were scored"):
        filter_shards(config, progress=False)
    again = FilterConfig(data=str(data), model=str(tiny_filter), dtype="fp32", name="after", scores="new")
    filter_shards(again, progress=False)
    texts = [(row["key"], row["source"], row["text"]) for row in rows_of(data / "filtered" / "after")]
    assert texts == [("000000", "web", "old a"), ("000001", "web", "new b"), ("000010", "web", "")]


def test_a_key_that_repeats_needs_a_shard(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_shard(tmp_path / "data" / f"{name}.tar", [TarSample("0", picture(1), name)])
    listed = write_list(tmp_path / "new.jsonl", [{"key": "0", "text": "x"}])
    summary = add_texts(TextsConfig(str(tmp_path / "data"), str(listed), name="n"), progress=False)
    assert "key 0 exists in a and in b" in summary["shards"]["failed"]["b"]
    rows = [{"key": "0", "shard": "a", "text": "of a"}, {"key": "0", "shard": "b.tar", "text": "of b"}]
    listed = write_list(tmp_path / "new.jsonl", rows)
    add_texts(TextsConfig(str(tmp_path / "data"), str(listed), name="m"), progress=False)
    assert [text for _, _, text in captions(tmp_path / "data" / "captions" / "m")] == ["of a", "of b"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"key": "nobody", "text": "x"}], "None of the 1 keys of .* is in .*; the first is nobody"),
        ([{"url": "http://nobody", "text": "x"}], "None of the 1 URLs"),
        ([{"picture": "0", "text": "x"}], "has no column 'key' or 'url'; its columns are picture, text"),
        ([{"key": "000000", "words": "x"}], "--caption-col"),
        ([{"key": "000000", "text": " "}], "has no text in any row"),
        ([{"key": None, "text": "x"}], "1 rows of .* cannot be used"),
    ],
)
def test_a_list_that_fits_nothing_is_refused(
    data: Path, tmp_path: Path, rows: list[dict[str, object]], message: str
) -> None:
    listed = write_list(tmp_path / "new.jsonl", rows)
    with pytest.raises(ValueError, match=message):
        add_texts(TextsConfig(str(data), str(listed)), progress=False)
    assert not list(data.glob("captions/*/*.parquet"))


def test_the_command_line_takes_the_list_and_the_set(data: Path, tmp_path: Path) -> None:
    listed = str(write_list(tmp_path / "new.jsonl", [{"key": "000000", "text": "x"}]))
    result = CliRunner().invoke(app, ["pack", "--texts", listed, str(data), "--json"])
    assert result.exit_code == 0 and json.loads(result.stdout)["name"] == "new", result.output
    assert "done already" in CliRunner().invoke(app, ["pack", "--texts", listed, str(data)]).stderr
    assert CliRunner().invoke(app, ["pack", "--texts", listed, "x", str(data)]).exit_code == 2
    assert "pack SOURCE DATA" in CliRunner().invoke(app, ["pack", str(data)]).output
