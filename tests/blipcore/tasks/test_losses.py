"""The losses against their definitions."""

import math

import pytest
import torch

from blipcore.tasks.losses import (
    IGNORE_INDEX,
    clamp_temperature,
    itc_loss,
    itm_loss,
    lm_loss,
    lm_loss_per_text,
    sample_negatives,
    soft_targets,
)


def test_soft_targets_mix_momentum_distributions_and_hard_targets() -> None:
    logits, hard = torch.randn(3, 5), torch.eye(3, 5)
    mixed = soft_targets(logits, hard, 0.4)
    torch.testing.assert_close(mixed.sum(1), torch.ones(3))
    torch.testing.assert_close(mixed, 0.4 * logits.softmax(1) + 0.6 * hard)
    assert soft_targets(logits, hard, 0.0) is hard


def test_itc_of_equal_similarities_is_the_log_of_the_candidates() -> None:
    flat, targets = torch.zeros(4, 10), torch.eye(4, 10)
    assert itc_loss(flat, flat, targets, targets).item() == pytest.approx(math.log(10))


def test_itm_prior_is_the_entropy_of_one_in_three() -> None:
    """The loss of a filter that has learned the share of positives alone: H(1/3) = 0.6365 (BLIP#200)."""
    logits = torch.tensor([2 / 3, 1 / 3]).log().expand(9, 2)
    matched = torch.tensor([1, 0, 0] * 3)
    assert itm_loss(logits, matched).item() == pytest.approx(0.6365, abs=1e-4)


def test_negatives_are_never_forbidden_and_follow_the_weights() -> None:
    torch.manual_seed(0)
    weights = torch.tensor([[9.0, 1.0, 3.0], [1.0, 9.0, 0.0], [0.0, 0.0, 9.0]])
    forbidden = torch.eye(3, dtype=torch.bool)
    columns = torch.stack([sample_negatives(weights, forbidden, "multinomial") for _ in range(2000)])
    assert not (columns == torch.arange(3)).any()
    assert (columns[:, 0] == 2).float().mean().item() == pytest.approx(0.75, abs=0.05)
    assert (columns[:, 1] == 0).all()
    assert set(columns[:, 2].tolist()) == {0, 1}, "a row without weight draws among the others"
    assert sample_negatives(weights, forbidden, "argmax")[0] == 2


def test_lm_loss_shifts_smooths_and_skips() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 4, 7), torch.tensor([[1, 2, 3, IGNORE_INDEX], [1, 5, IGNORE_INDEX, IGNORE_INDEX]])
    log_p = logits.log_softmax(-1)
    targets = [(0, 0, 2), (0, 1, 3), (1, 0, 5)]  # row, position, next token
    expected = [-(0.9 * log_p[b, t, n] + 0.1 * log_p[b, t].mean()) for b, t, n in targets]
    torch.testing.assert_close(lm_loss(logits, labels), torch.stack(expected).mean())


def test_temperature_is_clamped_in_place() -> None:
    temp = torch.nn.Parameter(torch.tensor(0.7))
    clamp_temperature(temp)
    assert temp.item() == 0.5


def test_losses_per_text_add_up_to_the_mean_over_tokens() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 5, 11), torch.randint(11, (3, 5))
    labels[1, 3:] = IGNORE_INDEX
    tokens = int((labels[:, 1:] != IGNORE_INDEX).sum())
    torch.testing.assert_close(lm_loss_per_text(logits, labels).sum() / tokens, lm_loss(logits, labels))
