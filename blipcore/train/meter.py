"""Average losses, throughput and memory of a run, per log interval."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from blipcore import distributed
from blipcore.device import memory_gb
from blipcore.tasks.task import Outputs
from blipcore.train.state import TrainState


class Meter:
    """Measures time, and sums losses on the device, so that no step waits for the device."""

    def __init__(self, images_per_step: int, device: str) -> None:
        self.images_per_step, self.device = images_per_step, device
        self.sums: dict[str, Tensor] = {}  # losses added up since the last record
        self.summed_steps = 0
        self.seconds_per_step = 0.0  # over the last interval
        self._start = 0.0

    def start(self, seconds: float) -> None:
        """Start the clock of a run that has trained for `seconds`."""
        self._start = time.perf_counter() - seconds

    def seconds(self) -> float:
        """Return the seconds of training, over all launches."""
        return time.perf_counter() - self._start

    def add(self, outputs: list[Outputs]) -> None:
        """Add the scalars of one step, each as the mean over the step's micro-batches."""
        for micro_batch in outputs:
            for name, value in micro_batch.items():
                if value.ndim == 0:
                    part = value.float() / len(outputs)
                    self.sums[name] = self.sums[name] + part if name in self.sums else part
        self.summed_steps += 1

    def record(self, state: TrainState, learning_rate: float) -> dict[str, float]:
        """Return the record of the interval since the last one, and start the next interval.

        Updates losses and times of `state`. All processes must call it: losses are means over them.
        """
        if self.sums:  # empty if every step of the interval was skipped
            sums = torch.stack(list(self.sums.values()))
            means = distributed.mean_over_ranks(sums / self.summed_steps)
            state.losses = dict(zip(self.sums, means.tolist(), strict=True))
        state.seconds = self.seconds()
        steps = state.step - state.logged_step
        seconds, waited = state.seconds - state.logged_seconds, state.waited - state.logged_waited
        self.seconds_per_step = seconds / steps
        self.start_interval(state)
        self.sums, self.summed_steps = {}, 0
        return {
            "step": state.step,
            **state.losses,
            "lr": learning_rate,
            "images_per_second": round(steps * self.images_per_step / seconds, 1),
            "data_wait_share": round(waited / seconds, 4),
            "memory_gb": round(memory_gb(self.device), 3),
            "seconds": round(state.seconds, 3),
        }

    @staticmethod
    def start_interval(state: TrainState) -> None:
        """Start the next logging interval at the current step."""
        state.logged_step, state.logged_seconds, state.logged_waited = state.step, state.seconds, state.waited

    def saved_sums(self) -> dict[str, float]:
        """Return the sums of the unfinished interval for a checkpoint."""
        return {name: value.item() for name, value in self.sums.items()}

    def load_sums(self, sums: dict[str, float], steps: int) -> None:
        """Resume the interval that `saved_sums` left unfinished after `steps` steps."""
        self.sums = {name: torch.tensor(value, device=self.device) for name, value in sums.items()}
        self.summed_steps = steps
