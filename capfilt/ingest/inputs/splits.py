"""Splits of a dataset, by the names of its files and folders, as Hugging Face `datasets` finds them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

ALL = "all"
USUAL_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SPLIT_OF_NAME = {name: split for split, names in USUAL_NAMES.items() for name in names}
PART = re.compile(r"(?P<split>[A-Za-z]\w*(?:\.\w+)*)-\d{5}-of-\d{5}")  # train-00000-of-00003.parquet
COCO_YEAR = re.compile(r"20\d\d$")  # train2017


def folder_split(name: str) -> str | None:
    """Return the split of a file by the first folder of its name that is called like one, None if there is none."""
    return next((part for part in name.split("/")[:-1] if _is_split(part)), None)


def file_split(name: str) -> str | None:
    """Return the split of a table or a tar: train of train-00000-of-00003.parquet, cc3m-train-0000.tar, train/0.tar."""
    stem = name.rpartition("/")[2].partition(".")[0]
    part = PART.match(stem)
    if part:
        return part["split"]
    words = (word for word in re.split(r"[^A-Za-z0-9]+", stem) if _is_split(word))
    return next(words, None) or folder_split(name)


def _is_split(word: str) -> bool:
    return COCO_YEAR.sub("", word.lower()) in SPLIT_OF_NAME


def select_split(
    items: Sequence[T], split_of: Callable[[T], str | None], chosen: str | None, source: object
) -> tuple[list[T], tuple[str, ...]]:
    """Return the items of the chosen splits, and the names of these splits.

    `chosen` is a split, several joined by "+", or "all". Raises ValueError if it is missing and there are several, or
    if it does not exist.
    """
    splits = [split_of(item) for item in items]
    names = tuple(dict.fromkeys(split for split in splits if split is not None))
    wanted = wanted_splits(names, chosen, source)
    if chosen in (None, ALL):
        # A single split beside files of none is the name of a folder, such as a class of pictures called "train".
        return list(items), wanted if len(wanted) > 1 or None not in splits else ()
    return [item for item, split in zip(items, splits, strict=True) if split in wanted], wanted


def wanted_splits(names: Sequence[str], chosen: str | None, source: object) -> tuple[str, ...]:
    """Return those of the existing splits `names` that are chosen; raises ValueError as `select_split`."""
    if chosen is None:
        if len(names) > 1:
            raise ValueError(
                f"{source} has the splits {', '.join(names)}. Choose one with --split, such as --split {names[0]}, "
                f"several with --split {names[0]}+{names[1]}, or all of them with --split all."
            )
        return tuple(names)
    if not names:
        raise ValueError(f"{source} has no splits; leave out --split {chosen}.")
    for choice in [] if chosen == ALL else chosen.split("+"):
        if not any(is_chosen(name, choice) for name in names):
            raise ValueError(f"{source} has no split '{choice}' (--split); its splits are {', '.join(names)}.")
    return tuple(name for name in names if is_chosen(name, chosen))


def is_chosen(split: str | None, chosen: str | None) -> bool:
    """Return whether a split is chosen; validation, val, valid and dev are the same."""
    if chosen in (None, ALL):
        return True
    return split is not None and _canonical(split) in map(_canonical, (chosen or "").split("+"))


def _canonical(name: str) -> str:
    return SPLIT_OF_NAME.get(COCO_YEAR.sub("", name.lower()), name.lower())
