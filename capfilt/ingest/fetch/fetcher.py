"""Fetches raw bytes with img2dataset, as a separate program:

    python -m capfilt.ingest.fetch.fetcher SETTINGS.json

The input is a Parquet table of `uid` and `url`. The output is img2dataset's tars with the bodies as they were received,
and its tables of the failures.

It has its own process because img2dataset takes over signals and standard output. On Linux, its workers are forks of
this process. Elsewhere they import the main program again, which installs the opener with the safety limits.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
import types
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from capfilt.ingest.fetch.safe_opener import FetchLimits, build_opener

LIMITS_VARIABLE = "CAPFILT_FETCH"  # environment variable with the limits for img2dataset's workers
# X-Robots-Tag directives by which a site opts out: img2dataset's own and `noml`.
OPT_OUT = ["noai", "noimageai", "noindex", "noimageindex", "noml"]


@dataclass(frozen=True, kw_only=True)
class FetchConfig:
    """Settings of one call of img2dataset."""

    threads: int
    timeout: float  # seconds of a single wait on the network
    user_agent: str
    limits: FetchLimits
    urls: str = ""
    out: str = ""
    rows_per_tar: int = 1
    processes: int = 1

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @staticmethod
    def read(path: Path) -> FetchConfig:
        values = json.loads(path.read_text(encoding="utf-8"))
        return FetchConfig(**values | {"limits": FetchLimits(**values["limits"])})


# ---------------------------------------------------------------------------------------------------- the program


def _import_img2dataset() -> Any:
    """Import img2dataset without packages that fetching does not need.

    wandb, albumentations, ray and torch would cost each process 3 s, and albumentations asks PyPI for a newer version.
    """
    stubs: dict[str, Any] = {"wandb": types.ModuleType("wandb"), "albumentations": types.ModuleType("albumentations")}
    stubs |= {"torch": None, "ray": None}  # img2dataset and webdataset do without these
    imported = {name: sys.modules[name] for name in stubs if name in sys.modules}
    sys.modules.update({name: module for name, module in stubs.items() if name not in imported})
    try:
        import img2dataset
    except Exception:  # a version of img2dataset that needs one of them
        for name in [name for name in sys.modules if name.split(".")[0] in ("img2dataset", "webdataset", *stubs)]:
            del sys.modules[name]
        sys.modules.update(imported)
        import img2dataset
    return img2dataset


class _NoLogger:
    """Replaces img2dataset's process that prints statistics."""

    done_shards: set[int]

    def __init__(self, *_: Any) -> None: ...

    def start(self) -> None: ...

    def join(self) -> None: ...

    def terminate(self) -> None: ...


def _fetch_in_forks(processes: int, downloader: Any, reader: Any, *_: Any) -> None:
    """Fetch the parts of a list in forked processes.

    img2dataset starts Python anew in each process, which takes a second, and leaves semaphores in /dev/shm when it is
    killed; those of a forking pool have no name.
    """
    with multiprocessing.get_context("fork").Pool(processes, _install_opener) as pool:
        for _row in pool.imap_unordered(downloader, reader):
            pass


def _install_opener() -> None:
    limits = FetchLimits(**json.loads(os.environ[LIMITS_VARIABLE]))
    urllib.request.install_opener(build_opener(limits))


def _exit_with_parent() -> None:
    # The parent never writes, so this returns when the parent is gone. A read of sys.stdin would block this process's
    # own exit.
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)


def main() -> None:
    """Fetch with the given settings; the whole process group exits when the parent does."""
    config = FetchConfig.read(Path(sys.argv[1]))
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    os.environ[LIMITS_VARIABLE] = json.dumps(asdict(config.limits))
    img2dataset = _import_img2dataset()
    if sys.platform == "linux" and (module := sys.modules.get("img2dataset.main")):
        vars(module).update(LoggerProcess=_NoLogger, multiprocessing_distributor=_fetch_in_forks)
    img2dataset.download(
        url_list=config.urls,
        input_format="parquet",
        url_col="url",
        save_additional_columns=["uid"],
        output_folder=config.out,
        output_format="webdataset",
        number_sample_per_shard=config.rows_per_tar,
        processes_count=config.processes,
        thread_count=config.threads,
        timeout=config.timeout,
        retries=0,  # it would retry every failure at once; `attempts.py` retries temporary ones later
        disable_all_reencoding=True,  # `shard_writer.py` decodes, rotates and shrinks
        resize_mode="no",
        extract_exif=False,
        compute_hash=None,
        user_agent_token=config.user_agent,
        disallowed_header_directives=OPT_OUT,
    )


if __name__ == "__mp_main__":  # a worker of img2dataset's own pool
    _import_img2dataset()
    if LIMITS_VARIABLE in os.environ:
        _install_opener()
elif __name__ == "__main__":
    main()
