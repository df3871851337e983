"""`openai:` against a server of our own: its answers, its bad moments, and that nothing is paid for twice."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from vlm_server import KEY, MODEL, VlmServer

import capfilt
from capfilt.caption.chat import ChatConfig, read_answer
from capfilt.caption.stage import CaptionConfig, caption_shards
from capfilt.caption_and_filter import CaptionFilterConfig, caption_and_filter
from capfilt.errors import EngineError
from capfilt.shards.tables import read_table

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
    """Caption a shard set by the server; options as in the configuration."""

    def run(data: Path, chat: dict | None = None, model: str = MODEL, **options) -> dict:
        ways = {"base_url": server.url, "timeout": 5, **options.pop("server", {})}
        given = {"data": str(data), "model": f"openai:{model}", "name": "vlm", "batch_size": 4, "device": "cpu"}
        settings = given | options | {"chat": chat or {}, "server": ways}
        from capfilt.config import resolve

        return caption_shards(resolve(CaptionConfig, overrides=settings), progress=False)

    return run


def rows(data: Path, name: str = "vlm") -> list[dict]:
    paths = sorted((data / "captions" / name).glob("*.parquet"))
    return [row for path in paths for row in read_table(path).to_pylist()]


def paid(server: VlmServer) -> int:
    """Requests about pictures, without the one that tries the server out."""
    return sum(request["image"].size != (224, 224) for request in server.requests)


def test_a_caption_a_picture_and_what_is_asked(shards, server: VlmServer, caption) -> None:
    data = shards(2, 6)
    summary = caption(data, {"prompt": "Say it shortly.", "system": "You caption.", "extra": {"logprobs": True}})
    assert summary["counts"] == {"captions": 12, "pictures": 12} and summary["shards"]["failed"] == {}
    told = rows(data)
    assert len({row["text"] for row in told}) == 12 and {row["error"] for row in told} == {None}
    assert {row["logprob"] for row in told} == {-2.5}
    request = server.requests[-1]
    assert [message["role"] for message in request["messages"]] == ["system", "user"]
    assert request["messages"][1]["content"][1] == {"type": "text", "text": "Say it shortly."}
    assert request["image"].size == (40, 40)
    sampling = {name: request[name] for name in ("model", "max_tokens", "temperature", "top_p", "logprobs")}
    assert sampling == {"model": MODEL, "max_tokens": 64, "temperature": 1.0, "top_p": 0.9, "logprobs": True}
    manifest = json.loads((data / "captions/vlm/manifest.json").read_text())
    assert manifest["config"]["fingerprint"] == f"openai:{MODEL}" and manifest["config"]["dtype"] is None
    assert manifest["config"]["chat"]["prompt"] == "Say it shortly." and "generate" not in manifest["config"]


def test_nothing_is_paid_for_twice(shards, write_shards, server: VlmServer, caption, tmp_path: Path) -> None:
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
    assert len(server.requests) - paid(server) == 3  # even a try-out is asked for once: for each setting


def test_equal_pictures_under_way_are_asked_about_once(tmp_path: Path, drawn, server: VlmServer, caption) -> None:
    from blipcore.io.samples import Picture
    from capfilt.shards.format import write_shard

    server.seconds = 0.05
    image = drawn(1).image
    write_shard(tmp_path / "data/00000.tar", [Picture(f"{n}", image, "x") for n in range(8)])
    assert caption(tmp_path / "data")["counts"]["captions"] == 8 and paid(server) == 1


def test_requests_overlap_up_to_the_limit(shards, server: VlmServer, caption) -> None:
    server.seconds = 0.05
    caption(shards(1, 24), server={"concurrency": 5}, batch_size=3)
    assert server.most_under_way == 5


def test_every_answer_has_its_outcome(shards, server: VlmServer, caption) -> None:
    data = shards(1, 9)
    kinds = ["refusal", "sorry", "filtered", "long", "empty", "rejected", "policy", "malformed", "no choice"]
    numbers: dict[bytes, str] = {}

    def trouble(request: dict) -> str | None:
        if request["image"].size == (224, 224):
            return None
        return numbers.setdefault(request["image"].tobytes(), kinds[len(numbers) % 9])

    server.trouble = trouble
    counts = caption(data)["counts"]
    assert counts == {
        "captions": 0, "pictures": 9, "no_caption": 9, "no_caption/refused": 4, "no_caption/too_long": 1,
        "no_caption/empty": 1, "no_caption/rejected": 1, "no_caption/malformed": 2,
    }  # fmt: skip
    told = rows(data)
    assert len(told) == 9 and {row["text"] for row in told} == {None}
    assert "rejected: this picture is too small" in {row["error"] for row in told}
    asked = len(server.requests)
    caption(data, name="again")  # what was answered is not asked again; what was turned away is
    assert len(server.requests) - asked == 4


def test_what_may_mend_is_tried_again_as_long_as_the_server_asks(shards, server: VlmServer, caption) -> None:
    tries: dict[bytes, int] = {}
    ways = ["busy", "broken", "hang"]

    def trouble(request: dict) -> str | None:
        picture = request["image"].tobytes()
        tries[picture] = tries.get(picture, 0) + 1
        return ways[len(tries) % 3] if tries[picture] == 1 else None

    server.trouble = trouble
    begun = time.monotonic()
    summary = caption(shards(1, 6), server={"timeout": 1})
    assert summary["counts"]["captions"] == 6 and set(tries.values()) == {2}
    assert {"busy", "broken", "hang"} <= set(server.answered) | {"hang"} and time.monotonic() - begun > 1


def test_one_picture_that_the_server_fails_on_does_not_end_the_run(shards, server: VlmServer, caption) -> None:
    def trouble(request: dict) -> str | None:
        bad = server.requests[3:4]
        return "broken" if bad and request["image"].tobytes() == bad[0]["image"].tobytes() else None

    server.seconds, server.trouble = 0.1, trouble
    data = shards(1, 20)
    counts = caption(data, server={"retries": 1, "concurrency": 3})["counts"]
    assert counts["captions"] == 19 and counts["no_caption/failed"] == 1
    assert [row["error"] for row in rows(data) if row["error"]] == ["failed: out of cards"]


def test_a_server_that_goes_away_costs_no_answer(shards, server: VlmServer, caption) -> None:
    data = shards(3, 5)
    server.trouble = lambda request: "broken" if paid(server) > 7 else None
    with pytest.raises(EngineError, match=r"keeps answering 500 \(out of cards\); what it has said is kept: run the"):
        caption(data, server={"retries": 0, "concurrency": 1})
    before = server.answered["caption"]
    assert 6 <= before <= 8 and len(list((data / "captions/vlm").glob("*.parquet"))) == 1
    server.trouble = lambda request: None
    assert caption(data)["counts"]["captions"] == 15
    assert server.answered["caption"] == 16  # one a picture, and the try-out


def test_a_server_that_cannot_be_used_is_one_sentence(shards, server: VlmServer, caption, monkeypatch) -> None:
    data = shards(1, 2)
    with pytest.raises(ValueError, match=r"knows no model 'other', or no chat \(there is no such model\)"):
        caption(data, model="other")
    server.trouble = lambda request: "rejected"
    with pytest.raises(ValueError, match=r"does not take the request \(rejected: this picture is too small\)"):
        caption(data)
    server.trouble = lambda request: None
    with pytest.raises(ValueError, match="Beam search is for BLIP captioners"):
        caption(data, {"mode": "beam"})
    with pytest.raises(ValueError, match="Answers cannot be kept in"):
        caption(data, server={"cache": str(data / "00000.tar")})
    monkeypatch.setenv("OPENAI_API_KEY", KEY + "x")
    with pytest.raises(ValueError, match="does not accept the key in OPENAI_API_KEY") as caught:
        caption(data)
    assert KEY not in str(caught.value) and "***" in str(caught.value)
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ValueError, match="needs a key in OPENAI_API_KEY; say where another one is with --base-url"):
        caption(data, server={"base_url": None})
    server.close()
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:\d+/v1 does not answer \(.*\); start it, or say with"):
        caption(data, server={"retries": 0})
    assert not list(data.glob("captions/*/*.parquet"))


def test_a_missing_client_says_what_to_install(shards, server: VlmServer, caption, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r"pip install 'capfilt\[openai\]'"):
        caption(shards(1, 1))


def test_the_key_is_written_nowhere(shards, server: VlmServer, caption, tmp_path: Path) -> None:
    data = shards(1, 2)
    server.trouble = lambda request: "rejected" if paid(server) > 1 else None
    caption(data)
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(kept) > 3 and not [path for path in kept if KEY.encode() in path.read_bytes()]
    (cache,) = (tmp_path / "cache/capfilt").glob("answers.sqlite")
    ((answer,), *_) = sqlite3.connect(cache).execute("SELECT answer FROM answers").fetchall()
    assert set(json.loads(answer)) == {"text", "refusal", "finish", "logprob"}


def test_captions_are_judged_in_the_same_pass(shards, server: VlmServer, tiny_filter: Path, tmp_path: Path) -> None:
    data = shards(1, 6)
    asks = {"model": f"openai:{MODEL}", "name": "vlm", "server": {"base_url": server.url}}
    first = lambda: server.requests[1]["image"].tobytes()  # noqa: E731 - after the try-out
    server.trouble = lambda request: "sorry" if paid(server) and request["image"].tobytes() == first() else None
    summary = caption_and_filter(
        CaptionFilterConfig(data=str(data), model=str(tiny_filter), device="cpu", captioner=asks), progress=False
    )
    assert summary["captions"]["counts"]["no_caption/refused"] == 1
    assert summary["by_source"]["vlm"]["texts"] == 6 and summary["by_source"]["vlm"]["dropped"]["no_text"] == 1


@pytest.mark.slow  # two processes that start from nothing
def test_killed_it_keeps_what_was_answered(shards, server: VlmServer) -> None:
    data = shards(1, 12)
    server.seconds = 0.1
    root = str(Path(capfilt.__file__).parents[1])
    command = [sys.executable, "-m", "capfilt", "caption", str(data), "--model", f"openai:{MODEL}", "--name", "vlm"]
    command += ["--base-url", server.url, "--set", "server.concurrency=1", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": root}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while server.answered["caption"] < 5:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not list((data / "captions/vlm").glob("*.parquet"))
    server.seconds = 0.0
    time.sleep(0.3)  # the request that was under way ends
    asked = len(server.requests)
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert len(rows(data)) == 12 and len(server.requests) - asked <= 13 - 4
    assert "Traceback" not in ended.stderr and "Task was destroyed" not in ended.stderr


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ('  "A dog\n on a couch." ', "A dog on a couch."),
        ("I’m sorry, but I can’t help with that.", "refused"),
        ("I'm unable to view images.", "refused"),
        ("Unfortunately, I cannot describe people.", "refused"),
        ("As an AI language model, I", "refused"),
        ("Sorry we are closed, says the sign.", "Sorry we are closed, says the sign."),
        ("I can see a dog.", "I can see a dog."),
        ("", "empty"),
        (None, "empty"),
    ],
)
def test_what_an_answer_is_taken_for(answer: str | None, outcome: str) -> None:
    said = read_answer(answer, True, -1.0)
    assert (said.text or said.error.partition(":")[0]) == outcome and (said.text is None) == (said.error is not None)


def test_settings_that_cannot_be_are_sentences() -> None:
    for wrong in ({"top_p": 0}, {"temperature": 0}, {"num_captions": 0}, {"mode": "greedy", "num_captions": 2}):
        with pytest.raises(ValueError, match=r"top_p is in|greedy decoding knows one caption"):
            ChatConfig(**wrong)
