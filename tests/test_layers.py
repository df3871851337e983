"""Import rules: which folder may import which, which packages are imported late, and no import cycles."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import NamedTuple

import pytest

import capfilt

ROOT = Path(capfilt.__file__).resolve().parents[1]
# Each is imported in one file, inside a function, where a missing package raises with the command that installs it.
ONE_FILE = ("transformers", "open_clip", "timm", "img2dataset", "ray", "datasets", "wandb", "openvino", "openai")
# Imported inside functions by the command line, so that `capfilt --help` stays fast.
SLOW = ("torch", "transformers", "open_clip", "img2dataset", "webdataset", "pyarrow", "numpy", "PIL", "pydantic")

# The floors of each package, lowest first. A unit imports units of lower floors, and its own; units of one floor never
# import each other. A unit is a folder, or a file at the top of the package.
CAPFILT = (
    ("errors", "config"),
    ("shards",),
    ("engine", "pictures"),
    ("ingest", "caption", "filter"),
    ("export", "report"),
    ("caption_and_filter", "doctor"),
    ("bootstrap_plan",),
    ("bootstrap",),
    ("demo", "console"),
    ("cli",),
    ("__main__",),
)
BLIPCORE = (
    ("io", "device", "torchvision_shim", "distributed", "metrics"),
    ("model", "data"),
    ("generate", "checkpoints"),
    ("tasks", "inference"),
    ("evaluation", "api"),
    ("train",),
)
# The parts of blipcore that every file of capfilt may import. These may import more of it.
OPEN_TO_ALL = ("blipcore.io", "blipcore.device")
REACH_FURTHER = ("caption", "filter", "demo")
REACH_FURTHER_LATE = ("cli", "bootstrap_plan")  # inside functions only


class Import(NamedTuple):
    file: str  # relative to the repository
    target: str  # dotted name
    line: int
    at_top: bool  # runs when the file is imported

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.target}"

    def of(self, *packages: str) -> bool:
        return any(self.target == package or self.target.startswith(package + ".") for package in packages)

    @property
    def package(self) -> str:
        return self.file.partition("/")[0]

    @property
    def unit(self) -> str:
        return self.file.removesuffix(".py").split("/")[1]


def read_imports() -> list[Import]:
    imports = []
    for path in sorted([*ROOT.glob("capfilt/**/*.py"), *ROOT.glob("blipcore/**/*.py")]):
        file = path.relative_to(ROOT).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inside = {
            id(node)
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
            for node in ast.walk(function)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}:{node.lineno} is a relative import; write the whole name"
                targets = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
                targets = [node.args[0].value] if isinstance(node.args[0], ast.Constant) else []
            else:
                continue
            imports += [Import(file, target, node.lineno, id(node) not in inside) for target in targets]
    return imports


ALL = read_imports()


def listed(items: list[Import]) -> list[str]:
    return [str(item) for item in items]


def floors(package: str) -> dict[str, int]:
    return {unit: floor for floor, units in enumerate(CAPFILT if package == "capfilt" else BLIPCORE) for unit in units}


def test_the_list_of_imports_is_not_empty() -> None:
    assert {"capfilt/shards/format.py", "blipcore/model/blip.py"} <= {item.file for item in ALL}


def test_blipcore_never_imports_capfilt() -> None:
    assert not listed([item for item in ALL if item.package == "blipcore" and item.of("capfilt")])


@pytest.mark.parametrize("package", ["capfilt", "blipcore"])
def test_imports_point_to_lower_floors(package: str) -> None:
    floor = floors(package)
    wrong = []
    for item in ALL:
        if item.package != package or not item.of(package) or item.file.endswith("__init__.py"):
            continue
        target = item.target.split(".")[1]
        if item.unit != target and target in floor and floor[item.unit] <= floor[target]:
            wrong.append(item)
    assert not listed(wrong)


@pytest.mark.parametrize("package", ["capfilt", "blipcore"])
def test_every_folder_and_file_has_a_floor(package: str) -> None:
    units = {item.unit for item in ALL if item.package == package and not item.file.endswith("__init__.py")}
    assert units <= set(floors(package))


def test_capfilt_reaches_into_blipcore_where_it_may() -> None:
    reaching = [item for item in ALL if item.package == "capfilt" and item.of("blipcore") and not item.of(*OPEN_TO_ALL)]
    wrong = [item for item in reaching if item.unit not in REACH_FURTHER]
    assert not listed([item for item in wrong if item.unit not in REACH_FURTHER_LATE or item.at_top])


def test_input_and_output_need_no_torch() -> None:
    files = [item for item in ALL if item.file.startswith("blipcore/io/") or item.file == "blipcore/model/config.py"]
    files += [item for item in ALL if item.file in ("capfilt/config.py", "capfilt/errors.py")]
    assert not listed([item for item in files if item.of("torch")])


def test_the_command_line_imports_slow_packages_late() -> None:
    assert not listed([item for item in ALL if item.file == "capfilt/cli.py" and item.at_top and item.of(*SLOW)])


def test_package_files_are_near_empty() -> None:
    assert not listed([item for item in ALL if item.file.endswith("__init__.py") and item.of("capfilt", "blipcore")])


def test_no_module_offers_the_names_of_another() -> None:
    """A name is imported from the file that defines it."""
    defined: dict[str, set[str]] = {}
    for path in [*ROOT.glob("capfilt/**/*.py"), *ROOT.glob("blipcore/**/*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        bound = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        for node in tree.body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            bound |= {
                name.id for target in targets if target for name in ast.walk(target) if isinstance(name, ast.Name)
            }
        module = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        defined[module] = bound
    wrong = []
    for item in ALL:
        module, _, name = item.target.rpartition(".")
        if module in defined and item.target not in defined and name not in defined[module]:
            wrong.append(item)
    assert not listed(wrong)


def test_no_import_cycles() -> None:
    modules = {
        file: file.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for file in {i.file for i in ALL}
    }
    known = set(modules.values())
    arrows: dict[str, set[str]] = {module: set() for module in known}
    for item in ALL:
        for target in (item.target, item.target.rpartition(".")[0]):
            if target in known and target != modules[item.file]:
                arrows[modules[item.file]].add(target)
                break
    while leaves := {module for module, targets in arrows.items() if not targets & set(arrows)}:
        arrows = {module: targets for module, targets in arrows.items() if module not in leaves}
    assert not arrows


@pytest.mark.parametrize("package", ONE_FILE)
def test_each_optional_package_is_imported_in_one_file_and_late(package: str) -> None:
    users = [item for item in ALL if item.of(package)]
    assert len({item.file for item in users}) <= 1, listed(users)
    assert not listed([item for item in users if item.at_top])
