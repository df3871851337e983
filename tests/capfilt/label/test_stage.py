"""`capfilt label`: its settings, its labels file and its errors."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from filtered_set import filter_set, write_set
from typer.testing import CliRunner

from capfilt.cli import app
from capfilt.filter.filtered_set import FilteredSet
from capfilt.label.label_file import LabelFile, TextPlace, locked_labels
from capfilt.label.server import LabelServer
from capfilt.report.label_texts import draw_texts


@pytest.fixture(scope="module")
def filtered(tmp_path_factory: pytest.TempPathFactory, drawn: Callable) -> Path:
    return filter_set(write_set(tmp_path_factory.mktemp("set") / "data", drawn, pictures=6))


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["label", *map(str, arguments), "--port", "0"])
    return result.exit_code, result.stdout, result.stderr


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_ends_it_and_a_later_run_continues(
    filtered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(server: LabelServer, poll_interval: float) -> None:
        for text, given in zip(server.texts, ("1", "0", "unsure"), strict=False):
            server.save(text.identifier, given)
        raise KeyboardInterrupt

    out = tmp_path / "labels.csv"
    monkeypatch.setattr(LabelServer, "serve_forever", answer)
    code, stdout, stderr = run(filtered, "--out", out, "--number", "10", "--json")
    summary = json.loads(stdout)
    assert code == 0 and "http://127.0.0.1:" in stderr and "shows 10 texts, 0 of them labelled" in stderr
    assert [summary[name] for name in ("texts", "right", "wrong", "unsure", "left")] == [10, 1, 1, 1, 7]
    monkeypatch.setattr(LabelServer, "serve_forever", interrupt)
    code, stdout, stderr = run(filtered, "--out", out, "--number", "12", "--json")
    assert code == 0 and "shows 12 texts, 3 of them labelled" in stderr
    assert json.loads(stdout)["left"] == 9


def test_labels_of_other_texts_are_kept_and_counted(
    filtered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LabelServer, "serve_forever", interrupt)
    labels = LabelFile(tmp_path / "labels.csv")
    labels.set(TextPlace("00099", "elsewhere", "web", 0), "1", "random", "")
    code, _, stderr = run(filtered, "--out", labels.path)
    assert code == 2 and "has labels of another data set, the first of key elsewhere; give another file" in stderr
    text = draw_texts(FilteredSet.open(filtered), 1, seed=7)[0]
    labels.set(TextPlace(text.shard, text.key, text.source, text.index), "0", "random", text.text)
    code, _, stderr = run(filtered, "--out", labels.path)
    assert code == 0 and "keeps 1 labels of texts that r1 does not have" in stderr
    assert len(LabelFile(labels.path)) == 2


def test_errors_are_one_sentence(filtered: Path, tmp_path: Path) -> None:
    for arguments, message in [
        (("--number", "0"), "number must be from 1 to 10,000, not 0"),
        (("--out", "labels.txt"), "out is a local file whose name ends in .csv"),
        (("--out", "s3://bucket/labels.csv"), "out is a local file"),
        (("--host", "192.0.2.1", "--out", tmp_path / "l.csv"), "Cannot listen at 192.0.2.1, port 0 ("),
    ]:
        code, _, stderr = run(filtered, *arguments)
        assert code == 2 and message in stderr.replace("\n", " "), stderr
    code, _, stderr = run(filtered.parents[1] / "scores" / "s")
    assert code == 2 and "is not an output of `capfilt filter`" in stderr
    with locked_labels(tmp_path / "labels.csv"):
        code, _, stderr = run(filtered, "--out", tmp_path / "labels.csv")
    assert code == 1 and "labels.csv is being written by process" in stderr
    assert list(tmp_path.iterdir()) == []


def test_a_port_in_use_is_an_error(filtered: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = CliRunner().invoke(
            app, ["label", str(filtered), "--port", str(port), "--out", str(tmp_path / "l.csv")]
        )
    assert result.exit_code == 2 and f"Cannot listen at 127.0.0.1, port {port}" in result.stderr


@pytest.mark.slow
def test_no_confirmed_answer_is_lost_when_it_is_killed(filtered: Path, tmp_path: Path) -> None:
    out, random = tmp_path / "labels.csv", Random(0)
    texts = draw_texts(FilteredSet.open(filtered), 20, seed=0)
    confirmed: dict[str, str] = {}
    command = [sys.executable, "-m", "capfilt", "label", str(filtered), "--out", str(out), "--port", "0"]
    for _ in range(4):
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            address = re.search(r"http://127\.0\.0\.1:\d+/", process.stderr.readline())
            assert address is not None
            killer = threading.Timer(random.uniform(0.05, 0.5), process.kill)
            killer.start()
            with contextlib.suppress(OSError, http.client.HTTPException):
                while True:
                    text, answer = random.choice(texts), random.choice(["1", "0", "unsure"])
                    body = json.dumps({"id": text.identifier, "answer": answer}).encode()
                    request = urllib.request.Request(f"{address[0]}answer", body, {"Content-Type": "application/json"})
                    confirmed.pop(text.identifier, None)  # either answer may be in the file until this one is confirmed
                    urllib.request.urlopen(request, timeout=30).read()
                    confirmed[text.identifier] = answer
            killer.join()
        labels = LabelFile(out)
        for text in texts:
            place = TextPlace(text.shard, text.key, text.source, text.index)
            assert confirmed.get(text.identifier) in (None, labels.answer(place))
    assert len(confirmed) > 5
