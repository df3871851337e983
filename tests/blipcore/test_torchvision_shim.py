"""Imports of torchvision without its operators, and of missing packages."""

import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
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


def replace_import(monkeypatch: pytest.MonkeyPatch, import_module: Callable[[str], Any]) -> None:
    monkeypatch.setattr(torchvision_shim, "importlib", SimpleNamespace(import_module=import_module))


def test_missing_operators_are_declared(operators: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    imports = []

    def import_torchvision(name: str) -> None:
        imports.append(name)
        assert "torchvision.ops" not in sys.modules, "left over from the failed import"
        sys.modules["torchvision.ops"] = ModuleType("torchvision.ops")
        if vars(operators).keys() != {"nms", "qnms"}:
            raise RuntimeError("operator torchvision::nms does not exist")
        sys.modules["torchvision"] = ModuleType("torchvision")

    replace_import(monkeypatch, import_torchvision)
    heal_torchvision()
    assert imports == ["torchvision"] * 2 and operators.nms.startswith("nms(Tensor dets, Tensor scores")
    heal_torchvision()
    assert len(imports) == 2, "torchvision is imported already"


@pytest.mark.parametrize("error", [None, ModuleNotFoundError("No module named 'torchvision'")])
def test_a_working_or_missing_torchvision_is_left_alone(
    error: Exception | None, operators: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def import_torchvision(name: str) -> None:
        if error:
            raise error

    replace_import(monkeypatch, import_torchvision)
    heal_torchvision()
    assert not vars(operators)


def test_other_errors_of_the_import_are_raised(operators: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def import_torchvision(name: str) -> None:
        raise RuntimeError("wrong version of CUDA")

    replace_import(monkeypatch, import_torchvision)
    with pytest.raises(RuntimeError, match="wrong version of CUDA"):
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
