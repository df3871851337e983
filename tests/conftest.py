"""For all tests: one thread a process, set before torch is imported. Models this small lose by more.

Helpers that other processes import by name too lie beside the tests of `blipcore`.
"""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.append(str(Path(__file__).parent / "blipcore"))


@pytest.fixture(autouse=True)
def no_signal_handler_stays() -> Iterator[None]:
    """torch's data loader leaves a handler of SIGCHLD behind; with it, children of later tests have killed the run."""
    yield
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
