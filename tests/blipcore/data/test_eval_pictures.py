"""Pictures to evaluate on, from annotations and from shards."""

import json

import pytest
from picture_shards import write_shard_set

from blipcore.data.eval_batches import EvalBatches
from blipcore.data.eval_pictures import read_eval_pictures
from blipcore.data.transforms import EvalTransform


def test_a_shard_set_is_evaluated_like_annotations(tmp_path) -> None:
    records, problems = read_eval_pictures(str(write_shard_set(tmp_path, [2, 1])), None)
    assert [record["key"] for record in records] == [
        "00000.tar/00000",
        "00000.tar/00001",
        "00001.tar/01000",
    ] and not problems
    assert all(record["texts"] for record in records)
    ((_, pixels),) = EvalBatches(records, EvalTransform(4), batch_size=3)
    assert pixels.shape == (3, 3, 4, 4)


def test_annotations_may_have_pictures_without_texts(tmp_path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"image": "a.png", "img_id": 3}, {"image": "b.png", "caption": "x"}]))
    records, _ = read_eval_pictures(str(path), None)
    assert [(record["image_id"], record["texts"]) for record in records] == [(3, []), ("b.png", ["x"])]


def test_an_unreadable_picture_of_a_shard_is_named(tmp_path) -> None:
    records, _ = read_eval_pictures(str(write_shard_set(tmp_path, [2], broken=("00001",))), None)
    with pytest.raises(ValueError, match=r"00000\.tar/00001 cannot be read"):
        list(EvalBatches(records, EvalTransform(4), batch_size=2))


def test_defects_of_a_shard_set_come_with_its_pictures(tmp_path) -> None:
    folder = write_shard_set(tmp_path, [2])
    (folder / "00000.parquet").write_bytes(b"cut")
    records, problems = read_eval_pictures(str(folder), None)
    assert len(records) == 2 and list(problems) == ["00000.parquet"]
