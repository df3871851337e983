"""Runs a function on several real processes that form a group, and collects the results.

The processes are forked from a server that has imported torch once, so that each starts in tens of milliseconds. They
import this file by its name to unpickle their work.
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
SERVER.set_forkserver_preload(["blipcore.train.runs", "torch._dynamo"])  # the second for DDP


def on_ranks(ranks: int, work: Callable[..., Any], *args: Any, **options: Any) -> list[Any]:
    """Return the results of `work(*args, **options)` on `ranks` processes, None for a killed one.

    SystemExit counts as its code; any other exception fails the test.
    """
    processes, receivers = start(ranks, functools.partial(work, *args, **options))
    results = [receive(receiver) for receiver in receivers]
    for process in processes:
        process.join()
    tracebacks = [result for result in results if isinstance(result, Traceback)]
    assert not tracebacks, "\n".join(tracebacks)
    return results


def start(ranks: int, work: Callable[[], Any]) -> tuple[list[Any], list[Connection]]:
    """Start the processes of `on_ranks`; the caller receives their results and ends them."""
    with socket.socket() as unused:
        unused.bind(("localhost", 0))
        port = unused.getsockname()[1]
    processes, receivers = [], []
    for rank in range(ranks):
        receiver, sender = SERVER.Pipe(duplex=False)
        group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        environment = {name: str(value) for name, value in group.items()} if ranks > 1 else {}
        process = SERVER.Process(target=_work, args=(sender, environment, work))
        process.start()
        sender.close()
        processes.append(process)
        receivers.append(receiver)
    return processes, receivers


class Traceback(str):
    """The traceback of a failed process."""


def receive(receiver: Connection) -> Any:
    """Wait for the result of a process; None if it was killed."""
    try:
        return pickle.loads(receiver.recv_bytes())
    except EOFError:
        return None


def _work(sender: Connection, environment: dict[str, str], work: Callable[[], Any]) -> None:
    os.environ.update(environment)
    from blipcore import distributed

    try:
        with distributed.process_group("cpu"):
            result = work()
    except SystemExit as exit_:
        result = exit_.code
    except BaseException:
        result = Traceback(traceback.format_exc())
    # As bytes: `send` would share the memory of tensors, which is gone when this process ends.
    sender.send_bytes(pickle.dumps(result))
