"""The benchmark runs, and the implementations that it times compute the same gradients."""

import sys

import pytest
import torch

pytest.importorskip("transformers")
import train_step

FP32 = ("official:fp32", "unfused:fp32", "ours:fp32")


@pytest.fixture(scope="module")
def variants() -> dict[str, train_step.StepVariant]:
    args = train_step.arguments(["--quick", "--device", "cpu", "--rows", *FP32])
    return {variant.name: variant for variant in train_step.build(args, "cpu")}


def gradients(variant: train_step.StepVariant) -> dict[str, torch.Tensor]:
    variant.task.eval()
    # The seed determines the negatives.
    torch.manual_seed(0)
    variant.optimizer.zero_grad()
    variant.losses()["loss"].backward()
    return {name: p.grad.clone() for name, p in variant.task.named_parameters() if p.grad is not None}


def test_the_fused_step_equals_separate_padded_passes(
    variants: dict[str, train_step.StepVariant],
) -> None:
    losses = train_step.check_agreement(list(variants.values()))
    assert all(0.1 < losses[name] < 10 for name in ("loss_itc", "loss_itm", "loss_lm"))
    ours, unfused = gradients(variants["ours"]), gradients(variants["unfused"])
    assert len(ours) > 100
    torch.testing.assert_close({f"task.{name}": x for name, x in ours.items()}, unfused, atol=1e-6, rtol=1e-4)


def test_different_losses_are_detected(variants: dict[str, train_step.StepVariant]) -> None:
    with torch.no_grad():
        variants["ours"].task.model.itm_head.bias[0] += 0.1
    with pytest.raises(AssertionError, match="loss_itm"):
        train_step.check_agreement(list(variants.values()))


def test_the_memory_of_a_step_includes_its_gradients(variants: dict[str, train_step.StepVariant]) -> None:
    gradient_bytes = sum(4 * p.numel() for p in variants["ours"].task.model.parameters())
    assert gradient_bytes < variants["ours"].peak_bytes() < variants["unfused"].peak_bytes() < 100 * gradient_bytes


def test_quick_run_prints_the_tables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["train_step.py", "--quick", "--device", "cpu", "--rows", *FP32])
    train_step.main()
    out = capsys.readouterr().out
    assert "| ours | fp32 |" in out and "losses and gradient norms agree" in out
