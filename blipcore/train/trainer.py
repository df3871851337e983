"""The training loop: steps, devices and files. The Task provides the model and the losses.

A Trainer trains a Task on a Stream into a run folder (see `run_folder.py`). After a kill it resumes from the last
checkpoint with the same samples, the same dropout and, on a CPU, the same bits. Each of several processes (see
`distributed.process_group`) trains on its part of every batch. Rank 0 alone logs, and writes all files except the
tensors of checkpoints.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from blipcore import distributed
from blipcore.data.dataset import SampleStream
from blipcore.data.loader import make_loader
from blipcore.device import autocast, pick_device, to_device
from blipcore.io.memory import require_memory
from blipcore.tasks.task import Batch, Outputs, Progress, Task
from blipcore.train.checkpoint import Checkpoints, random_state, set_random_state
from blipcore.train.compile import prepare_layers
from blipcore.train.display import TrainDisplay
from blipcore.train.finite import FiniteCheck
from blipcore.train.meter import Meter
from blipcore.train.optim import TrainConfig, freeze, learning_rate, make_adamw, optimizer_tensors
from blipcore.train.parallel import (
    average_unsharded_gradients,
    clip_gradients,
    gradient_sync,
    parallelize,
    unsharded_model,
)
from blipcore.train.run_folder import RunFolder
from blipcore.train.signals import stop_signals
from blipcore.train.state import TrainState
from blipcore.train.validation import Validator, describe_validation

SHOWN_PROBLEMS = 20  # unreadable pictures named in the summary and on the terminal

Log = Callable[[dict[str, float]], None]


class Trainer:
    """Trains `task` on `stream` into the folder `out`.

    `resolved` is the configuration that a relaunch must repeat, except for later steps if it `may_change`.
    """

    def __init__(
        self,
        task: Task,
        stream: SampleStream,
        config: TrainConfig,
        out: Path | str,
        resolved: dict[str, Any],
        validator: Validator | None = None,
        may_change: bool = False,
    ) -> None:
        ranks = distributed.world_size()
        steps = config.total_steps(len(stream), ranks)
        decay_steps = config.decay_steps or max(1, round(config.steps_per_epoch(len(stream), ranks)))
        self.config = replace(config, steps=steps, epochs=0.0, decay_steps=decay_steps)
        self.epochs, self.may_change = config.epochs, may_change
        # Scores under other settings cannot be compared.
        scored_by = resolved.get("validation") or {}
        self.scored_by = {name: value for name, value in scored_by.items() if name not in ("every", "batch_size")}
        self.task, self.stream, self.validator = task, stream, validator
        self.module: nn.Module = task  # called in place of the task: its DDP wrapper on several processes
        self.device = pick_device(config.device)
        self.images_per_step = config.batch_size * config.accumulate * ranks
        launch = {"processes": ranks, "device": self.device, "pictures_per_step": self.images_per_step}
        self.folder = RunFolder(Path(out), resolved, launch)
        self.checkpoints = Checkpoints(self.folder.checkpoints, config.keep)
        self.state = TrainState()
        self.meter = Meter(self.images_per_step, self.device)
        self.finite_check = FiniteCheck(config.nonfinite, self.device)

    def fit(self) -> dict[str, Any]:
        """Train to the last step, from the last checkpoint if one exists, and return the summary.

        A finished run returns its summary at once. SIGTERM, SIGUSR1 and Ctrl-C save a checkpoint and raise SystemExit.
        """
        summary, changes = distributed.run_on_main(lambda: self.folder.claim(self.may_change))
        if summary is not None:
            return summary
        memory = self._check_memory()
        optimizer = self._prepare()
        messages = [memory, *self.stream.notes, *self._resume(optimizer, changes)]
        state = self.state
        opening_problems = self.stream.pop_problems()
        state.problems |= opening_problems
        messages += [f"{name}: {reason}" for name, reason in opening_problems.items()]
        state.steps = self.config.steps
        with stop_signals() as signals, self._display() as display, self._logs() as log:
            for message in messages:
                display.print(message)
            self.meter.start(state.seconds)
            batches = self._batches()
            # The validation of this step may have failed in the last launch.
            self._validate_if_due(optimizer, log, display)
            while state.step < state.steps:
                self._step(optimizer, batches)
                display.advance(state.step)
                if self._is_due(self.config.log_every):
                    self._log(log, display)
                self._validate_if_due(optimizer, log, display)
                # Read once per step, so that all processes agree; a later signal waits for the next step.
                stop_signal = distributed.max_over_ranks(signals[0] if signals else 0)
                if stop_signal or self._is_due(self.config.save_every):
                    self._save(optimizer)
                if stop_signal and state.step < state.steps:
                    display.print(f"stopped and saved at step {state.step}; run the same command again to resume")
                    raise SystemExit(128 + stop_signal)
            for name, reason in self._shown_problems().items():
                if name not in opening_problems:
                    display.print(f"unreadable, replaced by the next: {name}: {reason}")
        return self._finish()

    def _check_memory(self) -> str:
        """Return a line on the memory that training keeps; raise NotEnoughMemoryError if it exceeds a limit."""
        kept = sum(parameter.nbytes for parameter in self.task.parameters())
        # A gradient and two moments of AdamW.
        new = 3 * sum(parameter.nbytes for parameter in self.task.parameters() if parameter.requires_grad)
        if self.config.parallel == "fsdp":
            new //= distributed.world_size()
        if torch.device(self.device).type == "cpu":
            require_memory(new, "Training this model")
        return f"memory: {(kept + new) / 1e9:.2f} GB for weights, gradients and optimizer, besides activations"

    def _prepare(self) -> AdamW:
        """Bring the task to its device, compile and parallelize it, and return its optimizer."""
        config, task = self.config, self.task
        if self.device.startswith("cuda:"):
            torch.cuda.set_device(self.device)  # torch's checkpoints wait for copies of the current device only
        freeze(task.model, config.freeze)
        task.to(self.device).train()
        prepare_layers(task, config, self.device)
        self.module = parallelize(task, config.parallel)
        optimizer = make_adamw(task, config)
        torch.manual_seed(config.seed + distributed.rank())
        return optimizer

    def _display(self) -> TrainDisplay:
        return TrainDisplay(self.config.steps, self.state.step, quiet=not distributed.is_main())

    def _logs(self) -> contextlib.AbstractContextManager[Log]:
        if distributed.is_main():
            return self.folder.logs(self.state.step, self.config.wandb)
        return contextlib.nullcontext(lambda record: None)

    def _is_due(self, every: int) -> bool:
        return self.state.step % every == 0 or self.state.step == self.state.steps

    def _batches(self) -> Iterator[tuple[Batch | Exception, dict[str, str]]]:
        """Iterate over the remaining micro-batches of the run, each with the problems of reading it."""
        config, state = self.config, self.state
        count = (state.steps - state.step) * config.accumulate
        loader = make_loader(
            self.stream, self.task.collate, config.batch_size, state.position, count, workers=config.workers
        )
        return iter(loader)

    def _step(self, optimizer: AdamW, batches: Iterator[tuple[Batch | Exception, dict[str, str]]]) -> None:
        """Do one optimizer step; on a GPU, without waiting for the device."""
        config, state, task = self.config, self.state, self.task
        progress = Progress(state.step, config.steps)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(state.step, config)
        task.before_step(progress)
        keys: list[str] = []
        outputs: list[Outputs] = []
        for micro_step in range(config.accumulate):
            batch = self._next_batch(batches)
            keys += batch["keys"]
            with gradient_sync(self.module, enabled=micro_step == config.accumulate - 1):
                with autocast(self.device, config.dtype):
                    losses = self.module(batch, progress)
                (losses["loss"] / config.accumulate).backward()
            outputs.append({name: value.detach() for name, value in losses.items()})
        average_unsharded_gradients(task)
        finite = torch.stack([losses["loss"] for losses in outputs]).isfinite().all()
        if config.clip or config.nonfinite == "skip":
            finite &= clip_gradients(task, config.clip or math.inf).isfinite()
        self.finite_check.add(state.step, keys, finite)
        if self.finite_check.allows_update(state):
            optimizer.step()
            task.after_step(outputs)
            self.meter.add(outputs)
        optimizer.zero_grad(set_to_none=True)
        state.step += 1
        state.position += self.images_per_step

    def _next_batch(self, batches: Iterator[tuple[Batch | Exception, dict[str, str]]]) -> Batch:
        start = time.perf_counter()
        batch, problems = next(batches)
        if isinstance(batch, Exception):
            raise batch
        self.state.waited += time.perf_counter() - start
        self.state.problems |= problems
        return {name: to_device(x, self.device) if isinstance(x, Tensor) else x for name, x in batch.items()}

    def _log(self, log: Log, display: TrainDisplay) -> None:
        self.finite_check.all_finite()
        record = self.meter.record(self.state, learning_rate(self.state.step - 1, self.config))
        log(record)
        display.log(record, self.meter.seconds_per_step * (self.state.steps - self.state.step))

    def _validate_if_due(self, optimizer: AdamW, log: Log, display: TrainDisplay) -> None:
        """Validate if due. If validation raises, save first, so that a relaunch starts with it."""
        state = self.state
        if self.validator is None or not self.validator.is_due(state):
            return
        try:
            scores = self.validator.validate(self.task, state, self.folder, self.device)
        except Exception:  # raised on all processes
            self._save(optimizer)
            raise
        log({"step": state.step} | {f"val_{name}": score for name, score in scores.items()})
        display.print(describe_validation(state, scores))

    def _save(self, optimizer: AdamW) -> None:
        """Write a checkpoint and draw the losses. Raises NonFiniteLossError instead of replacing good weights."""
        state = self.state
        self.finite_check.require_finite(self.task, state.step)
        state.seconds = self.meter.seconds()
        for problems in distributed.gather_objects(state.problems):
            state.problems = problems | state.problems  # those of this process count, which may be more complete
        random_states = random_state(self.device)
        saved_state = asdict(state) | {
            "summed": self.meter.summed_steps,
            "sums": distributed.gather_objects(self.meter.saved_sums()),
            "generators": list(random_states),
            "epochs": self.epochs,
            "scored_by": self.scored_by,
        }
        self.checkpoints.save(state.step, self._tensors(optimizer) | self._random_tensors(random_states), saved_state)
        if distributed.is_main():
            self.folder.plot()

    def _tensors(self, optimizer: AdamW) -> dict[str, Tensor]:
        """Return weights, momentum encoders, queues and optimizer state, named alike for any number of processes."""
        state = {"task." + name: value for name, value in self.task.state_dict().items()}
        return state | {"optimizer." + name: value for name, value in optimizer_tensors(self.task, optimizer).items()}

    def _random_tensors(self, random_states: dict[str, Tensor]) -> dict[str, Tensor]:
        return {f"random.{distributed.rank()}.{name}": value for name, value in random_states.items()}

    def _resume(self, optimizer: AdamW, changes: list[str]) -> list[str]:
        """Load the newest readable checkpoint, if any; return messages for the user.

        `changes` are the settings that differ from those of the last launch.
        """
        ranks, random_states = distributed.world_size(), random_state(self.device)

        def tensors_to_fill(saved_state: dict[str, Any]) -> dict[str, Tensor]:
            if len(saved_state["sums"]) != ranks:
                return self._tensors(optimizer)
            # A checkpoint made on a CPU has no state of the GPU's generator.
            saved = {name: tensor for name, tensor in random_states.items() if name in saved_state["generators"]}
            return self._tensors(optimizer) | self._random_tensors(saved)

        checkpoint = self.checkpoints.restore(tensors_to_fill)
        if checkpoint is None:
            return []
        saved_state, messages = checkpoint
        saved_state.setdefault("validated_step", saved_state.get("judged_step", 0))  # its name in older checkpoints
        state = self.state = TrainState(
            **{name: saved_state[name] for name in asdict(self.state) if name in saved_state}
        )
        if changes:
            messages.append(f"continued with other settings: {'; '.join(changes)}")
        if saved_state.get("scored_by", None if changes else self.scored_by) != self.scored_by:
            state.best, state.validated_step = {}, 0
        same_epochs = saved_state.get("epochs", self.epochs) == self.epochs
        if len(saved_state["sums"]) == ranks:
            set_random_state(random_states, self.device)
            self.meter.load_sums(saved_state["sums"][distributed.rank()], saved_state["summed"])
            if self.epochs and same_epochs:
                self.config = replace(self.config, steps=state.steps)
        else:
            messages.append(self._adapt_to_ranks(len(saved_state["sums"])))
            same_epochs = False
        if self.epochs and not same_epochs:
            remaining = round((self.epochs * len(self.stream) - state.position) / self.images_per_step)
            self.config = replace(self.config, steps=state.step + max(0, remaining))
        return [*messages, f"resuming from step {state.step} of {self.config.steps}"]

    def _adapt_to_ranks(self, saved_ranks: int) -> str:
        """Continue a run of `saved_ranks` processes on another number of them; return a message.

        The stream continues at the next sample. Random generators are seeded anew.
        """
        state, ranks = self.state, distributed.world_size()
        torch.manual_seed(self.config.seed + distributed.rank() + ranks * state.step)
        self.meter.start_interval(state)
        return (
            f"the checkpoint is of {saved_ranks} processes and this launch has {ranks}: the data continues at sample "
            f"{state.position}, a step has {self.images_per_step} pictures, dropout draws new masks"
        )

    def _shown_problems(self) -> dict[str, str]:
        return dict(list(self.state.problems.items())[:SHOWN_PROBLEMS])

    def _finish(self) -> dict[str, Any]:
        """Write the trained model and the summary, with the losses of the last log record; return the summary."""
        state = self.state
        summary = {
            "steps": state.step,
            "pictures": state.position,
            "seconds": round(state.seconds, 2),
            "images_per_second": round(state.position / state.seconds, 1),
            "data_wait_share": round(state.waited / state.seconds, 4),
            "losses": state.losses,
            "best": state.best,
            "skipped_steps": state.skipped,
            "unreadable": len(state.problems),
            "problems": self._shown_problems(),
            "model": str(self.folder.model),
        }
        model = unsharded_model(self.task)

        def export() -> None:
            self.folder.finish(summary)
            self.task.save(self.folder.model, model)

        distributed.run_on_main(export)
        return summary
