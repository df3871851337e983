"""Fetches raw bytes with img2dataset. A program of its own, and the only file that imports img2dataset.

    python -m capfilt.ingest.fetch.fetcher SETTINGS.json

In: a Parquet of `uid` and `url`. Out: img2dataset's tars of undecoded bodies, with sidecar tables of the failures.
It runs apart because img2dataset takes over signals and standard output and spawns workers that import the main
program again. Those imports are where the guard goes in.
"""

from __future__ import annotations

import json
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

ENVIRONMENT = "CAPFILT_FETCH"  # carries the limits to img2dataset's workers
# X-Robots-Tag directives by which a site opts out; img2dataset's own and `noml`
OPT_OUT = ["noai", "noimageai", "noindex", "noimageindex", "noml"]


@dataclass(frozen=True, kw_only=True)
class FetchConfig:
    """One call of img2dataset."""

    threads: int
    timeout: float  # of a single wait on the network
    user_agent: str
    limits: FetchLimits
    urls: str = ""
    out: str = ""
    piece: int = 1  # rows to a tar
    processes: int = 1

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @staticmethod
    def read(path: Path) -> FetchConfig:
        values = json.loads(path.read_text(encoding="utf-8"))
        return FetchConfig(**values | {"limits": FetchLimits(**values["limits"])})


# ---------------------------------------------------------------------------------------------------- the program


def _import_img2dataset() -> Any:
    """img2dataset without the packages that fetching never touches.

    wandb, albumentations, ray and torch would cost each of its processes 3 s, and albumentations asks PyPI for news.
    """
    spared = {"wandb": types.ModuleType("wandb"), "albumentations": types.ModuleType("albumentations")}
    spared |= {"torch": None, "ray": None}  # optional where they are imported
    before = {name: sys.modules[name] for name in spared if name in sys.modules}
    sys.modules.update({name: module for name, module in spared.items() if name not in before})
    try:
        import img2dataset
    except Exception:  # a version that needs one of them after all
        for name in [name for name in sys.modules if name.split(".")[0] in ("img2dataset", "webdataset", *spared)]:
            del sys.modules[name]
        sys.modules.update(before)
        import img2dataset
    return img2dataset


def _end_with_parent() -> None:
    os.read(0, 1)  # the parent never writes: this returns when it is gone (sys.stdin would be locked at our exit)
    os.killpg(0, signal.SIGKILL)


def main() -> None:
    """Fetch what the settings say; ends with its whole process group when the parent's end of stdin closes."""
    config = FetchConfig.read(Path(sys.argv[1]))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ[ENVIRONMENT] = json.dumps(asdict(config.limits))
    _import_img2dataset().download(
        url_list=config.urls,
        input_format="parquet",
        url_col="url",
        save_additional_columns=["uid"],
        output_folder=config.out,
        output_format="webdataset",
        number_sample_per_shard=config.piece,
        processes_count=config.processes,
        thread_count=config.threads,
        timeout=config.timeout,
        retries=0,  # its retries are at once and of every failure; ours are later passes
        disable_all_reencoding=True,  # decoding, turning and resizing are ours: see `pictures.fit`
        resize_mode="no",
        extract_exif=False,
        compute_hash=None,
        user_agent_token=config.user_agent,
        disallowed_header_directives=OPT_OUT,
    )


if __name__ == "__mp_main__":  # a worker of img2dataset's pool
    _import_img2dataset()
    if ENVIRONMENT in os.environ:
        urllib.request.install_opener(build_opener(FetchLimits(**json.loads(os.environ[ENVIRONMENT]))))
elif __name__ == "__main__":
    main()
