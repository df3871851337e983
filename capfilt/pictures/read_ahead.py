"""A tar in, decoded and preprocessed pictures out, in tar order and ahead of the model; then the tar that follows.

One thread reads and a few decode (Pillow releases the interpreter lock) while the model works on the pictures before,
so that a device waits neither for JPEGs nor, between two tars, for the next one to be listed and its first pictures to
be decoded. What comes out does not depend on the number of threads, nor on what was read ahead.
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

from blipcore.io.samples import Picture, Problem, read_pictures
from blipcore.io.storage import AnyPath
from capfilt.pictures.decode import DecodeError, decode

T = TypeVar("T")


@dataclass
class Ready(Generic[T]):
    """One picture of a shard: `input` is what `prepare` made of it, None exactly when `error` names why."""

    key: str
    text: str | None
    input: T | None
    error: str | None = None


@dataclass(eq=False)
class ReadAhead(Generic[T]):
    """Pictures of a tar through `prepare` (any function of an RGB picture), `ahead` of them in flight at most.

    After iteration `counts` holds pictures, undecodable ones and problems of the tar by reason, and `waited` the
    seconds that the consumer has stood still for a picture. What cannot be read is raised where its pictures would
    have come, which ends the reading of the tar that follows too, as leaving in the middle does.
    """

    tar: AnyPath
    prepare: Callable[[Any], T]
    ahead: int = 64
    threads: int = 2
    counts: Counter[str] = field(default_factory=Counter)
    waited: float = 0.0
    started: float = 0.0
    _hands: _Hands | None = field(default=None, init=False)
    _followed: bool = field(default=False, init=False)
    _problems: list[Problem] = field(default_factory=list, init=False)
    _coming: SimpleQueue[Future[Ready[T] | None]] = field(default_factory=SimpleQueue, init=False)  # None: the end

    def then(self, tar: AnyPath) -> ReadAhead[T]:
        """The same of the tar that follows, read when this one has been to its end, in the room that this one leaves.

        Iterate over it after this one, or close it.
        """
        following = ReadAhead(tar, self.prepare, self.ahead, self.threads)
        following._hands, self._followed = self._begin(), True
        following._hands.tars.put(following)
        return following

    def close(self) -> None:
        """End all reading and decoding, also of the tar that follows."""
        if self._hands is not None:
            self._hands.drop()

    def __iter__(self) -> Iterator[Ready[T]]:
        self.started = asked = time.perf_counter()
        hands = self._begin()
        try:
            while (ready := self._coming.get().result()) is not None:
                hands.room.release()
                self.waited += time.perf_counter() - asked
                self.counts["pictures"] += 1
                if ready.error is not None:
                    self.counts["undecodable"] += 1
                    self.counts[f"undecodable/{ready.error}"] += 1
                yield ready
                asked = time.perf_counter()
        except BaseException:
            hands.drop()
            raise
        if not self._followed:
            hands.drop()
        self.waited += time.perf_counter() - asked
        self.counts.update(f"tar/{problem.reason}" for problem in self._problems)

    def batches(self, size: int) -> Iterator[list[Ready[T]]]:
        """Runs of pictures of which `size` (the last run fewer) can be used; undecodable ones travel along."""
        batch: list[Ready[T]] = []
        usable = 0
        for ready in self:
            batch.append(ready)
            usable += ready.error is None
            if usable == size:
                yield batch
                batch, usable = [], 0
        if batch:
            yield batch

    def times(self) -> dict[str, int]:
        """Milliseconds since the start, and those of them that the consumer has waited: counts for `speed`."""
        return {"waited_ms": round(1000 * self.waited), "busy_ms": round(1000 * (time.perf_counter() - self.started))}

    def _begin(self) -> _Hands:
        if self._hands is None:
            self._hands = _Hands(self.ahead, self.threads)
            self._hands.tars.put(self)
        return self._hands

    def _read(self, hands: _Hands) -> None:
        """Read the tar to its end, a picture whenever there is room for one: in the thread that reads."""
        end: Future[Ready[T] | None] = Future()
        try:
            with closing(read_pictures(self.tar, self._problems)) as pictures:
                while hands.room.acquire() and not hands.dropped and (picture := next(pictures, None)) is not None:
                    self._coming.put(hands.decoders.submit(self._ready, picture))
            end.set_result(None)
        except BaseException as error:  # or the consumer would wait for ever
            end.set_exception(error)
        hands.room.release()  # it was taken for a picture that has not come
        self._coming.put(end)

    def _ready(self, picture: Picture) -> Ready[T]:
        if picture.error is not None:
            return Ready(picture.key, picture.text, None, picture.error)
        try:
            return Ready(picture.key, picture.text, self.prepare(decode(picture.image)))
        except DecodeError as error:
            return Ready(picture.key, picture.text, None, error.reason)


class _Hands:
    """Threads: one reads tars in turn, the others decode; there is room for `ahead` pictures of all tars together."""

    def __init__(self, ahead: int, threads: int):
        self.room = Semaphore(ahead)
        self.tars: SimpleQueue[ReadAhead[Any] | None] = SimpleQueue()
        self.decoders = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self.dropped = False
        # a daemon: it may stand waiting for room, which is no reason for a process not to end
        Thread(target=self._read, name="read", daemon=True).start()

    def _read(self) -> None:
        while (tar := self.tars.get()) is not None and not self.dropped:
            tar._read(self)

    def drop(self) -> None:
        """End the threads, which finish the picture, or wait for the bytes, that they are at."""
        self.dropped = True
        self.room.release()
        self.tars.put(None)
        self.decoders.shutdown(wait=False, cancel_futures=True)


def decode_threads(cores: int) -> int:
    """Threads for a worker that has `cores` to itself: at most 16, of which each takes 6 ms for 512 pixels."""
    return max(1, min(16, cores))


def speed(counts: Mapping[str, int], seconds: float, unit: str) -> dict[str, float]:
    """Rate of a run and the share of its time in which the model waited for pictures; empty when it did nothing."""
    if not counts.get("busy_ms"):
        return {}
    return {
        f"{unit}_per_second": round(counts.get(unit, 0) / max(seconds, 1e-9), 2),
        "data_wait_share": round(counts["waited_ms"] / counts["busy_ms"], 3),
    }
