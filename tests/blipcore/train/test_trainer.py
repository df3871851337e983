"""The training loop on a small task: exact resume, accumulation, clipping, damaged data and checkpoints."""

import json
import shutil

import pytest
import torch
from toy_training import Brightness, Killed, kill_at_batch, read_weights, same_tensors, toy_trainer, untimed_records

from blipcore.data import stream as stream_module
from blipcore.train import trainer as trainer_module
from blipcore.train.checkpoint import random_state


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("step", [3, 7, 12])
def test_a_killed_run_resumes_bit_for_bit(shards, tmp_path, step, accumulate) -> None:
    uninterrupted = toy_trainer(shards, tmp_path / "uninterrupted", accumulate=accumulate)
    uninterrupted.fit()
    with pytest.raises(Killed):
        toy_trainer(shards, tmp_path / "killed", kill_at_batch(step * accumulate), accumulate=accumulate).fit()
    resumed = toy_trainer(shards, tmp_path / "killed", accumulate=accumulate)
    resumed.fit()
    assert same_tensors(read_weights(tmp_path / "uninterrupted"), read_weights(tmp_path / "killed"))
    assert torch.equal(uninterrupted.task.queue, resumed.task.queue)
    assert untimed_records(tmp_path / "uninterrupted") == untimed_records(tmp_path / "killed")
    assert [record["step"] for record in untimed_records(tmp_path / "killed")] == [5, 10, 12]
    # No sample is repeated and none is left out.
    assert uninterrupted.task.batch_keys[-len(resumed.task.batch_keys) :] == resumed.task.batch_keys


def test_a_checkpoint_of_an_earlier_version_resumes(shards, tmp_path) -> None:
    """The step of the last validation had the name `judged_step`."""
    with pytest.raises(Killed):
        toy_trainer(shards, tmp_path, kill_at_batch(6)).fit()
    file = tmp_path / "checkpoints" / "step-000004" / "state.json"
    state = json.loads(file.read_text())
    del state["validated_step"]
    file.write_text(json.dumps(state | {"judged_step": 4}))
    run = toy_trainer(shards, tmp_path)
    run.fit()
    assert run.state.validated_step == 4 and len(run.task.batch_keys) == 8


def test_workers_and_logging_do_not_change_the_result(shards, tmp_path) -> None:
    toy_trainer(shards, tmp_path / "alone").fit()
    toy_trainer(shards, tmp_path / "workers", workers=1, log_every=3, save_every=7, keep=1).fit()
    assert same_tensors(read_weights(tmp_path / "alone"), read_weights(tmp_path / "workers"))


def test_clipping_bounds_the_gradient(shards, tmp_path) -> None:
    norms = []

    def on_batch(task: Brightness, batch: dict) -> None:
        batch["numbers"] += 1000.0

    run = toy_trainer(shards, tmp_path, on_batch, clip=0.5, steps=2)
    run.task.after_step = lambda outputs: norms.append(
        torch.stack([p.grad.norm() for p in run.task.parameters() if p.grad is not None]).norm().item()
    )
    run.fit()
    assert norms == pytest.approx([0.5, 0.5], rel=1e-3)


def test_micro_batches_add_up_to_one_batch(shards, tmp_path) -> None:
    """Without dropout and queue, two micro-batches of 4 step like one batch of 8."""
    gradients = []
    for folder, changes in (("one", {"batch_size": 8}), ("two", {"batch_size": 4, "accumulate": 2})):
        run = toy_trainer(shards, tmp_path / folder, steps=1, **changes)
        run.task.model[2].p = 0.0
        run.task.after_step = lambda outputs, run=run: gradients.append(run.task.model[1].weight.grad.clone())
        run.fit()
    torch.testing.assert_close(*gradients)


def test_unreadable_pictures_are_reported_at_the_end(shards, tmp_path, capfd) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(shards, broken)
    data = bytearray((broken / "00001.tar").read_bytes())
    data[512:530] = bytes(18)  # the first picture's signature
    (broken / "00001.tar").write_bytes(data)
    with pytest.raises(Killed):
        toy_trainer(broken, tmp_path / "run", kill_at_batch(11)).fit()
    summary = toy_trainer(broken, tmp_path / "run").fit()
    assert summary["unreadable"] == 1
    assert summary["problems"] == {"00001.tar/10000": "no known picture format"}
    assert "unreadable, replaced by the next: 00001.tar/10000" in capfd.readouterr().err


def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(shards, tmp_path, capfd) -> None:
    toy_trainer(shards, tmp_path / "uninterrupted").fit()
    with pytest.raises(Killed):
        toy_trainer(shards, tmp_path / "killed", kill_at_batch(11)).fit()
    next((tmp_path / "killed/checkpoints/step-000008").glob("*.safetensors")).write_bytes(b"half")
    toy_trainer(shards, tmp_path / "killed").fit()
    output = capfd.readouterr().err
    assert "step-000008 is damaged and skipped" in output and "resuming from step 4 of 12" in output
    assert same_tensors(read_weights(tmp_path / "uninterrupted"), read_weights(tmp_path / "killed"))
    assert untimed_records(tmp_path / "uninterrupted") == untimed_records(tmp_path / "killed")


def test_epochs_become_steps(shards, tmp_path) -> None:
    summary = toy_trainer(shards, tmp_path, steps=0, epochs=0.5).fit()
    assert summary["steps"] == 5  # 40 pictures in batches of 4


def test_epochs_are_kept_when_the_number_of_processes_changes_and_the_run_is_killed_again(shards, tmp_path) -> None:
    """Four steps of two processes with 4 pictures each leave 8 of the 40 pictures: two steps of one process."""
    epoch = {"steps": 0, "epochs": 1.0, "save_every": 1}
    with pytest.raises(Killed):
        toy_trainer(shards, tmp_path, kill_at_batch(5), **epoch).fit()
    file = tmp_path / "checkpoints" / "step-000004" / "state.json"
    state = json.loads(file.read_text())
    file.write_text(json.dumps(state | {"sums": state["sums"] * 2, "position": 32}))
    with pytest.raises(Killed):
        toy_trainer(shards, tmp_path, kill_at_batch(2), **epoch).fit()
    summary = toy_trainer(shards, tmp_path, **epoch).fit()
    assert (summary["steps"], summary["pictures"]) == (6, 40)


def test_a_run_resumes_with_an_additional_random_generator(shards, tmp_path, monkeypatch) -> None:
    """As on a GPU after a CPU."""
    with pytest.raises(Killed):
        toy_trainer(shards, tmp_path, kill_at_batch(5)).fit()
    monkeypatch.setattr(trainer_module, "random_state", lambda device: random_state(device) | {"more": torch.zeros(9)})
    assert toy_trainer(shards, tmp_path).fit()["steps"] == 12


@pytest.mark.parametrize("workers", [0, 1])
def test_shards_changed_during_training_are_an_error_of_one_sentence(shards, tmp_path, workers, monkeypatch) -> None:
    monkeypatch.setattr(stream_module, "MAX_REPLACEMENTS", 3)
    broken = tmp_path / "broken"
    shutil.copytree(shards, broken)
    run = toy_trainer(broken, tmp_path / "run", workers=workers)
    for tar in broken.iterdir():
        tar.write_bytes(bytes(tar.stat().st_size))
    with pytest.raises(ValueError, match=r"changed since it was opened: its part . held 20 .* now holds 0") as error:
        run.fit()
    assert "Traceback" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_pictures_damaged_during_training_are_an_error_of_one_sentence(tmp_path, workers, monkeypatch) -> None:
    monkeypatch.setattr(stream_module, "MAX_REPLACEMENTS", 3)
    rows = [{"image": f"{number}.png", "caption": "0.5"} for number in range(8)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    for row in rows:
        (tmp_path / row["image"]).write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"^3 pictures in a row of .*rows.json cannot be read"):
        toy_trainer(tmp_path / "rows.json", tmp_path / "run", workers=workers).fit()


def test_frozen_parameters_do_not_change(shards, tmp_path) -> None:
    run = toy_trainer(shards, tmp_path, freeze=["1.*", "3.bia?"])
    before = {name: value.clone() for name, value in run.task.model.state_dict().items()}
    run.fit()
    after = read_weights(tmp_path)
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["3.weight"]
    with pytest.raises(ValueError, match=r"No parameter to freeze matches 'text\.\*'; the model has, for ex.* 1\.bias"):
        toy_trainer(shards, tmp_path / "other", freeze=["text.*"]).fit()
