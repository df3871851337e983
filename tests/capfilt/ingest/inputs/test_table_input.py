"""Parquet files and saved datasets with the bytes of pictures: columns, splits, and texts in any type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folders import rows_of
from input_rows import JPEG, read_input, texts_by_url, write_files, write_parquet
from packing import pack_folder

IMAGE = {"bytes": JPEG, "path": "1.jpg"}


@pytest.mark.parametrize(
    ("columns", "texts"),
    [
        ({"caption": ["a"]}, ["a"]),
        ({"caption": [b"a dog"]}, ["a dog"]),
        ({"caption": pa.array(["a"]).dictionary_encode()}, ["a"]),
        ({"captions": pa.array([["a", "b"]], pa.large_list(pa.large_string()))}, ["a", "b"]),
        ({"sentences": [[{"raw": "a", "tokens": ["a"]}, {"raw": "b", "tokens": ["b"]}]]}, ["a", "b"]),
        ({"conversations": [[{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "a cat"}]]}, ["a cat"]),
        ({"caption": ["a"], "title": ["b"]}, ["a"]),
        ({"n": [1]}, []),
    ],
)
@pytest.mark.parametrize("image", ["bytes", "struct"])
def test_the_texts_of_a_row(tmp_path: Path, columns: dict[str, Any], texts: list[str], image: str) -> None:
    pictures = {"jpg": [JPEG]} if image == "bytes" else {"image": [IMAGE]}
    assert texts_by_url(write_parquet(tmp_path / "a.parquet", **pictures, **columns)) == {"a.parquet#0": texts}


def test_columns_are_named_and_the_others_are_kept(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", jpg=[JPEG], prompt=["a"], alt=["b"], n=[7], thumbnail=[b"x"])
    opened, (row,) = read_input(path, ("prompt", "alt"))
    assert (row["texts"], row["columns"]) == (["a", "b"], {"n": 7})
    assert opened.further is not None and opened.further.names == ["n"]
    opened, _ = read_input(path)
    assert (opened.account.texts, opened.account.unused, opened.account.picture) == ({"alt": 1}, ("prompt",), "'jpg'")


@pytest.mark.parametrize(
    ("columns", "options", "words"),
    [
        ({"prompt": ["a dog"]}, {}, "but 'prompt' may hold texts"),
        ({"caption": [""], "prompt": ["x"]}, {}, "no text in 'caption' .* but 'prompt' may hold texts"),
        ({"recap": pa.array(["a"]).cast(pa.string_view())}, {}, "but 'recap' may hold texts"),
        ({"caption": ["a"]}, {"caption_col": "titel"}, r"has no column 'titel' \(--caption-col\); it has caption"),
        ({"caption": ["a"]}, {"image_col": "image"}, r"has no column 'image' \(--image-col\)"),
        ({"caption": ["a"]}, {"split": "train"}, "has no splits; leave out --split train"),
        ({"caption": ["café".encode("cp1252")]}, {}, "row 0: 'caption' is not UTF-8"),
    ],
)
def test_a_column_that_is_missing_or_empty_is_an_error(
    tmp_path: Path, columns: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    path = write_parquet(tmp_path / "a.parquet", jpg=[JPEG], **columns)
    with pytest.raises(ValueError, match=words):
        read_input(path, **options)


def test_a_column_in_different_types_is_kept(tmp_path: Path) -> None:
    for number, score in enumerate((1, 1.5, "high")):
        write_parquet(tmp_path / "in" / f"{number}.parquet", jpg=[JPEG], caption=["a"], score=[score], n=[number])
    assert pack_folder(tmp_path / "in", tmp_path / "data")["outcomes"] == {"ok": 3}
    assert [(row["score"], row["n"]) for row in rows_of(tmp_path / "data")] == [("1", 0), ("1.5", 1), ("high", 2)]


def test_a_name_of_two_columns_is_refused_where_it_is_used(tmp_path: Path) -> None:
    columns = [pa.array([JPEG]), pa.array(["a"]), pa.array(["b"]), pa.array(["c"])]
    pq.write_table(pa.Table.from_arrays(columns, ["jpg", "caption", "caption", "prompt"]), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet has 2 columns with the name 'caption'; rename them"):
        read_input(tmp_path / "a.parquet")
    assert texts_by_url(tmp_path / "a.parquet", "prompt") == {"a.parquet#0": ["c"]}


def test_the_column_of_pictures_is_found_by_its_bytes(tmp_path: Path) -> None:
    assert texts_by_url(write_parquet(tmp_path / "a.parquet", content=[JPEG], text=[b"a"])) == {"a.parquet#0": ["a"]}
    with pytest.raises(ValueError, match="several columns of bytes; name one with --image-col: left, right"):
        read_input(write_parquet(tmp_path / "b.parquet", left=[JPEG], right=[JPEG]))
    with pytest.raises(ValueError, match="has lists of pictures in 'images'"):
        read_input(write_parquet(tmp_path / "c" / "c.parquet", images=[[IMAGE, IMAGE]]).parent)
    sound = {"bytes": b"RIFF....WAVEfmt ", "path": "1.wav"}
    with pytest.raises(ValueError, match="no column"):
        read_input(write_parquet(tmp_path / "d" / "d.parquet", audio=[sound], text=["t"]).parent)


def test_texts_that_are_not_utf_8_are_counted_and_read_when_told(tmp_path: Path) -> None:
    cells = ["café".encode("cp1252"), "café".encode()]
    path = write_parquet(tmp_path / "a.parquet", jpg=[JPEG] * 2, caption=cells)
    opened, rows = read_input(path)
    assert [row["texts"] for row in rows] == [[], ["café"]] and rows[0]["error"] == "text: 'caption' is not UTF-8"
    assert "a.parquet, row 0, 'caption'" in opened.account.notes[0]
    assert list(texts_by_url(path, encoding="cp1252").values()) == [["café"], ["café"]]


def test_the_parquet_output_of_img2dataset(tmp_path: Path) -> None:
    exif = json.dumps({"Image Orientation": "Rotated 180"})
    facts = {"url": ["http://x/1.jpg"], "key": ["0"], "status": ["success"], "width": [40], "exif": [exif]}
    _, (row,) = read_input(write_parquet(tmp_path / "0.parquet", jpg=[JPEG], caption=["red"], nsfw=[0.2], **facts))
    assert (row["url"], row["texts"], row["orientation"], row["columns"]) == (
        "http://x/1.jpg",
        ["red"],
        3,
        {"nsfw": 0.2},
    )


@pytest.mark.parametrize(
    ("names", "chosen", "texts"),
    [
        (["data/train-00000-of-00001", "data/test-00000-of-00001"], "train", ["train"]),
        (["default/train/0000", "default/test/0000"], "test", ["test"]),
        (["train", "validation"], "val", ["validation"]),
        (["data/train_sft-00000-of-00001", "data/restval-00000-of-00001"], "train_sft", ["train_sft"]),
        (["data/train-00000-of-00001", "data/val-00000-of-00001"], "train+val", ["train", "val"]),
    ],
)
def test_a_snapshot_of_a_hub_has_splits_and_a_figure(
    tmp_path: Path, names: list[str], chosen: str, texts: list[str]
) -> None:
    for name in names:
        split = next(word for word in ("train_sft", "train", "restval", "validation", "val", "test") if word in name)
        write_parquet(tmp_path / f"{name}.parquet", image=[IMAGE] * 2, caption=[split] * 2)
    write_files(tmp_path, {"README.md": "x", "assets/teaser.png": JPEG})
    with pytest.raises(ValueError, match=r"has the splits .*Choose one with --split"):
        read_input(tmp_path)
    opened, rows = read_input(tmp_path, split=chosen)
    assert (opened.kind, sorted({text for row in rows for text in row["texts"]})) == ("parquet", texts)
    assert opened.account.notes == ("pictures beside these files, not read: 1, such as assets/teaser.png.",)


def test_a_column_of_splits(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", jpg=[JPEG] * 2, caption=["t", "u"], split=["train", "test"])
    with pytest.raises(ValueError, match="has the splits train, test"):
        read_input(path)
    opened, (row,) = read_input(path, split="test")
    assert (row["texts"], opened.account.splits, opened.account.rows) == (["u"], ("test",), 1)
    assert opened.account.texts == {"caption": 1}  # those of other splits are not counted
    with pytest.raises(ValueError, match=r"has no split 'dev' \(--split\); its splits are train, test"):
        read_input(path, split="dev")


def test_a_git_lfs_pointer_is_named(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.parquet": "version https://git-lfs.github.com/spec/v1\noid sha256:x\n"})
    with pytest.raises(ValueError, match="Git LFS pointer"):
        read_input(tmp_path / "a.parquet")


def test_pictures_that_a_table_names_by_their_paths(tmp_path: Path) -> None:
    """`to_parquet` of Hugging Face `datasets` writes paths of files that exist."""
    write_files(tmp_path, {"img/0.jpg": JPEG, "img/1.jpg": JPEG})
    paths = [str(tmp_path / "img" / "0.jpg"), "img/1.jpg", "img/2.jpg", "/etc/passwd"]
    images = pa.array(
        [{"bytes": None, "path": path} for path in paths], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    write_parquet(tmp_path / "x.parquet", image=images, text=["t"] * 4)
    pack_folder(tmp_path / "x.parquet", tmp_path / "data")
    rows = rows_of(tmp_path / "data")
    assert [row["status"] for row in rows] == ["ok", "ok", "not_found", "forbidden"]
    assert "give the folder of the pictures as SOURCE" in rows[3]["error"]


def test_a_saved_dataset_with_several_splits(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"image": [IMAGE], "caption": ["t"]}).cast_column("image", datasets.Image())
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="has the splits train, test"):
        read_input(tmp_path / "saved")
    opened, rows = read_input(tmp_path / "saved", split="test")
    assert ([row["url"] for row in rows], opened.account.splits) == (["test#0"], ("test",))
    assert len(read_input(tmp_path / "saved", split="all")[1]) == 2
    (tmp_path / "saved" / "train" / "data-00000-of-00001.arrow").write_bytes(b"junk")
    with pytest.raises(ValueError, match="is not a whole saved dataset"):
        read_input(tmp_path / "saved" / "train")
    with pytest.raises(ValueError, match="holds saved datasets; give one of them, such as"):
        (tmp_path / "saved" / "dataset_dict.json").unlink()
        read_input(tmp_path / "saved")
