"""Folders and tables of pictures with captions, and what is refused with the commands that make a shard set of it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from blipcore.data.shard_datasets import open_dataset

PAIRS = [("a.png", ("a red wall, old",)), ("sub/b.png", ("a blue wall",))]


def save_pictures(folder: Path) -> None:
    (folder / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png"):
        Image.new("RGB", (8, 8), "red").save(folder / name)


def metadata_lines(folder: Path) -> Path:
    rows = [{"file_name": "a.png", "text": "a red wall, old"}, {"file_name": "sub/b.png", "text": "a blue wall"}]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def metadata_table(folder: Path) -> Path:
    (folder / "metadata.csv").write_text('file_name,label,text\na.png,1,"a red wall, old"\nsub/b.png,2,a blue wall\n')
    return folder


def table(folder: Path) -> Path:
    (folder / "rows.csv").write_bytes(
        'caption,image\r\n"a red wall, old",a.png\r\na blue wall,sub/b.png\r\n'.encode("utf-16")
    )
    return folder / "rows.csv"


def spreadsheet(folder: Path) -> Path:
    lines = ["Image; Caption", "a.png; a red wall, old", "sub/b.png; \"['a blue wall']\""]
    (folder / "rows.csv").write_text("\r\n".join(lines), newline="")
    return folder / "rows.csv"


def tab_separated(folder: Path) -> Path:
    (folder / "rows.TSV").write_text("filepath\ttitle\na.png\ta red wall, old\nsub/b.png\ta blue wall\n")
    return folder / "rows.TSV"


def text_files(folder: Path) -> Path:
    (folder / "a.txt").write_text("\ufeffa red wall, old\n")
    (folder / "sub" / "b.png.txt").write_text("a blue wall")
    (folder / "sub" / ".DS_Store").touch()
    return folder


@pytest.mark.parametrize("layout", [metadata_lines, metadata_table, table, spreadsheet, tab_separated, text_files])
def test_each_layout_gives_the_same_pictures_and_texts(tmp_path: Path, layout: Callable[[Path], Path]) -> None:
    save_pictures(tmp_path / "my pictures")
    dataset = open_dataset(layout(tmp_path / "my pictures"))
    entries = dataset.load(0)
    assert [(entry.key, entry.texts) for entry in entries] == PAIRS and dataset.counts == [2]
    assert all(dataset.read(0, entry).startswith(b"\x89PNG") for entry in entries)


def test_line_separators_of_unicode_are_part_of_a_text(tmp_path: Path) -> None:
    save_pictures(tmp_path)
    (tmp_path / "rows.csv").write_text("image,caption\na.png,red\u2028wall\n")
    assert open_dataset(tmp_path / "rows.csv").load(0)[0].texts == ("red\u2028wall",)


def test_texts_are_found_in_any_case_and_links_do_not_lead_in_circles(tmp_path: Path) -> None:
    save_pictures(tmp_path / "photos")
    (tmp_path / "photos" / "a.png").rename(tmp_path / "photos" / "A.PNG")
    (tmp_path / "photos" / "a.TXT").write_text("a wall")
    (tmp_path / "photos" / "sub" / "b.caption").write_text("a second wall")
    (tmp_path / "photos" / "sub" / "loop").symlink_to(tmp_path / "photos")
    entries = open_dataset(tmp_path / "photos").load(0)
    assert [(entry.key, entry.texts) for entry in entries] == [
        ("A.PNG", ("a wall",)),
        ("sub/b.png", ("a second wall",)),
    ]


def test_pictures_without_a_text_are_counted(tmp_path: Path) -> None:
    save_pictures(tmp_path / "photos")
    (tmp_path / "photos" / "a.txt").write_text("a wall")
    dataset = open_dataset(tmp_path / "photos")
    assert dataset.counts == [1] and dataset.problems == {str(tmp_path / "photos"): "1 row without a caption, not used"}
    (tmp_path / "photos" / "a.txt").write_text(" \n")
    with pytest.raises(ValueError, match=r"No picture of .*photos has a caption with a text"):
        open_dataset(tmp_path / "photos")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"image,label\na.png,1\n", "no column of the caption under a usual name; its columns are 'image', 'label'"),
        (
            b"picture,caption\na.png,x\n",
            "`capfilt pack .*rows.csv rows-shards --image-col NAME`, then give rows-shards",
        ),
        (b"image,caption\na.png,red, old\n", "row 0 has more cells than the first line"),
        (b"image,caption\na.png\n", "row 0 has fewer cells than the first line"),
        (b'image,caption\na.png,"red\n', "is no valid table after line 1.* `capfilt pack"),
        (b"image,caption\na.png,\xff\xe9\n", "is no text file"),
        (b"", "holds no rows"),
        (b"image|caption\na.png|x\n", "no column of the picture under a usual name; its columns are 'image.caption'"),
        (b"url,caption\nhttps://x/a.png,x\n", "has a URL but no picture yet: fetch .* `capfilt download"),
        (b"image,caption\nhttps://x/a.png,x\n", "row 0 has a URL but no picture yet: fetch .* `capfilt download"),
        (b"image,caption\n", "holds no rows"),
        (b"image,caption\n,x\n", "row 0: \"image\" must be a path, not ''"),
    ],
)
def test_errors_in_a_table_name_the_row_or_the_columns(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "rows.csv").write_bytes(content)
    with pytest.raises(ValueError, match=words) as error:
        open_dataset(tmp_path / "rows.csv")
    assert "rows.csv" in str(error.value)


@pytest.mark.parametrize(
    "name", ["set/data.arrow", "set/train-00000-of-00001.parquet", "set/metadata.parquet", "a.zip"]
)
def test_other_layouts_are_refused_with_the_commands_to_use(tmp_path: Path, name: str, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"PAR1")
    path = name.partition("/")[0]
    shards = f"{path.removesuffix('.zip')}-shards"
    with pytest.raises(ValueError) as error:
        open_dataset(path)
    assert f"Make a shard set of it with `capfilt pack {path} {shards}`, then give {shards} in its place." in str(
        error.value
    )


@pytest.mark.parametrize(("name", "words"), [("a.tar.gz", "decompress it first"), ("a.JPG", "is a picture; give")])
def test_files_that_cannot_be_packed_either_get_another_remedy(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=words):
        open_dataset(tmp_path / name)


@pytest.mark.parametrize("content", [{"a.png": ["x"]}, {"annotations": [{"image": "a.png", "caption": "x"}]}])
def test_json_of_another_layout_is_refused_with_the_command_to_use(tmp_path: Path, content: object) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"Files of other layouts are read by `capfilt pack .*rows.json rows-shards`"):
        open_dataset(tmp_path / "rows.json")


def test_a_folder_of_splits_names_one_of_them(tmp_path: Path) -> None:
    save_pictures(tmp_path / "set" / "train")
    metadata_lines(tmp_path / "set" / "train")
    with pytest.raises(ValueError, match=r"has its metadata in subfolders: give one of them, such as .*set/train"):
        open_dataset(tmp_path / "set")


def test_a_name_of_the_hub_is_refused_with_the_commands_to_use(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"save_to_disk\('flickr30k'\).*`capfilt pack flickr30k flickr30k-shards`"
    ):
        open_dataset("nlphuji/flickr30k")
    with pytest.raises(FileNotFoundError, match=r"^No data set at absent.json.$"):
        open_dataset("absent.json")
