"""Loads collated batches of a stream in worker processes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from blipcore import distributed
from blipcore.data.source import Sample
from blipcore.data.stream import Stream


def make_loader(
    stream: Stream, collate: Callable[[list[Sample]], Any], batch_size: int, start: int, batches: int, workers: int = 0
) -> DataLoader:
    """Return a loader of this rank's next `batches` batches, from position `start` of the stream.

    Yields (collated batch, problems met). The order does not depend on the number of workers, and the batches of all
    ranks together are one slice of the stream. A batch that fails is replaced by its exception: raised in a worker
    process it would arrive wrapped in that worker's traceback.
    """
    return DataLoader(
        _Batches(stream, collate, batch_size, start),
        batch_size=None,
        sampler=range(batches),
        num_workers=workers,
        collate_fn=_as_is,
        worker_init_fn=_undisturbed,
        generator=torch.Generator(),  # own generator: starting the loader must not draw from the one dropout uses
    )


class _Batches(Dataset):
    """Batch i of this rank, as a map: a worker that is asked for batch i needs to know nothing of the others."""

    def __init__(self, stream: Stream, collate: Callable[[list[Sample]], Any], batch_size: int, start: int) -> None:
        self.stream, self.collate, self.batch_size, self.start = stream, collate, batch_size, start
        self.rank, self.ranks = distributed.rank(), distributed.world_size()

    def __getitem__(self, index: int) -> tuple[Any, dict[str, str]]:
        first = self.start + (index * self.ranks + self.rank) * self.batch_size
        try:
            batch = self.collate([self.stream.sample(first + row) for row in range(self.batch_size)])
        except (ValueError, OSError) as error:
            batch = error
        return batch, self.stream.take_problems()


def _as_is(item: Any) -> Any:
    return item


def _undisturbed(worker: int) -> None:
    """Leave signals to the process that trains: it saves and ends its workers, and Slurm and Ctrl-C tell all of them.

    A worker that such a signal kills would end the training process before it has saved.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # only this tells who sends a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_told, args=(os.getppid(),), daemon=True).start()
    else:  # macOS: out of reach of what goes to the group (but not of Slurm, which names every process)
        os.setpgid(0, 0)


def _end_when_told(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
