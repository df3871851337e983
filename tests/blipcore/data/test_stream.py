"""The training stream: samples by position, texts, weights of data sets, and damaged pictures."""

import json
import pickle
import random
import tarfile
from collections import Counter
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from picture_shards import encode_png, eval_stream, sample_keys, write_shard_set

from blipcore.data import stream as stream_module
from blipcore.data.shard_datasets import open_dataset
from blipcore.data.stream import parse_spec
from blipcore.io.text_mixture import TextMixture


def test_an_epoch_holds_every_picture_once_and_epochs_differ(tmp_path) -> None:
    stream = eval_stream(write_shard_set(tmp_path, [5, 0, 9, 1, 7]), window=2)
    epochs = [sample_keys(stream, 22, start=22 * epoch) for epoch in range(3)]
    assert len(stream) == 22 and all(len(set(epoch)) == 22 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    # The order depends on the seed alone.
    assert sample_keys(eval_stream(tmp_path, window=2), 66) == [*epochs[0], *epochs[1], *epochs[2]]
    assert sample_keys(eval_stream(tmp_path, window=2, seed=1), 22) != epochs[0]


def test_positions_can_be_read_in_any_order(tmp_path) -> None:
    stream = eval_stream(write_shard_set(tmp_path, [6, 6, 6]), window=2)
    positions = list(range(54))
    expected = dict(zip(positions, sample_keys(stream, 54), strict=True))
    random.Random(0).shuffle(positions)
    assert {position: stream.sample(position)["key"] for position in positions} == expected
    assert [sample["key"] for sample in islice(stream, 10)] == [expected[position] for position in range(10)]


def test_a_stream_can_be_pickled(tmp_path) -> None:
    stream = eval_stream(write_shard_set(tmp_path, [5, 5]))
    expected = sample_keys(stream, 10)
    assert sample_keys(pickle.loads(pickle.dumps(stream)), 10) == expected


def test_only_the_shards_of_a_window_are_in_memory(tmp_path, monkeypatch) -> None:
    stream = eval_stream(write_shard_set(tmp_path, [3] * 12), window=2)
    loads, load = [], stream.datasets[0].load

    def recording_load(shard: int) -> list:
        loads.append(shard)
        return load(shard)

    monkeypatch.setattr(stream.datasets[0], "load", recording_load)
    sample_keys(stream, 36)
    assert sorted(loads) == list(range(12))  # once per epoch: kept while the window lasts
    sample_keys(stream, 36)
    assert len(loads) > 20  # and not for much longer


def write_annotations(tmp_path: Path, texts: dict[str, list[str]]) -> Path:
    for row, name in enumerate(texts):
        (tmp_path / name).write_bytes(encode_png(row))
    path = tmp_path / "set.json"
    path.write_text(json.dumps([{"image": name, "caption": captions} for name, captions in texts.items()]))
    return path


def test_each_epoch_draws_one_of_the_texts(tmp_path) -> None:
    stream = eval_stream(write_annotations(tmp_path, {"a.png": ["a0", "a1", "a2"], "b.png": ["b0"]}))
    counts = Counter(stream.sample(position)["text"] for position in range(2 * 600))
    assert counts["b0"] == 600 and sum(counts.values()) == 1200
    assert all(150 < counts[text] < 250 for text in ("a0", "a1", "a2"))
    again = Counter(stream.sample(position)["text"] for position in range(2 * 600))
    assert again == counts


def test_texts_are_drawn_as_often_as_their_mixture_says(tmp_path) -> None:
    write_shard_set(tmp_path, [2])
    [tar] = tmp_path.glob("*.tar")
    with tarfile.open(tar) as opened:
        first, second = sorted({name.partition(".")[0] for name in opened.getnames()})
    rows = {"key": [first] * 3 + [second], "source": ["web", "blip", "blip", "blip"], "keep": [True] * 4}
    (tmp_path / "filtered").mkdir()
    (tmp_path / "filtered" / "manifest.json").write_text('{"images": ".."}')
    pq.write_table(pa.table(rows | {"text": ["w", "b1", "b2", "only"]}), tmp_path / "filtered" / f"{tar.stem}.parquet")
    mixture = TextMixture.parse("web=0.6,blip=0.4")
    stream = eval_stream(tmp_path / "filtered", opener=partial(open_dataset, mixture=mixture))
    counts = Counter(stream.sample(position)["text"] for position in range(2 * 1000))
    assert counts.pop("only") == 1000  # its picture has no web text
    expected = {"w": 600, "b1": 200, "b2": 200}
    assert sum((counts[text] - number) ** 2 / number for text, number in expected.items()) < 13.8  # 99.9%, 2 degrees
    assert stream.notes == [f"{tmp_path / 'filtered'}: texts drawn: blip 70.0% (share 40%), web 30.0% (share 60%)"]


def test_samples_are_complete_and_different_pictures_have_different_ids(tmp_path) -> None:
    shards = write_shard_set(tmp_path / "shards", [4])
    json_path = write_annotations(tmp_path, {"a.png": ["a0", "a1"], "b.png": ["b0"]})
    stream = eval_stream(json_path, shards, shards)
    samples = [stream.sample(position) for position in range(40)]
    assert set(samples[0]) == {"image", "text", "key", "image_id", "dataset", "epoch"}
    assert samples[0]["image"].shape == (3, 4, 4) and samples[0]["image"].dtype == torch.uint8
    keys_by_id = {}
    for sample in samples:
        keys_by_id.setdefault(sample["image_id"], set()).add(sample["key"])
    assert all(len(keys) == 1 for keys in keys_by_id.values()) and len(keys_by_id) == 2 + 4 + 4
    assert {sample["dataset"] for sample in samples} == {str(json_path), str(shards)}


def test_pictures_of_annotations_are_relative_to_the_image_root(tmp_path) -> None:
    write_annotations(tmp_path, {"a.png": ["a0"]})
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "set.json").rename(tmp_path / "elsewhere" / "set.json")
    assert eval_stream(tmp_path / "elsewhere/set.json", image_root=tmp_path).sample(0)["key"] == "a.png"


def test_each_batch_has_the_same_share_of_each_data_set(tmp_path) -> None:
    small, large = write_shard_set(tmp_path / "human", [7], "h"), write_shard_set(tmp_path / "web", [40, 40], "w")
    stream = eval_stream(f"{small}=0.2", f"{large}=0.8")
    for batch in range(30):
        human = sum(key.startswith("h") for key in sample_keys(stream, 10, 10 * batch))
        assert human == 2
    assert len(stream) == 87


def test_weights_for_only_some_data_sets_are_refused(tmp_path) -> None:
    small, large = write_shard_set(tmp_path / "a", [3], "a"), write_shard_set(tmp_path / "b", [7], "b")
    with pytest.raises(ValueError, match=r"a weight or none: \S+/b has none"):
        eval_stream(f"{small}=0.2", large)


def test_without_weights_each_picture_has_the_same_share(tmp_path) -> None:
    small, large = write_shard_set(tmp_path / "a", [6], "a"), write_shard_set(tmp_path / "b", [18], "b")
    stream = eval_stream(small, large)
    for epoch in range(3):
        assert len(set(sample_keys(stream, 24, 24 * epoch))) == 24


def test_weights_are_split_from_paths(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("date=2024").mkdir()
    assert parse_spec("data") == ("data", None)
    assert parse_spec("data=0.25") == ("data", Fraction(1, 4))
    assert parse_spec("a=b/data=3") == ("a=b/data", 3)
    assert parse_spec("a=b/data") == ("a=b/data", None)
    assert parse_spec("date=2024") == ("date=2024", None)  # exists under this name
    assert parse_spec("date=2024=2") == ("date=2024", 2)
    assert parse_spec("data=1/0") == ("data=1/0", None)
    fsspec.filesystem("memory").pipe("/specs/year=2024/00000.tar", b"")
    assert parse_spec("memory://specs/year=2024") == ("memory://specs/year=2024", None)
    assert parse_spec("memory://specs/year=2024=2") == ("memory://specs/year=2024", 2)
    assert parse_spec("memory://specs/year=3") == ("memory://specs/year", 3)
    for weight in ("0", "-1"):
        with pytest.raises(ValueError, match="must be above 0"):
            parse_spec(f"data={weight}")
    with pytest.raises(ValueError, match="at least one data set"):
        eval_stream()


def test_an_unreadable_picture_is_replaced_by_the_next_and_named(tmp_path) -> None:
    intact = sample_keys(eval_stream(write_shard_set(tmp_path / "whole", [6, 6])), 12)
    broken = intact[3]
    stream = eval_stream(write_shard_set(tmp_path / "cut", [6, 6], broken=(broken,)))
    assert sample_keys(stream, 12) == [*intact[:3], intact[4], *intact[4:]]
    ((name, reason),) = stream.problems.items()
    assert name.endswith(f".tar/{broken}") and reason == "no known picture format"
    assert stream.pop_problems() == {name: reason} and stream.pop_problems() == {}
    sample_keys(stream, 12)
    assert stream.pop_problems() == {} and len(stream.problems) == 1  # reported once


def test_a_truncated_tar_is_read_up_to_the_damage_and_named(tmp_path) -> None:
    path = write_shard_set(tmp_path, [6, 6]) / "00001.tar"
    path.write_bytes(path.read_bytes()[: 512 * 9])  # two pictures with their texts, and a part of the third
    stream = eval_stream(tmp_path)
    assert len(stream) == 8 and len(set(sample_keys(stream, 8))) == 8
    assert "truncated" in stream.pop_problems()["00001.tar"]


def test_too_many_unreadable_pictures_in_a_row_are_an_error(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(stream_module, "MAX_REPLACEMENTS", 20)
    stream = eval_stream(write_shard_set(tmp_path, [3], broken=("00000", "00001", "00002")))
    with pytest.raises(ValueError, match=r"20 pictures in a row of .* cannot be read, the last: 00000.tar/0000"):
        stream.sample(0)
