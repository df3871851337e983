"""Converts a checkpoint from one format to another."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from blipcore.checkpoints.huggingface import Numerics
from blipcore.checkpoints.load import PARTS, _build, _kind, _read, _tokenizer_for, require_parts
from blipcore.checkpoints.save import save_huggingface, save_model, save_official
from blipcore.io.hub import locate


@dataclass
class ConvertRun:
    """`capfilt convert`: which checkpoint, into what."""

    source: str
    target: Path
    to: Literal["blipcore", "hf", "official"] = "blipcore"
    task: Literal["pretrain", "caption", "retrieval", "features", "vqa", "nlvr"] | None = (
        None  # keep only what it runs on
    )
    tokenizer: str | None = None
    image_size: int | None = None
    numerics: Numerics = "official"  # of a Hugging Face source (see `huggingface_config`)
    model: dict[str, Any] = field(default_factory=dict)  # what an official file does not tell: {"vision": {"heads": 3}}


def convert(run: ConvertRun) -> dict[str, Any]:
    """Write `run.source` as another kind of checkpoint; returns what came over and what was left behind."""
    if run.to != "blipcore" and run.target.exists():
        raise ValueError(f"{run.target} exists: choose another place, or remove it")
    path = locate(run.source)
    config, state, extra = _read(path, run.model, run.numerics)
    model = _build(config, state, run.image_size)
    left = sorted({name.partition(".")[0] for name in extra})
    if run.task:
        require_parts(config, run.source, PARTS[run.task])
        left += [part for part in (*config.text.roles, *config.heads) if part not in PARTS[run.task]]
        model = model.only(*PARTS[run.task])
    if run.to == "official":
        save_official(run.target, model)
    else:
        save = save_model if run.to == "blipcore" else save_huggingface
        save(run.target, model, _tokenizer_for(config, run.source, path, run.tokenizer))
    return {
        "source": run.source,
        "target": str(run.target),
        "format": run.to,
        "model": _kind(model.config),
        "image_size": model.config.vision.image_size,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "left_out": left,
    }
