"""Webdatasets: texts in any member, splits, sparse members."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from input_rows import JPEG, read_input, texts_by_url
from packing import pack_folder, pictures_of
from PIL import Image
from tar_files import write_tar

PICTURE = ("0.jpg", JPEG)


def tar_of(tmp_path: Path, members: dict[str, bytes | str], name: str = "0.tar") -> Path:
    tmp_path.mkdir(exist_ok=True)
    content = [(member, data if isinstance(data, bytes) else data.encode()) for member, data in members.items()]
    return write_tar(tmp_path / name, [PICTURE, *content])


@pytest.mark.parametrize(
    ("members", "texts", "counted"),
    [
        ({"0.txt": "a"}, ["a"], ".txt"),
        ({"0.TXT": "a"}, ["a"], ".txt"),
        ({"0.caption": "a"}, ["a"], ".caption"),
        ({"0.cap": "a"}, ["a"], ".cap"),
        ({"0.txt": "a dog\na brown dog"}, ["a dog", "a brown dog"], ".txt"),
        ({"0.txt": "caf\u00e9".encode("utf-16")}, ["caf\u00e9"], ".txt"),
        ({"0.json": '{"caption": ["a", "b"]}'}, ["a", "b"], "caption"),
        ({"0.json": '{"top_caption": "t", "all_captions": ["a"]}'}, ["t"], "top_caption"),
        ({"0.json": '["one", "two"]'}, ["one", "two"], "list of .json"),
        ({"0.json": '"one"'}, ["one"], "list of .json"),
    ],
)
def test_the_texts_of_a_sample(tmp_path: Path, members: dict[str, bytes | str], texts: list[str], counted: str) -> None:
    opened, (row,) = read_input(tar_of(tmp_path, members))
    assert (row["url"], row["texts"], opened.account.texts) == ("0.tar/0", texts, {counted: 1})


@pytest.mark.parametrize(
    ("members", "names", "texts"),
    [
        ({"0.alt.txt": "alt", "0.txt": "a"}, "alt.txt", ["alt"]),
        ({"0.alt.txt": "alt", "0.txt": "a"}, (".txt", ".alt.txt"), ["a", "alt"]),
        ({"0.txt": "a", "0.json": '{"re_caption": "long", "caption": "a"}'}, ("re_caption", "caption"), ["long", "a"]),
        ({"0.json": '{"syn": ["a", "b"]}'}, "syn", ["a", "b"]),
        ({"0.json": '{"talk": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "a"}]}'}, "talk", ["a"]),
        ({"0.txt": "a"}, "none", []),
    ],
)
def test_members_and_keys_are_chosen_by_name(
    tmp_path: Path, members: dict[str, bytes | str], names: str | tuple[str, ...], texts: list[str]
) -> None:
    assert texts_by_url(tar_of(tmp_path, members), names) == {"0.tar/0": texts}


@pytest.mark.parametrize(
    ("members", "names", "words"),
    [
        ({"0.url.txt": "http://x/0.jpg"}, (), r"but '\.url\.txt' may hold texts"),
        ({"0.json": '{"prompt": "a cat sits", "uid": "ab12"}'}, (), r"but 'prompt' may hold texts"),
        ({"0.txt": "a"}, "title", r"no text in 'title' .*; --caption-col may name '\.txt'"),
        ({"0.json": '{"conversations": [{"from": "gpt", "value": "a cat"}]}'}, (), r"but 'conversations' may hold"),
        ({"0.json": "{"}, (), r"no text that can be read: 0\.tar/0: its JSON is not valid"),
        ({"0.txt": "caf\u00e9".encode("cp1252")}, (), r"0\.txt is not text in UTF-8. Give another --encoding"),
    ],
)
def test_texts_that_are_not_read_are_an_error_if_there_are_no_others(
    tmp_path: Path, members: dict[str, bytes | str], names: str | tuple[str, ...], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        read_input(tar_of(tmp_path, members), names)


def test_a_class_is_no_text(tmp_path: Path) -> None:
    opened, rows = read_input(tar_of(tmp_path, {"0.cls": "1"}))
    assert rows[0]["texts"] == [] and opened.ignored == {"cls": 1}


def test_splits_of_tars_and_of_samples(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        tar_of(tmp_path / "tars", {"0.txt": split}, f"cc3m-{split}-0000.tar")
    samples = {
        "0.json": '{"caption": "t", "split": "train"}',
        "1.jpg": JPEG,
        "1.json": '{"caption": "v", "split": "val"}',
    }
    for source in (tmp_path / "tars", tar_of(tmp_path, samples)):
        with pytest.raises(ValueError, match="has the splits train, val"):
            read_input(source)
        opened, rows = read_input(source, split="val")
        assert [row["texts"] for row in rows] in ([["validation"]], [["v"]]) and len(opened.account.splits) == 1
        assert sum(opened.account.texts.values()) == 1


def test_the_further_keys_of_the_json_are_kept(tmp_path: Path) -> None:
    metadata = {"caption": "a", "url": "http://x/0.jpg", "uid": "7", "exif": "{}", "width": 3}
    (row,) = read_input(tar_of(tmp_path, {"0.json": json.dumps(metadata)}))[1]
    assert (row["url"], row["columns"]) == ("http://x/0.jpg", {"uid": "7"})


@pytest.mark.skipif(not shutil.which("tar"), reason="needs GNU tar")
@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_sparse_pictures_are_packed_whole(tmp_path: Path, form: str) -> None:
    content = io.BytesIO()
    Image.new("RGB", (1024, 512)).save(content, "BMP")
    for name, data in (("0.bmp", content.getvalue()), ("1.jpg", JPEG)):
        with open(tmp_path / name, "wb") as file:
            file.write(data.rstrip(b"\0"))
            file.truncate(len(data))  # a hole of 1.5 MB
    (tmp_path / "0.txt").write_text("black")
    subprocess.run(
        ["tar", f"--format={form}", "--sparse", "-cf", "a.tar", "0.bmp", "0.txt", "1.jpg"], cwd=tmp_path, check=True
    )
    if os.path.getsize(tmp_path / "a.tar") > 100_000:
        pytest.skip("this file system stores no holes")
    summary = pack_folder(tmp_path / "a.tar", tmp_path / "data", image_size=64)
    assert (summary["outcomes"], summary["ignored"]) == ({"ok": 2}, {})
    assert {sample.text for sample in pictures_of(tmp_path / "data")} == {"black", None}
