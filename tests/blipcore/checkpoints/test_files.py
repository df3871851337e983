"""Files of tensors: wrappers are opened, damaged files and pickled code are refused, and no code runs."""

import argparse
import collections
import logging
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from blipcore.checkpoints.files import read_pickle, read_tensors


class Trap:
    """Creates a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("trap.txt", "w"))


@pytest.fixture
def bad_files(tmp_path: Path, write_official: Callable[..., Any]) -> Path:
    """Return a folder of files that are no checkpoints."""
    content = write_official("caption")[0].read_bytes()
    (tmp_path / "text.pth").write_text("this is a text file")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "truncated.pth").write_bytes(content[: len(content) // 2])
    torch.save({"model": {"a": Trap()}}, tmp_path / "code.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({0: torch.zeros(1)}, tmp_path / "optimizer.pth")
    return tmp_path


@pytest.mark.parametrize("name", ["text.pth", "empty.pth", "truncated.pth", "code.pth", "list.pth", "optimizer.pth"])
def test_a_file_that_is_no_checkpoint_is_refused(bad_files: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bad_files)
    with pytest.raises(ValueError, match=f"{name} is no PyTorch checkpoint|{name} is a PyTorch file, but no") as caught:
        read_pickle(bad_files / name)
    assert "\n" not in str(caught.value)
    assert not (bad_files / "trap.txt").exists()


def test_the_suffix_decides_the_format(tmp_path: Path) -> None:
    state = {"a": torch.arange(3.0)}
    save_file(state, tmp_path / "a.safetensors")
    torch.save({"model": state}, tmp_path / "a.pth")
    torch.save(state, tmp_path / "a.bin")
    for name in ("a.safetensors", "a.pth", "a.bin"):
        assert torch.equal(read_tensors(tmp_path / name)["a"], state["a"])


def test_a_truncated_safetensors_file_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.arange(3.0)}, tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"a\.safetensors is truncated or no safetensors file"):
        read_tensors(tmp_path / "a.safetensors")


STATE = {"visual.weight": torch.arange(3.0), "text.bias": torch.ones(2)}


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in STATE.items()}


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"model": STATE, "optimizer": {"state": {0: torch.ones(1)}}, "config": {"lr": 1e-5}, "epoch": 5},
        {"state_dict": STATE, "epoch": 3, "hyper_parameters": {}},
        {"model_state_dict": STATE, "optimizer_state_dict": {}},
        {"module": STATE, "ds_version": "0.1"},
        {"checkpoint": {"model": STATE}},
        {"state_dict": {"model": prefixed("module.")}},
        {"ema": STATE},
        {"model": prefixed("module.")},
        {"model": prefixed("_orig_mod.")},
        {"model": prefixed("module._orig_mod.")},
        {"model_ema": {"n_averaged": torch.tensor(3), **prefixed("module.")}},
        {"model": prefixed("_fsdp_wrapped_module._checkpoint_wrapped_module.")},
        {"model": {"visual._orig_mod.weight": STATE["visual.weight"], "text.module.bias": STATE["text.bias"]}},
        {"model": collections.OrderedDict(STATE), "best_cider": np.float64(1.33), "seen": np.arange(3)},
        {"model": STATE, "name": np.str_("best"), "when": np.datetime64("2021-01-01")},
        {"model": STATE, "flag": np.bool_(True), "count": np.int64(3), "half": np.float16(2)},
        {"model": {name: tensor.numpy() for name, tensor in STATE.items()}},
        {"model": {name: nn.Parameter(tensor) for name, tensor in STATE.items()}},
        {**STATE, "epoch": 3, "note": "mixed with numbers"},
    ],
    ids=lambda content: "-".join(map(str, content)),
)
@pytest.mark.parametrize("zipped", [True, False])
def test_the_wrappers_of_training_loops_are_opened(tmp_path: Path, content: dict[str, Any], zipped: bool) -> None:
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    state = read_tensors(tmp_path / "a.pth")
    assert state.keys() == STATE.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in STATE.items())


def test_the_choice_among_several_models_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save({"ema": {"a": torch.zeros(1)}, "model": {"a": torch.ones(1)}}, tmp_path / "a.pth")
    with caplog.at_level(logging.WARNING):
        assert read_tensors(tmp_path / "a.pth")["a"] == 1
    assert "the weights 'model' are read, not those under 'ema'" in caplog.text
    torch.save({"model": {"a": torch.zeros(1), "module.a": torch.ones(1)}}, tmp_path / "b.pth")
    with pytest.raises(ValueError, match="holds a model twice, with and without the prefixes of a wrapper"):
        read_tensors(tmp_path / "b.pth")


class Settings:
    """Stands for a class of somebody's training code."""


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "value", [argparse.Namespace(module="vit", ema=True), Settings(), Path("/data"), collections.Counter()]
)
def test_a_class_in_a_pickle_is_named_with_the_command_that_keeps_the_tensors(
    tmp_path: Path, value: object, zipped: bool
) -> None:
    content = {"model": "vit", "state_dict": STATE, "args": value}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    name = type(value).__name__ if not isinstance(value, Path) else "pathlib"
    if isinstance(value, collections.Counter):
        assert read_tensors(tmp_path / "a.pth").keys() == STATE.keys()  # torch takes it for plain data
        return
    with pytest.raises(
        ValueError, match=rf"a\.pth is no PyTorch checkpoint of plain tensors: it holds \S*{name}"
    ) as error:
        read_tensors(tmp_path / "a.pth")
    _, _, command = str(error.value).partition("keep its tensors alone with: ")
    exec(shlex.split(command)[2], {})
    assert read_tensors(tmp_path / "a-tensors.pth").keys() == STATE.keys()


def test_plain_containers_are_not_called_dangerous(tmp_path: Path) -> None:
    for value, name in ((collections.defaultdict(list), "defaultdict"), (slice(1), "slice")):
        torch.save({"model": STATE, "x": value}, tmp_path / "a.pth")
        with pytest.raises(ValueError, match=rf"it holds .*{name}.* keep its tensors alone with"):
            read_tensors(tmp_path / "a.pth")
    torch.save({"model": STATE, "x": np.array([None, 1], dtype=object)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="it holds a numpy array of Python objects"):
        read_tensors(tmp_path / "a.pth")


def test_a_pickled_module_is_named_with_the_command_that_keeps_the_tensors(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 1), tmp_path / "whole.pth")
    with pytest.raises(ValueError, match=r"it holds torch\.nn\.modules\.linear\.Linear") as error:
        read_tensors(tmp_path / "whole.pth")
    exec(shlex.split(str(error.value).partition("alone with: ")[2])[2], {})
    assert read_tensors(tmp_path / "whole-tensors.pth").keys() == {"weight", "bias"}


def test_no_command_is_given_for_a_file_that_calls_the_system(bad_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bad_files)
    with pytest.raises(ValueError, match=r"it holds (_?io)\.open, and .* do not trust this file\."):
        read_pickle(bad_files / "code.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: copy or save it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "is a Git LFS pointer .*git lfs pull"),
        (b"\n<!DOCTYPE html><html>Google Drive</html>", "is a web page instead of the weights"),
        (b"\xef\xbb\xbf<!DOCTYPE html>", "is a web page instead of the weights"),
        (b'{"message": "Not Found"}', "is a JSON file, not the weights"),
    ],
)
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_other_files_are_told_by_their_first_bytes(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_tensors(tmp_path / name)


def test_shapes_without_numbers_are_refused(tmp_path: Path) -> None:
    torch.save({"model": {"visual.weight": torch.empty(2, device="meta")}}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"holds the shapes of visual\.weight without their numbers"):
        read_tensors(tmp_path / "a.pth")


def test_safetensors_under_another_name_are_read(tmp_path: Path) -> None:
    # The length of the header may begin with the bytes of "<" or "{".
    for padding in range(0, 700, 8):
        save_file({"a": torch.ones(1)}, tmp_path / "a.bin", metadata={"x": "y" * padding})
        assert read_tensors(tmp_path / "a.bin")["a"] == 1
