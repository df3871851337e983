"""Converts a checkpoint from one format to another (`capfilt convert`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from blipcore.checkpoints.load import (
    TASK_PARTS,
    build_model,
    describe_model,
    load_tokenizer,
    read_checkpoint,
    require_parts,
)
from blipcore.checkpoints.numerics import Numerics
from blipcore.checkpoints.save import save_huggingface, save_model, save_official
from blipcore.io.hub import locate_model


@dataclass
class ConvertRun:
    """Settings of `capfilt convert`."""

    source: str
    target: Path
    to: Literal["blipcore", "hf", "official"] = "blipcore"
    # Keep only the parts that this task needs.
    task: Literal["pretrain", "caption", "retrieval", "features", "vqa", "nlvr"] | None = None
    tokenizer: str | None = None
    image_size: int | None = None
    # Text heads and eps of a Hugging Face source, see `blipcore.checkpoints.numerics`.
    numerics: Numerics = "official"
    # Sizes that an official file lacks, as in {"vision": {"heads": 3}}.
    model: dict[str, Any] = field(default_factory=dict)


def convert(run: ConvertRun) -> dict[str, Any]:
    """Write `run.source` in another format; return a summary that includes the parts left out.

    Raises ValueError if the target exists, unless a blipcore folder replaces an older one.
    """
    if run.to != "blipcore" and run.target.exists():
        raise ValueError(f"{run.target} exists: choose another path, or remove it.")
    path = locate_model(run.source)
    config, state, training_state = read_checkpoint(path, run.model, run.numerics)
    model = build_model(config, state, run.image_size)
    left_out = sorted({name.partition(".")[0] for name in training_state})
    if run.task:
        parts = TASK_PARTS[run.task]
        require_parts(config, run.source, parts)
        left_out += [part for part in (*config.text.roles, *config.heads) if part not in parts]
        model = model.select_parts(*parts)
    if run.to == "official":
        save_official(run.target, model)
    else:
        save = save_model if run.to == "blipcore" else save_huggingface
        save(run.target, model, load_tokenizer(config, run.source, path, run.tokenizer))
    return {
        "source": run.source,
        "target": str(run.target),
        "format": run.to,
        "model": describe_model(model.config),
        "image_size": model.config.vision.image_size,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "left_out": left_out,
    }
