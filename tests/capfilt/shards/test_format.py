"""Tars of any make are read without an exception and without leaving their folder; files appear whole or not at all."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from blipcore.io.samples import TarSample, read_samples
from blipcore.io.tars import TarReader
from blipcore.io.writing import remove_temporary_files, write_json
from capfilt.shards import format as shards
from capfilt.shards.format import CAPTIONS, IMAGES, filtered_schema, read_manifest, suffix_of, write_shard
from capfilt.shards.shard_set import ShardSet
from capfilt.shards.tables import read_counts, read_table, write_table


def jpeg(seed: int = 0, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def make_tar(path: Path, members: list[tuple[str, bytes]], **options) -> Path:
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_what_is_written_is_read_back_and_is_the_same_bytes_twice(tmp_path: Path) -> None:
    pictures = [
        TarSample("000000000", jpeg(1), "a café in 北京", {"url": "http://x/1", "width": 16}),
        TarSample("000000001", jpeg(2, "PNG"), "", {"sha256": "ab"}),
        TarSample("000000002", jpeg(3), None, {}),
    ]
    write_shard(tmp_path / "a.tar", pictures)
    write_shard(tmp_path / "b.tar", iter(pictures))
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    problems: list = []
    assert list(read_samples(tmp_path / "a.tar", problems)) == pictures
    assert problems == []
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert tar.getnames()[:4] == ["000000000.jpg", "000000000.json", "000000000.txt", "000000001.json"]
        assert {member.mtime for member in tar} == {0}


def test_webdataset_reads_our_shards_the_same_way(tmp_path: Path) -> None:
    import webdataset

    pictures = [TarSample(f"{number:09d}", jpeg(number), f"text {number}", {"n": number}) for number in range(3)]
    write_shard(tmp_path / "a.tar", pictures)
    samples = list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False))
    assert [(s["__key__"], s["jpg"], s["txt"].decode()) for s in samples] == [
        (p.key, p.image, p.text) for p in pictures
    ]


def test_img2dataset_style_members(tmp_path: Path) -> None:
    tar = make_tar(
        tmp_path / "0.tar",
        [
            ("./a/photo.v2.JPG", jpeg()),
            ("./a/photo.v2.txt", b"dots after the key"),
            ("b/photo.webp", jpeg(1, "WEBP")),
            ("b/photo.json", b'{"caption": "only in json", "n": 1}'),
            ("b/photo.cls", b"7"),
            ("c.jpg", jpeg(2)),
            ("c.json", b"not json"),
            ("c.txt", b"\xff bad utf-8"),
            ("d.json", b"[1]"),
            ("d.jpg", jpeg(3)),
        ],
    )
    problems: list = []
    first, second, third, fourth = read_samples(tar, problems)
    assert (first.key, first.text, first.image) == ("a/photo", "dots after the key", jpeg())
    assert (second.key, second.text, second.metadata["n"]) == ("b/photo", "only in json", 1)
    assert (third.text, third.metadata) == ("\ufffd bad utf-8", {})
    assert (fourth.text, fourth.metadata, fourth.error) == (None, {}, None)
    assert problems == []


def test_strange_members_are_named_and_stop_nothing(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as tar:

        def add(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = len(data), kind, link
            tar.addfile(info, io.BytesIO(data))

        add("folder/", kind=tarfile.DIRTYPE)
        add("one.jpg", jpeg(1))
        add("two.txt", b"members of a sample")
        add("one.txt", b"need not be adjacent")
        add("two.jpg", jpeg(2))
        add("one.jpg", jpeg(9))
        add("../out.jpg", jpeg(3))
        add("/etc/out.jpg", jpeg(3))
        add("link.jpg", kind=tarfile.SYMTYPE, link="/etc/passwd")
        add("hard.jpg", kind=tarfile.LNKTYPE, link="one.jpg")
        add("device.jpg", kind=tarfile.CHRTYPE)
        add(".DS_Store", b"x")
        add("README", b"x")
        add("text_only.txt", b"no picture")
        add("empty.jpg", b"")
    before = sorted(tmp_path.rglob("*"))
    problems: list = []
    pictures = {picture.key: picture for picture in read_samples(path, problems)}
    assert list(pictures) == ["one", "two", "text_only", "empty"]
    assert (pictures["one"].image, pictures["one"].text) == (jpeg(1), "need not be adjacent")
    assert (pictures["two"].image, pictures["two"].text) == (jpeg(2), "members of a sample")
    assert pictures["text_only"].error == "no_picture"
    assert (pictures["empty"].image, pictures["empty"].error) == (b"", None)
    assert sorted(problems) == [
        ("duplicate_member", "one.jpg"),
        ("foreign_member", ".DS_Store"),
        ("foreign_member", "README"),
        ("link_member", "device.jpg"),
        ("link_member", "hard.jpg"),
        ("link_member", "link.jpg"),
        ("unsafe_name", "../out.jpg"),
        ("unsafe_name", "/etc/out.jpg"),
    ]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_of_every_tar_format(tmp_path: Path, tar_format: int) -> None:
    names = ["d" * 90 + "/" + "k" * 60, "plain"]
    if tar_format != tarfile.USTAR_FORMAT:
        names += ["北京" * 60, "ü mit leerzeichen"]
    members = [(f"{name}.{end}", data) for name in names for end, data in (("jpg", jpeg()), ("txt", name.encode()))]
    tar = make_tar(tmp_path / "0.tar", members, format=tar_format)
    problems: list = []
    assert [(picture.key, picture.text) for picture in read_samples(tar, problems)] == [(name, name) for name in names]
    assert problems == []


def test_a_tar_cut_or_damaged_anywhere_gives_what_is_readable(tmp_path: Path) -> None:
    members = [(f"{n}.{end}", jpeg(n) if end == "jpg" else b"text") for n in range(4) for end in ("jpg", "txt")]
    whole = make_tar(tmp_path / "whole.tar", members).read_bytes()
    used = len(whole.rstrip(b"\0"))
    for cut in range(0, used, 97):
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        problems: list = []
        pictures = list(read_samples(tmp_path / "cut.tar", problems))
        assert [problem.reason for problem in problems] == ["truncated_tar"]
        assert all(p.error == "truncated_tar" for p in pictures if p.image != jpeg(int(p.key)))
        assert all(p.image == jpeg(int(p.key)) for p in pictures if p.error is None)
    second = whole.index(b"1.jpg")
    (tmp_path / "bad.tar").write_bytes(whole[:second] + b"\xff" * 512 + whole[second + 512 :])
    problems = []
    assert [picture.key for picture in read_samples(tmp_path / "bad.tar", problems)] == ["0"]
    assert problems == [("corrupt_tar", f"byte {second}, after '0.txt'")]
    (tmp_path / "page.tar").write_bytes(b"<html>" * 200)
    assert list(read_samples(tmp_path / "page.tar", problems)) == []
    assert problems[-1].reason == "corrupt_tar"


@pytest.mark.parametrize("size", [b"-1", b"-5", b"-2000"])
def test_a_size_below_zero_is_damage_not_a_way_back(tmp_path: Path, size: bytes) -> None:
    whole = bytearray(make_tar(tmp_path / "0.tar", [("a.txt", b""), ("b.jpg", jpeg()), ("c.jpg", jpeg())]).read_bytes())
    whole[512 + 124 : 512 + 136] = size.ljust(12, b"\0")
    whole[512 + 148 : 512 + 156] = b" " * 8
    whole[512 + 148 : 512 + 156] = b"%06o\0 " % sum(whole[512:1024])
    (tmp_path / "0.tar").write_bytes(whole)
    problems: list = []
    assert [(p.key, p.error) for p in read_samples(tmp_path / "0.tar", problems)] == [("a", "no_picture")]
    assert problems == [("corrupt_tar", "byte 512, after 'a.txt'")]


def test_training_sees_the_picture_that_was_captioned(tmp_path: Path) -> None:
    members = ["0.depth.png", "0.jpg", "1.png", "1.jpg", "2.v2.JPG", "2.v3.jpg", "x/3.jpg", "x/3.mask.png", "4.avif"]
    tar = make_tar(tmp_path / "0.tar", [(name, name.encode()) for name in members])
    problems: list = []
    found = {picture.key: picture.image for picture in read_samples(tar, problems)}
    assert found == {"0": b"0.jpg", "1": b"1.png", "2": b"2.v2.JPG", "x/3": b"x/3.jpg", "4": b"4.avif"}
    assert problems == [("duplicate_member", "1.jpg"), ("duplicate_member", "2.v3.jpg")]
    reader = TarReader()
    index = reader.index(str(tar))
    assert {key: reader.read(str(tar), index.image(key)) for key in index.members} == found


def test_words_that_no_table_takes(tmp_path: Path) -> None:
    members = [("a.jpg", b"x"), ("a.json", b'{"caption": "half \\ud83d"}'), ("b.jpg", b"x"), ("b.json", b"[" * 200_000)]
    first, second = read_samples(make_tar(tmp_path / "0.tar", members))
    assert (first.text, second.text, second.metadata) == ("half ?", None, {})


def test_opening_a_shard_set_or_saying_why_not(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No folder at"):
        ShardSet.open(tmp_path / "none")
    with pytest.raises(ValueError, match="not a shard set: it holds no"):
        ShardSet.open(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file"):
        ShardSet.open(tmp_path / "file")

    data = tmp_path / "data"
    for shard in ("00001", "00000"):
        write_shard(data / f"{shard}.tar", [TarSample("0", jpeg())])
    found = ShardSet.open(data)
    assert found.shards == ["00000", "00001"]
    assert (found.tar("00001"), found.table("00001")) == (data / "00001.tar", data / "00001.parquet")

    # after a `download`, a tar without its table has not been committed
    write_json(data / "manifest.json", {"stage": "download"})
    with pytest.raises(ValueError, match="no finished shard yet"):
        ShardSet.open(data)
    write_table(data / "00001.parquet", IMAGES.empty_table())
    assert ShardSet.open(data).shards == ["00001"]

    scores = data / "scores" / "x"
    write_json(scores / "manifest.json", {"stage": "score", "images": "../.."})
    with pytest.raises(ValueError, match=f"output of 'score', not a shard set; its pictures are in {data}"):
        ShardSet.open(scores)
    assert shards.images_of(scores) == data
    with pytest.raises(ValueError, match=r"no manifest\.json"):
        shards.images_of(tmp_path)


def test_a_folder_of_parquet_is_told_apart(tmp_path: Path) -> None:
    write_table(tmp_path / "00000.parquet", IMAGES.empty_table())
    with pytest.raises(ValueError, match="webdataset' output format"):
        ShardSet.open(tmp_path)


def test_tables_have_stable_bytes_and_carry_their_counts(tmp_path: Path) -> None:
    rows = {"key": ["0", "1"], "index": [0, 0], "text": ["a", None], "logprob": [0.5, None], "error": [None, "empty"]}
    table = pa.table(rows, schema=CAPTIONS)
    for name in ("a", "b"):
        write_table(tmp_path / f"{name}.parquet", table, counts={"pictures": 2, "empty": 1})
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert read_table(tmp_path / "a.parquet") == table
    assert read_table(tmp_path / "a.parquet", ["text"]).column_names == ["text"]
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    assert read_counts(paths) == {"empty": 2, "pictures": 4}
    assert pq.ParquetFile(paths[0]).metadata.row_group(0).column(2).compression == "ZSTD"


def test_a_bad_table_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No table at"):
        read_table(tmp_path / "x.parquet")
    write_table(tmp_path / "x.parquet", CAPTIONS.empty_table())
    with pytest.raises(ValueError, match="has no column 'itm'; it has key, index, text, logprob"):
        read_table(tmp_path / "x.parquet", ["key", "itm"])
    whole = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "x.parquet").write_bytes(whole[:-20])
    with pytest.raises(ValueError, match="not a readable Parquet file"):
        read_table(tmp_path / "x.parquet")


def test_a_failed_write_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    def broken():
        yield TarSample("0", jpeg())
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError):
        write_shard(tmp_path / "0.tar", broken())
    assert os.listdir(tmp_path) == []
    (tmp_path / "0.tar").write_bytes(b"old")
    with pytest.raises(RuntimeError):
        write_shard(tmp_path / "0.tar", broken())
    assert os.listdir(tmp_path) == ["0.tar"]
    assert (tmp_path / "0.tar").read_bytes() == b"old"
    (tmp_path / ".0.tar.deadbeef.tmp").write_bytes(b"left by a killed run")
    remove_temporary_files(tmp_path)
    assert os.listdir(tmp_path) == ["0.tar"]


def test_schemas_and_suffixes() -> None:
    names = ["key", "source", "index", "text", "itm", "keep", "reason", "url", "sha256"]
    assert filtered_schema(["itm"]).names == names
    kinds = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "TIFF": "tif", "BMP": "bmp"}
    assert {kind: suffix_of(jpeg(0, kind)) for kind in kinds} == kinds
    assert suffix_of(b"??") == "jpg"


def test_manifests_of_others_are_not_taken_for_ours(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None
    (tmp_path / "manifest.json").write_text('{"name": "somebody else"}')
    assert read_manifest(tmp_path) is None
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_manifest(tmp_path)
