"""Every command line in --help, the README and the pages of examples/ parses and resolves; so do the completions.

The commands are not run.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import shellingham
import typer
from typer.main import get_command
from typer.testing import CliRunner

import capfilt
from capfilt.cli import app
from capfilt.config import resolve
from capfilt.doctor import Finding

ROOT = Path(capfilt.__file__).resolve().parents[1]
COMMANDS = get_command(app).commands


def commands_of(page: Path) -> list[str]:
    """Return the commands of a page: lines of its code blocks, and inline `code` with more than a command's name."""
    text = page.read_text(encoding="utf-8")
    inline = re.findall(r"`(capfilt [a-z][^`]*)`", text)
    code = text
    if page.suffix == ".md":
        code = "\n".join(re.findall(r"^ *```.*?$(.*?)^ *```", text, flags=re.MULTILINE | re.DOTALL))
    code = code.replace("\\\n", " ")
    lines = re.findall(r"^ *(?:\w+=\S+ )*(capfilt [a-z].*)$", code, flags=re.MULTILINE)
    return [line for line in (*inline, *lines) if len(shlex.split(line, comments=True)) > 2]


def all_commands() -> list[Any]:
    """Return the commands of all pages and of --help, as parameters of a test."""
    pages = [ROOT / "README.md", *sorted((ROOT / "examples").glob("*.md")), *sorted((ROOT / "examples").glob("*.sh"))]
    commands = [(page.name, line) for page in pages for line in commands_of(page)]
    commands += [("--help", command.epilog.removeprefix("Example: ")) for command in COMMANDS.values()]
    return [pytest.param(line, id=f"{name}: {' '.join(line.split())}") for name, line in dict.fromkeys(commands)]


@pytest.fixture
def parse_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[list[str]], None]:
    """Return a function that parses a command and resolves its settings, beside the files that the pages name."""

    def resolve_only(*args: Any) -> None:
        resolve(*args)
        raise typer.Exit

    monkeypatch.setattr("capfilt.options.resolve", resolve_only)
    monkeypatch.setattr("capfilt.doctor.run_checks", lambda folder: [Finding("disk", "ok", folder)])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for name in ("vlm", "fuse", "trial"):
        page = (ROOT / "examples" / f"{name}.md").read_text(encoding="utf-8")
        (tmp_path / f"{name}.yaml").write_text(page.partition("```yaml\n")[2].partition("```")[0])
    for name in ("bootstrap.yaml", "loop.yaml"):
        (tmp_path / name).symlink_to(ROOT / "examples" / "bootstrap.yaml")

    def parse(arguments: list[str]) -> None:
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output

    return parse


@pytest.mark.parametrize("line", all_commands())
def test_a_printed_command_parses(line: str, parse_only: Callable[[list[str]], None]) -> None:
    line = re.sub(r"\$\{?\w+\}?", "1", line)  # every shell variable of the pages can be a number
    parse_only(shlex.split(line.partition(" | ")[0].partition(" > ")[0], comments=True)[1:])


def complete(line: str) -> list[str]:
    """Return the completions at the end of a line in bash."""
    variables = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1), "_CAPFILT_COMPLETE": "complete_bash"}
    return CliRunner().invoke(app, [], env=variables).stdout.split()


def test_commands_tasks_options_and_values_are_completed() -> None:
    assert complete("capfilt ") == list(COMMANDS)
    assert complete("capfilt fi") == ["filter", "finetune"]
    assert complete("capfilt finetune ") == ["caption", "retrieval", "vqa", "nlvr"]
    assert complete("capfilt evaluate c") == ["caption", "classify"]
    assert complete("capfilt pretrain data --preset ") == ["base", "tiny", "large"]
    assert complete("capfilt caption data --num-") == ["--num-captions"]
    assert complete("capfilt pack ") == []  # the shell completes file names


def test_the_completion_script_is_printed_for_the_shell_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shellingham, "detect_shell", lambda: ("bash", "/bin/bash"))  # the tests may run without one
    assert "_CAPFILT_COMPLETE" in CliRunner().invoke(app, ["--show-completion"]).stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_completed_value_is_valid(command: str, parse_only: Callable[[list[str]], None]) -> None:
    example = shlex.split(COMMANDS[command].epilog.removeprefix("Example: capfilt "))
    valued = [param for param in COMMANDS[command].params if param.opts[-1].startswith("--") and not param.is_flag]
    for option in (param.opts[-1] for param in valued):
        for word in complete(f"capfilt {command} {option} "):
            parse_only([*example, option, word])
