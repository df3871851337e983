"""The benchmark runs, and the paths that it times compute the same gradients."""

import sys

import pytest
import torch

pytest.importorskip("transformers")
import train_step

FP32 = ("official:fp32", "unfused:fp32", "ours:fp32")


@pytest.fixture(scope="module")
def paths() -> dict[str, train_step.Path]:
    args = train_step.arguments(["--quick", "--device", "cpu", "--rows", *FP32])
    return {path.name: path for path in train_step.build(args, "cpu")}


def gradients(path: train_step.Path) -> dict[str, torch.Tensor]:
    path.task.eval()
    torch.manual_seed(0)  # of the negatives
    path.optimizer.zero_grad()
    path.losses()["loss"].backward()
    return {name: p.grad.clone() for name, p in path.task.named_parameters() if p.grad is not None}


def test_one_shared_pass_has_the_losses_and_gradients_of_separate_padded_ones(paths):
    losses = train_step.agree(list(paths.values()))
    assert all(0.1 < losses[name] < 10 for name in ("loss_itc", "loss_itm", "loss_lm"))  # of an untrained model
    ours, unfused = gradients(paths["ours"]), gradients(paths["unfused"])
    assert len(ours) > 100
    torch.testing.assert_close({f"task.{name}": x for name, x in ours.items()}, unfused, atol=1e-6, rtol=1e-4)


def test_disagreement_is_noticed(paths):
    with torch.no_grad():
        paths["ours"].task.model.itm_head.bias[0] += 0.1
    with pytest.raises(AssertionError, match="loss_itm"):
        train_step.agree(list(paths.values()))


def test_memory_is_that_of_everything_a_step_allocates(paths):
    gradients_alone = sum(4 * p.numel() for p in paths["ours"].task.model.parameters())
    assert gradients_alone < paths["ours"].peak_bytes() < paths["unfused"].peak_bytes() < 100 * gradients_alone


def test_quick_run_prints_the_tables(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train_step.py", "--quick", "--device", "cpu", "--rows", *FP32])
    train_step.main()
    out = capsys.readouterr().out
    assert "| ours | fp32 |" in out and "losses and gradient norm of all paths agree" in out
