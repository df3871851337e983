"""Checkpoints: whole or absent, the newest readable one counts, random states come back."""

import json
import random

import numpy as np
import pytest
import torch

from blipcore.train.checkpoint import READABLE, TENSORS, Checkpoints, random_state, set_random_state


def state(value: int) -> dict:
    return {"task": {"weight": torch.full((10,), float(value))}}


def names(store: Checkpoints) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


def test_the_last_ones_are_kept_and_the_newest_restored(tmp_path):
    store = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert store.restore() is None
    for step in (5, 10, 1_000_000):
        store.save(step, state(step), {"step": step, "seconds": 1.5})
    assert names(store) == ["step-000010", "step-1000000"]
    tensors, readable, warnings = store.restore()
    assert tensors["task"]["weight"][0] == 1_000_000 and readable["step"] == 1_000_000 and warnings == []
    store.save(1_000_000, state(1), {"step": 1_000_000})  # again, after a resume
    assert store.restore()[0]["task"]["weight"][0] == 1 and len(names(store)) == 2


def test_order_is_by_number_not_by_name(tmp_path):
    store = Checkpoints(tmp_path, keep=2)
    for step in (999_999, 1_000_000, 1_000_001):
        store.save(step, state(step), {"step": step})
    assert store.restore()[1]["step"] == 1_000_001 and names(store) == ["step-1000000", "step-1000001"]


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "no json", "bad json"])
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path, damage):
    store = Checkpoints(tmp_path, keep=3)
    store.save(1, state(1), {"step": 1})
    newest = store.save(2, state(2), {"step": 2})
    data = (newest / TENSORS).read_bytes()
    if damage == "cut":
        (newest / TENSORS).write_bytes(data[:-100])
    elif damage == "empty":
        (newest / TENSORS).write_bytes(b"")
    elif damage == "flipped":  # of the right length, but no archive
        (newest / TENSORS).write_bytes(bytes(len(data)))
    elif damage == "no json":
        (newest / READABLE).unlink()
    else:
        (newest / READABLE).write_text('{"bytes": ')
    tensors, readable, warnings = store.restore()
    assert readable["step"] == 1 and tensors["task"]["weight"][0] == 1
    assert damage == "no json" or ("step-000002" in warnings[0] and "damaged" in warnings[0])


def test_only_damaged_ones_is_an_error_not_a_fresh_start(tmp_path):
    store = Checkpoints(tmp_path, keep=3)
    (store.save(1, state(1), {"step": 1}) / TENSORS).write_bytes(b"")
    with pytest.raises(ValueError, match="no checkpoint can be read"):
        store.restore()


def test_a_kill_while_writing_leaves_the_one_before(tmp_path, monkeypatch):
    store = Checkpoints(tmp_path, keep=1)
    store.save(1, state(1), {"step": 1})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt  # neither OSError nor RuntimeError: nothing tidies up

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        store.save(2, state(2), {"step": 2})
    assert store.restore()[1]["step"] == 1
    monkeypatch.undo()
    store.save(2, state(2), {"step": 2})
    assert names(store) == ["step-000002"]  # and what was left behind is gone


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("write failed")])
def test_a_full_disk_leaves_the_ones_before_and_says_so(tmp_path, monkeypatch, error):
    store = Checkpoints(tmp_path, keep=1)
    store.save(1, state(1), {"step": 1})

    def full(_: object, path) -> None:
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"could not write .*step-000002, the newest complete one is .*step-000001"):
        store.save(2, state(2), {"step": 2})
    assert names(store) == ["step-000001"]


def test_random_states_come_back(tmp_path):
    def draws() -> list:
        return [torch.rand(3).tolist(), random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn()]

    draws()  # leaves half a pair of gaussians behind in two of the generators
    store = Checkpoints(tmp_path, keep=1)
    store.save(1, {"random": random_state()}, {"step": 1})
    expected = draws()
    draws()
    set_random_state(store.restore()[0]["random"])
    assert draws() == expected


def test_the_readable_part_is_json(tmp_path):
    path = Checkpoints(tmp_path, keep=1).save(3, state(3), {"seconds": 1.25})
    assert json.loads((path / READABLE).read_text()) == {
        "seconds": 1.25,
        "step": 3,
        "bytes": (path / TENSORS).stat().st_size,
    }
