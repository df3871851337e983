"""Starts several training processes on this machine: `--nproc 8` without `torchrun`.

Uses torch's elastic launcher. For several machines, start the command with `torchrun`.
"""

import logging
import os
import tempfile
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from blipcore.io.lock import FolderLockedError
from blipcore.io.memory import NotEnoughMemoryError, is_allocation_error
from blipcore.io.parent import exit_with_parent
from blipcore.train.finite import NonFiniteLossError

T = TypeVar("T")

# The trainer saves and exits on each of these, so the launcher must forward them and wait.
SIGNALS = "SIGTERM,SIGINT,SIGUSR1,SIGHUP,SIGQUIT"
SECONDS_TO_SAVE = 600

# Errors that a user can fix: raised again in the launching process under their own type, without a traceback.
USER_ERRORS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (
        ValueError,
        NonFiniteLossError,
        OSError,
        FileNotFoundError,
        PermissionError,
        ImportError,
        FolderLockedError,
        MemoryError,
        NotEnoughMemoryError,
    )
}


class TrainingFailedError(Exception):
    """A training process died or raised an unexpected error."""


def launch(nproc: int, work: Callable[..., T], *args: Any) -> T:
    """Run `work(*args)` on `nproc` processes that form a group, and return the result of rank 0.

    Arguments and result must be picklable. Raises the error of a process if it is in USER_ERRORS, otherwise
    TrainingFailedError; SystemExit if the processes saved and exited on a signal. The processes end with this one. In a
    process that a launcher has started, run `work` directly, and exit afterwards on all ranks but 0: only rank 0
    reports a result.
    """
    if nproc < 1:
        raise ValueError(f"The number of processes must be at least 1, not {nproc}.")
    if "RANK" in os.environ:
        if "TORCHELASTIC_RUN_ID" in os.environ:  # of torchrun, which waits for its processes
            exit_with_parent()
        result = work(*args)
        if os.environ["RANK"] != "0":
            raise SystemExit(0)
        return result
    if nproc == 1:
        return work(*args)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SECONDS_TO_SAVE))
    # The launcher logs the errors that are raised below.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    logging.getLogger("torch.multiprocessing").setLevel(logging.CRITICAL)
    # The launcher's own default folder for the errors of its processes is never deleted.
    with tempfile.TemporaryDirectory(prefix="capfilt_launch_") as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=nproc,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",  # any free port
            max_restarts=0,
            signals_to_handle=SIGNALS,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        try:
            return elastic_launch(config, _work_as_child)(folder, work, *args)[0]
        except SignalException as signal_exception:
            raise SystemExit(128 + signal_exception.sigval) from None
        except ChildFailedError as error:
            raise _first_error(error) from None


def _work_as_child(folder: str, work: Callable[..., T], *args: Any) -> T:
    """Run `work` in a process that ends with its launcher, also before the processes have found each other."""
    exit_with_parent(folder)
    return work(*args)


def _first_error(error: ChildFailedError) -> BaseException:
    """Return an error to raise for the process that failed first."""
    rank, failure = error.get_first_failure()
    if failure.exitcode > 128:  # exited on a signal sent to the processes directly
        return SystemExit(failure.exitcode)
    if not isinstance(failure.message, dict):
        return TrainingFailedError(f"Process {rank} exited with code {failure.exitcode} and no error message.")
    kind, _, message = failure.message["message"].partition(": ")
    if kind == "RuntimeError" and is_allocation_error(message):
        return MemoryError(message)
    if kind in USER_ERRORS:
        return USER_ERRORS[kind](message)
    return TrainingFailedError(f"Process {rank} failed: {failure.message['extraInfo']['py_callstack']}")
