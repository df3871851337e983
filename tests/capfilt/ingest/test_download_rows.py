"""`capfilt download` keeps what the list says: several texts of a URL, further columns, checksums, and its growth."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from folders import contents, rows_of
from packing import pictures_of
from web import Web, picture

from capfilt.ingest.download import download
from capfilt.ingest.download_config import DownloadConfig
from capfilt.shards.manifest import read_manifest


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    with Web() as server:
        yield server


def write_list(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(source: Path, out: Path, **settings: Any) -> dict[str, Any]:
    defaults = {"allow_private": True, "workers": 1, "retries": 0, "shard_size": 2}
    return download(DownloadConfig(str(source), str(out), **defaults | settings), progress=False)


def further_texts(out: Path) -> list[tuple[str, int, str]]:
    return [(row["key"], row["index"], row["text"]) for row in rows_of(out / "captions" / "more")]


def test_rows_of_one_url_are_one_picture_with_all_texts_and_columns(web: Web, tmp_path: Path) -> None:
    urls = [f"{web.url}/good/1.jpg"] * 3 + [f"{web.url}/mending/2.jpg"] * 2 + [f"{web.url}/good/3.jpg"]
    rows = [{"url": url, "caption": f"text {n}", "uid": f"u{n}", "width": n} for n, url in enumerate(urls)]
    source, data = write_list(tmp_path / "list.jsonl", rows), tmp_path / "data"
    summary = run(source, data, retry_wait=0.1)
    assert summary["outcomes"] == {"ok": 2, "server_error": 1} and web.hits["/good/1.jpg"] == 1
    assert [(row["caption"], row["uid"], row["input_width"]) for row in rows_of(data)] == [
        ("text 0", "u0", 0), ("text 3", "u3", 3), ("text 5", "u5", 5),
    ]  # fmt: skip
    assert further_texts(data) == [("000000", 0, "text 1"), ("000000", 1, "text 2")]
    columns = [json.loads(row["columns"]) for row in rows_of(data / "captions" / "more")]
    assert columns == [{"uid": "u1", "width": 1}, {"uid": "u2", "width": 2}]
    assert [sample.metadata["uid"] for sample in pictures_of(data)] == ["u0", "u5"]
    assert read_manifest(data / "captions" / "more")["counts"]
    web.mended.set()
    summary = run(source, data, retry_failed=True)
    web.mended.clear()
    assert summary["outcomes"] == {"ok": 3}
    assert further_texts(data) == [("000000", 0, "text 1"), ("000000", 1, "text 2"), ("000001", 0, "text 4")]
    assert [sample.metadata["uid"] for sample in pictures_of(data)] == ["u0", "u3", "u5"]


def test_checksums_of_the_list_are_verified_on_the_bytes_as_received(web: Web, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"url": f"{web.url}/good/{n}.jpg", "caption": "a dog"} for n in range(5)]
    right = hashlib.sha256(picture(0)).hexdigest().upper()
    rows[0]["sha256"], rows[1]["sha256"] = right, "0" * 64
    rows[2]["md5"], rows[3]["md5"] = hashlib.md5(picture(2)).hexdigest(), "1" * 32
    data = tmp_path / "data"
    run(write_list(tmp_path / "list.jsonl", rows), data, image_size=16)
    table = rows_of(data)
    assert [row["status"] for row in table] == ["ok", "wrong_checksum", "ok", "wrong_checksum", "ok"]
    assert hashlib.sha256(picture(1)).hexdigest() in table[1]["error"] and "1" * 32 in table[3]["error"]
    assert table[0]["input_sha256"] == right and table[3]["md5"] == "1" * 32


def test_a_list_that_has_grown_extends_its_set(web: Web, tmp_path: Path) -> None:
    def rows(*numbers: int) -> list[dict[str, Any]]:
        return [{"url": f"{web.url}/good/{n}.jpg", "caption": f"text {n}", "score": n} for n in numbers]

    source, data = write_list(tmp_path / "list.jsonl", rows(10, 11, 12)), tmp_path / "data"
    run(source, data)
    before = contents(data)
    two_texts = [{"url": f"{web.url}/good/13.jpg", "caption": text, "score": 13} for text in ("text 13", "again")]
    write_list(source, rows(9, 10, 11, 12) + two_texts)
    summary = run(source, data)
    assert summary["shards"] == {"done": 1, "skipped": 2, "failed": {}}
    assert (summary["rows"], summary["ok"]) == (5, 5) and web.hits["/good/10.jpg"] == 1
    assert [(row["key"], row["caption"], row["score"]) for row in rows_of(data)][3:] == [
        ("000020", "text 9", 9), ("000021", "text 13", 13),
    ]  # fmt: skip
    assert further_texts(data) == [("000021", 0, "again")]
    assert len(list((data / "captions" / "more").glob("*.parquet"))) == 3
    after = contents(data)
    assert all(after[name] == before[name] for name in before if name.endswith((".tar", ".parquet")))
    assert run(source, data)["shards"]["skipped"] == 3
    for changed in (rows(9, 10, 12) + two_texts, rows(9, 10, 11, 12), [{"url": "http://x", "caption": "y"}]):
        with pytest.raises(ValueError, match=r"list\.jsonl is not what .*data was made from"):
            run(write_list(source, changed), data)
    with pytest.raises(ValueError, match="have a column 'new', which the set lacks"):
        run(write_list(source, [*rows(9, 10, 11, 12), *two_texts, {**rows(14)[0], "new": 1}]), data)
    with pytest.raises(ValueError, match="column 'score' of the new rows is of type string, but int64 in the set"):
        run(write_list(source, [*rows(9, 10, 11, 12), *two_texts, {**rows(14)[0], "score": "high"}]), data)
    assert contents(data) == after


def test_the_same_rows_in_another_file_are_the_same_input(web: Web, tmp_path: Path) -> None:
    source = write_list(tmp_path / "list.jsonl", [{"url": f"{web.url}/good/20.jpg", "caption": "a dog"}])
    run(source, tmp_path / "data")
    source.write_text(source.read_text().replace('": "', '":"'))
    assert run(source, tmp_path / "data")["shards"]["skipped"] == 1
