"""How commands meet the person at the keyboard: shared options, summaries, errors as one sentence, exit codes.

0 done · 1 finished with failures past the allowed share, or could not go on · 2 a mistake in what was asked for.
"""

import functools
import json
import os
import select
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

OUR_PACKAGES = ("capfilt", "blipcore")


def one_of(option: str, *words: str, about: str = "") -> Any:
    """An option that takes one of these words, the default first; the Tab key offers them, the settings check them."""
    told = about or f"{', '.join(words[:-1])} or {words[-1]}. ({words[0]})"
    return typer.Option(option, help=told, autocompletion=lambda: list(words))


# Options that mean the same in every command. None is "not given": the YAML file or the default decides.
Config = Annotated[Path | None, typer.Option("--config", help="YAML file with settings; options override it.")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any setting by its name; repeatable.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object on stdout.")]
Name = Annotated[str | None, typer.Option("--name", help="Name of the output folder.")]
Out = Annotated[str | None, typer.Option("--out", help="Where to write, when not beside the pictures; a URL too.")]
Run = Annotated[Path, typer.Option("--out", metavar="RUN", help="Folder of the run; the model ends in RUN/model.")]
Device = Annotated[str | None, one_of("--device", "auto", "cpu", "cuda", about="auto, cpu, cuda or cuda:N. (auto)")]
Dtype = Annotated[
    str | None, one_of("--dtype", "auto", "bf16", "fp32", about="auto (bf16 where it is fast), bf16 or fp32. (auto)")
]
Backend = Annotated[
    str | None,
    one_of(
        "--backend",
        "auto",
        "torch",
        "compile",
        "openvino",
        "openvino-int8",
        about="Image encoder: auto, torch, compile, openvino or openvino-int8. (auto)",
    ),
]
BatchSize = Annotated[int | None, typer.Option("--batch-size", help="Pictures in a batch.")]
Workers = Annotated[int | None, typer.Option("--workers", help="Processes.")]
Engine = Annotated[str | None, one_of("--engine", "local", "ray", about="local, or ray for a cluster. (local)")]
Duplicates = Annotated[str | None, one_of("--duplicates", "exact", "near", about="Mark them: exact, or near too.")]
Rank = Annotated[int | None, typer.Option("--rank", help="Which of --world-size tasks this is, from 0. (0)")]
WorldSize = Annotated[int | None, typer.Option("--world-size", help="Tasks that share the shards. (1)")]
Nproc = Annotated[int, typer.Option("--nproc", help="Training processes on this machine, one a GPU; else torchrun.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Same seed, same result.")]
Tokenizer = Annotated[str | None, typer.Option("--tokenizer", help="Tokenizer folder, vocab.txt or hub id.")]
ImageRoot = Annotated[str | None, typer.Option("--image-root", help="Folder that an annotation's pictures lie under.")]
ImageSize = Annotated[int | None, typer.Option("--image-size", help="Pixels of a side; the checkpoint's by default.")]
Steps = Annotated[int | None, typer.Option("--steps", help="Optimiser steps.")]
Epochs = Annotated[float | None, typer.Option("--epochs", help="Passes over the pictures, instead of --steps.")]
LearningRate = Annotated[float | None, typer.Option("--lr", help="Peak learning rate.")]

F = TypeVar("F", bound=Callable[..., None])


def sentences(command: F) -> F:
    """Turn what a command raises into one sentence and an exit code; with CAPFILT_DEBUG=1 the traceback shows too."""

    @functools.wraps(command)
    def wrapped(*args: Any, **options: Any) -> None:
        try:
            try:
                command(*args, **options)
            finally:
                sys.stdout.flush()  # here, where it may fail
        except KeyboardInterrupt:
            _fail("stopped; run the same command again to go on.", 130)
        except Exception as error:
            told = _told(error)
            if told is None or (isinstance(error, BrokenPipeError) and _is_unread()):
                raise  # of the second kind Typer makes a quiet end, as of `capfilt ... | head`
            if os.environ.get("CAPFILT_DEBUG") == "1":
                traceback.print_exc()
            _fail(*told)

    return wrapped  # type: ignore[return-value]


def _is_unread() -> bool:
    """Whether whoever read our output has left."""
    try:
        stdout = select.poll()
        stdout.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):  # it is no file
        return False
    return bool(stdout.poll(0))


def _told(error: Exception) -> tuple[str, int] | None:
    """Sentence and exit code of an error that a user can act on; None for a bug."""
    if isinstance(error, (typer.Exit, typer.Abort)) or type(error).__module__.startswith(("click", "typer")):
        return None
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename is not None else ""
        return f"{error.strerror}{where}", 2
    if isinstance(error, (ValueError, ImportError, OSError)):
        return str(error) or type(error).__name__, 2
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return "out of memory; try a smaller --batch-size or fewer --workers.", 1
    if type(error).__module__.split(".")[0] in OUR_PACKAGES:  # our own kinds of errors are sentences
        return str(error), 1
    return None


def _fail(sentence: str, code: int) -> None:
    print(f"Error: {sentence}", file=sys.stderr, flush=True)
    raise typer.Exit(code)


def finish(summary: Mapping[str, Any], as_json: bool, failed: str | None = None) -> None:
    """Print the summary of a command on stdout; `failed` says why the exit code is 1 although it has finished."""
    if as_json:
        print(json.dumps(summary, ensure_ascii=False), flush=True)
    else:
        width = max((len(name) for name in summary), default=0)
        for name, value in summary.items():
            if value not in (None, {}, []):
                print(f"{name.replace('_', ' '):<{width}}  {_readable(value)}")
        sys.stdout.flush()
    if failed:
        _fail(failed, 1)


def _readable(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_readable(inner)}" for name, inner in value.items() if inner not in (None, {}, []))
    if isinstance(value, (list, tuple)):
        return ", ".join(_readable(inner) for inner in value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def failed_shards(summary: Mapping[str, Any]) -> str | None:
    """The sentence for shards that failed, which any stage's summary names with the reason."""
    failed: Mapping[str, str] = summary["shards"]["failed"]
    if not failed:
        return None
    first, why = next(iter(failed.items()))
    return f"{len(failed)} shards failed, {first} first: {why}. Run the same command again to try them once more."


def too_few(summary: Mapping[str, Any], least: float) -> str | None:
    """The sentence for a set of which a smaller share than `least` is ok."""
    if summary["success"] >= least:
        return None
    return f"only {summary['ok']} of {summary['rows']} rows are ok, less than the share of {least:g}."
