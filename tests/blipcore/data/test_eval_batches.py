"""Batches of evaluation pictures."""

import pytest
import torch
from PIL import Image

from blipcore.data.eval_batches import EvalBatches
from blipcore.data.transforms import EvalTransform


@pytest.fixture
def records(tmp_path) -> list[dict]:
    records = []
    for i in range(5):
        path = tmp_path / f"{i}.png"
        Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(path)
        records.append({"key": path.name, "image": path})
    return records


def test_batches_hold_all_records_in_order_any_number_of_times(records) -> None:
    batches = EvalBatches(records, EvalTransform(4), batch_size=2)
    for _ in range(2):
        parts = list(batches)
        assert [len(part) for part, _ in parts] == [2, 2, 1]
        assert [record for part, _ in parts for record in part] == records
        pixels = torch.cat([pixels for _, pixels in parts])
        assert pixels.shape == (5, 3, 4, 4) and pixels[:, 0, 0, 0].tolist() == [0, 40, 80, 120, 160]


def test_pairs_are_stacked(records) -> None:
    pairs = [{"images": (records[0]["image"], records[1]["image"])}]
    ((_, pixels),) = EvalBatches(pairs, EvalTransform(4), batch_size=2)
    assert pixels.shape == (1, 2, 3, 4, 4) and pixels[0, 1, 0, 0, 0] == 40


def test_an_unreadable_picture_stops_with_its_name(records) -> None:
    records[1]["image"].write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"1\.png cannot be read"):
        list(EvalBatches(records, EvalTransform(4), batch_size=2))


def test_no_records_are_no_batches() -> None:
    assert list(EvalBatches([], EvalTransform(4), batch_size=2)) == []
