"""`capfilt doctor`: each check says what it finds and what to do, and none of them can break the screen."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

import capfilt
from capfilt import doctor
from capfilt.cli import app
from capfilt.doctor import BAD, GOOD, NOTE, Finding

PYPROJECT = Path(capfilt.__file__).resolve().parents[1] / "pyproject.toml"


def pretend_python(monkeypatch: pytest.MonkeyPatch, code: int, stderr: str = "", stdout: str = "") -> None:
    done = subprocess.CompletedProcess([], code, stdout, stderr)
    monkeypatch.setattr(doctor, "_python", lambda _: done)


def test_the_extras_are_those_of_the_project() -> None:
    named = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(doctor.EXTRAS) == set(named) - {"dev"}


def test_one_screen_with_a_verdict(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "_fetch_one", lambda: None)
    pretend_python(monkeypatch, 0, stdout="0.1")
    monkeypatch.setattr(doctor, "HOSTS", ("localhost",))
    result = CliRunner().invoke(app, ["doctor", str(tmp_path)])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[-1] == "This machine is ready." and len(lines) < 50
    assert any(line.startswith("✓ torch ") for line in lines)

    monkeypatch.setattr(doctor, "_fetch_one", lambda: "no answer")
    result = CliRunner().invoke(app, ["doctor", str(tmp_path), "--json"])
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert told["ready"] is False and told["mend"] == ["img2dataset"]


def test_a_check_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken() -> Finding:
        raise OSError("two\nlines")

    monkeypatch.setattr(doctor, "torch_build", broken)
    pretend_python(monkeypatch, 0, stdout="0.1")
    found = {finding.name: finding for finding in doctor.examine(str(tmp_path), ["localhost"], fetch=False)}
    assert found["torch"] == Finding("torch", BAD, "OSError: two lines")
    assert found["disk"].state in (GOOD, NOTE)


def test_a_gpu_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(doctor, "nvidia_gpus", lambda: ["NVIDIA H100, 81559 MiB"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    finding = doctor.torch_build()
    assert finding.state == BAD and "but this machine has NVIDIA H100" in finding.found and "CUDA" in finding.advice
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert "driver is too old" in doctor.torch_build().advice


def test_torchvision_of_another_build_is_told_from_a_broken_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_python(monkeypatch, 1, "Traceback\nRuntimeError: operator torchvision::nms does not exist\n")
    assert doctor.torchvision().state == NOTE
    pretend_python(monkeypatch, 1, "Traceback\nImportError: libjpeg.so.8\n")
    assert doctor.torchvision().state == BAD
    monkeypatch.setattr(doctor, "find_spec", lambda _: None)
    assert "not installed" in doctor.torchvision().found


def test_a_resolver_that_does_not_answer_holds_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DNS_SECONDS", 0.2)
    answers = {
        "fast": lambda: [],
        "never": lambda: doctor.time.sleep(5),
        "unknown": lambda: (_ for _ in ()).throw(OSError),
    }
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, _: answers[host]())
    start = doctor.time.monotonic()
    assert "1 of 2 answered" in doctor.dns(["fast", "never"]).found
    assert doctor.time.monotonic() - start < 4
    assert doctor.dns(["never"]).state == NOTE
    assert doctor.dns(["fast"]).state == GOOD


def test_disk_java_and_extras(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert str(tmp_path) in doctor.disk(str(tmp_path / "not" / "yet")).found
    monkeypatch.setattr(doctor, "FREE_GB", 10**9)
    assert doctor.disk(str(tmp_path)).state == NOTE
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert "METEOR" in doctor.java().advice
    monkeypatch.setattr(doctor, "find_spec", lambda _: None)
    assert doctor.extra("eval").advice == "pip install 'capfilt[eval]'"
    assert doctor.img2dataset(fetch=True).state == BAD


@pytest.mark.slow
def test_it_fetches_a_picture_from_itself() -> None:
    assert doctor._fetch_one() is None
