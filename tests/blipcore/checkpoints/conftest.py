"""Fixtures of the checkpoint tests: a tokenizer, its vocab.txt, and official files of random models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from random_checkpoints import VOCAB, random_model

from blipcore.checkpoints.names import to_official
from blipcore.model.blip import Blip
from blipcore.model.tokenizer import Tokenizer

WriteOfficial = Callable[..., tuple[Path, Blip]]


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer.from_vocab(VOCAB)


@pytest.fixture
def vocab(tmp_path: Path) -> Path:
    (tmp_path / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    return tmp_path / "vocab.txt"


@pytest.fixture
def write_official(tmp_path: Path) -> WriteOfficial:
    """Return a function that writes a random model as an official .pth and returns its path and the model.

    `change` may alter the state dict before it is written.
    """

    def write(task: str, change: Callable[[dict[str, torch.Tensor]], Any] = lambda state: None) -> tuple[Path, Blip]:
        model = random_model(task)
        state = {name: tensor.clone() for name, tensor in to_official(model.state_dict()).items()}
        change(state)
        torch.save({"model": state, "epoch": 0}, tmp_path / f"{task}.pth")
        return tmp_path / f"{task}.pth", model

    return write
