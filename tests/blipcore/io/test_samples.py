"""Members are grouped into samples by key; unusable members are reported."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
import webdataset
from tar_files import END_MARK, header, member, write_tar

from blipcore.io import samples
from blipcore.io.samples import IndexedTar, TarSample, choose_text, read_samples
from blipcore.io.tars import TarProblem


def test_names_as_img2dataset_and_others_write_them(tmp_path: Path) -> None:
    tar = write_tar(
        tmp_path / "0.tar",
        [
            ("./a/photo.v2.JPG", b"A"),
            ("./a/photo.v2.txt", b"dots after the key"),
            ("b/photo.webp", b"B"),
            ("b/photo.json", b'{"caption": "only in json", "n": 1}'),
            ("b/photo.cls", b"7"),
            ("c.jpg", b"C"),
            ("c.json", b"not json"),
            ("c.txt", b"\xff bad utf-8"),
            ("d.json", b"[1]"),
            ("d.jpg", b"D"),
        ],
    )
    problems: list[TarProblem] = []
    assert list(read_samples(tar, problems)) == [
        TarSample("a/photo", b"A", "dots after the key"),
        TarSample("b/photo", b"B", "only in json", {"caption": "only in json", "n": 1}),
        TarSample("c", b"C"),
        TarSample("d", b"D"),
    ]
    assert problems == [("undecodable_text", "c.txt")]


def test_tars_of_webdataset(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        writer.write({"__key__": "000", "jpg": b"picture", "txt": b"text", "json": {"caption": "c"}})
    assert list(read_samples(tmp_path / "a.tar")) == [TarSample("000", b"picture", "text", {"caption": "c"})]


def test_strange_members_are_named_and_stop_nothing(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    path.write_bytes(
        header("folder/", 0, b"5")
        + member("one.jpg", b"1")
        + member("two.txt", b"members of a sample")
        + member("one.txt", b"need not be adjacent")
        + member("two.jpg", b"2")
        + member("one.jpg", b"9")
        + member("../out.jpg", b"3")
        + member("/etc/out.jpg", b"3")
        + header("link.jpg", 0, b"2", "/etc/passwd")
        + header("hard.jpg", 0, b"1", "one.jpg")
        + header("device.jpg", 0, b"3")
        + member(".DS_Store", b"x")
        + member("README", b"x")
        + member("text_only.txt", b"no picture")
        + member("empty.jpg", b"")
        + END_MARK
    )
    before = sorted(tmp_path.rglob("*"))
    problems: list[TarProblem] = []
    assert list(read_samples(path, problems)) == [
        TarSample("one", b"1", "need not be adjacent"),
        TarSample("two", b"2", "members of a sample"),
        TarSample("text_only", b"", "no picture", error="no_picture"),
        TarSample("empty", b""),
    ]
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


def test_a_name_with_a_field_is_the_picture_only_if_there_is_no_other(tmp_path: Path) -> None:
    names = ["0.depth.png", "0.jpg", "1.png", "1.jpg", "2.v2.JPG", "2.v3.jpg", "x/3.jpg", "x/3.mask.png", "4.avif"]
    tar = write_tar(tmp_path / "0.tar", [(name, name.encode()) for name in names])
    problems: list[TarProblem] = []
    images = {sample.key: sample.image for sample in read_samples(tar, problems)}
    assert images == {"0": b"0.jpg", "1": b"1.png", "2": b"2.v2.JPG", "x/3": b"x/3.jpg", "4": b"4.avif"}
    assert problems == [("duplicate_member", "1.jpg"), ("duplicate_member", "2.v3.jpg")]


def test_a_tar_cut_anywhere_gives_what_is_readable(tmp_path: Path) -> None:
    images = {str(n): bytes([n]) * 700 for n in range(4)}
    whole = write_tar(
        tmp_path / "whole.tar",
        [member for key, image in images.items() for member in ((f"{key}.jpg", image), (f"{key}.txt", b"text"))],
    ).read_bytes()
    for length in range(0, len(whole.rstrip(b"\0")), 97):
        (tmp_path / "cut.tar").write_bytes(whole[:length])
        problems: list[TarProblem] = []
        samples = list(read_samples(tmp_path / "cut.tar", problems))
        assert [problem.reason for problem in problems] == ["truncated_tar"]
        assert all(sample.image == images[sample.key] for sample in samples if sample.error is None)
        assert all(sample.error == "truncated_tar" for sample in samples if sample.image != images[sample.key])


def test_only_the_samples_of_some_keys(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "0.tar", {f"{n}.jpg": b"x" for n in range(5)})
    assert [sample.key for sample in read_samples(tar, keys={"3", "1", "9"})] == ["1", "3"]


def test_json_that_no_table_takes(tmp_path: Path) -> None:
    members = [("a.jpg", b"x"), ("a.json", b'{"caption": "half \\ud83d"}'), ("b.jpg", b"x"), ("b.json", b"[" * 200_000)]
    first, second = read_samples(write_tar(tmp_path / "0.tar", members))
    assert (first.text, second.text, second.metadata) == ("half ?", None, {})


@pytest.mark.parametrize(
    ("candidates", "text"),
    [
        (("tar", "table"), "tar"),
        ((" tar\n", "table"), " tar\n"),
        ((None, "table"), "table"),
        (("", "table"), "table"),
        ((" \t\u2028", "table"), "table"),
        ((None, " "), " "),
        (("", None), ""),
        ((None, None), None),
    ],
)
def test_the_first_text_that_is_not_blank_is_chosen(candidates: tuple[str | None, ...], text: str | None) -> None:
    assert choose_text(*candidates) == text


def text_of(tmp_path: Path, members: dict[str, bytes]) -> tuple[list[str], list[str]]:
    """Return the texts of the sample with these members beside its picture, and the members that are not used."""
    tar = IndexedTar(write_tar(tmp_path / "0.tar", {"0.jpg": b"x"} | members, tarfile.USTAR_FORMAT))
    with tar:
        return tar.read_texts(tar.samples["0"]), sorted(tar.unused)


@pytest.mark.parametrize(
    ("members", "texts"),
    [
        ({"0.caption": b"tags"}, ["tags"]),
        ({"0.cap": b"a", "0.caption": b"b", "0.txt": b" "}, ["b"]),
        ({"0.json": b'{"caption": ["a cat", "the cat"], "text": "x"}'}, ["a cat", "the cat"]),
        ({"0.json": b'{"caption": null, "text": "never beside a caption"}'}, []),
        ({"0.json": b'{"top_caption": "top", "all_captions": ["a", "b"]}'}, ["top"]),
        ({"0.json": b'{"TEXT": "upper case"}'}, ["upper case"]),
        ({"0.json": b'{"captions": [], "text": "t"}'}, ["t"]),
        ({"0.json": b'{"sentences": [{"raw": "one", "tokens": ["one"]}, {"raw": "two"}]}'}, ["one", "two"]),
        ({"0.json": b'["one", "two"]'}, ["one", "two"]),
        ({"0.json": b'[{"caption": "one"}, {"caption": "two"}, 3]'}, ["one", "two"]),
        ({"0.txt": b"a dog\r\na brown dog\n"}, ["a dog", "a brown dog"]),
        ({"0.txt": b"first paragraph\n\nsecond"}, ["first paragraph\n\nsecond"]),
        ({"0.txt": b"two\nlines", "0.json": b'{"caption": "two\\nlines"}'}, ["two\nlines"]),
        ({"0.txt": b"two\nlines", "0.json": b'{"text": "two\\nlines", "caption_web": "x"}'}, ["two\nlines"]),
        ({"0.txt": "caf\u00e9".encode("utf-16")}, ["caf\u00e9"]),
        ({"0.txt": "caf\u00e9".encode("utf-32")}, ["caf\u00e9"]),
        ({"0.txt": "\ufeffcaf\u00e9".encode()}, ["caf\u00e9"]),
        ({"0.txt": "a dog".encode("utf-16-le")}, []),
        ({"0.jpg.txt": b"a"}, ["a"]),
        ({"0.caption.txt": b"a"}, ["a"]),
    ],
)
def test_the_first_text_that_is_not_blank_and_its_further_captions(
    tmp_path: Path, members: dict[str, bytes], texts: list[str]
) -> None:
    assert text_of(tmp_path, members) == (texts, [])


def test_other_members_are_no_text_and_are_counted(tmp_path: Path) -> None:
    members = {"0.url.txt": b"http://x", "0.alt.txt": b"alt", "0.cls": b"1", "0.npy": b"x"}
    assert text_of(tmp_path, members) == ([], ["alt.txt", "cls", "npy", "url.txt"])
    assert text_of(tmp_path, members | {"0.txt": b"a"})[0] == ["a"]


def test_an_encoding_is_for_texts_that_are_not_utf_8(tmp_path: Path) -> None:
    members = {"0.jpg": b"x", "0.txt": "caf\u00e9".encode("cp1252"), "1.jpg": b"x", "1.txt": "caf\u00e9".encode()}
    with IndexedTar(write_tar(tmp_path / "0.tar", members), encoding="cp1252") as tar:
        assert [tar.read_text(sample) for sample in tar.samples.values()] == ["caf\u00e9"] * 2
    with IndexedTar(tmp_path / "0.tar") as tar:
        assert [tar.read_text(sample) for sample in tar.samples.values()] == [None, "caf\u00e9"]
        assert tar.problems == [("undecodable_text", "0.txt")]


@pytest.mark.parametrize(
    ("text", "caption", "expected"),
    [("a", '"b"', "a"), (" ", '"b"', "b"), (None, '"b"', "b"), ("", "null", ""), (None, "3", None), (None, '""', "")],
)
def test_the_text_of_a_tar_is_its_txt_or_else_its_json(
    tmp_path: Path, text: str | None, caption: str, expected: str | None
) -> None:
    members = {"0.jpg": b"x", "0.json": f'{{"caption": {caption}}}'.encode()}
    if text is not None:
        members["0.txt"] = text.encode()
    (sample,) = read_samples(write_tar(tmp_path / "0.tar", members, tarfile.USTAR_FORMAT))
    assert sample.text == expected


def test_members_too_large_for_memory_are_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "MAX_PICTURE_BYTES", 1000)
    monkeypatch.setattr(samples, "MAX_TEXT_BYTES", 100)
    members = {"0.jpg": b"x" * 1000, "0.txt": b"a" * 101, "1.jpg": b"x" * 1001, "1.txt": b"a" * 100}
    problems: list[TarProblem] = []
    found = list(read_samples(write_tar(tmp_path / "0.tar", members), problems))
    assert [(sample.key, sample.text, sample.error) for sample in found] == [
        ("0", None, None),
        ("1", "a" * 100, "no_picture"),
    ]
    assert problems == [("large_member", "0.txt"), ("large_member", "1.jpg")]
