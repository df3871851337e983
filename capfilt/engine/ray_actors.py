"""Workers that are Ray actors, on the cluster at RAY_ADDRESS or of `ray start`, otherwise on a new local one.

Ray places the actors, each with a GPU if the cluster has any, and reports the death of an actor or its node. The engine
retries shards as with local processes. Every machine of the cluster needs capfilt and the models at the same paths, and
a shared output folder.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Any

from capfilt.engine.worker import ShardOutcome, Stage, StageRunner, describe_error, make_portable

PLACEMENT_SECONDS = 60.0  # without a placed worker, before a message


@dataclass(eq=False)
class WorkerActor:
    """A worker somewhere on the cluster."""

    index: int
    handle: Any


class RayPool:
    """At most `workers` actors; without room on the cluster they wait to be placed."""

    def __init__(self, stage: Stage, device: str, workers: int) -> None:
        self.ray = _import_ray()
        self.owns_cluster = not self.ray.is_initialized()
        if self.owns_cluster:
            self._connect()
        self.stage, self.device = stage, device
        self.workers: list[WorkerActor] = []
        self.pending: dict[Any, WorkerActor] = {}  # reference to a future result -> its worker
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        cpus = [int(resources["CPU"]) for resources in nodes if resources.get("CPU", 0) >= 1]
        self.cores = max(1, min(sum(cpus) // workers, *cpus, 1024)) if cpus else 1
        self.gpus = int(device in ("auto", "cuda") and any(resources.get("GPU") for resources in nodes))
        self.may_report_wait = True  # once, before the first worker is placed

    def _connect(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        is_debug = os.environ.get("CAPFILT_DEBUG") == "1"
        try:
            self.ray.init(include_dashboard=False, log_to_driver=is_debug, logging_level="WARNING")
        except ConnectionError as error:
            address = os.environ.get("RAY_ADDRESS", "the address that `ray start` has recorded")
            raise ValueError(
                f"No Ray cluster answers at {address} ({describe_error(error)}); check RAY_ADDRESS and, if the cluster "
                "asks for a token, set RAY_AUTH_MODE=token."
            ) from None

    def start(self, index: int) -> WorkerActor:
        """Request a worker; it sends `ready` when it is placed and its models are loaded."""
        actor = self.ray.remote(num_cpus=self.cores, num_gpus=self.gpus, max_restarts=0)(RayWorker)
        worker = WorkerActor(index, actor.remote(self.stage, self.device, self.cores))
        self.workers.append(worker)
        self.pending[worker.handle.setup.remote()] = worker
        return worker

    def submit(self, worker: WorkerActor, shard: str, next_shard: str | None) -> None:
        """Send a worker its shard, and the one that it probably runs next."""
        self.pending[worker.handle.run_shard.remote(shard, next_shard)] = worker

    def wait(self) -> list[tuple[WorkerActor, ShardOutcome]]:
        """Wait for outcomes; a worker whose outcome is `died` gets no further shard."""
        ready: list[Any] = []
        while not ready:
            ready, _ = self.ray.wait(list(self.pending), timeout=PLACEMENT_SECONDS)
            if not ready and self.may_report_wait:
                self.may_report_wait = False
                resources = f"{self.cores} CPU and {self.gpus} GPU"
                print(f"waiting for Ray to place workers that need {resources} each", file=sys.stderr, flush=True)
        self.may_report_wait = False
        workers = [(self.pending.pop(reference), reference) for reference in ready]
        return [(worker, self._receive(worker, reference)) for worker, reference in workers]

    def _receive(self, worker: WorkerActor, reference: Any) -> ShardOutcome:
        try:
            return ShardOutcome(*self.ray.get(reference))
        except self.ray.exceptions.RayError as error:  # from the actor, its process or its machine
            # If only its result is lost or its method raised, the actor lives and keeps resources that its successor
            # needs.
            self.ray.kill(worker.handle)
            return ShardOutcome("died", describe_error(getattr(error, "cause", None) or error))

    def stop(self) -> None:
        """End all workers, and the cluster if this pool started it."""
        for worker in self.workers:
            self.ray.kill(worker.handle)
        if self.owns_cluster:
            self.ray.shutdown()


class RayWorker:
    """The actor: a worker that holds its models and runs one shard per call."""

    def __init__(self, stage: Stage, device: str, cores: int) -> None:
        self.runner = StageRunner(stage, device, index=0, cores=cores)  # Ray shows each actor its own GPU as number 0

    def setup(self) -> tuple[str, Any]:
        return tuple(make_portable(self.runner.setup()))

    def run_shard(self, shard: str, next_shard: str | None) -> tuple[str, Any]:
        return tuple(make_portable(self.runner.run(shard, next_shard)))


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ImportError(f"--engine ray needs Ray ({error}); pip install 'capfilt[ray]'") from None
    return ray
