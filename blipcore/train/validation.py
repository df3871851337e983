"""Validation during training: evaluates the model at intervals and keeps the best one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass

from blipcore import distributed
from blipcore.io.writing import write_text
from blipcore.model.blip import Blip
from blipcore.tasks.retrieval import SAME_TEXT
from blipcore.tasks.task import Task
from blipcore.train.checkpoint import random_state, set_random_state
from blipcore.train.compile import disable_compile
from blipcore.train.parallel import unsharded_model
from blipcore.train.run_folder import RunFolder
from blipcore.train.state import TrainState


@dataclass
class Validator:
    """Evaluates a model every `every` steps and after the last one."""

    evaluate: Callable[[Blip], dict[str, float]]  # on rank 0: model -> scores by name, higher is better
    best_by: tuple[str, ...]  # the best model has the largest sum of these scores
    every: int  # optimizer steps

    def is_due(self, state: TrainState) -> bool:
        """Return whether the model of this step must still be evaluated."""
        due = state.step % self.every == 0 or state.step == state.steps
        return due and state.validated_step != state.step

    def validate(self, task: Task, state: TrainState, folder: RunFolder, device: str) -> dict[str, float]:
        """Evaluate the model of `task`, save it to `folder.best` if it is the best so far, and return its scores.

        Updates `state`. All processes must call it. Restores the random generators, so that validation does not change
        training. An exception of `evaluate` is raised on all processes.
        """
        model, random_states = unsharded_model(task), random_state(device)

        def evaluate_on_main() -> tuple[dict[str, float], dict[str, float]]:
            scores = self.evaluate(model.to(device).eval())
            # If pictures share texts, the published recall can be 0 for every model.
            value = sum(scores.get(SAME_TEXT + name, scores[name]) for name in self.best_by)
            best = state.best
            if value > best.get("value", -math.inf):
                task.save(folder.best, model)
                best = {"step": state.step, "value": value, **scores}
                write_text(folder.path / "best.json", json.dumps(best, indent=1) + "\n")
            return scores, best

        try:
            with disable_compile(task):
                scores, state.best = distributed.run_on_main(evaluate_on_main)
        finally:
            task.train()
            set_random_state(random_states, device)
        state.validated_step = state.step
        return scores


def describe_validation(state: TrainState, scores: dict[str, float]) -> str:
    """Return one line: the step, its scores and whether they are the best so far."""
    values = "  ".join(f"{name} {score:.4g}" for name, score in scores.items())
    verdict = "the best so far" if state.best.get("step") == state.step else "no better than before"
    return f"step {state.step} on the validation set: {values}: {verdict}"
