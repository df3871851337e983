"""Reads and decodes the pictures of a tar ahead of the model, then those of the next tar.

One thread reads and a few decode, for which Pillow releases the interpreter lock, while the model works on earlier
pictures. So a device waits neither for JPEGs nor, between two tars, for the listing of the next one and its first
pictures. Pictures come out in tar order, whatever the number of threads and however far ahead they were read.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Semaphore, Thread
from typing import Any, Generic, TypeVar

from PIL import Image

from blipcore.io.samples import TarSample, read_samples
from blipcore.io.storage import AnyPath
from blipcore.io.tars import TarProblem
from capfilt.pictures.decode import DecodeError, decode_picture

T = TypeVar("T")


@dataclass
class PreparedPicture(Generic[T]):
    """One picture of a shard: `input` is the result of `prepare`, or None exactly when `error` says why."""

    key: str
    text: str | None
    input: T | None
    error: str | None = None


@dataclass(eq=False)
class ReadAhead(Generic[T]):
    """Iterates over the pictures of a tar, each an RGB image put through `prepare`.

    At most `ahead` pictures are read and not yet returned, and `threads` decode them. `counts` holds pictures,
    undecodable pictures and, after the last picture, problems of the tar, by reason. `waited` holds the seconds for
    which the consumer has waited for pictures.

    An error of the tar is raised in place of the pictures that cannot be read. It ends the reading of the next tar too,
    as does leaving the iteration early.
    """

    tar: AnyPath
    prepare: Callable[[Image.Image], T]
    ahead: int = 64
    threads: int = 2
    clock: Callable[[], float] = time.perf_counter
    counts: Counter[str] = field(default_factory=Counter)
    waited: float = 0.0
    started: float = 0.0
    _threads: _ReadingThreads | None = field(default=None, init=False)
    _has_next: bool = field(default=False, init=False)
    _problems: list[TarProblem] = field(default_factory=list, init=False)
    # in tar order; a future of None marks the end
    _futures: SimpleQueue[Future[PreparedPicture[T] | None]] = field(default_factory=SimpleQueue, init=False)

    def prefetch(self, tar: AnyPath) -> ReadAhead[T]:
        """Return a reader of the next tar, which starts when this one is read to its end and has room left.

        Both share threads and room. Iterate over the returned reader after this one, or close it.
        """
        following = ReadAhead(tar, self.prepare, self.ahead, self.threads, self.clock)
        following._threads, self._has_next = self._start(), True
        following._threads.tars.put(following)
        return following

    def close(self) -> None:
        """End all reading and decoding, also of the next tar."""
        if self._threads is not None:
            self._threads.stop()

    def __iter__(self) -> Iterator[PreparedPicture[T]]:
        self.started = wait_start = self.clock()
        threads = self._start()
        try:
            while (picture := self._futures.get().result()) is not None:
                threads.room.release()
                self.waited += self.clock() - wait_start
                self.counts["pictures"] += 1
                if picture.error is not None:
                    self.counts["undecodable"] += 1
                    self.counts[f"undecodable/{picture.error}"] += 1
                yield picture
                wait_start = self.clock()
        except BaseException:
            threads.stop()
            raise
        if not self._has_next:
            threads.stop()
        self.waited += self.clock() - wait_start
        self.counts.update(f"tar/{problem.reason}" for problem in self._problems)

    def times(self) -> dict[str, int]:
        """Return the milliseconds since the start, and those of them spent waiting, as counts for `throughput`."""
        return {"waited_ms": round(1000 * self.waited), "busy_ms": round(1000 * (self.clock() - self.started))}

    def _start(self) -> _ReadingThreads:
        if self._threads is None:
            self._threads = _ReadingThreads(self.ahead, self.threads)
            self._threads.tars.put(self)
        return self._threads

    def _read(self, threads: _ReadingThreads) -> None:
        """Read the tar to its end, one picture whenever there is room for it. Runs in the reading thread."""
        end: Future[PreparedPicture[T] | None] = Future()
        try:
            with closing(read_samples(self.tar, self._problems)) as samples:
                while threads.room.acquire() and not threads.stopped:
                    sample = next(samples, None)
                    if sample is None:
                        break
                    self._futures.put(threads.decoders.submit(self._decode, sample))
            end.set_result(None)
        except BaseException as error:  # otherwise the consumer would wait forever
            end.set_exception(error)
        threads.room.release()  # no picture has come for the last acquired room
        self._futures.put(end)

    def _decode(self, sample: TarSample) -> PreparedPicture[T] | None:
        if sample.error is not None:
            return PreparedPicture(sample.key, sample.text, None, sample.error)
        try:
            return PreparedPicture(sample.key, sample.text, self.prepare(decode_picture(sample.image)))
        except DecodeError as error:
            return PreparedPicture(sample.key, sample.text, None, error.reason)


class _ReadingThreads:
    """One thread that reads tars in turn, and `threads` that decode, with room for `ahead` pictures of all tars."""

    def __init__(self, ahead: int, threads: int) -> None:
        self.room = Semaphore(ahead)
        self.tars: SimpleQueue[ReadAhead[Any] | None] = SimpleQueue()
        self.decoders = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self.stopped = False
        # A daemon, because it may wait for room when the process ends.
        Thread(target=self._read, name="read", daemon=True).start()

    def _read(self) -> None:
        while (tar := self.tars.get()) is not None and not self.stopped:
            tar._read(self)

    def stop(self) -> None:
        """End the threads after the picture that each of them works on."""
        self.stopped = True
        self.room.release()
        self.tars.put(None)
        self.decoders.shutdown(wait=False, cancel_futures=True)


def decode_threads(cores: int) -> int:
    """Return the decoding threads of a worker with `cores` CPU cores: at most 16, of 6 ms per picture of 512 pixels."""
    return max(1, min(16, cores))


def throughput(counts: Mapping[str, int], seconds: float, unit: str) -> dict[str, float]:
    """Return the rate of a run, and the share of its time in which models waited for pictures.

    Empty when the run has read no picture. `counts` are sums of `ReadAhead.times` and of `unit`.
    """
    if not counts.get("busy_ms"):
        return {}
    return {
        f"{unit}_per_second": round(counts.get(unit, 0) / max(seconds, 1e-9), 2),
        "data_wait_share": round(counts["waited_ms"] / counts["busy_ms"], 3),
    }
