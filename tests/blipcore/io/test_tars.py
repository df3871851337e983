"""Every kind of tar is listed; damage ends the list with a problem."""

from __future__ import annotations

import io
import random
import tarfile
from pathlib import Path

import pytest
from tar_files import END_MARK, header, member, pax_header, with_checksum, write_tar

from blipcore.io.tars import TarProblem, walk_tar


def read_members(data: bytes) -> tuple[dict[str, bytes], list[TarProblem]]:
    """Return name -> content of the complete members, and the problems."""
    problems: list[TarProblem] = []
    members = list(walk_tar(io.BytesIO(data), problems))
    return {m.name: data[m.offset : m.offset + m.size] for m in members if m.complete}, problems


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_tar_format_is_read(tmp_path: Path, tar_format: int) -> None:
    rng = random.Random(0)
    members = {
        f"{row:04d}.{suffix}": rng.randbytes(rng.choice([0, 1, 511, 512, 513, 2000]))
        for row in range(9)
        for suffix in ("jpg", "txt")
    }
    members["folder/" * 15 + "long.jpg"] = b"long"  # more than the 100 bytes of a plain header
    if tar_format != tarfile.USTAR_FORMAT:
        members["长名/" * 40 + "x.jpg"] = b"unicode"
        members["ü with spaces.jpg"] = b"spaces"
    path = write_tar(tmp_path / "a.tar", members, tar_format, mtime=1.5)
    assert read_members(path.read_bytes()) == (members, [])


def test_a_tar_without_the_word_ustar_is_read() -> None:
    """Tars from before 1988 lack it."""
    old = with_checksum(header("0.jpg", 1), {257: bytes(8)})
    assert read_members(old + b"x".ljust(512, b"\0") + END_MARK) == ({"0.jpg": b"x"}, [])


def test_sizes_in_binary_and_in_extended_headers() -> None:
    binary = with_checksum(header("0.jpg", 0), {124: b"\x80" + (3).to_bytes(11, "big")})
    tar = binary + b"abc".ljust(512, b"\0")
    tar += pax_header("size", "4") + header("1.jpg", 0) + b"defg".ljust(512, b"\0") + member("2.jpg", b"h")
    assert read_members(tar + END_MARK) == ({"0.jpg": b"abc", "1.jpg": b"defg", "2.jpg": b"h"}, [])


def test_a_checksum_of_signed_bytes_is_right_too() -> None:
    name = "\u00fc.jpg"
    unsigned = header(name, 1)
    high = sum(byte > 127 for byte in unsigned)
    signed = unsigned[:148] + b"%06o\0 " % (int(unsigned[148:154], 8) - 256 * high) + unsigned[156:]
    assert read_members(signed + b"x".ljust(512, b"\0") + END_MARK) == ({name: b"x"}, [])


def test_a_tar_cut_anywhere_keeps_its_complete_members(tmp_path: Path) -> None:
    members = {f"{row}.{suffix}": bytes([row]) * 700 for row in range(3) for suffix in ("jpg", "txt")}
    whole = write_tar(tmp_path / "whole.tar", members, mtime=1.5).read_bytes()
    longest = 0
    for length in range(0, len(whole), 97):
        complete, problems = read_members(whole[:length])
        assert list(members.items())[: len(complete)] == list(complete.items())
        assert len(complete) >= longest
        longest = len(complete)
        assert [problem.reason for problem in problems] == ["truncated_tar"] or length > len(whole.rstrip(b"\0"))
    assert longest == len(members)


@pytest.mark.parametrize("damage", [random.Random(0).randbytes(512), b"\xff" * 512, b"<html>".ljust(512)])
def test_damage_in_the_middle_is_named(damage: bytes) -> None:
    tar = member("0.jpg", b"x" * 600) + damage + member("1.jpg", b"y") + END_MARK
    problem = TarProblem("corrupt_tar", "byte 1536, after '0.jpg'")
    assert read_members(tar) == ({"0.jpg": b"x" * 600}, [problem])


@pytest.mark.parametrize("byte", [0, 99, 124, 156, 257, 345, 511])
def test_one_wrong_byte_of_a_header_is_damage(byte: int) -> None:
    second = bytearray(member("1.jpg", b"y"))
    second[byte] ^= 1
    assert read_members(member("0.jpg", b"x") + bytes(second) + END_MARK)[1][0].reason == "corrupt_tar"


@pytest.mark.timeout(20)
@pytest.mark.parametrize("size", [b"-1", b"-5", b"-2000", b"-0000001130"])
def test_a_negative_size_is_damage(size: bytes) -> None:
    """Following it would never end."""
    second = with_checksum(header("1.jpg", 0), {124: size.ljust(12, b"\0")})
    tar = member("0.jpg", b"x") + second + END_MARK
    assert read_members(tar) == ({"0.jpg": b"x"}, [TarProblem("corrupt_tar", "byte 1024, after '0.jpg'")])
    tar = member("0.jpg", b"x") + pax_header("size", size.decode()) + header("1.jpg", 0) + END_MARK
    assert read_members(tar) == ({"0.jpg": b"x"}, [TarProblem("corrupt_tar", "byte 2048, after '0.jpg'")])


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "content",
    [b"path=a\n\n", b"0 path=a\n", b"-9 path=a\n", b"99 path=a\n", b"9 path:a\n", b"10 path=a\n9 size=\n", b"\xff"],
)
def test_a_damaged_extended_header_is_damage(content: bytes) -> None:
    tar = member("0.jpg", b"x") + member("PaxHeader", content, b"x") + member("1.jpg", b"y") + END_MARK
    assert read_members(tar) == ({"0.jpg": b"x"}, [TarProblem("corrupt_tar", "byte 1024, after '0.jpg'")])


def test_members_that_are_no_files_are_skipped() -> None:
    kinds = {"folder": b"5", "hard link": b"1", "link": b"2", "device": b"3", "pipe": b"6"}
    tar = b"".join(header(name, 0, kind) for name, kind in kinds.items())
    assert read_members(tar + END_MARK) == (
        {},
        [TarProblem("link_member", name) for name in ("hard link", "link", "device", "pipe")],
    )
    assert list(read_members(member("0.jpg", b"x", b"7") + member("1.jpg", b"y", b"\0") + END_MARK)[0]) == [
        "0.jpg",
        "1.jpg",
    ]
