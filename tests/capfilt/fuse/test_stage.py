"""`capfilt fuse` with a local server: a source like any other, and every invention rejected with its reason."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from filter_runs import run as run_filter
from folders import contents, rows_of
from typer.testing import CliRunner
from vlm_server import KEY, MODEL, VlmServer

from capfilt.cli import app
from capfilt.config import resolve
from capfilt.errors import EngineError
from capfilt.fuse.stage import FuseConfig, fuse_shards
from capfilt.shards.format import CAPTIONS
from capfilt.shards.tables import write_table

pytest.importorskip("openai", reason="fuse needs the extra openai")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[VlmServer]:
    server = VlmServer()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    server.reply = merge
    yield server
    server.close()


def texts_of(request: dict[str, Any]) -> list[str]:
    """Return web text and caption in the prompt of a request."""
    lines = request["prompt"].split("\n")
    return [line.partition(": ")[2] for line in lines if line.startswith(("Web text: ", "Caption: "))]


def merge(request: dict[str, Any]) -> str:
    """Return both texts of a request as one caption."""
    return " with ".join(texts_of(request))


def write_captions(folder: Path, texts: dict[str, str]) -> None:
    """Write a caption per key as the captions of shard 00000."""
    rows = [{"key": key, "index": 0, "text": text} for key, text in texts.items()]
    write_table(folder / "00000.parquet", pa.Table.from_pylist(rows, CAPTIONS))


@pytest.fixture
def captioned(shards: Callable[..., Path]) -> Callable[..., Path]:
    """Write a shard set whose pictures have a caption each."""

    def write(pictures: int = 6, **texts: str) -> Path:
        data = shards(1, pictures)
        keys = [f"{number:06d}" for number in range(pictures)]
        write_captions(
            data / "captions/blip", {key: texts.get(f"k{key}", f"two dogs near tree {key[-1]}") for key in keys}
        )
        return data

    return write


@pytest.fixture
def fuse(server: VlmServer) -> Callable[..., dict[str, Any]]:
    def run(data: Path, **options: Any) -> dict[str, Any]:
        defaults = {"data": str(data), "model": f"openai:{MODEL}"}
        defaults["server"] = {"base_url": server.url, "timeout": 5, **options.pop("server", {})}
        return fuse_shards(resolve(FuseConfig, overrides=defaults | options), progress=False)

    return run


def fused(data: Path, name: str = "fused") -> list[dict[str, Any]]:
    return rows_of(data / "captions" / name)


def test_merged_texts_are_a_source_like_any_other(captioned, fuse, server: VlmServer, tiny_filter: Path) -> None:
    data = captioned(6)
    summary = fuse(data)
    assert summary["counts"] == {"captions": 6} and summary["source"] == "blip"
    table = fused(data)
    assert all(row["text"].endswith(f" with two dogs near tree {row['key'][-1]}") for row in table)
    request = server.requests[-1]
    assert request["temperature"] == 0 and request["max_tokens"] == 160 and "image" not in request
    manifest = json.loads((data / "captions/fused/manifest.json").read_text())
    assert manifest["stage"] == "fuse" and manifest["model"] == f"openai:{MODEL}"
    assert manifest["config"]["source"] == "blip" and "{web}" in manifest["config"]["chat"]["prompt"]
    assert manifest["parents"] == ["../blip"] and manifest["config"]["guard"]["languages"] == ["en"]
    filtered = run_filter(data, tiny_filter)
    assert filtered["by_source"]["fused"]["texts"] == 6


def test_a_server_that_invents_names_and_numbers_is_caught_in_every_row(captioned, fuse, server: VlmServer) -> None:
    inventions = ["in Berlin", "with 17 owls", "by Frida Kahlo", "of nineteen owls", "at the NATO summit", "from 1987"]
    lone = ["Berlin. ", "Nineteen owls. ", "NASA. ", "Kyoto lights. "]

    def invent(request: dict[str, Any]) -> str:
        draw = random.Random(request["prompt"])
        if draw.random() < 0.5:
            return draw.choice(lone) + merge(request)
        words = merge(request).split()
        words.insert(draw.randrange(1, len(words)), draw.choice(inventions))
        return " ".join(words)

    data = captioned(40)
    server.reply = invent
    summary = fuse(data)
    assert summary["counts"]["captions"] == 0 and summary["counts"]["no_caption"] == 40
    rows = fused(data)
    assert {row["text"] for row in rows} == {None}
    assert all(row["error"].startswith(("invented_name: ", "invented_number: ")) for row in rows)
    assert "(in: " in rows[0]["error"]


def test_each_failure_of_an_answer_is_a_named_outcome(captioned, fuse, server: VlmServer) -> None:
    troubles = ["refusal", "sorry", "malformed", "long", "policy", None]
    data = captioned(6)
    server.trouble = lambda request: next(
        (trouble for number, trouble in enumerate(troubles) if f"tree {number}" in request["prompt"]), None
    )
    summary = fuse(data)
    reasons = [(row["error"] or "").partition(":")[0] for row in fused(data)]
    assert reasons == ["refused", "refused", "malformed", "too_long", "refused", ""]
    assert summary["counts"]["no_caption/refused"] == 3 and summary["counts"]["captions"] == 1


def test_pictures_without_one_of_the_texts_ask_nothing(captioned, fuse, server: VlmServer) -> None:
    data = captioned(4, k000000=" ", k000001="x" * 5000)
    write_captions(data / "captions/web", {"000000": "a dog", "000001": "a dog", "000002": " ", "000003": "a dog"})
    fuse(data)
    assert [row["error"] for row in fused(data)] == [
        "no_caption",
        "long_caption: 5000 characters, of at most 4000",
        "no_web_text",
        None,
    ]
    assert len(server.requests) == 2  # the test request and one


def test_no_answer_is_asked_twice_after_a_stop(captioned, fuse, server: VlmServer) -> None:
    data = captioned(18)
    fuse(data, name="whole")
    asked = len(server.requests)
    fuse(data, name="again")
    assert len(server.requests) == asked
    server.trouble = lambda request: "key" if len(server.requests) > asked + 8 else None
    with pytest.raises(EngineError, match="does not accept the key"):
        fuse(data, chat={"seed": 1}, server={"concurrency": 1})
    server.trouble = lambda request: None
    middle = len(server.requests)
    assert fuse(data, chat={"seed": 1})["shards"]["failed"] == {}
    # One at a time, the first run got 8 answers, one of them to its test request.
    assert len(server.requests) - middle == 18 - 8 + 1
    assert [row["text"] for row in fused(data)] == [row["text"] for row in fused(data, "whole")]
    tables = {name: data for name, data in contents(data / "captions/fused").items() if name.endswith(".parquet")}
    assert tables == {
        name: data for name, data in contents(data / "captions/whole").items() if name.endswith(".parquet")
    }


def test_requests_overlap_up_to_the_limit(captioned, fuse, server: VlmServer) -> None:
    server.seconds = 0.02
    fuse(captioned(20), server={"concurrency": 4})
    assert 2 <= server.max_active <= 4


def test_texts_with_placeholders_are_not_expanded(captioned, fuse, server: VlmServer) -> None:
    data = captioned(1, k000000="two dogs with {web} and {caption}")
    fuse(data)
    assert texts_of(server.requests[-1])[1] == "two dogs with {web} and {caption}"


def test_changed_captions_are_refused(captioned, fuse) -> None:
    data = captioned(4)
    fuse(data)
    table = data / "captions/blip/00000.parquet"
    table.write_bytes(table.read_bytes())
    assert fuse(data)["shards"]["skipped"] == 1
    write_captions(data / "captions/blip", {"000000": "another text"})
    with pytest.raises(ValueError, match=r"blip/00000\.parquet has changed since .*; delete .* another --name"):
        fuse(data)


def test_captions_of_several_sources_need_a_choice(captioned, fuse) -> None:
    data = captioned(1)
    write_captions(data / "captions/vlm", {"000000": "a dog"})
    fuse(data, source="vlm", name="one")
    # texts that were merged are not merged again by default
    with pytest.raises(ValueError, match=r"captions of blip, vlm; choose one with --source"):
        fuse(data)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"model": "hf:qwen"}, "fuse asks a model behind a server, as openai:MODEL"),
        ({"chat": {"prompt": "Merge {web}."}}, r"chat\.prompt must hold \{caption\}"),
        ({"name": "web"}, "neither 'web' nor source"),
        ({"languages": ["xx"]}, "no number words of 'xx'"),
        ({"source": "nobody"}, "No captions named 'nobody' in .*; the sources are blip"),
        ({"model": "openai:other"}, "has no model 'other'"),
    ],
)
def test_mistakes_are_found_before_the_first_request(
    options: dict[str, Any], problem: str, captioned, fuse, server: VlmServer
) -> None:
    data = captioned(2)
    with pytest.raises((ValueError, FileNotFoundError), match=problem):
        fuse(data, **options)
    assert len(server.requests) <= 1 and not list((data / "captions").glob("fused/*.parquet"))


def test_captions_must_exist_and_be_finished(shards, captioned, fuse) -> None:
    with pytest.raises(FileNotFoundError, match="has no captions; run `capfilt caption` first"):
        fuse(shards(2, 2))
    data = captioned(2)
    with pytest.raises(ValueError, match=r"lacks 1 of 2 shards, 00001 first"):
        fuse(data)


def test_the_command_prints_what_was_rejected(captioned, server: VlmServer) -> None:
    data = captioned(3)
    server.reply = lambda request: "A dog in Berlin." if "tree 1" in request["prompt"] else merge(request)
    arguments = ["fuse", str(data), "--model", f"openai:{MODEL}", "--base-url", server.url, "--prompt"]
    result = CliRunner().invoke(app, [*arguments, "Web text: {web}\nCaption: {caption}\nMerge."])
    assert result.exit_code == 0, result.output
    assert "captions 2, no_caption 1, no_caption/invented_name 1" in result.output
