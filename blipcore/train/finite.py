"""Checks that losses, gradients and weights are finite, so that a NaN never reaches a checkpoint."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from blipcore import distributed
from blipcore.tasks.task import Task
from blipcore.train.parallel import all_weights_finite
from blipcore.train.state import TrainState

# A run that skips this many steps in a row does not recover.
MAX_SKIPPED = 100


class NonFiniteLossError(ValueError):
    """A loss, gradient or weight is infinite or NaN."""


class PendingCheck(NamedTuple):
    """The finiteness of one step, still on the device."""

    step: int
    keys: list[str]  # pictures of this process's part of the batch
    finite: Tensor  # scalar bool: finite on this process
    finite_share: Tensor  # scalar: share of the processes where it is finite


class FiniteCheck:
    """Collects the finiteness of steps, and reads it when the host waits for the device anyway.

    That is at the next log record or checkpoint. On a CPU, and with `nonfinite="skip"`, every step is read at once; it
    is applied only if finite.
    """

    def __init__(self, nonfinite: Literal["stop", "skip"], device: str) -> None:
        self.skip = nonfinite == "skip"
        self.check_every_step = self.skip or torch.device(device).type == "cpu"
        self.pending_checks: list[PendingCheck] = []

    def add(self, step: int, keys: list[str], finite: Tensor) -> None:
        """Add the finiteness of `step`, a scalar bool on the device."""
        self.pending_checks.append(PendingCheck(step, keys, finite, distributed.mean_over_ranks(finite.float())))

    def allows_update(self, state: TrainState) -> bool:
        """Return whether the optimizer may apply the step just added; count skipped steps in `state`.

        Raises NonFiniteLossError as `all_finite` does, and after MAX_SKIPPED skipped steps in a row.
        """
        if not self.check_every_step or self.all_finite():
            state.skipped_in_a_row = 0
            return True
        state.skipped += 1
        state.skipped_in_a_row += 1
        if state.skipped_in_a_row == MAX_SKIPPED:
            raise NonFiniteLossError(
                f"{MAX_SKIPPED} steps in a row, up to step {state.step}, had a loss or gradient that is not finite: "
                "lower the learning rate, or set a gradient clip."
            )
        return False

    def all_finite(self) -> bool:
        """Read the pending checks; if one is not finite, return False (when skipping) or raise NonFiniteLossError."""
        checks, self.pending_checks = self.pending_checks, []
        if not checks or torch.stack([check.finite_share for check in checks]).eq(1).all():
            return True
        if self.skip:
            return False
        first = next(check for check in checks if check.finite_share != 1)
        keys_per_rank = distributed.gather_objects([] if first.finite else first.keys)
        keys = [key for rank_keys in keys_per_rank for key in rank_keys]
        raise NonFiniteLossError(
            f"The loss or its gradient is not finite at step {first.step}; the pictures of its batch: "
            f"{', '.join(keys)}. Lower the learning rate, set a gradient clip, or set nonfinite=skip to skip the step."
        )

    def require_finite(self, task: Task, step: int) -> None:
        """Raise NonFiniteLossError if a pending check or a weight of `task` is not finite."""
        self.all_finite()
        if not all_weights_finite(task):
            raise NonFiniteLossError(
                f"The weights are not finite after step {step}, although the loss was: a gradient overflowed. Lower "
                "the learning rate or set a gradient clip; the checkpoints before this one are good."
            )
