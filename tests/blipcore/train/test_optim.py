"""Learning rates against the official formulas, and the parameters that AdamW trains."""

import math

import pytest
import torch
from torch import nn

from blipcore.train.optim import TrainConfig, learning_rate, make_adamw


def rates(config: TrainConfig) -> list[float]:
    return [learning_rate(step, config) for step in range(config.steps)]


def test_the_cosine_schedule_starts_after_the_warm_up() -> None:
    config = TrainConfig(steps=110, lr=2.0, min_lr=0.5, warmup_steps=10, warmup_lr=1.0)
    lr = rates(config)
    assert lr[:10] == pytest.approx([1.0 + 0.1 * step for step in range(10)])
    assert lr[10:] == pytest.approx([0.5 + 1.5 * 0.5 * (1 + math.cos(math.pi * t / 100)) for t in range(100)])
    assert learning_rate(110, config) == pytest.approx(0.5)


def test_the_official_pretraining_schedule() -> None:
    """3e-4 * 0.9^epoch, at least 1e-6, and during the warm-up at most its line."""
    config = TrainConfig(
        steps=60000, lr=3e-4, min_lr=1e-6, warmup_steps=3000, schedule="exponential", decay=0.9, decay_steps=1000
    )
    for step in (0, 1, 999, 1000, 2500, 2999, 3000, 12345, 59999):
        official = max(1e-6, 3e-4 * 0.9 ** (step // 1000))
        if step < 3000:
            official = min(official, 1e-6 + (3e-4 - 1e-6) * step / 3000)
        assert learning_rate(step, config) == pytest.approx(official, rel=1e-12)


def test_the_official_finetuning_schedule() -> None:
    """lr/2 (1 + cos(pi e/E)) in epoch e of E: 1, .905, .655, .345, .095 for five."""
    config = TrainConfig(steps=50, lr=1e-5, schedule="cosine_by_epoch", decay_steps=10)
    official = [1e-5 * 0.5 * (1 + math.cos(math.pi * epoch / 5)) for epoch in range(5)]
    assert rates(config) == pytest.approx([rate for rate in official for _ in range(10)])


def test_the_constant_schedule_and_an_unknown_one() -> None:
    assert set(rates(TrainConfig(steps=5, lr=0.1, schedule="constant"))) == {0.1}
    config = TrainConfig(steps=5)
    config.schedule = "linear"
    with pytest.raises(ValueError, match="No schedule is called 'linear'"):
        learning_rate(0, config)


def test_either_steps_or_epochs_are_given() -> None:
    assert TrainConfig(steps=7).total_steps(1000) == 7
    assert TrainConfig(epochs=2.5, batch_size=10, accumulate=2).total_steps(1000, ranks=5) == 25
    assert TrainConfig(epochs=0.001).total_steps(10) == 1
    for config in (TrainConfig(), TrainConfig(steps=1, epochs=1.0)):
        with pytest.raises(ValueError, match="Set either steps or epochs above 0"):
            config.total_steps(10)


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"keep": 0}, {"lr": -1.0}, {"warmup_steps": -1}, {"seed": -1}])
def test_impossible_settings_are_refused(bad) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        TrainConfig(**bad)


def test_weight_decay_on_every_trainable_parameter_as_official() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    model[0].bias.requires_grad_(False)
    optimizer = make_adamw(model, TrainConfig(lr=0.5, weight_decay=0.1))
    (group,) = optimizer.param_groups
    assert len(group["params"]) == 3 and group["weight_decay"] == 0.1
    before = model[1].weight.clone()
    for parameter in group["params"]:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model[1].weight, before * (1 - 0.5 * 0.1))
    with pytest.raises(ValueError, match="frozen"):
        make_adamw(model.requires_grad_(False), TrainConfig())
