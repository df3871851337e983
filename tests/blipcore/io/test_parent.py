"""Child processes end when their parent process ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import blipcore
from blipcore.io.parent import PARENT_PIPE

PROGRAM = """
import signal, sys, time
from blipcore.io.parent import end_with_job
if sys.argv[1] == "saves":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
end_with_job()
print("started", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(("handler", "code"), [("none", -signal.SIGTERM), ("saves", 7)])
@pytest.mark.parametrize("moment", ["before it starts", "later"])
def test_a_closed_pipe_ends_the_process(handler: str, code: int, moment: str) -> None:
    """The kernel closes the parent's end when the parent is killed."""
    pipe, own_end = os.pipe()
    environment = os.environ | {PARENT_PIPE: str(pipe), "PYTHONPATH": str(Path(blipcore.__file__).parents[1])}
    arguments = [sys.executable, "-c", PROGRAM, handler]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, env=environment, pass_fds=[pipe]) as process:
        os.close(pipe)
        if moment == "later":
            assert process.stdout is not None and process.stdout.readline() == b"started\n"
        os.close(own_end)
        assert process.wait(60) == code
