"""The signals on which training saves and exits."""

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGTERM, SIGUSR1 and Ctrl-C in a list, so that the training loop can save and exit.

    A second signal of the same kind has its usual effect, except under a launcher. There signals of Slurm and Ctrl-C
    arrive twice, sent to every process and forwarded, and the launcher kills processes that do not exit. Outside the
    main thread, where Python cannot handle signals, the list stays empty.
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
