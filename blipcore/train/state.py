"""Progress of a training run."""

from dataclasses import dataclass, field


@dataclass
class TrainState:
    """Progress without tensors; a checkpoint holds it as JSON."""

    step: int = 0  # optimizer steps done
    steps: int = 0  # optimizer steps of the whole run
    position: int = 0  # samples of the stream consumed, over all processes
    seconds: float = 0.0  # in the training loop, over all launches
    waited: float = 0.0  # the part of `seconds` spent waiting for data
    skipped: int = 0  # steps whose update was skipped because a loss or gradient was not finite
    skipped_in_a_row: int = 0
    validated_step: int = 0  # `step` of the last validation
    logged_step: int = 0  # `step`, `seconds` and `waited` at the last log record
    logged_seconds: float = 0.0
    logged_waited: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)  # means over the last complete log interval
    best: dict[str, float] = field(default_factory=dict)  # best validation so far: step, value and scores
    problems: dict[str, str] = field(default_factory=dict)  # unreadable pictures and shards: name -> reason
