"""Real processes for tests: `on_ranks` runs a function on each of several and gathers what they return.

Processes are forked from a server that has imported torch once, so that one costs tens of milliseconds. Tests import
this file by name (see `tests/conftest.py`), and so do the processes, which find here the work they are given.
"""

import functools
import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["blipcore.train.runs", "torch._dynamo"])  # DDP imports the second


def on_ranks(ranks: int, work: Callable[..., Any], *args: Any, **options: Any) -> list[Any]:
    """What `work(*args, **options)` returns on each of `ranks` processes in one group; None for one that was killed."""
    processes, answers = start(ranks, functools.partial(work, *args, **options))
    told = [receive(answer) for answer in answers]
    for process in processes:
        process.join()
    failed = [text for text in told if isinstance(text, Failed)]
    assert not failed, "\n".join(failed)
    return told


def start(ranks: int, work: Callable[[], Any]) -> tuple[list[Any], list[Connection]]:
    """Start the processes of `on_ranks` and leave them to the caller."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes, answers = [], []
    for rank in range(ranks):
        receiver, sender = SERVER.Pipe(duplex=False)
        group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        environment = {name: str(value) for name, value in group.items()} if ranks > 1 else {}
        process = SERVER.Process(target=_work, args=(sender, environment, work))
        process.start()
        sender.close()
        processes.append(process)
        answers.append(receiver)
    return processes, answers


class Failed(str):
    """The traceback of a process."""


def receive(answer: Connection) -> Any:
    try:
        return pickle.loads(answer.recv_bytes())  # our own processes'
    except EOFError:
        return None


def _work(sender: Connection, environment: dict[str, str], work: Callable[[], Any]) -> None:
    os.environ.update(environment)
    from blipcore import distributed

    try:
        with distributed.session("cpu"):
            told = work()
    except SystemExit as left:
        told = left.code
    except BaseException:
        told = Failed(traceback.format_exc())
    # As plain bytes: tensors sent as they are would be memory that this process shares for as long as it lives.
    sender.send_bytes(pickle.dumps(told))
