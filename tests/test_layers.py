"""Import rules and file sizes: floors of the packages, late imports, no cycles, no re-exports, no long files."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest

import capfilt

ROOT = Path(capfilt.__file__).resolve().parents[1]
# Each is imported in one file and inside a function, which raises with the install command if the package is missing.
ONE_FILE = (
    "transformers", "open_clip", "timm", "img2dataset", "ray", "datasets", "wandb", "openvino", "openai", "peft",
    "sklearn", "sentencex", "num2words", "faiss",
)  # fmt: skip
# Imported inside functions by the command line, so that `capfilt --help` stays fast.
SLOW = ("torch", "transformers", "open_clip", "img2dataset", "webdataset", "pyarrow", "numpy", "PIL", "pydantic")

# The floors of each package, lowest first; CONTRIBUTING.md has the same table. A unit is a folder, or a file at the top
# of the package. It may import units of lower floors and itself.
CAPFILT = (
    ("errors", "config"),
    ("shards",),
    ("engine", "pictures", "vlm"),
    ("ingest", "caption", "filter"),
    ("export", "fuse", "judge", "report", "select"),
    ("caption_and_filter", "doctor", "label"),
    ("bootstrap", "trial"),
    ("demo", "options"),
    ("console", "options_sets"),
    ("cli_models", "cli_sets"),
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
# Parts of blipcore that every file of capfilt may import, and units of capfilt that may import all of blipcore.
OPEN_TO_ALL = ("blipcore.io", "blipcore.device")
REACH_FURTHER = ("caption", "filter", "judge", "vlm", "demo")
# Inside functions only.
REACH_FURTHER_LATE = ("cli", "cli_models", "cli_sets", "bootstrap", "trial")


MAX_LINES = 350
MAX_FILES_AT_TOP = 12


class Import(NamedTuple):
    """An import of `target` (a dotted name) in `file` (relative to the repository); `at_top` if outside functions."""

    file: str
    target: str
    line: int
    at_top: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.target}"

    def is_from(self, *packages: str) -> bool:
        return any(self.target == package or self.target.startswith(package + ".") for package in packages)

    @property
    def package(self) -> str:
        return self.file.partition("/")[0]

    @property
    def unit(self) -> str:
        return self.file.removesuffix(".py").split("/")[1]


def read_imports() -> list[Import]:
    """Return all imports of both packages."""
    imports = []
    for path in sorted([*ROOT.glob("capfilt/**/*.py"), *ROOT.glob("blipcore/**/*.py")]):
        file = path.relative_to(ROOT).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        in_functions = {
            id(node)
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
            for node in ast.walk(function)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}:{node.lineno} is a relative import; write the full name"
                targets = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
                targets = [node.args[0].value] if isinstance(node.args[0], ast.Constant) else []
            else:
                continue
            imports += [Import(file, target, node.lineno, id(node) not in in_functions) for target in targets]
    return imports


ALL = read_imports()


def to_lines(items: list[Import]) -> list[str]:
    return [str(item) for item in items]


def floors(package: str) -> dict[str, int]:
    """Return the floor of each unit."""
    return {unit: floor for floor, units in enumerate(CAPFILT if package == "capfilt" else BLIPCORE) for unit in units}


def test_imports_of_both_packages_are_found() -> None:
    assert {"capfilt/shards/format.py", "blipcore/model/blip.py"} <= {item.file for item in ALL}


def test_blipcore_never_imports_capfilt() -> None:
    assert not to_lines([item for item in ALL if item.package == "blipcore" and item.is_from("capfilt")])


@pytest.mark.parametrize("package", ["capfilt", "blipcore"])
def test_imports_point_to_lower_floors(package: str) -> None:
    floor = floors(package)
    wrong = []
    for item in ALL:
        if item.package != package or not item.is_from(package) or item.file.endswith("__init__.py"):
            continue
        target = item.target.split(".")[1]
        if item.unit != target and target in floor and floor[item.unit] <= floor[target]:
            wrong.append(item)
    assert not to_lines(wrong)


@pytest.mark.parametrize("package", ["capfilt", "blipcore"])
def test_every_folder_and_file_has_a_floor(package: str) -> None:
    units = {item.unit for item in ALL if item.package == package and not item.file.endswith("__init__.py")}
    assert units <= set(floors(package))


def test_only_some_units_of_capfilt_import_all_of_blipcore() -> None:
    reaching = [
        item
        for item in ALL
        if item.package == "capfilt" and item.is_from("blipcore") and not item.is_from(*OPEN_TO_ALL)
    ]
    wrong = [item for item in reaching if item.unit not in REACH_FURTHER]
    assert not to_lines([item for item in wrong if item.unit not in REACH_FURTHER_LATE or item.at_top])


def test_io_and_configs_do_not_import_torch() -> None:
    files = [item for item in ALL if item.file.startswith("blipcore/io/") or item.file == "blipcore/model/config.py"]
    files += [item for item in ALL if item.file in ("capfilt/config.py", "capfilt/errors.py")]
    assert not to_lines([item for item in files if item.is_from("torch")])


def test_the_command_line_imports_slow_packages_inside_functions() -> None:
    files = [f"capfilt/{name}.py" for name in ("cli", "cli_models", "cli_sets", "console", "options", "options_sets")]
    assert not to_lines([item for item in ALL if item.file in files and item.at_top and item.is_from(*SLOW)])


def test_package_init_files_import_nothing() -> None:
    """Except `blipcore.load`, which is imported at its first use."""
    imports = [item for item in ALL if item.file.endswith("__init__.py") and item.is_from("capfilt", "blipcore")]
    assert not to_lines([item for item in imports if item.target != "blipcore.api.load" or item.at_top])


def test_names_are_imported_from_the_file_that_defines_them() -> None:
    defined: dict[str, set[str]] = {}
    for path in [*ROOT.glob("capfilt/**/*.py"), *ROOT.glob("blipcore/**/*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        bound = {
            node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        }
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
    assert not to_lines(wrong)


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
def test_each_optional_package_is_imported_in_one_file_and_inside_functions(package: str) -> None:
    users = [item for item in ALL if item.is_from(package)]
    assert len({item.file for item in users}) <= 1, to_lines(users)
    assert not to_lines([item for item in users if item.at_top])


@pytest.mark.parametrize("package", ["capfilt", "blipcore"])
def test_no_file_is_long(package: str) -> None:
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in ROOT.glob(f"{package}/**/*.py")
    }
    assert {file: lines for file, lines in lengths.items() if lines > MAX_LINES} == {}


def test_capfilt_has_few_files_at_its_top() -> None:
    assert len(list((ROOT / "capfilt").glob("*.py"))) <= MAX_FILES_AT_TOP


def test_tests_do_not_change_the_import_path() -> None:
    """Helpers are importable through `pythonpath` in pyproject.toml. Passing `sys.path` on to a subprocess is fine."""
    changes = re.compile(r"sys\.path(\.(insert|append|extend)\b|\[.*\]\s*=|\s*\+?=)|syspath_prepend")
    files = [path for path in ROOT.glob("tests/**/*.py") if changes.search(path.read_text(encoding="utf-8"))]
    assert [path.relative_to(ROOT).as_posix() for path in files if path.name != Path(__file__).name] == []


@pytest.mark.parametrize("package", ["capfilt", "blipcore"])
def test_contributing_lists_the_floors(package: str) -> None:
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("| floor |")[2].partition("\n\n")[0]
    column = 2 if package == "capfilt" else 3
    cells = [row.split("|")[column] for row in table.splitlines()[2:]]
    listed = [tuple(re.findall(r"`([\w/]+)`", cell)) for cell in cells]
    expected = CAPFILT if package == "capfilt" else BLIPCORE
    assert [floor for floor in listed if floor] == list(expected)
