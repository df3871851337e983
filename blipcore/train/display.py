"""Progress of training on stderr: one live line on a terminal, plain lines elsewhere."""

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

# Fields of a log record that are not losses.
MEASURES = ("step", "lr", "images_per_second", "data_wait_share", "seconds", "memory_gb")


class TrainDisplay:
    """Shows step, losses, learning rate, images per second, share of time spent waiting for data, memory, time left."""

    def __init__(self, steps: int, start: int, quiet: bool = False) -> None:
        self.steps, self.quiet = steps, quiet
        self._live: Progress | None = None
        if sys.stderr.isatty() and not quiet:
            columns = (
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(20),
                TextColumn("{task.fields[text]}"),
            )
            self._live = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), refresh_per_second=2)
            self._bar = self._live.add_task("train", total=steps, completed=start, text="")

    def __enter__(self) -> "TrainDisplay":
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def advance(self, step: int) -> None:
        """Move the bar, if there is one, to `step`."""
        if self._live:
            self._live.update(self._bar, completed=step)

    def log(self, record: dict[str, float], seconds_left: float) -> None:
        """Show a record of metrics.jsonl."""
        text = format_record(record)
        if self._live:
            self._live.update(self._bar, text=text)
        else:
            self.print(f"step {record['step']}/{self.steps}  {text}  {format_duration(seconds_left)} left")

    def print(self, message: str) -> None:
        """Print a line, above the bar if there is one."""
        if self._live:
            self._live.console.print(message, highlight=False, markup=False)
        elif not self.quiet:
            print(message, file=sys.stderr, flush=True)


def format_record(record: dict[str, float]) -> str:
    """Return a record as text: "itc 1.200  lr 3.0e-04  512 img/s  wait 3%  mem 1.2 GB"."""
    losses = [f"{name.removeprefix('loss_')} {value:.3f}" for name, value in record.items() if name not in MEASURES]
    rate = f"{record['images_per_second']:.0f} img/s" if "images_per_second" in record else ""
    wait = f"wait {record['data_wait_share']:.0%}" if "data_wait_share" in record else ""
    memory = f"mem {record['memory_gb']:.1f} GB" if "memory_gb" in record else ""
    return "  ".join(part for part in (*losses, f"lr {record['lr']:.1e}", rate, wait, memory) if part)


def format_duration(seconds: float) -> str:
    """Return seconds as "m:ss" or "h:mm:ss"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
