"""Loads collated batches of a stream, in worker processes if requested."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from blipcore import distributed
from blipcore.data.dataset import Sample
from blipcore.data.stream import Stream


def make_loader(
    stream: Stream, collate: Callable[[list[Sample]], Any], batch_size: int, start: int, batches: int, workers: int = 0
) -> DataLoader:
    """Return a loader of this rank's next `batches` batches, from position `start` of the stream.

    Yields (collated batch, new problems by name). The order does not depend on `workers`, and the batches of all ranks
    make up one slice of the stream. An exception is yielded in place of its batch: raised in a worker, it would arrive
    wrapped in the worker's traceback.
    """
    return DataLoader(
        _Batches(stream, collate, batch_size, start),
        batch_size=None,
        sampler=range(batches),
        num_workers=workers,
        collate_fn=_identity,
        worker_init_fn=_ignore_signals,
        # Starting a loader draws from its generator; the default one is that of dropout.
        generator=torch.Generator(),
    )


class _Batches(Dataset):
    """Maps an index to this rank's batch, which depends on no other worker."""

    def __init__(self, stream: Stream, collate: Callable[[list[Sample]], Any], batch_size: int, start: int) -> None:
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


def _ignore_signals(worker: int) -> None:
    """Ignore signals that Slurm or Ctrl-C sends to all processes.

    The training process saves and ends its workers. It would end before saving if a worker died first.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # the only call that gives the sender of a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_on_sigterm_of, args=(os.getppid(),), daemon=True).start()
    else:  # macOS: leave the process group, which Ctrl-C signals (Slurm still signals every process)
        os.setpgid(0, 0)


def _exit_on_sigterm_of(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
