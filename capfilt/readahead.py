"""A tar in, decoded and preprocessed pictures out, in tar order and ahead of the model.

Decoding runs in threads (Pillow releases the interpreter lock) while the model works on the pictures before, so a
device does not wait for JPEGs. Reading is the consumer's: next to nothing where the file is local, while a remote one
comes ahead in blocks. What comes out does not depend on the number of threads.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Generic, TypeVar

from capfilt.pictures import DecodeError, decode
from capfilt.shards import Picture, Problem, read_pictures
from capfilt.storage import Place

T = TypeVar("T")


@dataclass
class Ready(Generic[T]):
    """One picture of a shard: `input` is what `prepare` made of it, None exactly when `error` names why."""

    key: str
    text: str | None
    input: T | None
    error: str | None = None


@dataclass
class ReadAhead(Generic[T]):
    """Pictures of a tar through `prepare` (any function of an RGB picture), `ahead` of them in flight.

    After iteration `counts` holds pictures, undecodable ones and problems of the tar by reason, and `waited` the
    seconds that the consumer has stood still for a picture.
    """

    tar: Place
    prepare: Callable[[Any], T]
    ahead: int = 64
    threads: int = 2
    counts: Counter[str] = field(default_factory=Counter)
    waited: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    def __iter__(self) -> Iterator[Ready[T]]:
        problems: list[Problem] = []
        asked = time.perf_counter()
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")
        try:
            pictures = read_pictures(self.tar, problems)
            coming = deque(pool.submit(self._ready, picture) for picture in islice(pictures, self.ahead))
            while coming:
                ready = coming.popleft().result()
                coming.extend(pool.submit(self._ready, picture) for picture in islice(pictures, 1))
                self.waited += time.perf_counter() - asked
                self.counts["pictures"] += 1
                if ready.error is not None:
                    self.counts["undecodable"] += 1
                    self.counts[f"undecodable/{ready.error}"] += 1
                yield ready
                asked = time.perf_counter()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        self.counts.update(f"tar/{problem.reason}" for problem in problems)

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

    def _ready(self, picture: Picture) -> Ready[T]:
        if picture.error is not None:
            return Ready(picture.key, picture.text, None, picture.error)
        try:
            return Ready(picture.key, picture.text, self.prepare(decode(picture.image)))
        except DecodeError as error:
            return Ready(picture.key, picture.text, None, error.reason)


def decode_threads(cores: int) -> int:
    """Threads for a worker that has `cores` to itself: at most 8 (a device keeps up with no more)."""
    return max(1, min(8, cores))


def speed(counts: Mapping[str, int], seconds: float, unit: str) -> dict[str, float]:
    """Rate of a run and the share of its time in which the model waited for pictures; empty when it did nothing."""
    if not counts.get("busy_ms"):
        return {}
    return {
        f"{unit}_per_second": round(counts.get(unit, 0) / max(seconds, 1e-9), 2),
        "data_wait_share": round(counts["waited_ms"] / counts["busy_ms"], 3),
    }
