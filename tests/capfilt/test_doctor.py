"""`capfilt doctor`: each check returns a finding with a remedy, also if the check itself fails."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import tomllib
from email.message import Message
from pathlib import Path

import pytest
from typer.testing import CliRunner

import capfilt
from capfilt import console, doctor
from capfilt.cli import app
from capfilt.doctor import BAD, GOOD, NOTE, Finding

PYPROJECT = Path(capfilt.__file__).resolve().parents[1] / "pyproject.toml"


def fake_python(monkeypatch: pytest.MonkeyPatch, code: int, stderr: str = "", stdout: str = "") -> None:
    result = subprocess.CompletedProcess([], code, stdout, stderr)
    monkeypatch.setattr(doctor, "_run_python", lambda _: result)


def test_the_extras_are_those_of_the_project() -> None:
    extras = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(doctor.EXTRA_MODULES) == set(extras) - {"dev"}


def test_the_output_fits_a_screen_and_ends_with_a_conclusion(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "download_test_picture", lambda: None)
    fake_python(monkeypatch, 0, stdout="0.1")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [])
    result = CliRunner().invoke(app, ["doctor", str(tmp_path)])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[-1] == "This machine is ready." and len(lines) < 50
    assert any(line.startswith("✓ torch ") for line in lines)

    monkeypatch.setattr(doctor, "download_test_picture", lambda: "no answer")
    result = CliRunner().invoke(app, ["doctor", str(tmp_path), "--json"])
    assert result.exit_code == 1
    summary = json.loads(result.stdout)
    assert summary["ready"] is False and summary["failed"] == ["img2dataset"]


def test_a_check_that_raises_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken() -> Finding:
        raise OSError("two\nlines")

    monkeypatch.setattr(doctor, "check_torch_build", broken)
    fake_python(monkeypatch, 0, stdout="0.1")
    findings = {finding.name: finding for finding in doctor.run_checks(str(tmp_path), ["localhost"], download=False)}
    assert findings["torch"] == Finding("torch", BAD, "OSError: two lines")
    assert findings["disk"].state in (GOOD, NOTE)


@pytest.mark.parametrize(
    ("version", "state", "advice"),
    [
        ((3, 10), BAD, "requires Python 3.11 or newer"),
        ((3, 11), GOOD, ""),
        ((3, 14), GOOD, ""),
        ((3, 15), NOTE, "tested on Python 3.11 to 3.14"),
    ],
)
def test_the_python_versions_are_those_of_the_package(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int], state: str, advice: str
) -> None:
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    metadata = Message()
    for classifier in project["classifiers"]:
        metadata["Classifier"] = classifier
    monkeypatch.setattr(doctor.metadata, "metadata", lambda _: metadata)
    monkeypatch.setattr(doctor.sys, "version_info", (*version, 0))
    finding = doctor.check_python()
    assert finding.state == state and advice in finding.advice


def test_windows_is_refused_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.sys, "platform", "win32")
    assert doctor.check_python().state == BAD and "WSL 2" in doctor.check_python().advice
    error = ModuleNotFoundError("No module named 'fcntl'", name="fcntl")
    assert "WSL 2" in console._describe(error)[0]


def test_a_gpu_that_torch_cannot_use_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(doctor, "nvidia_gpus", lambda: ["NVIDIA H100, 81559 MiB"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    finding = doctor.check_torch_build()
    assert finding.state == BAD and "but this machine has NVIDIA H100" in finding.detail and "CUDA" in finding.advice
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert "driver is too old" in doctor.check_torch_build().advice


def test_torchvision_of_another_build_is_a_note_and_a_broken_one_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_python(monkeypatch, 1, "Traceback\nRuntimeError: operator torchvision::nms does not exist\n")
    assert doctor.check_torchvision().state == NOTE
    fake_python(monkeypatch, 1, "Traceback\nImportError: libjpeg.so.8\n")
    assert doctor.check_torchvision().state == BAD
    monkeypatch.setattr(doctor, "find_spec", lambda _: None)
    assert "not installed" in doctor.check_torchvision().detail


def test_names_that_do_not_resolve_are_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(host: str, _: int) -> list:
        if host == "unknown":
            raise OSError
        return []

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert doctor.check_dns(["known"]).state == GOOD
    finding = doctor.check_dns(["known", "unknown"])
    assert finding.state == NOTE and "1 of 2 resolved" in finding.detail
    assert doctor.check_dns(["unknown"]).detail == "no host name could be resolved"


def test_a_resolver_that_does_not_answer_does_not_block_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    release, finished = threading.Event(), threading.Event()

    def resolve(*_: object) -> list:
        release.wait()
        finished.set()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert doctor.check_dns(["silent"], timeout=0.01).state == NOTE
    assert not finished.is_set()
    release.set()


def test_disk_java_and_extras_have_remedies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert str(tmp_path) in doctor.check_disk(str(tmp_path / "not" / "yet")).detail
    monkeypatch.setattr(doctor, "MIN_FREE_GB", 10**9)
    assert doctor.check_disk(str(tmp_path)).state == NOTE
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert "METEOR" in doctor.check_java().advice
    monkeypatch.setattr(doctor, "find_spec", lambda _: None)
    assert doctor.check_extra("eval").advice == "pip install 'capfilt[eval]'"
    assert doctor.check_img2dataset(download=True).state == NOTE


@pytest.mark.slow
def test_a_picture_is_downloaded_from_a_local_server() -> None:
    assert doctor.download_test_picture() is None
