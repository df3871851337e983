"""`openai:` with a local server: answers, failures, and no answer that is paid for twice."""

from __future__ import annotations

import io
import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from vlm_server import KEY, MODEL, VlmServer

import capfilt
from blipcore.io.samples import TarSample, read_samples
from capfilt.caption.stage import CaptionConfig, caption_shards
from capfilt.caption_and_filter import CaptionFilterConfig, caption_and_filter
from capfilt.config import resolve
from capfilt.errors import EngineError
from capfilt.shards.format import write_shard
from capfilt.shards.tables import read_table
from capfilt.vlm.server import encode_jpeg

pytest.importorskip("openai", reason="openai: captioners need the extra openai")


@pytest.fixture
def server(monkeypatch, tmp_path: Path) -> Iterator[VlmServer]:
    server = VlmServer()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield server
    server.close()


@pytest.fixture
def caption(server: VlmServer) -> Callable[..., dict]:
    """Caption a shard set with the server; options are fields of the config."""

    def run(data: Path, chat: dict | None = None, model: str = MODEL, **options) -> dict:
        connection = {"base_url": server.url, "timeout": 5, **options.pop("server", {})}
        defaults = {"data": str(data), "model": f"openai:{model}", "name": "vlm", "batch_size": 4, "device": "cpu"}
        settings = defaults | options | {"chat": chat or {}, "server": connection}
        return caption_shards(resolve(CaptionConfig, overrides=settings), progress=False)

    return run


def rows(data: Path, name: str = "vlm") -> list[dict]:
    paths = sorted((data / "captions" / name).glob("*.parquet"))
    return [row for path in paths for row in read_table(path).to_pylist()]


def paid(server: VlmServer) -> int:
    """Count the requests for pictures, without the one that checks the server."""
    return sum(request["image"].size != (224, 224) for request in server.requests)


def test_each_picture_is_sent_with_the_prompt_and_settings(shards, server: VlmServer, caption) -> None:
    data = shards(2, 6)
    summary = caption(data, {"prompt": "Say it shortly.", "system": "You caption."})
    assert summary["counts"] == {"captions": 12, "pictures": 12} and summary["shards"]["failed"] == {}
    captions = rows(data)
    assert len({row["text"] for row in captions}) == 12 and {row["error"] for row in captions} == {None}
    assert {row["logprob"] for row in captions} == {-2.5}
    request = server.requests[-1]
    assert [message["role"] for message in request["messages"]] == ["system", "user"]
    assert request["messages"][1]["content"][1] == {"type": "text", "text": "Say it shortly."}
    assert request["image"].size == (40, 40)
    sampling = {name: request[name] for name in ("model", "max_tokens", "temperature", "top_p", "logprobs")}
    assert sampling == {"model": MODEL, "max_tokens": 64, "temperature": 1.0, "top_p": 0.9, "logprobs": True}
    manifest = json.loads((data / "captions/vlm/manifest.json").read_text())
    assert manifest["config"]["fingerprint"] == f"openai:{MODEL}" and manifest["config"]["dtype"] is None
    assert manifest["config"]["chat"]["prompt"] == "Say it shortly." and "generate" not in manifest["config"]


def test_no_answer_is_paid_for_twice(shards, write_shards, server: VlmServer, caption, tmp_path: Path) -> None:
    data = shards(1, 5)
    caption(data)
    assert paid(server) == 5
    caption(data, name="again")
    caption(write_shards(tmp_path / "other", 2, 5))  # its first shard holds the same pictures
    assert paid(server) == 10 and rows(data, "again") == rows(data)
    caption(data, {"num_captions": 3}, name="three")
    three = rows(data, "three")
    assert paid(server) == 20 and [row for row in three if row["index"] == 0] == rows(data)
    assert len({row["text"] for row in three}) == 15  # each caption has a seed of its own
    caption(data, {"seed": 1}, name="seed")
    caption(data, {"prompt": "Another."}, name="prompt")
    assert paid(server) == 30
    assert len(server.requests) - paid(server) == 3  # the check of the server is cached too, per setting


def test_equal_requests_at_the_same_time_are_sent_once(tmp_path: Path, drawn, server: VlmServer, caption) -> None:
    server.seconds = 0.05
    image = drawn(1).image
    write_shard(tmp_path / "data/00000.tar", [TarSample(f"{n}", image, "x") for n in range(8)])
    assert caption(tmp_path / "data")["counts"]["captions"] == 8 and paid(server) == 1


def test_requests_overlap_up_to_the_limit(shards, server: VlmServer, caption) -> None:
    def wait_for_five(request: dict) -> None:
        deadline = time.monotonic() + 60
        while request["image"].size != (224, 224) and server.max_active < 5:
            assert time.monotonic() < deadline, "five requests are never active together"
            time.sleep(0.01)

    server.trouble = wait_for_five
    caption(shards(1, 24), server={"concurrency": 5, "timeout": 60}, batch_size=3)
    assert server.max_active == 5


def test_every_answer_without_a_caption_has_an_error(shards, server: VlmServer, caption) -> None:
    data = shards(1, 9)
    kinds = ["refusal", "sorry", "filtered", "long", "empty", "rejected", "policy", "malformed", "no choice"]
    troubles: dict[bytes, str] = {}

    def trouble(request: dict) -> str | None:
        if request["image"].size == (224, 224):
            return None
        return troubles.setdefault(request["image"].tobytes(), kinds[len(troubles) % 9])

    server.trouble = trouble
    counts = caption(data)["counts"]
    assert counts == {
        "captions": 0, "pictures": 9, "no_caption": 9, "no_caption/refused": 4, "no_caption/too_long": 1,
        "no_caption/empty": 1, "no_caption/rejected": 1, "no_caption/malformed": 2,
    }  # fmt: skip
    captions = rows(data)
    assert len(captions) == 9 and {row["text"] for row in captions} == {None}
    assert "rejected: this picture is too small" in {row["error"] for row in captions}
    sent = len(server.requests)
    caption(data, name="again")  # answers are cached, rejections and malformed answers are not
    # a rejected request is tried without log-probabilities, until one with them has been answered
    assert 4 <= len(server.requests) - sent <= 6


def as_jpeg(sample: TarSample) -> bytes:
    """Return a stored picture as it is sent."""
    jpeg, _ = encode_jpeg(Image.open(io.BytesIO(sample.image)).convert("RGB"))
    return jpeg


LIES = {
    "surrogate": "malformed: text has the unusable character U+D83D",
    "nul": "malformed: text has the unusable character U+0000",
    "escape": "malformed: text has the unusable character U+001B",
    "list": "malformed: text is a list, not a string",
    "number": "malformed: text is a int, not a string",
    "null": "empty",
    "endless text": "too_long: dog",
    "refusal list": "malformed: refusal is a list, not a string",
    "surrogate refusal": "malformed: refusal has the unusable character U+D83D",
    "surrogate error": "rejected: half \ufffd of it",
    "html": "malformed: no JSON: <html>\ufffd\ufffd the proxy</html>",
    "nothing at all": "malformed: no JSON",
    "a number": "malformed: no message of a first choice: 17",
    "brackets": "malformed: no JSON: [[[",
    "digits": "malformed: no JSON",
    "choices text": "malformed: no message of a first choice",
    "choice null": "malformed: no message of a first choice",
    "bomb": "too_large: an answer of more than ",
    "two bombs": "malformed: the body is compressed as 'gzip, gzip', which was not asked for",
    "no gzip": "malformed: the body is not compressed as its header says",
    "endless": "too_large: an answer of more than ",
    "huge error": "rejected: ",
    "huge header": "failed: ",
    "hang up": "failed: ",
    "nan": None,
    "positive": None,
    "infinite": None,
    "words": None,
    "nothing": None,
    "a list": None,
}


def test_a_server_that_lies_costs_a_row_with_a_reason(shards, server: VlmServer, caption) -> None:
    data = shards(1, len(LIES))
    troubles: dict[bytes, str] = {}

    def trouble(request: dict) -> str | None:
        if request["image"].size == (224, 224):
            return None
        return troubles.setdefault(request["image"].tobytes(), [*LIES][len(troubles) % len(LIES)])

    server.trouble = trouble
    # one at a time: that a picture fails while the server is alive is seen from the answers beside it
    caption(data, server={"retries": 0, "concurrency": 1, "timeout": 60})
    files = [as_jpeg(sample) for sample in read_samples(data / "00000.tar")]
    sent_pictures = [Image.open(io.BytesIO(file)).convert("RGB").tobytes() for file in files]
    outcomes = {troubles[picture]: row for picture, row in zip(sent_pictures, rows(data), strict=True)}
    for name, expected in LIES.items():
        error, text = outcomes[name]["error"], outcomes[name]["text"]
        if expected is None:
            assert text and error is None and outcomes[name]["logprob"] is None, name
        else:
            assert text is None and error.startswith(expected) and len(error) <= 520, (name, error)
    sent = len(server.requests)
    server.trouble = lambda request: None
    assert caption(data, name="again")["counts"]["captions"] == len(LIES) - 2
    assert len(server.requests) - sent == len(LIES) - 8  # empty, too long and wrong log-probabilities are answers


def test_a_row_of_the_cache_that_cannot_be_used_is_asked_anew(shards, server: VlmServer, caption, tmp_path) -> None:
    data = shards(1, 6)
    caption(data)
    expected = rows(data)
    (cache,) = (tmp_path / "cache/capfilt").glob("answers.sqlite")
    rotten = ["", "{", "null", "[1]", "[" * 100_000, '{"text": 5}', '{"text": "\\ud83d"}', '{"refusal": {}}']
    with sqlite3.connect(cache) as connection:
        keys = [key for (key,) in connection.execute("SELECT key FROM answers")]
        assert len(keys) == 7
        for key, row in zip(keys, rotten, strict=False):
            connection.execute("UPDATE answers SET answer = ? WHERE key = ?", (row, key))
    sent = len(server.requests)
    assert caption(data, name="again")["counts"]["captions"] == 6
    assert rows(data, "again") == expected and len(server.requests) - sent == 7


def test_logprobs_are_asked_for_and_a_server_without_them_captions_too(
    shards, server: VlmServer, caption, capsys
) -> None:
    data = shards(1, 3)
    caption(data)
    assert "confidence" not in capsys.readouterr().err
    assert {row["logprob"] for row in rows(data)} == {-2.5}
    server.refuses_logprobs = True
    assert caption(data, {"seed": 1}, name="without")["counts"]["captions"] == 3
    assert {row["logprob"] for row in rows(data, "without")} == {None}
    assert server.responses["no logprobs"] == 1
    assert capsys.readouterr().err.count("returns no log-probabilities of captions: they have no confidence") == 1
    caption(data, {"seed": 2, "extra": {"logprobs": None}}, name="unasked")
    assert server.responses["no logprobs"] == 1 and "confidence" not in capsys.readouterr().err


def test_another_model_in_the_answers_is_said_once(shards, server: VlmServer, caption, capsys) -> None:
    server.trouble = lambda request: "other model"
    assert caption(shards(1, 3))["counts"]["captions"] == 3
    assert capsys.readouterr().err.count("answers as model 'gpt-2', not 'tiny-vlm'") == 1


@pytest.mark.parametrize("target", ["{other}/chat/completions?secret=1", "/v1/caf\xe9", "http://u:secret@[evil", ""])
def test_a_redirect_is_refused(shards, server: VlmServer, caption, target: str) -> None:
    other = VlmServer()
    server.redirect = target.format(other=other.url)
    try:
        with pytest.raises(ValueError, match=r"redirects to '.*', where no picture is sent; if you trust it") as caught:
            caption(shards(1, 2))
        assert other.requests == [] and "secret" not in str(caught.value)
    finally:
        other.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://me:secret@127.0.0.1:1/v1", "has a login before '127.0.0.1'; remove it"),
        ("http://token@127.0.0.1:1/v1", "has a login before"),
        ("127.0.0.1:8000/v1", "is no address of a server"),
        ("ftp://127.0.0.1/v1", "is no address of a server"),
        ("http://", "is no address of a server"),
        ("http://127.0.0.1:port/v1", "is no address of a server"),
        ("http://[::1/v1", "is no address of a server"),
    ],
)
def test_an_address_with_a_login_or_without_a_server_is_refused(
    shards, server: VlmServer, caption, monkeypatch, url: str, message: str
) -> None:
    data = shards(1, 1)
    with pytest.raises(ValueError, match=message) as caught:
        caption(data, server={"base_url": url})
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(ValueError, match=f"OPENAI_BASE_URL.*{message}"):
        caption(data, server={"base_url": None})


def test_an_answer_that_never_ends_in_drops_is_a_timeout(shards, server: VlmServer, caption) -> None:
    server.trouble = lambda request: "drops"
    with pytest.raises(ValueError, match=r"does not answer \(the answer is not whole within 0\.5 s\)"):
        caption(shards(1, 1), server={"timeout": 0.5, "retries": 0})


def test_temporary_failures_are_retried_after_the_requested_pause(shards, server: VlmServer, caption) -> None:
    tries: dict[bytes, int] = {}
    failures = ["busy", "broken", "hang"]

    def trouble(request: dict) -> str | None:
        picture = request["image"].tobytes()
        tries[picture] = tries.get(picture, 0) + 1
        return failures[len(tries) % 3] if tries[picture] == 1 else None

    server.trouble = trouble
    start = time.monotonic()
    summary = caption(shards(1, 6), server={"timeout": 1})
    assert summary["counts"]["captions"] == 6 and set(tries.values()) == {2}
    assert {"busy", "broken", "hang"} <= set(server.responses) | {"hang"} and time.monotonic() - start > 1


def test_one_picture_that_the_server_cannot_caption_does_not_end_the_run(shards, server: VlmServer, caption) -> None:
    def trouble(request: dict) -> str | None:
        bad = server.requests[3:4]
        return "broken" if bad and request["image"].tobytes() == bad[0]["image"].tobytes() else None

    server.seconds, server.trouble = 0.1, trouble
    data = shards(1, 20)
    counts = caption(data, server={"retries": 1, "concurrency": 3})["counts"]
    assert counts["captions"] == 19 and counts["no_caption/failed"] == 1
    assert [row["error"] for row in rows(data) if row["error"]] == ["failed: out of memory"]


def test_a_server_that_fails_costs_no_answer(shards, server: VlmServer, caption) -> None:
    data = shards(3, 5)
    server.trouble = lambda request: "broken" if (data / "captions/vlm/00000.parquet").exists() else None
    with pytest.raises(EngineError, match=r"keeps answering 500 \(out of memory\); its answers are cached: run the"):
        caption(data, server={"retries": 0, "concurrency": 1})
    assert 6 <= server.responses["caption"] < 16  # at least the check and the pictures of the first shard
    server.trouble = lambda request: None
    assert caption(data)["counts"]["captions"] == 15
    assert server.responses["caption"] == 16  # one per picture, and the check of the server


def test_an_unusable_server_is_reported_before_the_first_picture(
    shards, server: VlmServer, caption, monkeypatch
) -> None:
    data = shards(1, 2)
    with pytest.raises(ValueError, match=r"has no model 'other', or no chat API \(there is no such model\)"):
        caption(data, model="other")
    server.trouble = lambda request: "rejected"
    with pytest.raises(ValueError, match=r"does not accept the request \(rejected: this picture is too small\)"):
        caption(data)
    server.trouble = lambda request: None
    with pytest.raises(ValueError, match="Cannot cache answers in"):
        caption(data, server={"cache": str(data / "00000.tar")})
    monkeypatch.setenv("OPENAI_API_KEY", KEY + "x")
    with pytest.raises(ValueError, match="does not accept the key in OPENAI_API_KEY") as caught:
        caption(data)
    assert KEY not in str(caught.value) and "***" in str(caught.value)
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ValueError, match="needs a key in OPENAI_API_KEY; name another server with --base-url"):
        caption(data, server={"base_url": None})
    server.close()
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:\d+/v1 does not answer \(.*\); start it, or correct"):
        caption(data, server={"retries": 0})
    assert not list(data.glob("captions/*/*.parquet"))


def test_a_missing_client_raises_with_the_install_command(shards, server: VlmServer, caption, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r"pip install 'capfilt\[openai\]'"):
        caption(shards(1, 1))


def test_the_key_is_not_written_to_any_file(shards, server: VlmServer, caption, tmp_path: Path) -> None:
    data = shards(1, 2)
    server.trouble = lambda request: "rejected" if paid(server) > 1 else None
    caption(data)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 3 and not [path for path in files if KEY.encode() in path.read_bytes()]
    (cache,) = (tmp_path / "cache/capfilt").glob("answers.sqlite")
    ((answer,), *_) = sqlite3.connect(cache).execute("SELECT answer FROM answers").fetchall()
    assert set(json.loads(answer)) == {"text", "refusal", "finish", "logprob"}


def test_captions_are_scored_in_the_same_pass(shards, server: VlmServer, tiny_filter: Path, tmp_path: Path) -> None:
    data = shards(1, 6)
    captioner = {"model": f"openai:{MODEL}", "name": "vlm", "server": {"base_url": server.url}}

    def refuse_first(request: dict) -> str | None:
        first = server.requests[1]["image"] if paid(server) else None  # the request before it checks the server
        return "sorry" if first is not None and request["image"].tobytes() == first.tobytes() else None

    server.trouble = refuse_first
    summary = caption_and_filter(
        CaptionFilterConfig(data=str(data), model=str(tiny_filter), device="cpu", captioner=captioner), progress=False
    )
    assert summary["captions"]["counts"]["no_caption/refused"] == 1
    assert summary["by_source"]["vlm"]["texts"] == 6 and summary["by_source"]["vlm"]["dropped"]["no_text"] == 1


@pytest.mark.slow  # imports everything in two processes
def test_a_killed_run_keeps_the_answers(shards, server: VlmServer) -> None:
    data = shards(1, 12)
    server.seconds = 0.1
    root = str(Path(capfilt.__file__).parents[1])
    command = [sys.executable, "-m", "capfilt", "caption", str(data), "--model", f"openai:{MODEL}", "--name", "vlm"]
    command += ["--base-url", server.url, "--set", "server.concurrency=1", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": root}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while server.responses["caption"] < 5:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not list((data / "captions/vlm").glob("*.parquet"))
    server.seconds = 0.0
    time.sleep(0.3)  # the last request ends
    sent = len(server.requests)
    rerun = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert rerun.returncode == 0, rerun.stderr
    assert len(rows(data)) == 12 and len(server.requests) - sent <= 13 - 4
    assert "Traceback" not in rerun.stderr and "Task was destroyed" not in rerun.stderr


@pytest.mark.slow  # starts transformers serve
def test_a_real_server_writes_the_captions_of_the_model(shards, caption, monkeypatch, tmp_path: Path) -> None:
    pytest.importorskip("uvicorn", reason="transformers serve needs transformers[serving]")
    from tiny_vlm import save_tiny_vlm

    from capfilt.caption.chat import ChatConfig
    from capfilt.caption.hf import HfCaptioner

    data, model = shards(1, 6), str(save_tiny_vlm(tmp_path / "llava"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = Path(__file__).parents[2] / "helpers" / "serve_tiny_vlm.py"
    environment = {**os.environ, "PYTHONPATH": str(Path(capfilt.__file__).parents[1]), "HF_HUB_OFFLINE": "1"}
    log = tmp_path / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, str(script), model, str(port)], env=environment, stderr=output)
    try:
        deadline = time.monotonic() + 240
        while b"Uvicorn running" not in log.read_bytes():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        settings = {"prompt": "describe this image", "mode": "greedy", "max_new_tokens": 20}
        summary = caption(
            data, settings, model=model, server={"base_url": f"http://127.0.0.1:{port}/v1", "timeout": 60}
        )
    finally:
        process.kill()
        process.wait()
    sent = [Image.open(io.BytesIO(file)) for file in map(as_jpeg, read_samples(data / "00000.tar"))]
    captioner = HfCaptioner(model, ChatConfig(**settings), dtype="fp32")
    expected = [first for (first,) in captioner.caption(sent, [str(number) for number in range(6)])]
    outcomes = [(row["text"], row["error"]) for row in rows(data)]
    assert outcomes == [(caption.text, caption.error) for caption in expected]
    assert summary["counts"]["captions"] > 0
