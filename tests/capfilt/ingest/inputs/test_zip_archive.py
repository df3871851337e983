"""Zip archives of pictures are read in place, within bounds."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from folders import rows_of
from input_rows import JPEG, read_input, texts_by_url, write_files
from packing import pack_folder, pictures_of


def zip_of(path: Path, members: dict[str, bytes | str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("members", "kind"),
    [
        ({"p/a.jpg": JPEG, "p/a.txt": "t", "__MACOSX/p/._a.jpg": b"x"}, "folder"),
        ({"p/a.jpg": JPEG, "p/metadata.csv": "file_name,text\na.jpg,t\n"}, "imagefolder"),
    ],
)
def test_an_archive_is_a_folder(tmp_path: Path, members: dict[str, bytes | str], kind: str) -> None:
    opened, (row,) = read_input(zip_of(tmp_path / "photos.zip", members))
    assert (opened.kind, row["url"], row["texts"]) == (kind, "p/a.jpg", ["t"])
    assert str(opened.source) == str(tmp_path / "photos.zip")


def test_pictures_of_an_archive_are_packed(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "photos.zip", {"a.jpg": JPEG, "b.jpg": JPEG, "a.txt": "t"})
    write_files(tmp_path, {"list.csv": "image,caption\na.jpg,one\n../b.jpg,two\n/etc/passwd,three\n"})
    pack_folder(path, tmp_path / "listed", annotations=str(tmp_path / "list.csv"))
    assert [row["status"] for row in rows_of(tmp_path / "listed")] == ["ok", "forbidden", "forbidden"]
    pack_folder(path, tmp_path / "data")
    assert [sample.text for sample in pictures_of(tmp_path / "data")] == ["t", None]


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({}, "is an empty zip archive"),
        ({"../a.jpg": JPEG}, r"names the file \.\./a\.jpg outside of the archive"),
        ({"a.jpg": b"0" * (11 << 20)}, r"a\.jpg would grow from 1.* to 11,534,336 bytes"),
        ({"a.csv": "x"}, "holds no pictures, tars or Parquet files"),
    ],
)
def test_an_archive_that_cannot_be_used_is_named(tmp_path: Path, members: dict[str, bytes | str], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        read_input(zip_of(tmp_path / "a.zip", members))
    assert str(caught.value).startswith(str(tmp_path / "a.zip"))


def test_a_damaged_or_encrypted_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK no archive")
    with pytest.raises(ValueError, match="is not a whole zip archive"):
        read_input(tmp_path / "a.zip")
    content = bytearray(zip_of(tmp_path / "b.zip", {"a.jpg": JPEG}).read_bytes())
    content[content.rindex(b"PK\x01\x02") + 8] |= 1  # the flag in the list of members
    (tmp_path / "b.zip").write_bytes(content)
    with pytest.raises(ValueError, match=r"is encrypted \(a\.jpg\)"):
        read_input(tmp_path / "b.zip")


def test_a_damaged_member_costs_only_its_picture(tmp_path: Path) -> None:
    content = bytearray(zip_of(tmp_path / "a.zip", {"a.jpg": JPEG, "b.jpg": JPEG}).read_bytes())
    content[content.index(b"b.jpg") + 40] ^= 255
    (tmp_path / "a.zip").write_bytes(content)
    pack_folder(tmp_path / "a.zip", tmp_path / "data")
    assert [row["status"] for row in rows_of(tmp_path / "data")] == ["ok", "decode_error"]


def test_archives_in_a_folder_are_named(tmp_path: Path) -> None:
    zip_of(tmp_path / "a.zip", {"a.jpg": JPEG})
    with pytest.raises(ValueError, match=r"holds zip archives but no pictures; give one of them, such as .*a\.zip"):
        texts_by_url(tmp_path)
