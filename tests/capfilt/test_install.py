"""Installation: Python versions named in one place, messages of the set-up, the small install, the container."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

import capfilt
from capfilt.cli import app

ROOT = Path(capfilt.__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
VERSIONS = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
INSTALL_PAGE = (ROOT / "examples" / "install.md").read_text(encoding="utf-8")
# Distributions whose modules have another name.
MODULES = {"pillow": "PIL", "pyyaml": "yaml", "open_clip_torch": "open_clip", "standard-imghdr": "imghdr"}
ONLY_FOR_OTHER_COMMANDS = ("pandas", "scipy", "cv2", "albumentations", "wandb")

CAPTION_AND_FILTER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
from capfilt.cli import app
from typer.testing import CliRunner
for command in {commands}:
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, (command, result.output)
"""


def module_of(requirement: str) -> str:
    name = re.match(r"[\w-]+", requirement)
    assert name is not None
    return MODULES.get(name[0], name[0])


def test_requirement_classifiers_pages_and_workflow_name_the_same_pythons() -> None:
    assert PROJECT["requires-python"] == f">={VERSIONS[0]}"
    stated = f"Python {VERSIONS[0]} to {VERSIONS[-1]}"
    assert stated in (ROOT / "README.md").read_text(encoding="utf-8") and stated in INSTALL_PAGE
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python-version"] == VERSIONS
    assert " ".join(VERSIONS) in (ROOT / ".ci" / "test_pythons").read_text(encoding="utf-8")


def make_venv(folder: Path, python: str, path: Path) -> str:
    """Return the error message of .ci/make_venv, with only the programs in `path`."""
    command = ["/bin/sh", str(ROOT / ".ci" / "make_venv"), str(folder / "venv"), python]
    result = subprocess.run(command, env={"PATH": str(path)}, capture_output=True, text=True)
    assert result.returncode == 1 and not (folder / "venv").exists()
    return result.stderr


def test_an_old_python_is_refused_with_a_version_that_works(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\n[ $1 = -V ] && echo Python 3.9.18 || exit 1\n")
    old.chmod(0o755)
    message = make_venv(tmp_path, "python3", tmp_path)
    assert "requires Python 3.11 or newer; python3 is Python 3.9.18. Install a newer one" in message
    (tmp_path / "python3.12").symlink_to(sys.executable)
    assert "Add PYTHON=python3.12 to the make command" in make_venv(tmp_path, "python3", tmp_path)
    assert "python3.14 is not a working Python" in make_venv(tmp_path, "python3.14", tmp_path)


def test_a_python_without_venv_is_refused_with_the_package_to_install(tmp_path: Path) -> None:
    python = tmp_path / "python3"
    python.write_text(f'#!/bin/sh\ncase "$2" in *ensurepip*) exit 1;; esac\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert f"apt install python{version}-venv" in make_venv(tmp_path, "python3", tmp_path)


@pytest.mark.slow
def test_the_small_install_captions_and_filters(
    shards: Callable[[int, int], Path], tiny_captioner: Path, tiny_filter: Path
) -> None:
    listed = {module_of(name) for name in re.findall(r"pip install (torch .*)", INSTALL_PAGE)[0].split()}
    missing = {module_of(requirement) for requirement in PROJECT["dependencies"]} - listed
    assert "img2dataset" in missing
    data = str(shards(1, 3))
    commands = [
        [
            "caption",
            data,
            "--model",
            str(tiny_captioner),
            "--name",
            "c",
            "--device",
            "cpu",
            "--set",
            "generate.max_length=8",
        ],
        ["filter", data, "--model", str(tiny_filter), "--name", "f", "--device", "cpu", "--threshold", "0"],
        ["report", f"{data}/filtered/f"],
        ["export", f"{data}/filtered/f", f"{data}-pairs", "--format", "parquet"],
    ]
    code = CAPTION_AND_FILTER.format(missing=missing | {*ONLY_FOR_OTHER_COMMANDS}, commands=commands)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert result.returncode == 0, result.stderr


def test_the_image_runs_without_root_and_copies_existing_files() -> None:
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = [
        name for line in lines if line.startswith("COPY ") and "--from" not in line for name in line.split()[1:-1]
    ]
    assert copied and all((ROOT / name).exists() for name in copied)
    context = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {f"!{name}" for name in copied} <= set(context)
    assert 'ENTRYPOINT ["capfilt"]' in lines and "USER 1000" in lines
    extras = next(line for line in lines if line.startswith("ARG EXTRAS=")).partition("=")[2].split(",")
    assert set(extras) <= set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize("service", ["caption-0", "caption-1", "filter"])
def test_a_service_of_the_compose_file_is_a_valid_command(service: str) -> None:
    services = yaml.safe_load((ROOT / "examples" / "compose.yaml").read_text(encoding="utf-8"))["services"]
    name, *arguments = shlex.split(services[service]["command"])
    get_command(app).commands[name].make_context(name, arguments)
