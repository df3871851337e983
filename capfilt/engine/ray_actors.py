"""Workers as actors of a Ray cluster: the one that RAY_ADDRESS or `ray start` names, or one of this machine's own.

Ray places them, a GPU each where the cluster has any, and tells when one has died with its node. Which shard is done
again, and by whom, is the engine's to decide, as with local processes. The cluster's machines need capfilt and its
models at the same paths, and a place for the output that all of them see.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Any

from capfilt.engine.worker import ShardOutcome, Stage, attempt, describe, portable, set_up

PATIENCE = 60.0  # seconds without a placed worker after which to say what is waited for


@dataclass(eq=False)
class Actor:
    """A worker somewhere on the cluster."""

    index: int
    handle: Any


class Actors:
    """Crew of at most `workers` actors; those that the cluster has no room for wait to be placed."""

    def __init__(self, stage: Stage, device: str, workers: int):
        self.ray = _import_ray()
        self.started = not self.ray.is_initialized()
        if self.started:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent home from here
            shown = os.environ.get("CAPFILT_DEBUG") == "1"
            try:
                self.ray.init(include_dashboard=False, log_to_driver=shown, logging_level="WARNING")
            except ConnectionError as error:
                where = os.environ.get("RAY_ADDRESS", "the address that `ray start` has left")
                raise ValueError(
                    f"Ray does not answer at {where} ({describe(error)}); check RAY_ADDRESS and, if the cluster asks "
                    "for a token, set RAY_AUTH_MODE=token."
                ) from None
        self.stage, self.device = stage, device
        self.crew: list[Actor] = []
        self.pending: dict[Any, Actor] = {}  # what each is asked for, as a reference to its answer
        machines = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        processors = [int(resources["CPU"]) for resources in machines if resources.get("CPU", 0) >= 1]
        self.threads = max(1, min(sum(processors) // workers, *processors, 1024)) if processors else 1
        self.gpus = int(device in ("auto", "cuda") and any(resources.get("GPU") for resources in machines))
        self.placed = False

    def hire(self, index: int) -> Actor:
        """Ask for a worker, which tells `ready` when it is placed and its models are loaded."""
        kind = self.ray.remote(num_cpus=self.threads, num_gpus=self.gpus, max_restarts=0)(_Work)
        worker = Actor(index, kind.remote(self.stage, self.device, self.threads))
        self.crew.append(worker)
        self.pending[worker.handle.set_up.remote()] = worker
        return worker

    def give(self, worker: Actor, shard: str, upcoming: str | None) -> None:
        """Have a worker do a shard, and tell it what it will probably do next."""
        self.pending[worker.handle.attempt.remote(shard, upcoming)] = worker

    def listen(self) -> list[tuple[Actor, ShardOutcome]]:
        """Wait until workers tell something; one that is `gone` is not asked again."""
        ready: list[Any] = []
        while not ready:
            ready, _ = self.ray.wait(list(self.pending), timeout=PATIENCE)
            if not ready and not self.placed:
                self.placed = True  # said once
                need = f"{self.threads} CPU and {self.gpus} GPU"
                print(f"waiting for Ray to place workers that take {need} each", file=sys.stderr, flush=True)
        self.placed = True
        workers = [(self.pending.pop(reference), reference) for reference in ready]
        return [(worker, self._told(worker, reference)) for worker, reference in workers]

    def _told(self, worker: Actor, reference: Any) -> ShardOutcome:
        try:
            return ShardOutcome(*self.ray.get(reference))
        except self.ray.exceptions.RayError as error:  # of the actor, its process or its machine
            # Its answer may be lost, or its method have raised, while it lives on and keeps the place of the next one.
            self.ray.kill(worker.handle)
            return ShardOutcome("gone", describe(getattr(error, "cause", None) or error))

    def dismiss(self) -> None:
        """End all workers, and a cluster that is our own."""
        for worker in self.crew:
            self.ray.kill(worker.handle)
        if self.started:
            self.ray.shutdown()


class _Work:
    """The actor: a worker with its models, told one shard after the other."""

    def __init__(self, stage: Stage, device: str, threads: int):
        self.stage, self.device, self.threads = stage, device, threads

    def set_up(self) -> tuple[str, Any]:
        return tuple(portable(set_up(self.stage, self.device, 0, self.threads)))  # Ray shows it its own GPU alone

    def attempt(self, shard: str, upcoming: str | None) -> tuple[str, Any]:
        return tuple(portable(attempt(self.stage, shard, upcoming=upcoming)))


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ImportError(f"--engine ray needs Ray ({error}); pip install 'capfilt[ray]'") from None
    return ray
