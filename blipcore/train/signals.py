"""Signals that ask a training process to save and exit."""

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGTERM, SIGUSR1 and Ctrl-C in a list, so that the training loop can save and exit.

    A second signal of the same kind has its usual effect, except under a launcher: the launcher forwards signals that
    Slurm and Ctrl-C send to every process as well, so they arrive twice, and it kills processes that do not exit.
    Outside the main thread Python cannot handle signals, and the list stays empty.
    """
    received: list[int] = []
    previous: dict[signal.Signals, Any] = {}

    def collect(number: int, frame: object) -> None:
        received.append(number)
        if "RANK" not in os.environ:
            signal.signal(number, previous[signal.Signals(number)])

    with contextlib.suppress(ValueError):
        for stop_signal in STOP_SIGNALS:
            previous[stop_signal] = signal.signal(stop_signal, collect)
    try:
        yield received
    finally:
        for stop_signal, handler in previous.items():
            signal.signal(stop_signal, handler)
