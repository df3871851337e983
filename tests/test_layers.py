"""Who may import whom: the two packages meet on disk, stages meet in tables, heavy packages have one door each."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import NamedTuple

import capfilt

ROOT = Path(capfilt.__file__).resolve().parents[1]
# Files of capfilt that may know the model; cli.py and bootstrap.py only inside their functions.
BRIDGES = ("captioners.py", "captioner_blip.py", "captioner_hf.py", "scorers.py", "scorer_blip.py", "scorer_clip.py")
BRIDGES += ("cli.py", "bootstrap.py", "pictures.py")  # the last for how a picture is read, without the model
STAGES = ("download", "pack", "caption", "filter", "report", "export")
# Each is imported in one file of ours, where its absence says what to install.
ONE_DOOR = ("transformers", "open_clip", "timm", "img2dataset", "ray", "datasets", "wandb", "openvino", "openai")
LEAVES = ("capfilt/storage.py", "capfilt/config.py", "capfilt/progress.py", "blipcore/data/upright.py")
LEAVES += ("blipcore/distributed.py", "blipcore/metrics.py", "blipcore/caption_scores.py")


class Import(NamedTuple):
    file: str  # relative to the repository
    target: str  # dotted name
    line: int
    at_top: bool  # paid for by whoever imports the file


def imports() -> list[Import]:
    found = []
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
                assert node.level == 0, f"{file}:{node.lineno} imports by dots; write the whole name"
                targets = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
                targets = [node.args[0].value] if isinstance(node.args[0], ast.Constant) else []
            else:
                continue
            found += [Import(file, target, node.lineno, id(node) not in inside) for target in targets]
    return found


ALL = imports()


def of(item: Import, *packages: str) -> bool:
    return any(item.target == package or item.target.startswith(package + ".") for package in packages)


def broken(items: list[Import]) -> list[str]:
    return [f"{item.file}:{item.line} imports {item.target}" for item in items]


def test_there_is_something_to_check() -> None:
    assert {"capfilt/shards.py", "blipcore/model/blip.py"} <= {item.file for item in ALL}


def test_blipcore_does_not_know_capfilt() -> None:
    assert not broken([item for item in ALL if item.file.startswith("blipcore/") and of(item, "capfilt")])


def test_capfilt_knows_blipcore_only_at_its_bridges() -> None:
    inside = [item for item in ALL if item.file.startswith("capfilt/") and of(item, "blipcore")]
    bridges = {f"capfilt/{name}" for name in BRIDGES}
    assert not broken([item for item in inside if item.file not in bridges and "/demo/" not in item.file])
    late = {"capfilt/cli.py", "capfilt/bootstrap.py"}
    assert not broken([item for item in inside if item.file in late and item.at_top])


def test_stages_never_import_each_other() -> None:
    files = {f"capfilt/{stage}.py" for stage in STAGES}
    modules = [f"capfilt.{stage}" for stage in STAGES]
    own = [item for item in ALL if item.file in files and of(item, *modules)]
    assert not broken([item for item in own if not of(item, item.file.removesuffix(".py").replace("/", "."))])


def test_the_command_line_is_the_top() -> None:
    assert {item.file for item in ALL if of(item, "capfilt.cli")} <= {"capfilt/__main__.py"}
    heavy = ("torch", "transformers", "open_clip", "img2dataset", "webdataset", "pyarrow", "numpy", "PIL", "pydantic")
    assert not broken([item for item in ALL if item.file == "capfilt/cli.py" and item.at_top and of(item, *heavy)])


def test_model_tasks_train_in_this_order_and_data_beside_them() -> None:
    upward = {"model": ("data", "tasks", "train"), "data": ("model", "tasks", "train"), "tasks": ("train",)}
    for package, above in upward.items():
        own = [item for item in ALL if item.file.startswith(f"blipcore/{package}/")]
        assert not broken([item for item in own if of(item, *(f"blipcore.{name}" for name in above))])


def test_leaves_import_nothing_of_ours() -> None:
    assert not broken([item for item in ALL if item.file in LEAVES and of(item, "capfilt", "blipcore")])
    format_ = [item for item in ALL if item.file == "capfilt/shards.py" and of(item, "capfilt", "blipcore")]
    assert not broken([item for item in format_ if not of(item, "capfilt.storage")])


def test_package_files_are_near_empty() -> None:
    assert not broken([item for item in ALL if item.file.endswith("__init__.py") and of(item, "capfilt", "blipcore")])


def test_each_heavy_package_has_one_door_and_is_imported_late() -> None:
    for package in ONE_DOOR:
        users = [item for item in ALL if of(item, package)]
        assert len({item.file for item in users}) <= 1, broken(users)
        assert not broken([item for item in users if item.at_top])
