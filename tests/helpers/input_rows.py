"""Helpers for tests of the inputs of `capfilt pack`: files, and the rows that an input yields."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from capfilt.ingest.inputs.input import InputOptions, InputRow, PictureInput
from capfilt.ingest.inputs.open import open_input


def _jpeg() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(content, "JPEG")
    return content.getvalue()


JPEG = _jpeg()


def write_files(root: Path, files: dict[str, bytes | str]) -> Path:
    """Write files below `root`, texts as UTF-8."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def write_parquet(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def read_input(
    source: Path, caption_col: str | tuple[str, ...] = (), **options: Any
) -> tuple[PictureInput, list[InputRow]]:
    """Return an input and all its rows; `caption_col` may be one name."""
    names = (caption_col,) if isinstance(caption_col, str) else caption_col
    opened = open_input(str(source), InputOptions(caption_col=names, **options))
    return opened, list(opened)


def texts_by_url(source: Path, caption_col: str | tuple[str, ...] = (), **options: Any) -> dict[str, list[str]]:
    """Return the URL, or name, of each row of an input and its texts."""
    return {row["url"]: row["texts"] for row in read_input(source, caption_col, **options)[1]}
