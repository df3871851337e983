"""Checkpoints: complete or absent, restored from the newest readable one, with random states."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp

from blipcore.train.checkpoint import STATE_FILE, Checkpoints, random_state, set_random_state


def state(value: int) -> dict[str, torch.Tensor]:
    """A vector, a scalar, an empty tensor and integers."""
    return {
        "weight": torch.full((10,), float(value)),
        "step": torch.tensor(float(value)),
        "queue": torch.zeros(4, 0),
        "pointer": torch.tensor([value]),
    }


def restored(store: Checkpoints) -> tuple[dict[str, torch.Tensor], dict, list[str]] | None:
    tensors = state(-1)
    result = store.restore(lambda saved_state: tensors)
    return result and (tensors, *result)


def names(store: Checkpoints) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


def weights(checkpoint: Path) -> Path:
    return next(checkpoint.glob("*.safetensors"))


def test_the_last_checkpoints_are_kept_and_the_newest_is_restored(tmp_path) -> None:
    store = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert restored(store) is None
    for step in (5, 10, 1_000_000):
        store.save(step, state(step), {"step": step, "seconds": 1.5})
    assert names(store) == ["step-000010", "step-1000000"]
    tensors, saved_state, warnings = restored(store)
    assert all(torch.equal(tensors[name], value) for name, value in state(1_000_000).items())
    assert saved_state["step"] == 1_000_000 and warnings == []
    store.save(1_000_000, state(1), {"step": 1_000_000})  # repeated, as after a resume
    assert restored(store)[0]["weight"][0] == 1 and len(names(store)) == 2


def test_checkpoints_are_ordered_by_number_not_by_name(tmp_path) -> None:
    store = Checkpoints(tmp_path, keep=2)
    for step in (999_999, 1_000_000, 1_000_001):
        store.save(step, state(step), {"step": step})
    assert restored(store)[1]["step"] == 1_000_001 and names(store) == ["step-1000000", "step-1000001"]


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "gone", "no json", "bad json"])
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path, damage, recwarn, capfd) -> None:
    store = Checkpoints(tmp_path, keep=3)
    store.save(1, state(1), {"step": 1})
    newest = store.save(2, state(2), {"step": 2})
    data = weights(newest).read_bytes()
    if damage == "cut":
        weights(newest).write_bytes(data[:-4])
    elif damage == "empty":
        weights(newest).write_bytes(b"")
    elif damage == "flipped":  # of the right length, but without tensors
        weights(newest).write_bytes(bytes(len(data)))
    elif damage == "gone":
        weights(newest).unlink()
    elif damage == "no json":
        (newest / STATE_FILE).unlink()
    else:
        (newest / STATE_FILE).write_text('{"files": ')
    tensors, saved_state, warnings = restored(store)
    assert saved_state["step"] == 1 and tensors["weight"][0] == 1
    assert damage == "no json" or ("step-000002" in warnings[0] and "damaged" in warnings[0])
    # Others than UserWarning may come from objects of earlier tests, collected at this moment.
    user_warnings = [str(w.message) for w in recwarn if issubclass(w.category, UserWarning)]
    assert "Traceback" not in capfd.readouterr().err and user_warnings == []


def test_a_checkpoint_without_the_requested_tensors_counts_as_damaged(tmp_path) -> None:
    store = Checkpoints(tmp_path, keep=1)
    store.save(1, state(1), {"step": 1})
    with pytest.raises(ValueError, match="No checkpoint can be read"):
        store.restore(lambda saved_state: state(1) | {"more": torch.zeros(3)})


def test_if_all_checkpoints_are_damaged_the_run_does_not_start_anew(tmp_path) -> None:
    store = Checkpoints(tmp_path, keep=3)
    weights(store.save(1, state(1), {"step": 1})).write_bytes(b"")
    with pytest.raises(ValueError, match="No checkpoint can be read"):
        restored(store)


def test_a_kill_while_writing_leaves_the_checkpoint_before(tmp_path, monkeypatch) -> None:
    store = Checkpoints(tmp_path, keep=1)
    store.save(1, state(1), {"step": 1})

    def kill(*_: object, storage_writer) -> None:
        Path(storage_writer.path, "shard.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt  # neither OSError nor an error of torch, so nothing is cleaned up

    monkeypatch.setattr(dcp, "save", kill)
    with pytest.raises(KeyboardInterrupt):
        store.save(2, state(2), {"step": 2})
    assert names(store) == [".step-000002", "step-000001"] and restored(store)[1]["step"] == 1
    monkeypatch.undo()
    store.save(2, state(2), {"step": 2})
    assert names(store) == ["step-000002"]  # the incomplete one was removed


def test_a_full_disk_is_an_error_that_names_the_checkpoint_before(tmp_path, monkeypatch) -> None:
    store = Checkpoints(tmp_path, keep=1)
    store.save(1, state(1), {"step": 1})

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)  # called by torch's writer too
    with pytest.raises(OSError, match=r"Cannot write .*step-000002: .*No space left.*; the newest .*step-000001\."):
        store.save(2, state(2), {"step": 2})
    monkeypatch.undo()
    assert names(store) == ["step-000001"]


def test_random_states_are_restored(tmp_path) -> None:
    def draws() -> list:
        return [torch.rand(3).tolist(), random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn()]

    draws()  # two of the generators now hold the second of a pair of normal numbers
    store = Checkpoints(tmp_path, keep=1)
    store.save(1, random_state("cpu"), {"step": 1})
    expected = draws()
    draws()
    state = random_state("cpu")
    store.restore(lambda saved_state: state)
    set_random_state(state, "cpu")
    assert draws() == expected


def test_the_state_is_json_with_the_sizes_of_the_files(tmp_path) -> None:
    path = Checkpoints(tmp_path, keep=1).save(3, state(3), {"seconds": 1.25})
    file = weights(path)
    assert json.loads((path / STATE_FILE).read_text()) == {
        "seconds": 1.25,
        "step": 3,
        "files": {file.name: file.stat().st_size},
    }
