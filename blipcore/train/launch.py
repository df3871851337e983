"""Several training processes on this machine, by torch's elastic launcher in process: `--nproc 8` without `torchrun`.

In: a function and its arguments, and how many processes. Out: what rank 0 returned. On several machines, start the
command with `torchrun` instead; a process that a launcher has started runs the function itself.
"""

import logging
import os
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

T = TypeVar("T")

# Each of them makes the trainer save and leave, so the launcher has to hand it on and to wait for that.
SIGNALS = "SIGTERM,SIGINT,SIGUSR1,SIGHUP,SIGQUIT"
SECONDS_TO_SAVE = 600


MISTAKES = {kind.__name__: kind for kind in (ValueError, FileNotFoundError, ImportError, OSError)}


class TrainingFailedError(Exception):
    """A training process died, or failed of what is no mistake of the user."""


def launch(nproc: int, work: Callable[..., T], *args: Any) -> T:
    """`work(*args)` on `nproc` processes that form a group; its arguments and its result must be picklable.

    Raises what a process raised when it is a mistake of the user, TrainingFailedError otherwise, and SystemExit when
    the processes saved and left on a signal. Inside a launcher's process `work` is done at once, and there every rank
    but 0, having nothing to tell, ends here.
    """
    if nproc < 1:
        raise ValueError(f"the number of processes must be at least 1, not {nproc}")
    if "RANK" in os.environ:
        result = work(*args)
        if os.environ["RANK"] != "0":
            raise SystemExit(0)
        return result
    if nproc == 1:
        return work(*args)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SECONDS_TO_SAVE))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # it logs what is raised below
    logging.getLogger("torch.multiprocessing").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # any free port
        max_restarts=0,
        signals_to_handle=SIGNALS,
    )
    try:
        return elastic_launch(config, work)(*args)[0]
    except SignalException as stopped:
        raise SystemExit(128 + stopped.sigval) from None
    except ChildFailedError as error:
        raise _first(error) from None


def _first(error: ChildFailedError) -> BaseException:
    """The error of the process that failed first, as one of this process."""
    rank, failure = error.get_first_failure()
    if failure.exitcode > 128:  # left on a signal that the processes got directly
        return SystemExit(failure.exitcode)
    if not isinstance(failure.message, dict):
        return TrainingFailedError(f"process {rank} ended with code {failure.exitcode} and without a word")
    kind, _, sentence = failure.message["message"].partition(": ")
    if kind in MISTAKES:
        return MISTAKES[kind](sentence)
    return TrainingFailedError(f"process {rank} failed: {failure.message['extraInfo']['py_callstack']}")
