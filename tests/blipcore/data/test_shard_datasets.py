"""What a data set on disk holds, and one sentence for each way it can be wrong."""

import io
import json
import os
import pickle
import random
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from blipcore.data.shard_datasets import open_dataset
from blipcore.io.tars import TarIndex, TarReader, index_tar


def tar_of(path: Path, members: dict[str, bytes], form: int = tarfile.PAX_FORMAT, mtime: float = 0) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data), mtime
            tar.addfile(member, io.BytesIO(data))
    return path


def index(path: Path) -> TarIndex:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return index_tar(descriptor)
    finally:
        os.close(descriptor)


def contents(path: Path) -> dict[str, bytes]:
    """What our index leads to, as name -> bytes."""
    found, data = index(path).members, path.read_bytes()
    return {
        f"{key}.{ext}": data[offset : offset + size]
        for key, own in found.items()
        for ext, (offset, size) in own.items()
    }


# --- tar -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_kind_of_tar_is_indexed(tmp_path, form):
    rng = random.Random(0)
    members = {
        f"{row:04d}.{ext}": rng.randbytes(rng.choice([0, 1, 511, 512, 513, 2000]))
        for row in range(9)
        for ext in ("jpg", "txt")
    }
    members["folder/" * 15 + "long.jpg"] = b"long"  # past the 100 bytes of a plain header
    if form != tarfile.USTAR_FORMAT:
        members["长名/" * 40 + "x.jpg"] = b"unicode"
    path = tar_of(tmp_path / "a.tar", members, form, mtime=1.5)
    assert contents(path) == members
    assert index(path).problem == ""


def test_tars_of_webdataset_and_other_members(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        writer.write({"__key__": "000", "jpg": b"picture", "txt": b"text", "json": {"caption": "c"}})
    found = index(tmp_path / "a.tar").members["000"]
    assert set(found) == {"jpg", "txt", "json"}
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        for name, kind in (("folder", tarfile.DIRTYPE), ("link.jpg", tarfile.SYMTYPE), ("hard.jpg", tarfile.LNKTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "x"
            tar.addfile(member)
        for name in ("./a.JPG", "a.jpg", "a.b.jpg", "README.md"):
            member = tarfile.TarInfo(name)
            member.size = 1
            tar.addfile(member, io.BytesIO(name[-1:].encode()))
    assert {key: list(own) for key, own in index(tmp_path / "b.tar").members.items()} == {"a": ["jpg"]}


def test_a_tar_cut_anywhere_keeps_its_whole_members_and_says_so(tmp_path):
    members = {f"{row}.{ext}": bytes([row]) * 700 for row in range(3) for ext in ("jpg", "txt")}
    whole = tar_of(tmp_path / "whole.tar", members, mtime=1.5).read_bytes()
    cut = tmp_path / "cut.tar"
    last = 0
    for length in range(0, len(whole), 97):
        cut.write_bytes(whole[:length])
        got = contents(cut)
        assert list(members.items())[: len(got)] == list(got.items())
        assert len(got) >= last
        last = len(got)
        assert "truncated" in index(cut).problem or len(got) == len(members)
    assert last == len(members)


def test_damage_in_the_middle_is_named(tmp_path):
    path = tar_of(tmp_path / "a.tar", {"0.jpg": b"x" * 600, "1.jpg": b"y", "2.jpg": b"z"}, tarfile.USTAR_FORMAT)
    data = bytearray(path.read_bytes())
    data[1536 : 1536 + 512] = random.Random(0).randbytes(512)
    path.write_bytes(data)
    assert list(contents(path)) == ["0.jpg"]
    assert "damaged" in index(path).problem and "1 keys before" in index(path).problem


@pytest.mark.timeout(20)
def test_a_header_of_a_negative_size_is_damage(tmp_path):
    """It would lead back to itself."""
    path = tar_of(tmp_path / "a.tar", {"0.jpg": b"x", "1.jpg": b"y"}, tarfile.USTAR_FORMAT)
    data = bytearray(path.read_bytes())
    data[1024 + 124 : 1024 + 136] = b"-0000001130\0"
    path.write_bytes(data)
    assert "damaged" in index(path).problem and list(contents(path)) == ["0.jpg"]
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("0.jpg")
        member.pax_headers = {"size": "-2000"}
        tar.addfile(member)
    assert "damaged" in index(path).problem and contents(path) == {}


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files as Linux shows them")
def test_a_reader_holds_a_bounded_number_of_files(tmp_path):
    paths = [tar_of(tmp_path / f"{number}.tar", {"a.jpg": str(number).encode()}) for number in range(6)]
    reader = TarReader(capacity=2)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        for number, path in enumerate(paths):
            assert reader.read(path, reader.index(path).image("a")) == str(number).encode()
    assert len(os.listdir("/proc/self/fd")) == before + 2
    reader.close()
    assert len(os.listdir("/proc/self/fd")) == before


# --- shard sets ------------------------------------------------------------------------------------------------------


def test_a_shard_set_serves_pictures_with_a_text(tmp_path):
    tar_of(
        tmp_path / "00000.tar",
        {
            **{"a.jpg": b"A", "a.txt": b" a text \n", "a.json": b'{"caption": "unused"}'},
            **{"b.png": b"B", "b.json": b'{"caption": "from json"}'},
            **{"c.jpg": b"C", "c.txt": b""},
            **{"d.jpg": b"D", "d.json": b'{"caption": null}'},
            **{"e.txt": b"no picture"},
            **{"f.jpg": b"F", "f.json": b"[1"},
        },
    )
    tar_of(tmp_path / "00001.tar", {"g.webp": b"G", "g.txt": "été 夏".encode()})
    source = open_dataset(tmp_path)
    assert source.counts == [2, 1]
    first, second = source.load(0), source.load(1)
    assert [(p.key, p.texts) for p in first] == [("a", ("a text",)), ("b", ("from json",))]
    assert [(p.key, p.texts) for p in second] == [("g", ("été 夏",))]
    assert [source.read(0, p) for p in first] == [b"A", b"B"] and source.read(1, second[0]) == b"G"
    assert source.describe(1, second[0]) == "00001.tar/g"
    assert len({p.image_id for p in first + second}) == 3
    again = pickle.loads(pickle.dumps(source))  # as a worker process gets it
    assert again.read(0, first[0]) == b"A" and again.load(0) == first


# --- filtered folders ------------------------------------------------------------------------------------------------

ROWS = {
    "key": ["a", "a", "a", "b", "c", "c", "d"],
    "source": ["web", "blip", "blip", "web", "web", "blip", "web"],
    "index": [0, 0, 1, 0, 0, 0, 0],
    "text": ["a web", "a one", "a two", "b web", None, "", "d web"],
    "keep": [False, True, True, False, True, True, True],
}


def filtered(tmp_path: Path, rows: dict = ROWS, images: object = "../..") -> Path:
    """data/00000.tar with data/filtered/r1 beside it."""
    folder = tmp_path / "data" / "filtered" / "r1"
    folder.mkdir(parents=True)
    tar_of(tmp_path / "data" / "00000.tar", {f"{key}.jpg": key.encode() for key in "abc"})
    pq.write_table(pa.table(rows), folder / "00000.parquet")
    if images is not None:
        (folder / "manifest.json").write_text(json.dumps({"images": images}))
    return folder


@pytest.mark.parametrize("absolute", [False, True])
def test_a_filtered_folder_serves_kept_texts_by_picture(tmp_path, absolute):
    source = open_dataset(filtered(tmp_path, images=str(tmp_path / "data") if absolute else "../.."))
    assert source.counts == [2]
    assert [(p.key, p.texts) for p in source.load(0)] == [("a", ("a one", "a two")), ("d", ("d web",))]
    assert source.read(0, source.load(0)[0]) == b"a"
    with pytest.raises(OSError, match="not in the tar"):
        source.read(0, source.load(0)[1])


def test_ids_of_a_picture_do_not_depend_on_where_the_data_lies(tmp_path):
    one, two = (open_dataset(filtered(tmp_path / name)) for name in ("one", "two"))
    assert [p.image_id for p in one.load(0)] == [p.image_id for p in two.load(0)]


@pytest.mark.parametrize("column", ["key", "text", "keep"])
def test_a_missing_column_is_named(tmp_path, column):
    folder = filtered(tmp_path, {name: values for name, values in ROWS.items() if name != column})
    with pytest.raises(ValueError, match=f"00000.parquet is no filtered table: it lacks the column {column}"):
        open_dataset(folder)


@pytest.mark.parametrize(
    ("manifest", "error", "words"),
    [
        (None, ValueError, "no manifest.json"),
        ("{}", ValueError, 'has no "images"'),
        ('{"stage": "filter", "images": "../.."}', ValueError, "is not finished"),
        ("[]", ValueError, 'has no "images"'),
        ('{"images": 3}', ValueError, 'has no "images"'),
        ("{", ValueError, 'has no "images"'),
        ('{"images": "nowhere"}', FileNotFoundError, "takes its images from .*nowhere"),
        ('{"images": "."}', FileNotFoundError, "00000.tar, which does not exist"),
    ],
)
def test_a_manifest_must_lead_to_the_images(tmp_path, manifest, error, words):
    folder = filtered(tmp_path, images=None)
    if manifest is not None:
        (folder / "manifest.json").write_text(manifest)
    with pytest.raises(error, match=words):
        open_dataset(folder)


def test_a_damaged_table_is_named(tmp_path):
    folder = filtered(tmp_path)
    (folder / "00000.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"00000.parquet is not a readable Parquet file"):
        open_dataset(folder)


def test_files_being_written_are_not_read(tmp_path):
    folder = filtered(tmp_path)
    (folder / ".00001.parquet").write_bytes(b"half")
    assert open_dataset(folder).counts == [2]


# --- neither ---------------------------------------------------------------------------------------------------------


def test_nothing_kept_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no picture with a text"):
        open_dataset(filtered(tmp_path, ROWS | {"keep": [False] * 7}))


def test_a_tar_of_nothing_is_an_error_that_says_why(tmp_path):
    (tmp_path / "00000.tar").write_bytes(b"not a tar" * 200)
    with pytest.raises(ValueError, match=r"no picture with a text.*00000.tar: damaged, or no tar"):
        open_dataset(tmp_path)


def test_what_is_no_data_set(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_dataset(tmp_path / "absent")
    (tmp_path / "x.csv").write_text("a,b")
    for path in (tmp_path, tmp_path / "x.csv"):
        with pytest.raises(ValueError, match="is no data set: expected"):
            open_dataset(path)


def test_annotations_are_a_source_too(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"A")
    rows = [{"image": "a.jpg", "caption": ["x", "y"]}, {"image": "b.jpg", "caption": "z"}]
    (tmp_path / "set.json").write_text(json.dumps(rows))
    source = open_dataset(tmp_path / "set.json")
    first, second = source.load(0)
    assert source.counts == [2] and first.texts == ("x", "y") and source.read(0, first) == b"A"
    with pytest.raises(OSError, match="no such file"):
        source.read(0, second)
