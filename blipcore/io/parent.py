"""Ends a process when the process that started it ends."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
import time
from contextlib import suppress

# Environment variable of a command that a job has started: the reading end of a pipe from the job.
PARENT_PIPE = "CAPFILT_PARENT_PIPE"


def end_with_job() -> None:
    """End this process with SIGTERM when its job ends, if a job has started it."""
    pipe = os.environ.pop(PARENT_PIPE, None)
    if pipe is not None:
        end_with_parent(int(pipe))


def end_with_parent(pipe: int) -> None:
    """Send this process SIGTERM when `pipe` is closed, of which only the parent has the writing end.

    The kernel closes it when the parent ends in any way, SIGKILL included, also before this function is called.
    """

    def wait() -> None:
        with suppress(OSError):
            os.read(pipe, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def exit_with_parent(parents_folder: str | None = None) -> None:
    """Exit at once when the process that started this one ends: an orphan would wait for its peers for hours.

    Delete `parents_folder` first: temporary files that the parent can no longer delete.
    The parent is that of multiprocessing, or else the one that the system gives, asked every second.
    """
    parent, number = multiprocessing.parent_process(), os.getppid()

    def wait() -> None:
        if parent is not None:
            parent.join()
        while parent is None and os.getppid() == number:
            time.sleep(1)
        if parents_folder is not None:
            shutil.rmtree(parents_folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=wait, name="parent", daemon=True).start()
