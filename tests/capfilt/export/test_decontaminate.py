"""Decontamination: exact and near copies of evaluation pictures are found, other pictures are not."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from filtered_set import filter_set, write_set
from folders import rows_of
from PIL import Image

from blipcore.io.samples import read_samples
from capfilt.export.decontaminate import EvaluationPictures
from capfilt.export.stage import ExportConfig, export_shards
from capfilt.shards.tables import read_table


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def test_exact_and_near_copies_are_found(tmp_path: Path, draw: Callable) -> None:
    picture = draw(1, 200)
    (tmp_path / "nested").mkdir()
    (tmp_path / "nested" / "picture.png").write_bytes(encoded(picture))
    (tmp_path / "broken.jpg").write_bytes(b"not a picture")
    pictures = EvaluationPictures([str(tmp_path)])
    assert len(pictures) == 1
    assert encoded(picture) in pictures
    assert encoded(picture.resize((120, 120)), "JPEG") in pictures
    assert encoded(draw(2, 200)) not in pictures
    assert b"not a picture" not in pictures


def test_pictures_of_one_colour_are_compared_by_their_bytes(tmp_path: Path) -> None:
    sky, sea = (encoded(Image.new("RGB", (40, 40), colour)) for colour in ("skyblue", "navy"))
    (tmp_path / "sky.png").write_bytes(sky)
    pictures = EvaluationPictures([str(tmp_path)])
    assert sky in pictures and sea not in pictures


def test_no_folder_means_no_copy_and_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    assert b"" not in EvaluationPictures([])
    with pytest.raises(FileNotFoundError, match="No folder of pictures at"):
        EvaluationPictures([str(tmp_path / "missing")])


def test_export_leaves_out_copies_and_counts_them(tmp_path: Path, drawn: Callable) -> None:
    filtered = filter_set(write_set(tmp_path / "data", drawn))
    kept_keys = list(dict.fromkeys(row["key"] for row in rows_of(filtered) if row["keep"]))
    copied = kept_keys[:3]
    (tmp_path / "test").mkdir()
    for picture in read_samples(tmp_path / "data" / "00000.tar", keys=copied):
        (tmp_path / "test" / f"{picture.key}.jpg").write_bytes(picture.image)
    config = ExportConfig(str(filtered), str(tmp_path / "out"), decontaminate=[str(tmp_path / "test")])
    counts = export_shards(config, progress=False)["counts"]
    assert counts["contaminated"] >= 3 and counts["contaminated"] + counts["exported"] == len(kept_keys)
    index = read_table(tmp_path / "out" / ".index" / "00000.parquet").to_pylist()
    assert {row["key"]: row["outcome"] for row in index}.items() >= {key: "contaminated" for key in copied}.items()
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| left out: copy of an evaluation picture | {counts['contaminated']} |" in card
    assert str(tmp_path / "test") in card
