"""Annotation files as data sets: their entries, their pictures, and streams of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from blipcore.data.annotation_datasets import AnnotationDataset, PairDataset, QuestionDataset
from blipcore.data.annotations import split_captions
from blipcore.data.shard_datasets import open_dataset
from blipcore.data.stream import Stream
from blipcore.data.transforms import EvalTransform

VQA = {"question_id": 9, "question": "what?", "image": "a.png", "answer": ["red"] * 7 + ["blue"] * 3}
VG = {"question_id": 10, "question": "where?", "image": "b.png", "dataset": "vg", "answer": "here"}
PAIR = {"images": ["a.png", "b.png"], "sentence": "both are one", "label": "True"}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes rows to a JSON file."""

    def to_file(*rows: Any) -> Path:
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        return tmp_path / "rows.json"

    return to_file


def test_an_annotation_file_is_a_data_set(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"A")
    rows = [{"image": "a.jpg", "caption": ["x", "y"]}, {"image": "b.jpg", "caption": "z"}]
    (tmp_path / "set.json").write_text(json.dumps(rows))
    dataset = open_dataset(tmp_path / "set.json")
    first, second = dataset.load(0)
    assert dataset.counts == [2] and first.texts == ("x", "y") and dataset.read(0, first) == b"A"
    with pytest.raises(OSError, match="no such file"):
        dataset.read(0, second)


def test_pictures_are_read_below_the_image_root(write: Write, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a.jpg").write_bytes(b"A")
    dataset = AnnotationDataset(write({"image": "a.jpg", "caption": "x"}), tmp_path / "root")
    [entry] = dataset.load(0)
    assert dataset.read(0, entry) == b"A" and dataset.describe(0, entry) == "a.jpg"


def test_parts_of_a_file_are_loaded_one_by_one(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures with the same image id in the file also have the same id across parts."""
    path = write(*({"image": f"{n}.jpg", "caption": str(n), "image_id": n // 4} for n in range(6)))
    monkeypatch.setattr(AnnotationDataset, "split", staticmethod(lambda path: split_captions(path, rows=2)))
    dataset = AnnotationDataset(path, None)
    entries = [dataset.load(part) for part in range(3)]
    assert dataset.counts == [2, 2, 2]
    assert [[entry.texts for entry in part] for part in entries] == [
        [("0",), ("1",)], [("2",), ("3",)], [("4",), ("5",)]
    ]  # fmt: skip
    assert len({entry.image_id for part in entries for entry in part}) == 2


def test_streams_of_questions_and_pairs(write: Write, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "b.png")
    stream = Stream([str(write(VQA, VG))], EvalTransform(4), opener=QuestionDataset)
    samples = {sample["text"]: sample for sample in map(stream.sample, range(2))}
    assert samples["what?"]["answers"] == ["red", "blue"] and samples["what?"]["weights"] == pytest.approx([0.7, 0.3])
    assert samples["where?"]["answers"] == ["here"] and samples["where?"]["image"].shape == (3, 4, 4)

    stream = Stream([str(write(PAIR))], EvalTransform(4), opener=PairDataset)
    sample = stream.sample(0)
    left, right = sample["image"]
    assert sample["label"] is True and not torch.equal(left, right)
    assert left[0].sum() > right[0].sum()  # red, blue
    assert stream.sample(1)["epoch"] == 1


def test_a_pair_with_a_missing_picture_is_replaced_and_named(write: Write, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "c.png")
    path = write(PAIR, PAIR | {"images": ["a.png", "c.png"]})
    stream = Stream([str(path)], EvalTransform(4), opener=PairDataset)
    assert {stream.sample(n)["image"].shape for n in range(2)} == {torch.Size([2, 3, 4, 4])}
    assert stream.pop_problems() == {"b.png": "no such file"}


def test_missing_pictures_are_counted_before_training(write: Write, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    rows = [{"image": f"{name}.png", "caption": "x"} for name in "abcde"]
    stream = Stream([str(write(*rows, {"image": "a.png", "caption": ""}))], EvalTransform(4))
    stream.check_pictures()
    assert stream.pop_problems() == {
        str(tmp_path / "rows.json"): "1 row without a caption, not used; 4 pictures not found, replaced by the next: "
        "b.png, c.png, d.png and 1 more"
    }
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match=r"None of the 5 pictures of .*rows.json exists.*--image-root"):
        stream.check_pictures()


@pytest.mark.parametrize(("opener", "row"), [(QuestionDataset, VQA), (PairDataset, PAIR)])
def test_pictures_of_questions_and_pairs_are_checked_too(write: Write, tmp_path: Path, opener: Any, row: Any) -> None:
    stream = Stream([str(write(row))], EvalTransform(4), opener=opener)
    with pytest.raises(ValueError, match=r"None of the .* of .* exists: the first would be .*a.png"):
        stream.check_pictures()
    with pytest.raises(ValueError, match=r"questions and pairs come in a \.json or \.jsonl file"):
        Stream([str(tmp_path)], EvalTransform(4), opener=opener)
