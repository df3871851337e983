"""Loads collated batches of a stream, in worker processes if requested."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing import resource_tracker, util
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from blipcore import distributed
from blipcore.data.dataset import Sample, SampleStream
from blipcore.io.parent import exit_with_parent

# Bytes in the path of a Unix socket: Linux allows 107, macOS 103.
MAX_SOCKET_PATH = 103
BLOCKED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # in workers, from their start


def make_loader(
    stream: SampleStream,
    collate: Callable[[list[Sample]], Any],
    batch_size: int,
    start: int,
    batches: int,
    workers: int = 0,
) -> DataLoader:
    """Return a loader of this rank's next `batches` batches, from position `start` of the stream.

    Yields (collated batch, new problems by name). The order does not depend on `workers`, and the batches of all ranks
    make up one slice of the stream. An exception is yielded in place of its batch: raised in a worker, it would arrive
    wrapped in the worker's traceback. Raises ValueError if workers cannot send batches.
    """
    if workers:
        _check_socket_path()
    return _Loader(
        _Batches(stream, collate, batch_size, start),
        batch_size=None,
        sampler=range(batches),
        num_workers=workers,
        collate_fn=_identity,
        worker_init_fn=_follow_parent,
        multiprocessing_context=_start_method() if workers else None,
        # Starting a loader draws from its generator; the default one is that of dropout.
        generator=torch.Generator(),
    )


def _check_socket_path() -> None:
    """Raise ValueError if multiprocessing cannot bind sockets in its temporary folder, through which batches are sent.

    Binding one fails in a thread of the worker, which drops the batch, and the trainer would wait for it forever.
    """
    folder = util.get_temp_dir()
    if len(os.fsencode(os.path.join(folder, "listener-12345678"))) > MAX_SOCKET_PATH:
        raise ValueError(
            f"The temporary folder {os.path.dirname(folder)} has a path too long for the sockets of data workers: set "
            "TMPDIR to a folder with a shorter one, such as /tmp, or train with --workers 0."
        )


def _start_method() -> str:
    """Return how workers are started: "fork", which takes 0.2 s, or "spawn" where a fork can crash or hang.

    That is on macOS, whose system libraries start threads, and in a process that uses CUDA. Python's own default
    depends on its version; a fork server, that of 3.14, hides the parent from the workers.
    """
    return "fork" if sys.platform == "linux" and not torch.cuda.is_initialized() else "spawn"


class _Loader(DataLoader):
    """A loader whose workers start with blocked signals: a spawned one imports torch for seconds before it can act."""

    def __iter__(self) -> Any:
        if self.num_workers:
            resource_tracker.ensure_running()  # its start would unblock signals
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED_SIGNALS)
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


class _Batches(Dataset):
    """Maps an index to this rank's batch, which depends on no other worker."""

    def __init__(
        self, stream: SampleStream, collate: Callable[[list[Sample]], Any], batch_size: int, start: int
    ) -> None:
        self.stream, self.collate, self.batch_size, self.start = stream, collate, batch_size, start
        self.rank, self.ranks = distributed.rank(), distributed.world_size()

    def __getitem__(self, index: int) -> tuple[Any, dict[str, str]]:
        first = self.start + (index * self.ranks + self.rank) * self.batch_size
        try:
            batch = self.collate([self.stream.sample(first + row) for row in range(self.batch_size)])
        except (ValueError, OSError) as error:
            batch = error
        return batch, self.stream.pop_problems()


def _identity(item: Any) -> Any:
    return item


def _follow_parent(worker: int) -> None:
    """End when the training process ends this worker, or ends itself; ignore signals of others.

    Slurm and Ctrl-C send signals to all processes. The training process saves and ends its workers; it would end before
    saving if a worker died first. The signals are blocked since the start of the worker (see `_Loader`).
    """
    exit_with_parent()
    if hasattr(signal, "sigwaitinfo"):  # the only call that gives the sender of a signal
        parent = multiprocessing.parent_process()
        assert parent is not None  # `os.getppid` would be wrong for a worker that a fork server started
        threading.Thread(target=_exit_on_sigterm_of, args=(parent.pid,), daemon=True).start()
    else:  # macOS: leave the process group, which Ctrl-C signals (Slurm still signals every process)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        os.setpgid(0, 0)


def _exit_on_sigterm_of(parent: int | None) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
