"""Imports of torchvision without its operators, and of missing packages."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from blipcore import torchvision_shim
from blipcore.torchvision_shim import heal_torchvision, import_open_clip, import_timm


class RecordingLibrary:
    """Records the operators that are declared in place of torch's."""

    def __init__(self, operators: SimpleNamespace, namespace: str, kind: str) -> None:
        assert (namespace, kind) == ("torchvision", "DEF")
        self.operators = operators

    def define(self, schema: str) -> None:
        setattr(self.operators, schema.partition("(")[0], schema)


@pytest.fixture
def operators(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Replace torch by one without operators of torchvision, and hide torchvision."""
    operators = SimpleNamespace()
    library = SimpleNamespace(Library=lambda *arguments: RecordingLibrary(operators, *arguments))
    torch = SimpleNamespace(ops=SimpleNamespace(torchvision=operators), library=library)
    monkeypatch.setattr(torchvision_shim, "torch", torch)
    monkeypatch.setattr(torchvision_shim, "_libraries", [])
    modules = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "torchvision"}
    for name in modules:
        del sys.modules[name]
    yield operators
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    sys.modules.update(modules)


@pytest.fixture
def write_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that installs a torchvision with a module `ops` and the given code."""

    def write(code: str) -> None:
        (tmp_path / "torchvision").mkdir()
        (tmp_path / "torchvision" / "ops.py").write_text("")
        (tmp_path / "torchvision" / "__init__.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)

    return write


def test_missing_operators_are_declared(operators: SimpleNamespace, write_torchvision: Callable[[str], None]) -> None:
    write_torchvision(
        "from torchvision import ops\n"
        "from blipcore import torchvision_shim\n"
        "if not hasattr(torchvision_shim.torch.ops.torchvision, 'qnms'):\n"
        "    ops.is_left_over = True\n"
        "    raise RuntimeError('operator torchvision::nms does not exist')\n"
    )
    heal_torchvision()
    assert vars(operators).keys() == {"nms", "qnms"} and operators.nms.startswith("nms(Tensor dets, Tensor scores")
    assert not hasattr(sys.modules["torchvision.ops"], "is_left_over")
    heal_torchvision()  # does nothing: torchvision is imported


def test_a_torchvision_with_operators_is_left_alone(
    operators: SimpleNamespace, write_torchvision: Callable[[str], None]
) -> None:
    write_torchvision("")
    heal_torchvision()
    assert "torchvision" in sys.modules and not vars(operators)


def test_other_errors_of_the_import_are_raised(
    operators: SimpleNamespace, write_torchvision: Callable[[str], None]
) -> None:
    write_torchvision("raise RuntimeError('wrong version of CUDA')")
    with pytest.raises(RuntimeError, match="wrong version of CUDA"):
        heal_torchvision()


def test_torchvision_may_be_missing(operators: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def import_nothing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(torchvision_shim, "importlib", SimpleNamespace(import_module=import_nothing))
    heal_torchvision()
    assert not vars(operators)


@pytest.mark.parametrize(
    ("package", "load", "command"),
    [
        ("open_clip", import_open_clip, "pip install open_clip_torch"),
        ("timm", import_timm, "pip install timm"),
    ],
)
def test_a_missing_package_is_named_with_its_install_command(
    package: str, load: Callable[[], Any], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision_shim, "heal_torchvision", lambda: None)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=command):
        load()
