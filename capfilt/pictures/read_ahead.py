"""Reads and decodes the pictures of a tar ahead of the model, then those of the next tar.

One thread reads and a few decode while the model works on earlier pictures; Pillow decodes outside the interpreter
lock. The device waits neither for JPEGs nor, between two tars, for the listing and the first pictures of the next one.
Pictures come out in tar order for any number of threads.
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
from capfilt.pictures.decode import MAX_PIXELS, DecodeError, prepare_picture
from capfilt.shards.input_check import TarDigest

T = TypeVar("T")


@dataclass
class PreparedPicture(Generic[T]):
    """A picture of a shard: `input` is the result of `prepare`, None if there is an `error`."""

    key: str
    text: str | None
    input: T | None
    error: str | None = None


@dataclass(eq=False)
class ReadAhead(Generic[T]):
    """Iterates over the pictures of a tar, each an RGB image put through `prepare`.

    At most `ahead` pictures are read and not yet returned; `threads` threads decode them. `counts` holds pictures,
    undecodable pictures by reason and, after the last picture, problems of the tar by reason. `waited` is the waiting
    time of the consumer in seconds.

    An error of the tar is raised in place of the unreadable pictures. Like leaving the iteration early, it ends the
    reading of the next tar too.
    """

    tar: AnyPath
    prepare: Callable[[Image.Image], T]
    ahead: int = 64
    threads: int = 2
    max_pixels: int = MAX_PIXELS
    clock: Callable[[], float] = time.perf_counter
    counts: Counter[str] = field(default_factory=Counter, init=False)
    digest: TarDigest = field(default_factory=TarDigest, init=False)
    waited: float = field(default=0.0, init=False)
    started: float = field(default=0.0, init=False)
    _pool: _ReaderPool | None = field(default=None, init=False)
    _has_next: bool = field(default=False, init=False)
    _problems: list[TarProblem] = field(default_factory=list, init=False)
    # in tar order; a future of None marks the end
    _futures: SimpleQueue[Future[PreparedPicture[T] | None]] = field(default_factory=SimpleQueue, init=False)

    def prefetch(self, tar: AnyPath) -> ReadAhead[T]:
        """Return a reader of the next tar, which starts at the end of this one as soon as there is room.

        Both share threads and room. Iterate over it after this one, or close it.
        """
        following = ReadAhead(tar, self.prepare, self.ahead, self.threads, self.max_pixels, self.clock)
        following._pool, self._has_next = self._start(), True
        following._pool.tars.put(following)
        return following

    def close(self) -> None:
        """End all reading and decoding, also of the next tar."""
        if self._pool is not None:
            self._pool.stop()

    def __iter__(self) -> Iterator[PreparedPicture[T]]:
        self.started = wait_start = self.clock()
        pool = self._start()
        try:
            while (picture := self._futures.get().result()) is not None:
                pool.room.release()
                self.waited += self.clock() - wait_start
                self.counts["pictures"] += 1
                if picture.error is not None:
                    self.counts["undecodable"] += 1
                    self.counts[f"undecodable/{picture.error}"] += 1
                yield picture
                wait_start = self.clock()
        except BaseException:
            pool.stop()
            raise
        if not self._has_next:
            pool.stop()
        self.waited += self.clock() - wait_start
        self.counts.update(f"tar/{problem.reason}" for problem in self._problems)

    def times(self) -> dict[str, int]:
        """Return the milliseconds since the start, in total and waiting, as counts for `throughput`."""
        return {"waited_ms": round(1000 * self.waited), "busy_ms": round(1000 * (self.clock() - self.started))}

    def _start(self) -> _ReaderPool:
        if self._pool is None:
            self._pool = _ReaderPool(self.ahead, self.threads)
            self._pool.tars.put(self)
        return self._pool

    def _read(self, pool: _ReaderPool) -> None:
        """Read the tar to its end, one picture whenever there is room. Runs in the reading thread."""
        end: Future[PreparedPicture[T] | None] = Future()
        try:
            with closing(read_samples(self.tar, self._problems)) as samples:
                while pool.room.acquire() and not pool.stopped:
                    sample = next(samples, None)
                    if sample is None:
                        break
                    self.digest.add(sample.key, len(sample.image), sample.text)
                    self._futures.put(pool.decoders.submit(self._decode, sample))
            end.set_result(None)
        except BaseException as error:  # otherwise the consumer would wait forever
            end.set_exception(error)
        pool.room.release()  # the last acquired room has no picture
        self._futures.put(end)

    def _decode(self, sample: TarSample) -> PreparedPicture[T] | None:
        if sample.error is not None:
            return PreparedPicture(sample.key, sample.text, None, sample.error)
        try:
            prepared = prepare_picture(sample.image, self.prepare, self.max_pixels)
            return PreparedPicture(sample.key, sample.text, prepared)
        except DecodeError as error:
            return PreparedPicture(sample.key, sample.text, None, error.reason)


class _ReaderPool:
    """A thread that reads tars in turn and `threads` that decode, with room for `ahead` pictures in total."""

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
        """End each thread after its current picture."""
        self.stopped = True
        self.room.release()
        self.tars.put(None)
        self.decoders.shutdown(wait=False, cancel_futures=True)


def decode_threads(cores: int) -> int:
    """Return the number of decoding threads, at most 16; each takes 6 ms per picture of 512 pixels."""
    return max(1, min(16, cores))


def throughput(counts: Mapping[str, int], seconds: float, unit: str) -> dict[str, float]:
    """Return the rate of a run, and the share of its time in which models waited for pictures.

    Empty if the run has read no picture. `counts` are sums of `ReadAhead.times` and of `unit`.
    """
    if not counts.get("busy_ms"):
        return {}
    return {
        f"{unit}_per_second": round(counts.get(unit, 0) / max(seconds, 1e-9), 2),
        "data_wait_share": round(counts["waited_ms"] / counts["busy_ms"], 3),
    }
