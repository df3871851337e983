"""Progress of a long run, on stderr: a live bar with rate and ETA on a terminal, otherwise a line every 10 s.

Standard output stays free for results and `--json`.
"""

from __future__ import annotations

import sys
import time
from typing import Any

LINE_SECONDS = 10.0


class ProgressDisplay:
    """A context manager that shows the progress over `total` units of work, the rate of pictures and the cost."""

    def __init__(self, title: str, total: int, unit: str = "shards", done: int = 0, shown: bool = True) -> None:
        self.title, self.total, self.unit, self.done, self.shown = title, total, unit, done, shown
        self.done_before, self.pictures, self.dollars = done, 0, 0.0
        self.start = self.last_line = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> ProgressDisplay:
        if self.shown and sys.stderr.isatty():
            self._bar = _rich_bar()
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, completed=self.done, note="")
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._refresh()
            self._bar.stop()
        elif self.shown and self.done > self.done_before:
            self.print(self.line())

    def advance(self, units: int = 0, pictures: int = 0, dollars: float = 0.0) -> None:
        self.done += units
        self.pictures += pictures
        self.dollars += dollars
        if self._bar is not None:
            self._refresh()
        elif self.shown and time.monotonic() - self.last_line >= LINE_SECONDS:
            self.print(self.line())

    def print(self, line: str) -> None:
        """Print a line above the bar."""
        if not self.shown:
            return
        self.last_line = time.monotonic()
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def line(self) -> str:
        return f"{self.title}: {self.done} of {self.total} {self.unit}{self._rate()}{self._cost()}{self._eta()}"

    def _refresh(self) -> None:
        self._bar.update(
            self._task, completed=self.done, note=(self._rate() + self._cost() + self._eta()).removeprefix(", ")
        )

    def _rate(self) -> str:
        if not self.pictures:
            return ""
        return f", {self.pictures / max(time.monotonic() - self.start, 1e-9):.1f} pictures/s"

    def _cost(self) -> str:
        """Return the dollars so far and, from the units done, those of the whole run."""
        if not self.dollars:
            return ""
        done_now, remaining = self.done - self.done_before, self.total - self.done
        total = (
            f", about ${self.dollars / done_now * (done_now + remaining):.2f} in all" if done_now and remaining else ""
        )
        return f", ${self.dollars:.2f} spent{total}"

    def _eta(self) -> str:
        done_now, remaining = self.done - self.done_before, self.total - self.done
        if done_now <= 0 or remaining <= 0:
            return ""
        seconds = int((time.monotonic() - self.start) / done_now * remaining)
        return f", {seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d} left"


def _rich_bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
    )
