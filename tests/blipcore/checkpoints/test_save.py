"""Saving: a folder gives back its model, replaces only models, and is never left half-written."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from random_checkpoints import assert_same_model, random_model

from blipcore.checkpoints.load import TASK_PARTS, load_model
from blipcore.checkpoints.save import save_model
from blipcore.io.hub import model_fingerprint
from blipcore.model.tokenizer import Tokenizer


@pytest.mark.parametrize("task", TASK_PARTS)
def test_a_saved_folder_gives_back_its_model(tmp_path: Path, tokenizer: Tokenizer, task: str) -> None:
    model = random_model(task)
    save_model(tmp_path / "model", model, tokenizer)
    loaded, loaded_tokenizer = load_model(tmp_path / "model")
    assert_same_model(loaded, model)
    assert loaded_tokenizer.backend.to_str() == tokenizer.backend.to_str()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_saving_replaces_a_model_and_no_other_folder(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = random_model("caption")
    save_model(tmp_path / "model", model, tokenizer)
    first = model_fingerprint(tmp_path / "model")
    with torch.no_grad():
        model.text.lm_head.bias.add_(1)
    save_model(tmp_path / "model", model, tokenizer)
    assert model_fingerprint(tmp_path / "model") != first
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"x")
    with pytest.raises(ValueError, match="photos exists and is no blipcore model"):
        save_model(tmp_path / "photos", model, tokenizer)


def test_an_interrupted_save_leaves_the_old_model(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path / "model", random_model("caption"), tokenizer)
    before = model_fingerprint(tmp_path / "model")

    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(safetensors.torch, "save_file", interrupt)
    for name in ("model", "new"):
        with pytest.raises(KeyboardInterrupt):
            save_model(tmp_path / name, random_model("retrieval"), tokenizer)
    assert model_fingerprint(tmp_path / "model") == before
    assert not (tmp_path / "new").exists()
