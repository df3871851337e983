"""Names of exported pictures: unique keys, and files that any file system can hold."""

from __future__ import annotations

import pytest

from capfilt.export.names import FileNames, key_prefixes


@pytest.mark.parametrize(
    ("shards", "expected"),
    [
        (["00000", "00001"], ["00000_", "00001_"]),
        (["cc3m_train_00000", "cc3m_train_00001"], ["cc3m_train_00000_", "cc3m_train_00001_"]),
        (["part.v1"], ["part_v1_"]),
        (["a", "a_b"], ["00000_", "00001_"]),  # a/b_c and a_b/c would both be a_b_c
        (["a.b", "a_b"], ["00000_", "00001_"]),
        (["a", "b", "b_1", "c"], ["00000_", "00001_", "00002_", "00003_"]),
    ],
)
def test_no_two_shards_can_give_the_same_key(shards: list[str], expected: list[str]) -> None:
    assert list(key_prefixes(shards).values()) == expected


@pytest.mark.parametrize(
    "key",
    [
        "x" * 201, "é" * 101, "a/" * 500 + "b", "nul", "COM1", "a/aux/b", "con.v1", "a\0b", "a:b", 'a"b', "a?",
        "tab\tb", "a\\b", "half\ud83d", "trailing.", "blank ", "../up", "/root", "a//b", ".", "",
    ],
)  # fmt: skip
def test_a_key_that_is_no_file_name_is_stored_under_its_hash(key: str) -> None:
    name = FileNames().choose(key, "jpg")
    assert len(name) == 36 and name.endswith(".jpg") and name[:32].isalnum()
    assert FileNames().choose(key, "jpg") == name  # the same in every run


@pytest.mark.parametrize("key", ["000000", "a/b c", "été", "夏" * 60, "x" * 200, "console", "a-1_b", "a.b/c"])
def test_other_keys_are_file_names(key: str) -> None:
    assert FileNames().choose(key, "png") == f"{key}.png"


def test_names_that_some_file_systems_take_for_one_are_numbered() -> None:
    names = FileNames()
    chosen = [
        names.choose(key, "jpg") for key in ("a", "A", "a-2", "e\u0301", "\u00e9", "a.jpg/b", "straße", "strasse")
    ]
    assert chosen[:3] == ["a.jpg", "A-2.jpg", "a-2-2.jpg"] and len(set(chosen)) == 8
    assert chosen[5] not in ("a.jpg/b.jpg",) and chosen[7] == "strasse-2.jpg"


def test_a_file_and_a_folder_have_different_names() -> None:
    names = FileNames()
    assert names.choose("x.jpg/b", "jpg") == "x.jpg/b.jpg"
    assert names.choose("x", "jpg") == "x-2.jpg"
