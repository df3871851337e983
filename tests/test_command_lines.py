"""Every command line that we print, in --help, the README and the pages of examples/, is one that capfilt understands.

Understood means parsed, its settings resolved and checked; nothing is run. So is what the Tab key offers.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

import capfilt
from capfilt.cli import app
from capfilt.config import resolve
from capfilt.doctor import Finding

ROOT = Path(capfilt.__file__).resolve().parents[1]
COMMANDS = get_command(app).commands


def in_text(text: str) -> list[str]:
    """The commands of a page: its lines, and what it has in `backquotes`, if it is more than a command's name."""
    inline, text = re.findall(r"`(capfilt [a-z][^`]*)`", text), text.replace("\\\n", " ")
    lines = re.findall(r"^ *(?:\w+=\S+ )*(capfilt [a-z].*)$", text, flags=re.MULTILINE)
    return [line for line in (*inline, *lines) if len(shlex.split(line, comments=True)) > 2]


def everywhere() -> list[Any]:
    pages = [ROOT / "README.md", *sorted((ROOT / "examples").glob("*.md")), *sorted((ROOT / "examples").glob("*.sh"))]
    found = [(page.name, line) for page in pages for line in in_text(page.read_text(encoding="utf-8"))]
    found += [("--help", command.epilog.removeprefix("Example: ")) for command in COMMANDS.values()]
    return [pytest.param(line, id=f"{name}: {' '.join(line.split())}") for name, line in dict.fromkeys(found)]


@pytest.fixture
def understand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Parse a command and resolve its settings, among the files that the pages name; whatever it says is a mistake."""

    def resolved(*args: Any) -> None:
        resolve(*args)
        raise typer.Exit

    monkeypatch.setattr("capfilt.options.resolve", resolved)
    monkeypatch.setattr("capfilt.doctor.run_checks", lambda folder: [Finding("disk", "ok", folder)])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    page = (ROOT / "examples" / "vlm.md").read_text(encoding="utf-8")
    (tmp_path / "vlm.yaml").write_text(page.partition("```yaml\n")[2].partition("```")[0])
    for name in ("bootstrap.yaml", "loop.yaml"):
        (tmp_path / name).symlink_to(ROOT / "examples" / "bootstrap.yaml")

    def understood(words: list[str]) -> None:
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output

    return understood


@pytest.mark.parametrize("line", everywhere())
def test_a_printed_command_is_understood(line: str, understand) -> None:
    line = re.sub(r"\$\{?\w+\}?", "1", line)  # a shell's variable: a number fits wherever the pages have one
    understand(shlex.split(line.partition(" | ")[0].partition(" > ")[0], comments=True)[1:])


def offered(line: str) -> list[str]:
    """What the Tab key offers at the end of a line, in bash."""
    variables = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1), "_CAPFILT_COMPLETE": "complete_bash"}
    return CliRunner().invoke(app, [], env=variables).stdout.split()


def test_the_tab_key_offers_commands_tasks_options_and_their_words() -> None:
    assert offered("capfilt ") == list(COMMANDS)
    assert offered("capfilt fi") == ["filter", "finetune"]
    assert offered("capfilt finetune ") == ["caption", "retrieval", "vqa", "nlvr"]
    assert offered("capfilt evaluate c") == ["caption", "classify"]
    assert offered("capfilt pretrain data --preset ") == ["base", "tiny", "large"]
    assert offered("capfilt caption data --num") == ["--num-captions"]
    assert offered("capfilt pack ") == []  # nothing of ours: the shell offers its files
    assert "_CAPFILT_COMPLETE" in CliRunner().invoke(app, ["--show-completion", "bash"]).stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_word_that_it_offers_is_right(command: str, understand) -> None:
    example = shlex.split(COMMANDS[command].epilog.removeprefix("Example: capfilt "))
    valued = [param for param in COMMANDS[command].params if param.opts[-1].startswith("--") and not param.is_flag]
    for option in (param.opts[-1] for param in valued):
        for word in offered(f"capfilt {command} {option} "):
            understand([*example, option, word])
