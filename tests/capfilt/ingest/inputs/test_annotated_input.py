"""Annotation files as inputs of `capfilt pack`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from folders import rows_of
from packing import pack_folder, write_annotations, write_pictures

from capfilt.shards.tables import read_table


@pytest.mark.parametrize("kind", ["coco", "blip", "csv"])
def test_annotation_files_with_several_texts_per_picture(tmp_path: Path, kind: str) -> None:
    photos = write_pictures(tmp_path / "photos", ["a.jpg", "deep/b c.jpg", "../outside.jpg"])
    file = write_annotations(tmp_path / f"list.{'csv' if kind == 'csv' else 'json'}", kind)
    summary = pack_folder(photos, tmp_path / "data", annotations=str(file))
    assert summary["outcomes"] == {"ok": 2, "not_found": 1, "forbidden": 1}
    rows = rows_of(tmp_path / "data")
    assert [(row["url"], row["caption"], row["status"]) for row in rows] == [
        ("a.jpg", "one", "ok"),
        ("deep/b c.jpg", "two", "ok"),
        ("missing.jpg", "x", "not_found"),
        ("../outside.jpg", "y", "forbidden"),
    ]
    assert rows[3]["error"] == "outside of photos"
    more = read_table(tmp_path / "data" / "captions" / "more" / "00000.parquet", ["key", "index", "text"]).to_pylist()
    assert more == [{"key": "000000000", "index": 0, "text": "uno"}]


def test_texts_of_other_splits_are_not_counted(tmp_path: Path) -> None:
    photos = write_pictures(tmp_path / "photos", ["0.jpg", "1.jpg"])
    rows = [{"image": f"{n}.jpg", "caption": "a dog", "split": split} for n, split in enumerate(("train", "val"))]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    account = pack_folder(photos, tmp_path / "data", annotations=str(tmp_path / "list.json"), split="val")["account"]
    assert (account["rows"], account["rows_with_text"], account["texts"]) == (1, 1, {"caption": 1})


def test_the_columns_of_every_row_of_a_picture_are_kept(tmp_path: Path) -> None:
    photos = write_pictures(tmp_path / "photos", ["a.jpg"])
    rows = [{"image": "a.jpg", "caption": f"text {number}", "who": number, "x": "\ud800"} for number in range(3)]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for keep, expected in (([], '{"who": 1, "x": "?"}'), (["who"], '{"who": 1}'), (["none"], None)):
        data = tmp_path / f"data{len(expected or '')}"
        pack_folder(photos, data, annotations=str(tmp_path / "list.jsonl"), keep_columns=keep)
        more = read_table(data / "captions" / "more" / "00000.parquet", ["text"], ["columns"]).to_pylist()
        assert (more[0]["text"], more[0].get("columns")) == ("text 1", expected)


def test_an_annotation_file_can_be_the_source(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a.jpg", "deep/b c.jpg"])
    assert pack_folder(write_annotations(tmp_path / "list.json", "blip"), tmp_path / "data")["ok"] == 2


def test_absolute_names_may_go_through_a_link_to_the_folder(tmp_path: Path) -> None:
    photos = write_pictures(tmp_path / "disk" / "photos", ["a.jpg"])
    (tmp_path / "photos").symlink_to(photos)
    names = [str(tmp_path / "photos" / "a.jpg"), str(photos / "a.jpg"), "a.jpg", str(tmp_path / "photos/../x.jpg")]
    (tmp_path / "list.json").write_text(json.dumps([{"image": name, "caption": name} for name in names]))
    for source in (tmp_path / "photos", photos):
        out = tmp_path / f"data {len(str(source))}"
        pack_folder(source, out, annotations=str(tmp_path / "list.json"))
        through_link = "ok" if source == tmp_path / "photos" else "forbidden"
        assert [row["status"] for row in rows_of(out)] == [through_link, "ok", "ok", "forbidden"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", '{"x": 1}', "no column that looks like the path of a picture; it has x"),
        (
            "a.json",
            '[{"x": 1}]',
            "no column that looks like the path of a picture; it has x. Name the column with --image-col.",
        ),
        (
            "a.csv",
            "image,b\nx.jpg,2\n",
            r"None of the 1 pictures that .*a.csv names exists under .* such as x\.jpg; give the",
        ),
        ("a.parquet", "PAR1", "not a readable Parquet file"),
    ],
)
def test_errors_in_annotation_files(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=words):
        pack_folder(tmp_path / name, tmp_path / "data")
    assert not (tmp_path / "data").exists()
