"""Starts commands in forks of a process that has imported everything, which saves seconds per try.

    python tests/chaos/chaos_server.py

A request is a line of JSON on stdin, its answer a line on stdout. A fork runs `capfilt.cli.main` with the arguments of
the command, as `python -m capfilt` does; with `exec` it becomes that program. Orphans of killed commands become
children of this process, so none is missed.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

LIBC = ctypes.CDLL(None)
PR_SET_CHILD_SUBREAPER = 36
CLONE_NEWNS = 0x20000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000


# What the commands import.
MODULES = ["torch.distributed.checkpoint", "torch.utils.tensorboard", "webdataset", "pyarrow.parquet", "capfilt.cli"]
MODULES += ["blipcore.evaluation", "blipcore.train.launch", "blipcore.train.runs", "capfilt.caption_and_filter"]
MODULES += ["capfilt.caption.blip", "capfilt.filter.blip", "capfilt.export.stage", "capfilt.report.stage"]
MODULES += ["capfilt.filter.judge_server", "openai"]
MODULES += ["capfilt.ingest.download", "capfilt.ingest.pack", "blipcore.checkpoints.convert"]


def descendants(pid: int) -> list[int]:
    """Return the running processes below a process, oldest first; zombies have ended."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                children.setdefault(int(parent), []).append(int(folder.name))
    found = list(children.get(pid, []))
    for child in found:
        found += children.get(child, [])
    return found


def describe(pid: int) -> str:
    """Return the command line of a process."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")[:200]
    return "ended"


def run_command(request: dict[str, Any]) -> None:
    """Become the command of a request, in a process group of its own."""
    os.setsid()
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
        os.close(file)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    if request["shared_memory"]:
        _mount_own_shared_memory(request["shared_memory"])
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    for name, value in request.get("limits", {}).items():
        resource.setrlimit(getattr(resource, name), (value, value))
    if "cgroup" in request:
        Path(request["cgroup"], "cgroup.procs").write_text(str(os.getpid()))
    if request.get("exec"):
        os.execv(sys.executable, [sys.executable, "-m", "capfilt", *request["arguments"]])
    import tempfile

    from capfilt.cli import main

    tempfile.tempdir = None  # read TMPDIR again
    sys.argv = ["capfilt", *request["arguments"]]
    main()


def _mount_own_shared_memory(folder: str) -> None:
    """Give this process and its children `folder` as /dev/shm."""
    if LIBC.unshare(CLONE_NEWNS):
        raise OSError("This process cannot have mounts of its own.")
    LIBC.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    LIBC.mount(folder.encode(), b"/dev/shm", None, MS_BIND, None)


def serve() -> None:
    LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for line in sys.stdin:
        request = json.loads(line)
        answer: Any = None
        if request["do"] == "start":
            answer = os.fork()
            if answer == 0:
                return run_command(request)
        elif request["do"] == "wait":
            status = os.waitpid(request["pid"], 0)[1]
            answer = os.waitstatus_to_exitcode(status)
        else:  # orphans
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            answer = [[pid, describe(pid)] for pid in descendants(os.getpid())]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    for module in MODULES:
        importlib.import_module(module)
    print("ready", flush=True)
    serve()
