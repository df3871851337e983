"""`--judge openai:` with a local server: scores, outcomes, and no answer that is paid for twice."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chaos_runner import Server
from filter_runs import rows, run, scores
from vlm_server import KEY, MODEL, VlmServer

from capfilt.filter.judge import JudgeConfig
from capfilt.vlm.server import ServerConfig

pytest.importorskip("openai", reason="openai: judges need the extra openai")

Judge = Callable[..., dict[str, Any]]


@pytest.fixture
def server(monkeypatch, tmp_path: Path) -> Iterator[VlmServer]:
    server = VlmServer()
    server.tops = yes_by_length
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield server
    server.close()


def share_of(text: str) -> float:
    """Return the probability of yes that the server gives to a text."""
    return len(text) % 9 / 10 + 0.05


def yes_by_length(request: dict[str, Any]) -> list[dict[str, float]]:
    share = share_of(request["prompt"].partition('"')[2].rpartition('"')[0])
    return [{"Yes": math.log(share * 0.6), " yes": math.log(share * 0.2), "No": math.log((1 - share) * 0.8)}]


@pytest.fixture
def judge(shards, tiny_filter, server: VlmServer) -> Judge:
    """Filter two shards of six pictures with the judge; options are fields of the config."""
    data = shards(2, 6)

    def start(settings: dict[str, Any] | None = None, prices: dict[str, float] | None = None, **options: Any) -> dict:
        connection = ServerConfig(base_url=server.url, timeout=5, retries=1, **(prices or {}))
        config = JudgeConfig(f"openai:{MODEL}", server=connection, **(settings or {}))
        return run(data, tiny_filter, judge=config, batch_size=4, **options)

    return start


def asked(server: VlmServer) -> int:
    """Count the requests, without the one that checks the server."""
    return sum(request["image"].size != (224, 224) for request in server.requests)


def test_vqa_is_a_score_like_any_other(judge: Judge, server: VlmServer) -> None:
    summary = judge(min_scores={"vqa": 0.5}, threshold=0)
    texts = scores(summary)
    assert len(texts) == 12 == asked(server)
    assert [row["vqa"] for row in texts] == pytest.approx([share_of(row["text"]) for row in texts])
    assert {row["judge_error"] for row in texts} == {None} and all(row["itm"] is not None for row in texts)
    reasons = {row["text"]: row["reason"] for row in rows(summary)}
    assert reasons == {text: "kept" if share_of(text) >= 0.5 else "vqa<0.5" for text in reasons}
    assert set(reasons.values()) == {"kept", "vqa<0.5"}
    request = server.requests[-1]
    names = ("max_tokens", "temperature", "logprobs", "top_logprobs")
    assert {name: request[name] for name in names} == dict(zip(names, (4, 0.0, True, 20), strict=True))
    recorded = json.loads(Path(summary["scores"], "manifest.json").read_text())["config"]["scorers"]["vqa"]
    assert recorded["fingerprint"] == f"openai:{MODEL}" and "{text}" in recorded["question"]


def test_no_judgement_is_paid_for_twice(judge: Judge, server: VlmServer) -> None:
    first = judge()
    judge(name="best", best_of="vqa")  # reuses the scores
    again = judge(name="again", scores="again")
    assert asked(server) == 12 and len(server.requests) == 13 and rows(again) == rows(first)
    other = judge({"question": 'Is this "{text}"?'}, name="other")
    assert Path(other["scores"]).name.partition("+")[2].startswith("vqa-") and other["scores"] != first["scores"]
    assert asked(server) == 24


def test_every_text_without_a_judgement_has_a_reason(judge: Judge, server: VlmServer) -> None:
    kinds = ["refusal", "sorry", "filtered", "empty", "rejected", "policy", "malformed", "no choice", None]
    by_picture: dict[bytes, str | None] = {}

    def trouble(request: dict[str, Any]) -> str | None:
        if request["image"].size == (224, 224):
            return None
        return by_picture.setdefault(request["image"].tobytes(), kinds[len(by_picture) % len(kinds)])

    server.trouble = trouble
    summary = judge(min_scores={"vqa": 0.0}, threshold=0)
    counts = {name: number for name, number in summary["counts"].items() if name.startswith("unjudged")}
    assert counts == {
        "unjudged": 11, "unjudged/refused": 7, "unjudged/empty": 1, "unjudged/rejected": 1, "unjudged/malformed": 2,
    }  # fmt: skip
    dropped = summary["dropped"]
    assert dropped == {
        "unjudged: refused": 7, "unjudged: empty": 1, "unjudged: rejected": 1, "unjudged: malformed": 2,
    }  # fmt: skip
    texts = rows(summary)
    assert {row["vqa"] is None for row in texts if row["judge_error"]} == {True}
    assert "rejected: this picture is too small" in {row["judge_error"] for row in texts}
    # a missing judgement matters only to a limit on it
    assert judge(name="free", threshold=0)["dropped"] == {}


def test_a_rubric_gives_a_column_per_axis(judge: Judge, server: VlmServer) -> None:
    server.reply = lambda request: json.dumps({"match": 1 + len(request["prompt"]) % 5, "specificity": 2, "fluency": 5})
    texts = scores(judge({"by": "rubric"}, min_scores={"match": 3}))
    assert len({row["match"] for row in texts}) > 1
    assert {(row["specificity"], row["fluency"]) for row in texts} == {(2.0, 5.0)}
    assert "top_logprobs" not in server.requests[-1] and "specificity" in server.requests[-1]["prompt"]
    server.reply = lambda request: "4 of 5"
    bad = judge({"by": "rubric", "system": "Be strict."}, scores="bad", name="bad")
    assert bad["counts"]["unjudged/malformed"] == 12 and {row["match"] for row in scores(bad)} == {None}


@pytest.mark.parametrize("how", ["none", "refused"])
def test_a_server_without_log_probabilities_is_refused_with_the_remedy(judge: Judge, server, how: str) -> None:
    server.tops = lambda request: []
    server.refuses_logprobs = how == "refused"
    with pytest.raises(ValueError, match=r"gives no log-probabilities.*--set judge\.by=rubric"):
        judge()
    server.tops, server.refuses_logprobs = yes_by_length, False
    assert judge()["counts"]["unjudged"] == 0  # nothing of the refused run is in the way


def test_the_cost_is_counted_where_prices_are_set(judge: Judge, server: VlmServer) -> None:
    server.usage = {"prompt_tokens": 1000, "completion_tokens": 2}
    prices = {"input_price": 2.5, "output_price": 10.0}
    assert judge(prices=prices)["dollars"] == pytest.approx(12 * (1000 * 2.5 + 2 * 10.0) / 1e6)
    assert judge(prices=prices, scores="cached", name="cached")["dollars"] is None


def test_a_wrong_model_is_named_before_the_first_shard(judge: Judge, server: VlmServer) -> None:
    server.model = "another"
    with pytest.raises(ValueError, match=f"has no model '{MODEL}'"):
        judge()


@pytest.mark.slow  # starts two processes
def test_several_workers_give_the_same_scores(judge: Judge, server: VlmServer) -> None:
    alone = judge()
    several = judge(workers=2, scores="two", name="two")
    assert scores(several) == scores(alone)


@pytest.mark.slow  # starts a process that imports everything, then forks
@pytest.mark.timeout(900)
def test_a_run_killed_at_ten_random_moments_asks_every_answer_once(
    shards, tiny_filter, server: VlmServer, tmp_path: Path
) -> None:
    """Only requests that a kill finds unanswered, or answered in the same instant, are sent again."""
    concurrency, generator = 4, random.Random(0)
    data, whole, server.seconds = shards(3, 40), tmp_path / "whole", 0.15
    shutil.copytree(data, whole)
    commands = Server()

    def key(request: dict[str, Any]) -> str:
        return hashlib.sha256(request["image"].tobytes() + request["prompt"].encode()).hexdigest()[:12]

    def start(folder: Path) -> int:
        arguments = ["filter", str(folder), "--model", str(tiny_filter), "--device", "cpu", "--dtype", "fp32"]
        arguments += ["--backend", "torch", "--batch-size", "4", "--judge", f"openai:{MODEL}", "--base-url", server.url]
        cache = tmp_path / f"{folder.name}.sqlite"
        for setting in (f"judge.server.concurrency={concurrency}", f"judge.server.cache={cache}", "min_scores.vqa=0.5"):
            arguments += ["--set", setting]
        files = {name: str(tmp_path / name) for name in ("stdout", "stderr")}
        environment = {"OPENAI_API_KEY": KEY}
        place = {"folder": str(tmp_path), "shared_memory": None, "environment": environment}
        return commands.ask(do="start", arguments=arguments, **files, **place)

    def finish(folder: Path) -> None:
        assert commands.ask(do="wait", pid=start(folder)) == 0, (tmp_path / "stderr").read_text()

    try:
        finish(whole)
        total = len({key(request) for request in server.requests})
        assert len(server.requests) == total == 3 * 40 + 1
        server.requests.clear()
        uncertain: set[str] = set()
        kills = []
        for _ in range(10):
            begun = len(server.requests)
            pid = start(data)
            goal, deadline = begun + generator.randint(1, total // 10), time.monotonic() + 120
            while len(server.requests) < goal and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(generator.uniform(0, server.seconds))
            os.kill(pid, signal.SIGKILL)
            code = commands.ask(do="wait", pid=pid)
            with server.lock:
                # in flight, or answered a moment ago
                uncertain |= {key(request) for request in server.requests[-2 * concurrency :]}
                kills.append((len(server.requests) - begun, code == -signal.SIGKILL))
            time.sleep(2 * server.seconds)
        finish(data)
    finally:
        commands.close()
    times = Counter(key(request) for request in server.requests)
    repeated = {name: count - 1 for name, count in times.items() if count > 1}
    print(f"requests of each run before its kill, whether it was running: {kills}")
    print(
        f"{total} questions, {len(server.requests)} requests, of which {sum(repeated.values())} were cut off by a kill"
    )
    assert len(times) == total and repeated.keys() <= uncertain
    assert sum(repeated.values()) <= 10 * concurrency
    assert sum(was_running for _, was_running in kills) >= 8
    for path in sorted([*whole.glob("scores/*/*.parquet"), *whole.glob("filtered/*/*.parquet")]):
        assert (data / path.relative_to(whole)).read_bytes() == path.read_bytes(), path.name
