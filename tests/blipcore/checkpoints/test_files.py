"""Files of tensors: damaged files and pickled code are refused in one sentence, and no code runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

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
