"""The order of training: a function of seed and position, whatever the workers, shards and damage."""

import io
import json
import os
import pickle
import random
import signal
import subprocess
import tarfile
from collections import Counter
from fractions import Fraction
from itertools import islice
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from blipcore.data import stream as stream_module
from blipcore.data.loader import make_loader
from blipcore.data.shuffle import Mixture, Shuffle, integer_shares
from blipcore.data.stream import Stream, parse_spec
from blipcore.data.transforms import eval_transform, train_transform


def picture(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value % 256, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def shard_set(folder: Path, counts: list[int], name: str = "", broken: tuple[str, ...] = ()) -> Path:
    """Shards of pictures; those whose key is in `broken` cannot be decoded."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard, count in enumerate(counts):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for row in range(count):
                key = f"{name}{shard:02d}{row:03d}"
                data = b"broken" if key in broken else picture(row)
                for extension, content in (("png", data), ("txt", f"text of {key}".encode())):
                    member = tarfile.TarInfo(f"{key}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return folder


def keys(stream: Stream, count: int, start: int = 0) -> list[str]:
    return [stream.sample(position)["key"] for position in range(start, start + count)]


def plain(*specs, seed: int = 0, **options) -> Stream:
    return Stream([str(spec) for spec in specs], eval_transform(4), seed, **options)


# --- order -----------------------------------------------------------------------------------------------------------


def test_an_epoch_holds_every_picture_once_and_epochs_differ(tmp_path):
    stream = plain(shard_set(tmp_path, [5, 0, 9, 1, 7]), window=2)
    epochs = [keys(stream, 22, start=22 * epoch) for epoch in range(3)]
    assert len(stream) == 22 and all(len(set(epoch)) == 22 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert keys(plain(tmp_path, window=2), 66) == [*epochs[0], *epochs[1], *epochs[2]]  # and the seed alone decides
    assert keys(plain(tmp_path, window=2, seed=1), 22) != epochs[0]


def test_any_position_can_be_asked_in_any_order(tmp_path):
    stream = plain(shard_set(tmp_path, [6, 6, 6]), window=2)
    positions = list(range(54))
    expected = dict(zip(positions, keys(stream, 54), strict=True))
    random.Random(0).shuffle(positions)
    assert {position: stream.sample(position)["key"] for position in positions} == expected
    assert [sample["key"] for sample in islice(stream, 10)] == [expected[position] for position in range(10)]


def test_a_window_mixes_its_shards_and_no_others():
    shuffle = Shuffle([50] * 6, (0,), window=3)
    shards = [shuffle.locate(position).shard for position in range(300)]
    first, second = set(shards[:150]), set(shards[150:])
    assert len(first) == len(second) == 3 and not first & second
    assert max(len(list(run)) for run in _runs(shards[:150])) < 15  # not shard after shard
    assert len({place for place in map(shuffle.locate, range(300))}) == 300


def _runs(values: list[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    for value in values:
        runs.append([*runs.pop(), value]) if runs and runs[-1][0] == value else runs.append([value])
    return runs


def test_shuffles_are_uniform():
    """Every picture of a window comes first about equally often."""
    shuffle = Shuffle([4, 4], (7,), window=2)
    firsts = Counter(shuffle.locate(8 * epoch)[1:] for epoch in range(4000))
    assert len(firsts) == 8 and all(400 < count < 600 for count in firsts.values())


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores, on purpose
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_give_the_order_of_one_process(tmp_path, workers):
    shard_set(tmp_path, [5, 9, 7], broken=("00001", "02003"))

    def batches(count: int, start: int) -> list[tuple]:
        stream = Stream([str(tmp_path)], train_transform(4, 0.2, True, 0.5), 3)
        loader = make_loader(stream, list, 4, 4 * start, 12 - start, count)
        return [([(s["key"], s["text"], s["image"].tolist()) for s in batch], met) for batch, met in loader]

    alone, spread = batches(0, 0), batches(workers, 0)
    assert [samples for samples, _ in alone] == [samples for samples, _ in spread]
    assert {name for _, met in spread for name in met} == {"00000.tar/00001", "00002.tar/02003"}
    assert [samples for samples, _ in batches(workers, 5)] == [samples for samples, _ in alone[5:]]


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="this system does not tell who sends a signal")
def test_a_signal_to_all_processes_leaves_the_workers_to_the_one_that_trains(tmp_path):
    batches = iter(make_loader(plain(shard_set(tmp_path, [5])), list, 2, 0, 9, workers=1))
    next(batches)
    (worker,) = batches._workers
    for name in ("TERM", "INT", "USR1"):
        subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)  # a stranger's, not the parent's
    assert len(list(batches)) == 8
    batches = iter(make_loader(plain(tmp_path), list, 2, 0, 9, workers=1))
    next(batches)
    (worker,) = batches._workers
    worker.terminate()  # as Python does with a worker that is left when it ends
    worker.join(30)
    assert worker.exitcode == 0


def test_a_signal_to_the_group_spares_the_workers_where_nothing_tells_who_sends_it(tmp_path, monkeypatch):
    monkeypatch.delattr(signal, "sigwaitinfo", raising=False)  # as on macOS
    batches = iter(make_loader(plain(shard_set(tmp_path, [5])), list, 2, 0, 9, workers=1))
    next(batches)
    (worker,) = batches._workers
    assert os.getpgid(worker.pid) == worker.pid != os.getpgid(0)
    worker.terminate()  # as Python does with a worker that is left when it ends
    worker.join(30)
    assert worker.exitcode == 0


def test_a_loader_draws_nothing_from_the_generator_of_dropout(tmp_path):
    stream = plain(shard_set(tmp_path, [8]))
    before = torch.get_rng_state()
    list(make_loader(stream, list, 2, 0, 3, workers=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_stream_can_be_pickled(tmp_path):
    stream = plain(shard_set(tmp_path, [5, 5]))
    expected = keys(stream, 10)
    assert keys(pickle.loads(pickle.dumps(stream)), 10) == expected


def test_only_the_shards_of_a_window_are_held(tmp_path, monkeypatch):
    stream = plain(shard_set(tmp_path, [3] * 12), window=2)
    loads, load = [], stream.datasets[0].load
    monkeypatch.setattr(stream.datasets[0], "load", lambda shard: loads.append(shard) or load(shard))
    keys(stream, 36)
    assert sorted(loads) == list(range(12))  # each once an epoch: held while its window lasts ...
    keys(stream, 36)
    assert len(loads) > 20  # ... and not much longer


# --- texts and ids ---------------------------------------------------------------------------------------------------


def annotated(tmp_path: Path, texts: dict[str, list[str]]) -> Path:
    for row, name in enumerate(texts):
        (tmp_path / name).write_bytes(picture(row))
    path = tmp_path / "set.json"
    path.write_text(json.dumps([{"image": name, "caption": own} for name, own in texts.items()]))
    return path


def test_one_text_of_a_picture_is_drawn_anew_every_epoch(tmp_path):
    stream = plain(annotated(tmp_path, {"a.png": ["a0", "a1", "a2"], "b.png": ["b0"]}))
    drawn = Counter(stream.sample(position)["text"] for position in range(2 * 600))
    assert drawn["b0"] == 600 and sum(drawn.values()) == 1200
    assert all(150 < drawn[text] < 250 for text in ("a0", "a1", "a2"))
    again = Counter(stream.sample(position)["text"] for position in range(2 * 600))
    assert again == drawn


def test_samples_are_complete_and_ids_tell_pictures_apart(tmp_path):
    shards = shard_set(tmp_path / "shards", [4])
    json_path = annotated(tmp_path, {"a.png": ["a0", "a1"], "b.png": ["b0"]})
    stream = plain(json_path, shards, shards)
    samples = [stream.sample(position) for position in range(40)]
    assert set(samples[0]) == {"image", "text", "key", "image_id", "dataset", "epoch"}
    assert samples[0]["image"].shape == (3, 4, 4) and samples[0]["image"].dtype == torch.uint8
    names = {}
    for sample in samples:
        names.setdefault(sample["image_id"], set()).add(sample["key"])
    assert all(len(own) == 1 for own in names.values()) and len(names) == 2 + 4 + 4
    assert {sample["dataset"] for sample in samples} == {str(json_path), str(shards)}


def test_image_root(tmp_path):
    annotated(tmp_path, {"a.png": ["a0"]})
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "set.json").rename(tmp_path / "elsewhere" / "set.json")
    assert plain(tmp_path / "elsewhere/set.json", image_root=tmp_path).sample(0)["key"] == "a.png"


# --- mixing ----------------------------------------------------------------------------------------------------------


def test_every_batch_has_the_same_share_of_each_data_set(tmp_path):
    small, large = shard_set(tmp_path / "human", [7], "h"), shard_set(tmp_path / "web", [40, 40], "w")
    stream = plain(f"{small}=0.2", f"{large}=0.8")
    for batch in range(30):
        human = sum(key.startswith("h") for key in keys(stream, 10, 10 * batch))
        assert human == 2
    assert len(stream) == 87


def test_a_weight_beside_none_is_refused(tmp_path):
    small, large = shard_set(tmp_path / "a", [3], "a"), shard_set(tmp_path / "b", [7], "b")
    with pytest.raises(ValueError, match=r"a weight or none: \S+/b has none"):
        plain(f"{small}=0.2", large)


def test_without_weights_each_picture_counts_the_same(tmp_path):
    small, large = shard_set(tmp_path / "a", [6], "a"), shard_set(tmp_path / "b", [18], "b")
    stream = plain(small, large)
    for epoch in range(3):
        assert len(set(keys(stream, 24, 24 * epoch))) == 24


@pytest.mark.parametrize("sources", [2, 3, 6])
def test_shares_are_kept_in_every_run_of_samples(sources):
    rng = random.Random(sources)
    for _ in range(20):
        weights = [Fraction(rng.randint(1, 60)) for _ in range(sources)]
        mixture = Mixture(weights)
        order = [mixture.locate(position) for position in range(3 * mixture.period)]
        for source, weight in enumerate(weights):
            taken = np.cumsum([0] + [which == source for which, _ in order])
            excess = taken - np.arange(len(taken)) * float(weight / sum(weights))
            limit = 1.0 if sources == 2 else 2.0
            assert excess.max() - excess.min() <= limit + 1e-9  # any run of samples is a difference of two of these
            places = [place for which, place in order if which == source]
            assert places == list(range(len(places)))


def test_shares_too_fine_for_the_period_are_rounded():
    assert integer_shares([Fraction(2, 10), Fraction(8, 10)], 65536) == [1, 4]
    assert integer_shares([Fraction(12000), Fraction(2000)], 65536) == [6, 1]
    assert integer_shares([Fraction(100_000_007), Fraction(3)], 65536) == [65536, 1]
    rounded = integer_shares([Fraction("0.123456789"), Fraction("0.876543211")], 65536)
    assert rounded[0] / sum(rounded) == pytest.approx(0.123456789, abs=1e-5)


def test_specs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("date=2024").mkdir()
    assert parse_spec("data") == ("data", None)
    assert parse_spec("data=0.25") == ("data", Fraction(1, 4))
    assert parse_spec("a=b/data=3") == ("a=b/data", 3)
    assert parse_spec("a=b/data") == ("a=b/data", None)
    assert parse_spec("date=2024") == ("date=2024", None)  # exists as it stands
    assert parse_spec("date=2024=2") == ("date=2024", 2)
    assert parse_spec("data=1/0") == ("data=1/0", None)
    fsspec.filesystem("memory").pipe("/specs/year=2024/00000.tar", b"")
    assert parse_spec("memory://specs/year=2024") == ("memory://specs/year=2024", None)
    assert parse_spec("memory://specs/year=2024=2") == ("memory://specs/year=2024", 2)
    assert parse_spec("memory://specs/year=3") == ("memory://specs/year", 3)
    for weight in ("0", "-1"):
        with pytest.raises(ValueError, match="must be above 0"):
            parse_spec(f"data={weight}")
    with pytest.raises(ValueError, match="no data set"):
        plain()


# --- damage ----------------------------------------------------------------------------------------------------------


def test_an_unreadable_picture_is_replaced_by_the_next_and_named(tmp_path):
    whole = keys(plain(shard_set(tmp_path / "whole", [6, 6])), 12)
    broken = whole[3]
    stream = plain(shard_set(tmp_path / "cut", [6, 6], broken=(broken,)))
    assert keys(stream, 12) == [*whole[:3], whole[4], *whole[4:]]
    (name, reason), *others = stream.problems.items()
    assert not others and name.endswith(f".tar/{broken}") and reason == "no known picture format"
    assert stream.pop_problems() == {name: reason} and stream.pop_problems() == {}
    keys(stream, 12)
    assert stream.pop_problems() == {} and len(stream.problems) == 1  # once, however often it is met


def test_a_truncated_tar_is_read_as_far_as_it_goes_and_named(tmp_path):
    path = shard_set(tmp_path, [6, 6]) / "00001.tar"
    path.write_bytes(path.read_bytes()[: 512 * 9])  # two pictures with their texts, and a piece
    stream = plain(tmp_path)
    assert len(stream) == 8 and len(set(keys(stream, 8))) == 8
    assert "truncated" in stream.pop_problems()["00001.tar"]


def test_nothing_but_damage_ends_in_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(stream_module, "MAX_REPLACEMENTS", 20)
    stream = plain(shard_set(tmp_path, [3], broken=("00000", "00001", "00002")))
    with pytest.raises(ValueError, match=r"20 pictures in a row of .* cannot be read, the last: 00000.tar/0000"):
        stream.sample(0)
