"""The server of the labelling view: answers are on the disk when they are confirmed; other websites are refused."""

from __future__ import annotations

import http.client
import io
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filtered_set import filter_set, write_set
from PIL import Image

from blipcore.io.samples import TarSample
from capfilt.filter.filtered_set import FilteredSet
from capfilt.filter.labels import read_labels
from capfilt.label.label_file import LabelFile
from capfilt.label.pictures import JpegReader
from capfilt.label.server import LabelServer
from capfilt.label.stage import LabelConfig, open_server
from capfilt.report.label_texts import DrawnText, draw_texts
from capfilt.shards.format import write_shard
from capfilt.shards.shard_set import ShardSet

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def filtered(tmp_path_factory: pytest.TempPathFactory, drawn: Callable) -> Path:
    return filter_set(write_set(tmp_path_factory.mktemp("set") / "data", drawn, pictures=8))


@pytest.fixture(scope="module")
def texts(filtered: Path) -> list[DrawnText]:
    return draw_texts(FilteredSet.open(filtered), 20, seed=0)


@pytest.fixture
def server(filtered: Path, texts: list[DrawnText], tmp_path: Path) -> Iterator[LabelServer]:
    config = LabelConfig(str(filtered), out=str(tmp_path / "labels.csv"), number=20, port=0)
    with open_server(config, FilteredSet.open(filtered), texts, LabelFile(tmp_path / "labels.csv")) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server: LabelServer, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
    """Return the status and the body of a response, and its headers."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    content = body if body is None or isinstance(body, bytes | str) else json.dumps(body)
    connection.request(method, path, content, (JSON if method == "POST" else {}) | (headers or {}))
    response = connection.getresponse()
    data = response.read()
    connection.close()
    return response.status, data, response.headers


def test_a_confirmed_answer_is_in_the_file_and_in_the_page(server: LabelServer) -> None:
    first, second = server.texts[:2]
    assert ask(server, "POST", "/answer", {"id": first.identifier, "answer": "1"})[0] == 200
    status, confirmed, _ = ask(server, "POST", "/answer", {"id": second.identifier, "answer": "unsure"})
    assert (status, json.loads(confirmed)) == (200, {"labels": 2})
    (label,) = read_labels(server.labels.path).to_pylist()
    assert (label["key"], label["source"], label["match"]) == (first.key, first.source, 1)
    status, page, headers = ask(server, "GET", "/")
    assert status == 200 and f'"{second.identifier}":"unsure"'.encode() in page
    assert headers["Cache-Control"] == "no-store" and "python" not in headers["Server"].lower()
    assert ask(server, "POST", "/answer", {"id": first.identifier, "answer": None})[0] == 200
    assert server.answers() == {second.identifier: "unsure"}


def test_pictures_are_sent_as_jpeg(server: LabelServer) -> None:
    for number in (0, 19, 0):
        status, data, headers = ask(server, "GET", f"/picture/{number}")
        assert status == 200 and headers["Content-Type"] == "image/jpeg"
        assert Image.open(io.BytesIO(data)).format == "JPEG"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


@pytest.mark.parametrize(
    "path",
    ["/picture/20", "/picture/-1", "/picture/9999999999", "/picture/../../etc/passwd", "/etc", "/picture/%C2%B2"],
)
def test_other_paths_do_not_exist(server: LabelServer, path: str) -> None:
    assert ask(server, "GET", path)[0] == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example:8765"}, 403),
        ({"Host": "localhost.evil.example"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "["}, 403),
        ({"Host": "localhost:9999"}, 200),  # a tunnel
        ({"Host": "[::1]:8765"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:1", "Origin": "http://localhost:2"}, 403),
        ({"Host": "localhost:1", "Origin": "http://localhost:1"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Content-Type": "text/plain"}, 415),  # what a form of another website can send
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
    ],
)
def test_requests_of_other_websites_are_refused(server: LabelServer, headers: dict[str, str], status: int) -> None:
    answer = {"id": server.texts[0].identifier, "answer": "0"}
    assert ask(server, "POST", "/answer", answer, headers)[0] == status
    assert len(server.labels) == (status == 200)
    if "Content-Type" not in headers:
        assert ask(server, "GET", "/picture/0", headers=headers)[0] == status
    if "Sec-Fetch-Site" in headers:
        assert ask(server, "GET", "/", headers=headers)[0] == 200  # a link of another website opens the page


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        ("{", {}, 400),
        (b"\xff", {}, 400),
        ("[" * 4000, {}, 400),
        ("[]", {}, 400),
        ({"id": "x"}, {}, 400),
        ({"id": "0", "answer": "yes"}, {}, 400),
        ({"id": "0", "answer": ["1"]}, {}, 400),
        ({"id": ["0"], "answer": "1"}, {}, 409),
        ({"id": "0" * 16, "answer": "1"}, {}, 409),
        ("x" * 5000, {}, 413),
        ("{}", {"Content-Length": "99999999999999999999"}, 413),
        ("{}", {"Content-Length": "-1"}, 411),
        ("{}", {"Content-Length": "²"}, 411),
    ],
)
def test_malformed_answers_are_refused(server: LabelServer, body: Any, headers: dict[str, str], status: int) -> None:
    headers = {name: value.encode().decode("latin-1") for name, value in headers.items()}
    response, sentence, _ = ask(server, "POST", "/answer", body, headers)
    assert response == status and sentence.decode().endswith(".")
    assert not server.labels.path.exists()


def test_an_answer_that_cannot_be_saved_is_not_confirmed(server: LabelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, _: str) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("capfilt.label.label_file.write_text", fail)
    status, sentence, _ = ask(server, "POST", "/answer", {"id": server.texts[0].identifier, "answer": "1"})
    assert status == 507 and b"No space left on device" in sentence
    assert server.answers() == {}


def test_a_picture_that_cannot_be_shown_has_a_reason(server: LabelServer, drawn: Callable, tmp_path: Path) -> None:
    text = server.texts[0]
    server.pictures = JpegReader(ShardSet(tmp_path, [text.shard]))
    assert ask(server, "GET", "/picture/0")[:2] == (404, b"its tar is missing")
    write_shard(tmp_path / f"{text.shard}.tar", [drawn(10_000)])
    assert ask(server, "GET", "/picture/0")[:2] == (404, b"not in the tar")
    server.pictures = JpegReader(ShardSet(tmp_path, [text.shard]))
    write_shard(tmp_path / f"{text.shard}.tar", [TarSample(text.key, b"no picture")])
    assert ask(server, "GET", "/picture/0")[:2] == (404, b"not_a_picture")


def test_names_of_this_machine_are_accepted_when_it_listens_for_others(server: LabelServer) -> None:
    assert not server.accepts_host("gpu7.cluster:8765")
    server.names.add("gpu7.cluster")
    assert server.accepts_host("GPU7.cluster:8765")
