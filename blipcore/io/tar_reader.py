"""Reads pictures by key from many tars, few of which are open at a time."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blipcore.io.samples import IndexedTar
from blipcore.io.storage import AnyPath
from blipcore.io.tars import TarProblem

# Per dataset; the index of a tar takes about 6 MB for 10,000 pictures.
OPEN_TARS = 16


class TarReader:
    """Keeps the last used tars open and indexed.

    `locate` returns the path of a tar. `problems` has a summary per tar with a defect.
    """

    def __init__(self, capacity: int = OPEN_TARS, locate: Callable[[str], AnyPath] = Path) -> None:
        self.capacity, self.locate = capacity, locate
        self.problems: dict[str, str] = {}
        self._open: OrderedDict[str, IndexedTar] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}  # open files cannot be pickled

    def open(self, name: str) -> IndexedTar:
        """Return an indexed tar, open until `capacity` others have been used."""
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        tar = IndexedTar(self.locate(name))
        summary = summarise_problems(tar.problems)
        if summary:
            self.problems[name] = summary
        self._open[name] = tar
        if len(self._open) > self.capacity:
            self._open.popitem(last=False)[1].close()
        return tar

    def read_image(self, name: str, key: str) -> bytes:
        """Return the encoded picture of a key. Raises FileNotFoundError if missing, OSError if cut short."""
        tar = self.open(name)
        members = tar.samples.get(key)
        if members is None or members.image is None:
            raise FileNotFoundError("not in the tar")
        image = tar.read(members.image)
        if image is None:
            raise OSError("truncated_tar")
        return image

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def __del__(self) -> None:
        self.close()


def summarise_problems(problems: list[TarProblem]) -> str:
    """Return each reason with its first member, as "unsafe_name ../0.jpg and 3 more; truncated_tar 7.jpg".

    A `foreign_member` is no defect.
    """
    counts = Counter(problem.reason for problem in problems if problem.reason != "foreign_member")
    first = {problem.reason: problem.member for problem in reversed(problems)}
    more = {reason: f" and {count - 1} more" if count > 1 else "" for reason, count in counts.items()}
    return "; ".join(f"{reason} {first[reason]}{more[reason]}" for reason in counts)
