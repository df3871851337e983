"""Splits by the names of files and folders."""

from __future__ import annotations

import pytest

from capfilt.ingest.inputs.splits import file_split, folder_split, is_chosen, select_split, wanted_splits


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/train-00000-of-00003.parquet", "train"),
        ("data/train-00000-of-00003-0123456789abcdef.parquet", "train"),
        ("data/train_sft-00000-of-00001.parquet", "train_sft"),
        ("default/validation/0000.parquet", "validation"),
        ("cc3m-train-0000.tar", "train"),
        ("test.parquet", "test"),
        ("trains.parquet", None),
        ("00000.tar", None),
    ],
)
def test_the_split_of_a_table_or_a_tar(name: str, split: str | None) -> None:
    assert file_split(name) == split


@pytest.mark.parametrize(
    ("name", "split"),
    [("train2017/1.jpg", "train2017"), ("x/Val/1.jpg", "Val"), ("train.jpg", None), ("trains/1.jpg", None)],
)
def test_the_split_of_a_picture_is_its_folder(name: str, split: str | None) -> None:
    assert folder_split(name) == split


def test_a_split_is_chosen_by_any_of_its_names() -> None:
    assert is_chosen("val2017", "validation") and is_chosen("dev", "val") and is_chosen("x", "train+x")
    assert is_chosen("x", "all") and is_chosen(None, None)
    assert not is_chosen("test", "train") and not is_chosen(None, "train")


def test_several_splits_need_a_choice() -> None:
    with pytest.raises(ValueError, match=r"has the splits a, b. Choose one with --split, such as --split a"):
        wanted_splits(["a", "b"], None, "x")
    with pytest.raises(ValueError, match="has no splits; leave out --split a"):
        wanted_splits([], "a", "x")
    with pytest.raises(ValueError, match=r"has no split 'c' \(--split\); its splits are a, b"):
        wanted_splits(["a", "b"], "a+c", "x")
    assert wanted_splits(["a", "b"], "all", "x") == ("a", "b")


def test_a_single_folder_of_the_name_of_a_split_may_be_a_class() -> None:
    assert select_split(["train/1.jpg", "car/2.jpg"], folder_split, None, "x") == (["train/1.jpg", "car/2.jpg"], ())
    assert select_split(["train/1.jpg"], folder_split, None, "x") == (["train/1.jpg"], ("train",))
