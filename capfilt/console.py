"""Command-line conventions: registration, summaries on stdout, errors as one sentence on stderr, exit codes.

Exit codes: 0 done; 1 finished with too many failures, or could not continue; 2 a mistake in the options or the input.
"""

import functools
import json
import os
import select
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand

from blipcore.io.memory import NotEnoughMemoryError, describe_memory_limit, is_allocation_error, peak_memory_gb
from blipcore.io.parent import end_with_job
from capfilt.options import SETTINGS

OUR_PACKAGES = ("capfilt", "blipcore")

F = TypeVar("F", bound=Callable[..., None])


class _Command(TyperCommand):
    """A command with `--help` in its last panel."""

    def get_help_option(self, *args: Any, **kwargs: Any) -> Any:
        help_option = super().get_help_option(*args, **kwargs)
        if help_option is not None:
            help_option.rich_help_panel, help_option.metavar = SETTINGS, ""
        return help_option


def command(app: typer.Typer, example: str, name: str | None = None) -> Callable[[F], F]:
    """Return a decorator that adds a function to `app` as a command, with an example at the end of its help."""

    def register(function: F) -> F:
        return app.command(name, cls=_Command, epilog=f"Example: {example}")(exit_on_error(function))

    return register


def exit_on_error(function: F) -> F:
    """Turn an exception of a command into one sentence and an exit code; CAPFILT_DEBUG=1 adds the traceback."""

    @functools.wraps(function)
    def wrapper(*args: Any, **options: Any) -> None:
        end_with_job()
        try:
            try:
                function(*args, **options)
            finally:
                sys.stdout.flush()  # raises here, where the error is handled, and not at exit
        except KeyboardInterrupt:
            _exit("interrupted; run the same command again to resume.", 130)
        except Exception as error:
            description = _describe(error)
            # Typer handles a broken pipe, as of `capfilt ... | head`.
            if description is None or (isinstance(error, BrokenPipeError) and _stdout_is_closed()):
                raise
            if os.environ.get("CAPFILT_DEBUG") == "1":
                traceback.print_exc()
            _exit(*description)

    return wrapper  # type: ignore[return-value]  # functools.wraps keeps the signature


def _stdout_is_closed() -> bool:
    """Return whether the reader of our stdout has closed it."""
    try:
        stdout = select.poll()
        stdout.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):  # stdout has no file descriptor
        return False
    return bool(stdout.poll(0))


def _describe(error: Exception) -> tuple[str, int] | None:
    """Return the sentence and the exit code of an error that a user can act on; None for a bug."""
    if isinstance(error, (typer.Exit, typer.Abort)) or type(error).__module__.startswith(("click", "typer")):
        return None
    if isinstance(error, NotEnoughMemoryError):
        return str(error), 1
    if type(error).__name__ == "OutOfMemoryError" or is_allocation_error(error):
        return f"out of memory{describe_memory_limit()}; try a smaller --batch-size or fewer --workers.", 1
    if isinstance(error, OSError) and error.strerror:
        path = f": {error.filename}" if error.filename is not None else ""
        return f"{error.strerror}{path}", 2
    if isinstance(error, ModuleNotFoundError) and error.name == "fcntl":
        return "capfilt does not run on Windows, which lacks POSIX file locks; run it in WSL 2.", 2
    if isinstance(error, (ValueError, ImportError, OSError)):
        return str(error) or type(error).__name__, 2
    if type(error).__module__.split(".")[0] in OUR_PACKAGES:
        return str(error), 1
    return None


def _exit(sentence: str, code: int) -> None:
    print(f"Error: {sentence}", file=sys.stderr, flush=True)
    raise typer.Exit(code)


def finish(summary: Mapping[str, Any], as_json: bool, error: str | None = None) -> None:
    """Print the summary of a command and its peak memory on stdout; exit with code 1 if there is an `error`."""
    summary = {**summary, "peak_memory_gb": peak_memory_gb()}
    if as_json:
        print(json.dumps(summary, ensure_ascii=False), flush=True)
    else:
        width = max((len(name) for name in summary), default=0)
        for name, value in summary.items():
            if value not in (None, {}, []) and name != "account":  # which was printed before
                print(f"{name.replace('_', ' '):<{width}}  {_format(value)}")
        sys.stdout.flush()
    if error:
        _exit(error, 1)


def _format(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_format(item)}" for name, item in value.items() if item not in (None, {}, []))
    if isinstance(value, (list, tuple)):
        return ", ".join(_format(item) for item in value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def failed_shards(summary: Mapping[str, Any]) -> str | None:
    """Return an error that names the first failed shard of a summary and the reason, or None."""
    failed: Mapping[str, str] = summary["shards"]["failed"]
    if not failed:
        return None
    shard, reason = next(iter(failed.items()))
    number = "1 shard" if len(failed) == 1 else f"{len(failed)} shards"
    return f"{number} failed, first {shard}: {reason.rstrip('.')}. Remove the cause, then run the same command again."


def missing_pictures(summary: Mapping[str, Any]) -> str | None:
    """Return an error if rows of the shards' tables have no picture in their tars any more, or None."""
    missing = summary["counts"].get("missing", 0)
    if not missing:
        return None
    return (
        f"{missing:,} pictures of the shards' tables are not in their tars any more, which are damaged or cut short; "
        "restore the tars and repeat the command with another name."
    )


def too_few_ok(summary: Mapping[str, Any], min_success: float) -> str | None:
    """Return an error if the share of rows that are ok is below `min_success`."""
    if summary["success"] >= min_success:
        return None
    return f"only {summary['ok']} of {summary['rows']} rows are ok, less than the share of {min_success:g}."
