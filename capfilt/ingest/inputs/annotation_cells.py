"""Reads cells of annotation files: names of pictures, and captions in the formats of several programs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from blipcore.io.list_cells import parse_list
from capfilt.ingest.lists.rows import cell_texts

# Places of pictures in a text: of LLaVA and of data-juicer, whose `eoc` ends a part of a text.
IMAGE_TOKENS = re.compile(r"<image>|<\|image\|>|<__dj__\w+>|<\|__dj__\w+\|>")
END_OF_CHUNK = "<|__dj__eoc|>"
REPLIES = ("gpt", "assistant", "model", "bot")  # of conversations: who speaks about the picture
PATH_KEYS = ("path", "file_name", "filename", "url")


def picture_names(cell: Any) -> list[Any]:
    """Return the pictures that a cell names: a path, Hugging Face's {bytes, path}, or a list of these."""
    if isinstance(cell, list | tuple):
        return [name for item in cell for name in picture_names(item)]
    if isinstance(cell, dict):
        return [next((cell[key] for key in PATH_KEYS if cell.get(key)), None)]
    return [cell]


def is_conversation(cell: Any) -> bool:
    """Return whether a cell is a list of turns, as LLaVA's {from, value} or OpenAI's {role, content}."""
    return (
        isinstance(cell, list)
        and bool(cell)
        and all(
            isinstance(turn, dict) and ({"from", "value"} <= turn.keys() or {"role", "content"} <= turn.keys())
            for turn in cell
        )
    )


def texts_of(cell: Any) -> list[str]:
    """Return the captions in a cell: its texts, or the first reply of a conversation, without tokens for pictures."""
    cell = parse_list(cell)
    if is_conversation(cell):
        replies = [turn for turn in cell if str(turn.get("from") or turn.get("role")).lower() in REPLIES]
        content = (replies[0].get("value") or replies[0].get("content")) if replies else None
        if isinstance(content, list):  # OpenAI's parts
            content = next((part.get("text") for part in content if isinstance(part, dict) and part.get("text")), None)
        cell = content
    return [_without_tokens(text) for text in cell_texts(cell) if text is not None]


def value_at(cells: Mapping[str, Any], name: str) -> Any:
    """Return the value of a column or key; `caption.en` is the key `en` of the object in `caption`, or of its objects.

    A column or key that has the whole name comes first.
    """
    if name in cells:
        return cells[name]
    column, _, key = name.partition(".")
    value = cells.get(column) if key else None
    if isinstance(value, list):
        return [value_at(item, key) for item in value if isinstance(item, dict)]
    return value_at(value, key) if isinstance(value, dict) else None


def column_of(name: str, columns: Iterable[str]) -> str:
    """Return the column in which `value_at` finds a name; the name itself if there is none."""
    columns, column = set(columns), name.partition(".")[0]
    return column if name not in columns and column in columns else name


def keys_of_texts(name: str, cell: Any) -> list[str]:
    """Return the names of the texts in an object that is no caption itself, such as `caption.en` and `caption.de`."""
    if texts_of(cell):
        return []
    cell = next((item for item in cell if isinstance(item, dict)), None) if isinstance(cell, list) else cell
    return [f"{name}.{key}" for key, value in cell.items() if texts_of(value)] if isinstance(cell, dict) else []


def texts_of_pictures(cell: Any, pictures: int) -> list[list[str]] | None:
    """Return the texts of each of several pictures in a row, None if it is not said which belongs to which.

    They are a list as long as that of the pictures, or data-juicer's chunks with a token for a picture each.
    """
    if isinstance(cell, str) and END_OF_CHUNK in cell:
        cell = [chunk for chunk in cell.split(END_OF_CHUNK) if chunk.strip()]
        if any(len(IMAGE_TOKENS.findall(chunk)) != 1 for chunk in cell):
            return None
    if isinstance(cell, list) and len(cell) == pictures and not is_conversation(cell):
        return [texts_of(item) for item in cell]
    return None


def _without_tokens(text: str) -> str:
    return IMAGE_TOKENS.sub(" ", text).strip() if "<" in text and IMAGE_TOKENS.search(text) else text
