"""The filter and the trainer read every tar in the same way: pictures, texts and defects."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tar_files import BLOCK, END_MARK, gnu_long_name, header, member, padded, pax_header, pax_record, with_checksum

from blipcore.data.shard_datasets import open_dataset
from blipcore.io.samples import read_samples
from blipcore.io.tars import TarProblem
from capfilt.filter.config import FilterConfig
from capfilt.filter.stage import filter_shards


def picture(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


RED, BLUE, GREEN = picture("red"), picture("blue"), picture("green")


FIRST = member("0.png", RED) + member("0.txt", b"a red square")
LAST = member("2.png", GREEN) + member("2.txt", b"a green square")
LONG = "folder/" * 20 + "1"
DAMAGED = bytearray(member("1.png", BLUE))
DAMAGED[2] ^= 1  # of the name, so that the checksum is wrong


class Case(NamedTuple):
    """A tar, the keys of its complete samples besides "0", its defects, and the keys of texts without a picture."""

    tar: bytes
    keys: list[str]
    reasons: tuple[str, ...] = ()
    undecodable: tuple[str, ...] = ()


TEXT = member("1.txt", b"a blue square")
CASES = {
    "plain ustar": Case(FIRST + member("1.png", BLUE) + TEXT + LAST + END_MARK, ["1", "2"]),
    "GNU long name": Case(
        FIRST
        + gnu_long_name(f"{LONG}.png")
        + member("short.png", BLUE)
        + gnu_long_name(f"{LONG}.txt")
        + member("short.txt", b"a blue square")
        + LAST
        + END_MARK,
        [LONG, "2"],
    ),
    "pax path": Case(
        FIRST
        + pax_header("path", f"{LONG}.png")
        + member("short.png", BLUE)
        + pax_header("path", f"{LONG}.txt")
        + member("short.txt", b"a blue square")
        + LAST
        + END_MARK,
        [LONG, "2"],
    ),
    # as for a member of more than 8 GiB, whose size does not fit the header
    "pax size": Case(
        FIRST + pax_header("size", str(len(BLUE))) + header("1.png", 0) + padded(BLUE) + TEXT + LAST + END_MARK,
        ["1", "2"],
    ),
    "absolute name": Case(
        FIRST + member("/1.png", BLUE) + member("/1.txt", b"x") + LAST + END_MARK, ["2"], ("unsafe_name", "unsafe_name")
    ),
    "name with ..": Case(
        FIRST + member("../1.png", BLUE) + member("a/../1.txt", b"x") + LAST + END_MARK,
        ["2"],
        ("unsafe_name", "unsafe_name"),
    ),
    "contiguous file": Case(FIRST + member("1.png", BLUE, b"7") + TEXT + LAST + END_MARK, ["1", "2"]),
    "links": Case(
        FIRST + header("1.png", 0, b"1", "0.png") + header("3.png", 0, b"2", "0.png") + LAST + END_MARK,
        ["2"],
        ("link_member", "link_member"),
    ),
    "bad checksum": Case(FIRST + bytes(DAMAGED) + TEXT + LAST + END_MARK, [], ("corrupt_tar",)),
    "truncated member": Case(FIRST + LAST + TEXT + header("1.png", 4000) + BLUE, ["2"], ("truncated_tar",), ("1",)),
    "truncated header": Case(FIRST + LAST + header("1.png", 4000)[:100], ["2"], ("truncated_tar",)),
    "GNU binary size": Case(
        FIRST
        + with_checksum(header("1.png", 0), {124: b"\x80" + len(BLUE).to_bytes(11, "big")})
        + padded(BLUE)
        + TEXT
        + LAST
        + END_MARK,
        ["1", "2"],
    ),
    "GNU binary size beyond the file": Case(
        FIRST + with_checksum(header("1.png", 0), {124: b"\x80" + b"\x7f" * 11}) + padded(BLUE) + TEXT + LAST,
        [],
        ("large_member", "truncated_tar"),
    ),
    "negative GNU binary size": Case(
        FIRST + with_checksum(header("1.png", 0), {124: b"\xff" * 12}) + TEXT + LAST + END_MARK, [], ("corrupt_tar",)
    ),
    "pax path before size": Case(
        FIRST
        + member("PaxHeader", pax_record("path", f"{LONG}.png") + pax_record("size", str(len(BLUE))), b"x")
        + header("short.png", 0)
        + padded(BLUE)
        + pax_header("path", f"{LONG}.txt")
        + member("short.txt", b"a blue square")
        + LAST
        + END_MARK,
        [LONG, "2"],
    ),
    "pax value with bytes like a record": Case(
        FIRST
        + pax_header("SCHILY.xattr.user.x", b"\xff\0=\n15 path=0.png\n")
        + member("1.png", BLUE)
        + pax_header("comment", "\n9 size=1\n")
        + TEXT
        + LAST
        + END_MARK,
        ["1", "2"],
    ),
    "pax header of no records": Case(
        FIRST + member("PaxHeader", b"\xff\xfe binary", b"x") + member("1.png", BLUE) + LAST + END_MARK,
        [],
        ("corrupt_tar",),
    ),
    "pax size of too many digits": Case(
        FIRST + pax_header("size", "9" * 5000) + member("1.png", BLUE) + LAST + END_MARK, [], ("corrupt_tar",)
    ),
    "global pax comment": Case(
        pax_header("comment", "a commit", b"g") + FIRST + member("1.png", BLUE) + TEXT + LAST + END_MARK, ["1", "2"]
    ),
    "global pax path": Case(
        pax_header("path", "9.png", b"g") + FIRST + member("1.png", BLUE) + TEXT + LAST + END_MARK,
        ["1", "2"],
        ("global_header",),
    ),
    # The flag at byte 482 announces another block of the map.
    "GNU sparse file": Case(
        FIRST
        + with_checksum(header("1.png", len(BLUE), b"S"), {482: b"\1"})
        + bytes(BLOCK)
        + padded(BLUE)
        + TEXT
        + LAST
        + END_MARK,
        ["2"],
        ("sparse_member",),
        ("1",),
    ),
    "pax sparse file": Case(
        FIRST
        + member("PaxHeader", pax_record("GNU.sparse.major", "1") + pax_record("GNU.sparse.name", "1.png"), b"x")
        + member("GNUSparseFile.0/1.png", b"1\n0\n9\n".ljust(BLOCK, b"\0") + BLUE)
        + TEXT
        + LAST
        + END_MARK,
        ["2"],
        ("sparse_member",),
        ("1",),
    ),
    "v7": Case(
        with_checksum(header("folder/", 0, b"\0"), {257: bytes(8)})
        + FIRST
        + with_checksum(header("1.png", len(BLUE), b"\0"), {257: bytes(8)})
        + padded(BLUE)
        + TEXT
        + LAST
        + END_MARK,
        ["1", "2"],
    ),
    "names with a slash at the end": Case(
        FIRST + header("1.png/", 0) + header("3/", 0, b"5") + member("1.png", BLUE) + TEXT + LAST + END_MARK,
        ["1", "2"],
    ),
    "folder with a size but no data": Case(
        header("folder/", 3 * BLOCK, b"5") + FIRST + member("1.png", BLUE) + TEXT + LAST + END_MARK, ["1", "2"]
    ),
    "one key in both cases": Case(
        FIRST + member("1.PNG", BLUE) + member("1.png", RED) + TEXT + member("1.TXT", b"x") + LAST + END_MARK,
        ["1", "2"],
        ("duplicate_member", "duplicate_member"),
    ),
    "names that begin with ./": Case(
        FIRST + member("././1.png", BLUE) + member("./1.txt", b"a blue square") + LAST + END_MARK, ["1", "2"]
    ),
    "absolute name behind ./": Case(FIRST + member(".//1.png", BLUE) + LAST + END_MARK, ["2"], ("unsafe_name",)),
    "two tars in one file": Case(
        FIRST + LAST + END_MARK + bytes(4 * BLOCK) + member("1.png", BLUE) + TEXT + END_MARK, ["2"], ("data_after_end",)
    ),
    "no end mark": Case(FIRST + member("1.png", BLUE) + TEXT, ["1"], ("truncated_tar",)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_filter_and_the_trainer_read_the_same_pictures_and_texts(
    name: str, tmp_path: Path, tiny_blip: Path
) -> None:
    case = CASES[name]
    (tmp_path / "00000.tar").write_bytes(case.tar)
    problems: list[TarProblem] = []
    read = {s.key: s.image for s in read_samples(tmp_path / "00000.tar", problems) if s.error is None}
    assert list(read) == ["0", *case.keys]
    assert [problem.reason for problem in problems] == list(case.reasons)

    dataset = open_dataset(tmp_path)
    entries = dataset.load(0)
    assert {entry.key: dataset.read(0, entry) for entry in entries} == read
    assert bool(dataset.problems) == bool(case.reasons)
    assert all(reason in dataset.problems["00000.tar"] for reason in case.reasons)

    config = FilterConfig(data=str(tmp_path), model=str(tiny_blip), threshold=0.0, dtype="fp32", device="cpu")
    filtered = Path(filter_shards(config, progress=False)["out"])
    rows = pq.read_table(filtered / "00000.parquet").to_pylist()
    kept = {row["key"]: row["text"] for row in rows if row["keep"]}
    assert kept == {entry.key: entry.texts[0] for entry in entries}
    undecodable = [row["key"] for row in rows if row["reason"].startswith("undecodable")]
    assert undecodable == list(case.undecodable)

    retrained = open_dataset(filtered)
    assert {entry.key: (entry.texts, retrained.read(0, entry)) for entry in retrained.load(0)} == {
        entry.key: (entry.texts, read[entry.key]) for entry in entries
    }


def test_the_filter_and_the_trainer_choose_the_same_text(tmp_path: Path, tiny_blip: Path) -> None:
    """The first of `.txt`, the JSON's caption and the table's caption that is not blank."""
    texts: dict[str, tuple[str | None, str | None, str | None, str]] = {
        "all": ("one red tree", "two", "three", "one red tree"),
        "json": (None, "two dogs", "three", "two dogs"),
        "table": (None, None, "three cats", "three cats"),
        "blank": (" \n", "", "a cat", "a cat"),
        "spaces": ("\t a tree on the left \n", None, "three", "\t a tree on the left \n"),
        "no caption": (None, None, " ", ""),
    }
    tar = b""
    for key, (text, caption, _, _) in texts.items():
        tar += member(f"{key}.png", BLUE)
        tar += b"" if text is None else member(f"{key}.txt", text.encode())
        tar += b"" if caption is None else member(f"{key}.json", f'{{"caption": "{caption}"}}'.encode())
    (tmp_path / "00000.tar").write_bytes(tar + END_MARK)
    table = {"key": list(texts), "caption": [text[2] for text in texts.values()], "status": ["ok"] * len(texts)}
    pq.write_table(pa.table(table), tmp_path / "00000.parquet")

    config = FilterConfig(data=str(tmp_path), model=str(tiny_blip), threshold=0.0, dtype="fp32", device="cpu")
    filtered = Path(filter_shards(config, progress=False)["out"])
    rows = {row["key"]: row for row in pq.read_table(filtered / "00000.parquet").to_pylist()}
    expected = {key: text[3] for key, text in texts.items() if key != "no caption"}
    # Texts are stored as written.
    assert {key: row["text"] for key, row in rows.items() if row["keep"]} == expected
    assert rows["no caption"]["reason"] == "no_text"
    for folder in (tmp_path, filtered):
        trained = {entry.key: entry.texts for entry in open_dataset(folder).load(0)}
        assert trained == {key: (text.strip(),) for key, text in expected.items()}


def test_keys_of_a_table_may_begin_with_the_current_folder(tmp_path: Path, tiny_blip: Path) -> None:
    (tmp_path / "00000.tar").write_bytes(member("./0.png", RED) + END_MARK)
    table = pa.table({"key": ["./0"], "caption": ["a red square"], "status": ["ok"]})
    pq.write_table(table, tmp_path / "00000.parquet")
    config = FilterConfig(data=str(tmp_path), model=str(tiny_blip), threshold=0.0, dtype="fp32", device="cpu")
    filtered = Path(filter_shards(config, progress=False)["out"])
    for folder in (tmp_path, filtered):
        dataset = open_dataset(folder)
        (entry,) = dataset.load(0)
        assert (entry.texts, dataset.read(0, entry), dataset.problems) == (("a red square",), RED, {})


def test_texts_without_a_picture_are_reported(tmp_path: Path) -> None:
    tar = FIRST + member("1.txt", b"x") + header("2.png", 9, b"2") + END_MARK
    (tmp_path / "00000.tar").write_bytes(tar)
    dataset = open_dataset(tmp_path)
    assert [entry.key for entry in dataset.load(0)] == ["0"]
    assert dataset.problems == {"00000.tar": "link_member 2.png; texts without a picture, not used: 1"}


def test_a_text_that_the_table_denies_is_reported_not_trained_on(tmp_path: Path) -> None:
    (tmp_path / "00000.tar").write_bytes(FIRST + LAST + END_MARK)
    pq.write_table(
        pa.table({"key": ["0", "2"], "caption": ["a text", None], "status": ["ok", "ok"]}), tmp_path / "00000.parquet"
    )
    dataset = open_dataset(tmp_path)
    assert [entry.texts for entry in dataset.load(0)] == [("a red square",)]
    assert dataset.problems == {"00000.parquet": "texts in the tar without a caption in this table, not used: 1"}
