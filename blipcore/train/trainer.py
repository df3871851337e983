"""The one training loop. It knows steps, devices and files; the Task knows the model and the losses.

In: a Task, a Stream, a TrainConfig and a folder. Out: that folder with a trained model (see `run_folder.py` for what
else is in it) and a summary. Killed and launched again, a run goes on from its last checkpoint as if nothing had
happened: the same samples, the same dropout, on a CPU the same bits. Launched on several processes (see
`distributed.session`), each trains on its part of every batch, and rank 0 alone writes what is single and prints.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from blipcore import distributed
from blipcore.data.loader import make_loader
from blipcore.data.stream import Stream
from blipcore.device import autocast, memory_gb, pick_device, to_device
from blipcore.model.blip import Blip
from blipcore.tasks.task import Batch, Outputs, Progress, Task
from blipcore.train.checkpoint import Checkpoints, random_state, set_random_state
from blipcore.train.compile import prepare_layers, uncompiled
from blipcore.train.display import Display
from blipcore.train.finite import NonFiniteLossError
from blipcore.train.optim import TrainConfig, adamw, freeze, optimizer_tensors, schedule
from blipcore.train.parallel import (
    accumulating,
    average_whole_gradients,
    clip_gradients,
    parallelize,
    weights_finite,
    whole_model,
)
from blipcore.train.run_folder import RunFolder, stop_signals, write_text
from blipcore.train.validation import Judge

SHOWN_PROBLEMS = 20  # unreadable pictures that the summary names
MAX_SKIPPED = 100  # steps in a row; what has failed so often does not heal, and would fill days


@dataclass
class TrainState:
    """Where a run is, apart from weights and generators; what a checkpoint holds in readable form."""

    step: int = 0  # optimiser steps done
    steps: int = 0  # of the whole run, as the last launch counted them
    position: int = 0  # samples of the stream that these took, over all processes
    seconds: float = 0.0  # in the loop, over all launches that led here
    waited: float = 0.0  # of these, waiting for data
    skipped: int = 0  # steps left out because a loss was not finite
    skipped_in_a_row: int = 0  # of these, up to now
    judged_step: int = 0  # `step` at the last judgement
    logged_step: int = 0  # `step`, `seconds` and `waited` at the last log
    logged_seconds: float = 0.0
    logged_waited: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)  # means over the last complete log interval
    best: dict[str, float] = field(default_factory=dict)  # on the validation set: step, value and scores
    problems: dict[str, str] = field(default_factory=dict)  # unreadable pictures and shards: name -> reason


class Trainer:
    """Trains `task` on `stream` into the folder `out`; `resolved` is the configuration that names the run."""

    def __init__(
        self,
        task: Task,
        stream: Stream,
        config: TrainConfig,
        out: Path | str,
        resolved: dict[str, Any],
        judge: Judge | None = None,
    ) -> None:
        ranks = distributed.world_size()
        steps = config.total_steps(len(stream), ranks)
        decay_steps = config.decay_steps or max(1, round(config.steps_per_epoch(len(stream), ranks)))
        self.config = replace(config, steps=steps, epochs=0.0, decay_steps=decay_steps)
        self.epochs = config.epochs
        self.task, self.stream = task, stream
        self.module: nn.Module = task  # what to call in its place when there are several processes
        self.judge = judge
        self.device = pick_device(config.device)
        self.images_per_step = config.batch_size * config.accumulate * ranks
        launch = {"processes": ranks, "device": self.device, "pictures_per_step": self.images_per_step}
        self.folder = RunFolder(Path(out), resolved, launch)
        self.checkpoints = Checkpoints(self.folder.checkpoints, config.keep)
        self.state = TrainState()
        self.sums: dict[str, Tensor] = {}  # of the losses since the last log, kept on the device
        self.summed = 0  # steps in `sums`
        self.started = 0.0  # when the loop would have begun, had it run in one go
        # Steps not yet looked at: (step, keys, is it finite here, share of the processes where it is).
        self.suspects: list[tuple[int, list[str], Tensor, Tensor]] = []
        # Looking waits for the device, so it is done at once only where that is free or where it decides the step.
        self.look_at_once = config.nonfinite == "skip" or torch.device(self.device).type == "cpu"

    def fit(self) -> dict[str, Any]:
        """Train to the end, from the last checkpoint if there is one; returns the summary (see `_summary`).

        A finished run returns its summary at once. SIGTERM, SIGUSR1 and Ctrl-C save and raise SystemExit.
        """
        finished = distributed.on_main(self.folder.claim)
        if finished is not None:
            return finished
        if self.device.startswith("cuda:"):
            torch.cuda.set_device(self.device)  # torch's checkpoints wait for the copies of the current device alone
        freeze(self.task.model, self.config.freeze)
        self.task.to(self.device).train()
        prepare_layers(self.task, self.config, self.device)
        self.module = parallelize(self.task, self.config.parallel)
        optimizer = adamw(self.task, self.config)
        torch.manual_seed(self.config.seed + distributed.rank())
        messages = self._resume(optimizer)
        config, state = self.config, self.state
        state.steps = config.steps
        main = distributed.is_main()
        logs = self.folder.logs(state.step, config.wandb) if main else contextlib.nullcontext(lambda record: None)
        with stop_signals() as stopped, Display(config.steps, state.step, quiet=not main) as display, logs as log:
            for message in messages:
                display.say(message)
            batches = self._batches()
            self.started = time.perf_counter() - state.seconds
            self._judge_if_due(optimizer, log, display)  # where a judgement failed and the run was saved instead
            while state.step < config.steps:
                self._step(optimizer, batches)
                state.step += 1
                state.position += self.images_per_step
                display.step(state.step)
                last = state.step == config.steps
                if last or state.step % config.log_every == 0:
                    record, seconds_left = self._record()
                    log(record)
                    display.log(record, seconds_left)
                self._judge_if_due(optimizer, log, display)
                # Asked once, of all processes: a signal after this line waits for the next step.
                leaving = distributed.largest(stopped[0] if stopped else 0)
                if last or leaving or state.step % config.save_every == 0:
                    self._save(optimizer)
                    if main:
                        self.folder.plot()
                if leaving and not last:
                    display.say(f"stopped and saved at step {state.step}; run the same command again to go on")
                    raise SystemExit(128 + leaving)
            for name, reason in list(state.problems.items())[:SHOWN_PROBLEMS]:
                display.say(f"unreadable, replaced by the next: {name}: {reason}")
        summary = self._summary()
        model = whole_model(self.task)
        distributed.on_main(lambda: self._export(summary, model))
        return summary

    def _batches(self) -> Iterator[tuple[Batch, dict[str, str]]]:
        """Micro-batches from where the run stands, whatever happened before."""
        config, state = self.config, self.state
        left = (config.steps - state.step) * config.accumulate
        return iter(
            make_loader(self.stream, self.task.collate, config.batch_size, state.position, left, config.workers)
        )

    def _step(self, optimizer: AdamW, batches: Iterator[tuple[Batch, dict[str, str]]]) -> None:
        """One optimiser step; on a GPU nothing in it waits for the device."""
        config, state, task = self.config, self.state, self.task
        progress = Progress(state.step, config.steps)
        for group in optimizer.param_groups:
            group["lr"] = schedule(state.step, config)
        task.before_step(progress)
        keys: list[str] = []
        outputs: list[Outputs] = []
        for micro in range(config.accumulate):
            batch = self._next(batches)
            keys += batch["keys"]
            with accumulating(self.module, last=micro == config.accumulate - 1):
                with autocast(self.device, config.dtype):
                    out = self.module(batch, progress)
                (out["loss"] / config.accumulate).backward()
            outputs.append({name: value.detach() for name, value in out.items()})
        average_whole_gradients(task)
        finite = torch.stack([out["loss"] for out in outputs]).isfinite().all()
        if config.clip or config.nonfinite == "skip":
            finite &= clip_gradients(task, config.clip or math.inf).isfinite()
        self.suspects.append((state.step, keys, finite, distributed.mean(finite.float())))
        if self.look_at_once and not self._all_finite():
            state.skipped += 1
            state.skipped_in_a_row += 1
            if state.skipped_in_a_row == MAX_SKIPPED:
                raise NonFiniteLossError(
                    f"{MAX_SKIPPED} steps in a row, up to step {state.step}, had a loss or gradient that is not "
                    "finite: lower the learning rate, or set a gradient clip"
                )
        else:
            state.skipped_in_a_row = 0
            optimizer.step()
            task.after_step(outputs)
            self._add_up(outputs)
        optimizer.zero_grad(set_to_none=True)

    def _next(self, batches: Iterator[tuple[Batch, dict[str, str]]]) -> Batch:
        started = time.perf_counter()
        batch, problems = next(batches)
        if isinstance(batch, Exception):
            raise batch
        self.state.waited += time.perf_counter() - started
        self.state.problems |= problems
        return {name: to_device(x, self.device) if isinstance(x, Tensor) else x for name, x in batch.items()}

    def _all_finite(self) -> bool:
        """Look at the steps not looked at yet: raises NonFiniteLossError for a bad one, or, if skipping, is False."""
        suspects, self.suspects = self.suspects, []
        if not suspects or torch.stack([share for *_, share in suspects]).eq(1).all():
            return True
        step, keys, here, _ = next(suspect for suspect in suspects if suspect[3] != 1)
        if self.config.nonfinite == "skip":
            return False
        bad = [key for own in distributed.everyone([] if here else keys) for key in own]
        raise NonFiniteLossError(
            f"the loss or its gradient is not finite at step {step}; the pictures of its batch: {', '.join(bad)}. "
            "Lower the learning rate, set a gradient clip, or set nonfinite=skip to leave such steps out"
        )

    def _add_up(self, outputs: list[Outputs]) -> None:
        """Add the scalars of a step (the mean over its micro-batches) to the sums of the log interval."""
        for out in outputs:
            for name, value in out.items():
                if value.ndim == 0:
                    share = value.float() / len(outputs)
                    self.sums[name] = self.sums[name] + share if name in self.sums else share
        self.summed += 1

    def _record(self) -> tuple[dict[str, float], float]:
        """The record of the log interval that ends here, and an estimate of the seconds left."""
        self._all_finite()
        state, names = self.state, list(self.sums)
        if names:  # else every step since the last log was left out
            means = distributed.mean(torch.stack([self.sums[name] for name in names]) / self.summed)
            state.losses = dict(zip(names, means.tolist(), strict=True))
        state.seconds = time.perf_counter() - self.started
        steps = state.step - state.logged_step
        seconds, waited = state.seconds - state.logged_seconds, state.waited - state.logged_waited
        state.logged_step, state.logged_seconds, state.logged_waited = state.step, state.seconds, state.waited
        self.sums, self.summed = {}, 0
        record = {
            "step": state.step,
            **state.losses,
            "lr": schedule(state.step - 1, self.config),
            "images_per_second": round(steps * self.images_per_step / seconds, 1),
            "data_wait_share": round(waited / seconds, 4),
            "memory_gb": round(memory_gb(self.device), 3),
            "seconds": round(state.seconds, 3),
        }
        return record, seconds / steps * (self.config.steps - state.step)

    def _judge_if_due(self, optimizer: AdamW, log: Callable[[dict[str, float]], None], display: Display) -> None:
        """Judge the model at the steps for it; where that fails the run is saved, to begin with it when it goes on."""
        state = self.state
        last = state.step == self.config.steps
        if not self.judge or state.judged_step == state.step or (state.step % self.judge.every and not last):
            return
        model = whole_model(self.task)
        try:
            scores = self._validate(self.judge, model)
        except Exception:  # of rank 0, and so of all
            self._save(optimizer)
            raise
        state.judged_step = state.step
        log({"step": state.step} | {f"val_{name}": score for name, score in scores.items()})
        display.say(self._verdict(scores))

    def _validate(self, judge: Judge, model: Blip) -> dict[str, float]:
        """Scores of the model as it is now; it becomes the one in best/ when it beats those before it."""
        from blipcore.checkpoints.save import save_model

        state, before = self.state, random_state(self.device)

        def look() -> dict[str, float]:
            scores = judge.scores(model.to(self.device).eval())
            value = sum(scores[name] for name in judge.by)
            if value > state.best.get("value", -math.inf):
                save_model(self.folder.best, model, self.task.tokenizer)
                state.best = {"step": state.step, "value": value, **scores}
                write_text(self.folder.path / "best.json", json.dumps(state.best, indent=1) + "\n")
            return scores

        try:
            with uncompiled(self.task):
                return distributed.on_main(look)
        finally:
            self.task.train()
            set_random_state(before, self.device)

    def _verdict(self, scores: dict[str, float]) -> str:
        said = "  ".join(f"{name} {score:.4g}" for name, score in scores.items())
        best = "the best so far" if self.state.best.get("step") == self.state.step else "no better than before"
        return f"step {self.state.step} on the validation set: {said}: {best}"

    def _save(self, optimizer: AdamW) -> None:
        state = self.state
        self._all_finite()  # weights that a NaN has touched must not replace good ones
        if not weights_finite(self.task):
            raise NonFiniteLossError(
                f"the weights are not finite after step {state.step}, although the loss was: a gradient overflowed. "
                "Lower the learning rate or set a gradient clip; the checkpoints before this one are good"
            )
        state.seconds = time.perf_counter() - self.started
        for problems in distributed.everyone(state.problems):
            state.problems |= problems
        interval = {name: value.item() for name, value in self.sums.items()}
        generators = random_state(self.device)
        readable = asdict(state) | {"summed": self.summed, "sums": distributed.everyone(interval)}
        readable["generators"] = list(generators)
        self.checkpoints.save(state.step, self._tensors(optimizer) | self._random_tensors(generators), readable)

    def _tensors(self, optimizer: AdamW) -> dict[str, Tensor]:
        """Weights, momentum encoders, queues and the optimiser's state, under names that any process layout shares."""
        state = {"task." + name: value for name, value in self.task.state_dict().items()}
        return state | {"optimizer." + name: value for name, value in optimizer_tensors(self.task, optimizer).items()}

    def _random_tensors(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {f"random.{distributed.rank()}.{name}": value for name, value in state.items()}

    def _resume(self, optimizer: AdamW) -> list[str]:
        """Take up the newest readable checkpoint; returns what to tell the user."""
        ranks, generators = distributed.world_size(), random_state(self.device)

        def into(readable: dict[str, Any]) -> dict[str, Tensor]:
            if len(readable["sums"]) != ranks:
                return self._tensors(optimizer)
            there = {name: state for name, state in generators.items() if name in readable["generators"]}
            return self._tensors(optimizer) | self._random_tensors(there)

        restored = self.checkpoints.restore(into)
        if restored is None:
            return []
        readable, messages = restored
        state = self.state = TrainState(**{name: readable[name] for name in asdict(self.state) if name in readable})
        if len(readable["sums"]) == ranks:
            set_random_state(generators, self.device)
            self.config = replace(self.config, steps=state.steps)
            sums = readable["sums"][distributed.rank()]
            self.sums = {name: torch.tensor(value, device=self.device) for name, value in sums.items()}
            self.summed = readable["summed"]
        else:
            messages.append(self._on_other_ranks(len(readable["sums"])))
        return [*messages, f"going on from step {state.step} of {self.config.steps}"]

    def _on_other_ranks(self, before: int) -> str:
        """Go on with another number of processes than `before`: the next sample of the stream, fresh generators."""
        config, state, ranks = self.config, self.state, distributed.world_size()
        torch.manual_seed(config.seed + distributed.rank() + ranks * state.step)
        state.logged_step, state.logged_seconds, state.logged_waited = state.step, state.seconds, state.waited
        if self.epochs:
            left = self.epochs * len(self.stream) - state.position
            self.config = replace(config, steps=state.step + max(1, round(left / self.images_per_step)))
        return (
            f"the checkpoint is of {before} processes, now there are {ranks}: the data goes on at sample "
            f"{state.position}, a step has {self.images_per_step} pictures, dropout draws anew"
        )

    def _summary(self) -> dict[str, Any]:
        """What the run came to; `losses` are means over the last log interval, `problems` names unreadable pictures."""
        state = self.state
        pictures = state.position
        return {
            "steps": state.step,
            "pictures": pictures,
            "seconds": round(state.seconds, 2),
            "images_per_second": round(pictures / state.seconds, 1),
            "data_wait_share": round(state.waited / state.seconds, 4),
            "losses": state.losses,
            "best": state.best,
            "skipped_steps": state.skipped,
            "unreadable": len(state.problems),
            "problems": dict(list(state.problems.items())[:SHOWN_PROBLEMS]),
            "model": str(self.folder.model),
        }

    def _export(self, summary: dict[str, Any], model: Blip) -> None:
        from blipcore.checkpoints.save import save_model

        self.folder.finish(summary)
        save_model(self.folder.model, model, self.task.tokenizer)
