"""`capfilt filter`: every text is a row with a verdict, and a new threshold reads no picture."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from filter_runs import caption, rows, run

from blipcore.device import resolve_dtype
from blipcore.generate.config import GenerateConfig
from blipcore.io.samples import TarSample
from capfilt.shards.format import CAPTIONS, filtered_schema, write_shard
from capfilt.shards.tables import read_table, write_table


@pytest.fixture
def messy(tmp_path: Path, drawn) -> Path:
    """Write two shards with every kind of text and picture; the first has a table."""
    good = drawn(0).image
    write_shard(
        tmp_path / "data" / "00000.tar",
        [
            TarSample("fine", good, "A red dog, on the left!"),
            TarSample("empty", drawn(1).image, ""),
            TarSample("null", drawn(2).image, None),
            TarSample("half", good[: len(good) // 2], "a text of half a picture"),
            TarSample("junk", b"<html>404", "a text of no picture"),
            TarSample("emoji", drawn(3).image, "🙂 " * 40),
        ],
    )
    table = {
        "key": ["fine", "null", "gone"],
        "url": ["http://a/fine", "http://a/null", "http://a/gone"],
        "sha256": ["f" * 64, "0" * 64, None],
        "caption": ["not this one", "from the table", "lost"],
    }
    write_table(tmp_path / "data" / "00000.parquet", pa.table(table))
    write_shard(tmp_path / "data" / "00001.tar", [drawn(number) for number in range(10, 20)])
    return tmp_path / "data"


def test_every_text_is_a_row_with_a_reason(messy: Path, tiny_blip: Path) -> None:
    caption(messy, tiny_blip, name="c", generate=GenerateConfig(num_captions=2))
    summary = run(messy, tiny_blip, name="r1", batch_size=3)
    out = rows(summary)
    assert read_table(messy / "filtered/r1/00000.parquet").schema == filtered_schema(["itm", "itc", "confidence"])
    good = ["fine", "empty", "null", "emoji", *(f"{number:06d}" for number in range(10, 20))]
    assert Counter(row["key"] for row in out) == {"half": 1, "junk": 1} | dict.fromkeys(good, 3)
    assert len({(row["key"], row["source"], row["index"]) for row in out}) == len(out) == 44
    assert {row["source"] for row in out} == {"web", "c"}
    web = {row["key"]: row for row in out if row["source"] == "web"}
    assert web["fine"]["text"] == "A red dog, on the left!"  # as it was, not as it is cleaned for the model
    assert (web["fine"]["url"], web["fine"]["sha256"]) == ("http://a/fine", "f" * 64)
    assert web["null"]["text"] == "from the table"
    assert web["000010"]["url"] is None
    assert (web["empty"]["keep"], web["empty"]["reason"], web["empty"]["itm"]) == (False, "no_text", None)
    assert web["half"]["reason"] == "undecodable: truncated" and not web["half"]["keep"]
    assert web["junk"]["reason"] == "undecodable: not_a_picture"
    for row in out:
        assert row["keep"] == (row["reason"] == "kept")
        if row["reason"] in ("kept", "itm<0.5"):
            assert row["keep"] == (row["itm"] >= 0.5) and -1 <= row["itc"] <= 1
    # the summary and the manifest agree
    assert summary["texts"] == 44 == summary["kept"] + sum(summary["dropped"].values())
    for source, totals in summary["by_source"].items():
        reasons = [row["reason"] for row in out if row["source"] == source]
        assert Counter({"kept": totals["kept"], **totals["dropped"]}) == Counter(reasons)
        assert totals["texts"] == len(reasons)
    assert summary["keep_share"] == round(summary["kept"] / 44, 4)
    rejected = summary["dropped"]["itm<0.5"]
    assert summary["noise_ratio"] == round(rejected / (rejected + summary["kept"]), 4)
    manifest = json.loads((messy / "filtered/r1/manifest.json").read_text())
    assert sum(manifest["counts"].values()) == 44 and manifest["images"] == "../.."
    assert manifest["config"]["scored_with"]["first_token"] == "enc"
    assert manifest["parents"][1:] == ["../../captions/c"]


def test_scores_of_another_backend_are_reused_unless_one_is_named(
    shards, tiny_blip: Path, no_pictures, monkeypatch
) -> None:
    data = shards(1, 4)
    first = run(data, tiny_blip, dtype="bf16", backend="torch")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: object())
    no_pictures()
    again = run(data, tiny_blip, dtype="bf16", name="other", threshold=0.7)
    assert again["scores"] == first["scores"]
    with pytest.raises(ValueError, match=r"made with other settings(.|\n)*backend"):
        run(data, tiny_blip, dtype="bf16", name="third", backend="openvino")


def test_another_threshold_or_fewer_sources_read_no_picture(shards, tiny_blip, tiny_filter, no_pictures) -> None:
    data = shards(2, 8)
    caption(data, tiny_blip, name="c")
    half = run(data, tiny_filter, name="half")
    no_pictures()
    everything = run(data, tiny_filter, name="all", threshold=0)
    assert everything["scores"] == half["scores"]
    assert set(everything["dropped"]) <= {"duplicate"} and everything["kept"] > half["kept"]
    web = run(data, tiny_filter, name="web", sources=["web"])
    assert web["scores"] == half["scores"] and set(web["by_source"]) == {"web"} and web["texts"] == 16
    assert web["by_source"]["web"] == half["by_source"]["web"]
    strict = run(data, tiny_filter, name="strict", threshold=0.9, itc_threshold=0.2)
    assert set(strict["dropped"]) <= {"itm<0.9", "itc<0.2", "duplicate"} and strict["kept"] < half["kept"]
    # scores from a machine with another number format are reused too, unless --dtype names one
    other_dtype = "fp32" if resolve_dtype("cpu") == "bf16" else "bf16"
    manifest = Path(half["scores"]) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"dtype": "fp32"', f'"dtype": "{other_dtype}"'))
    assert run(data, tiny_filter, name="anywhere", dtype="auto")["scores"] == half["scores"]
    # named scores need no model
    named = run(data, None, name="named", scores=Path(half["scores"]).name, threshold=0.5)
    assert [row["reason"] for row in rows(named)] == [row["reason"] for row in rows(half)]


def test_a_rerun_with_existing_scores_needs_no_torch(shards, tiny_filter: Path) -> None:
    data = shards(1, 4)
    first = run(data, tiny_filter)
    code = (
        "import sys\n"
        "from capfilt.caption_and_filter import CaptionFilterConfig, caption_and_filter\n"
        f"config = CaptionFilterConfig(data={str(data)!r}, model={str(tiny_filter)!r}, name='again')\n"
        "summary = caption_and_filter(config)\n"
        "print(summary['scores'], 'torch' in sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.split() == [first["scores"], "False"]


def test_another_model_or_setting_gets_its_own_scores(
    shards, tiny_blip, tiny_filter, save_tiny_model, tmp_path
) -> None:
    data = shards(1, 4)
    first = run(data, tiny_filter)
    other = run(data, save_tiny_model(tmp_path / "other", "encode", "itc", "itm", seed=1), name="other")
    assert other["scores"] != first["scores"]
    caption(data, tiny_blip)
    more = run(data, tiny_filter, name="more")
    assert set(more["by_source"]) == {"web", "blip"} and more["scores"] != first["scores"]
    with pytest.raises(ValueError, match=r"other settings(.|\n)*first_token: 'enc' -> 'cls'"):
        run(data, tiny_filter, name="cls", first_token="cls", sources=["web"])
    cls = run(data, tiny_filter, name="cls", first_token="cls", sources=["web"], scores="cls")
    assert [row["itm"] for row in rows(cls)] != [row["itm"] for row in rows(first)]


def test_other_settings_under_the_same_name_are_refused(shards, tiny_filter: Path) -> None:
    data = shards(1, 4)
    before = rows(run(data, tiny_filter))
    with pytest.raises(ValueError, match=r"made with other settings(.|\n)*limits.itm: 0.5 -> 0.7"):
        run(data, tiny_filter, threshold=0.7)
    again = run(data, tiny_filter)
    assert again["shards"] == {"done": 0, "skipped": 1, "failed": {}} and rows(again) == before
    assert again["kept"] == sum(row["keep"] for row in before)


def test_captions_that_changed_after_scoring_are_refused(shards, tiny_blip: Path, tiny_filter: Path) -> None:
    data = shards(1, 4)
    caption(data, tiny_blip, name="c")
    run(data, tiny_filter)
    table = read_table(data / "captions/c/00000.parquet")
    # written again with other settings: refused before anything runs
    for path in (data / "captions/c").iterdir():
        path.unlink()
    caption(data, tiny_blip, name="c", generate=GenerateConfig(seed=7))
    with pytest.raises(ValueError, match=r"settings of the captions 'c' have changed since .* --scores NAME"):
        run(data, tiny_filter, name="r2")
    assert run(data, tiny_filter, name="r2", scores="again")["texts"] == 8
    # edited by hand: the settings still agree, the texts do not
    edited = table.set_column(2, "text", pa.array(["a dog"] * table.num_rows))
    write_table(data / "captions/c/00000.parquet", edited)
    failed = run(data, tiny_filter, name="r3", scores="again")["shards"]["failed"]
    assert "has changed since it was scored" in failed["00000"]
    assert not (data / "filtered/r3/00000.parquet").exists()


def test_duplicates_of_the_web_text_are_dropped(shards, tiny_filter: Path) -> None:
    data = shards(1, 3)
    web = [row["text"] for row in rows(run(data, tiny_filter, name="web"))]
    columns = {
        "key": ["000000", "000000", "000001"],
        "index": [0, 1, 0],
        "text": [web[0].upper() + "!", "a dog", "a dog"],
        "logprob": [-1.0] * 3,
        "error": [None] * 3,
    }
    write_table(data / "captions/hand/00000.parquet", pa.table(columns, schema=CAPTIONS))
    summary = run(data, tiny_filter, threshold=0)
    assert summary["by_source"]["hand"] == {"texts": 3, "kept": 2, "dropped": {"duplicate": 1}}
    assert [row["text"] for row in rows(summary) if row["source"] == "web"] == web
    alone = run(data, tiny_filter, name="alone", threshold=0, sources=["hand"])
    assert alone["kept"] == 3  # there are no web texts to repeat


def test_the_best_of_several_captions_by_any_score_stays(shards, tiny_blip, tiny_clip: str, no_pictures) -> None:
    data = shards(1, 6)
    caption(data, tiny_blip, name="c", generate=GenerateConfig(num_captions=4))
    every = run(data, tiny_blip, clip=tiny_clip, threshold=0)
    scored = [row for row in rows(every) if row["keep"]]
    no_pictures()
    for name, options, groups in (("each", {}, ("key", "source")), ("across", {"best_across": True}, ("key",))):
        best = run(data, tiny_blip, name=name, clip=tiny_clip, threshold=0, best_of="clip", **options)
        highest: dict[tuple, dict] = {}
        for row in scored:
            group = tuple(row[name] for name in groups)
            highest[group] = max(highest.get(group, row), row, key=lambda row: row["clip"])
        assert [row["text"] for row in rows(best) if row["keep"]] == [
            row["text"] for row in scored if row in highest.values()
        ]
        assert best["kept"] == len(highest) and best["dropped"]["not_best"] == len(scored) - len(highest)
    with pytest.raises(
        ValueError, match=r"best_of needs the score 'clip2', but the scores are itm, itc, clip, confidence; add --clip"
    ):
        run(data, tiny_blip, name="second", clip=tiny_clip, best_of="clip2")
    with pytest.raises(
        ValueError, match=r"best_of needs the score 'nice', but the scores are itm, itc, clip, confidence; add --clip"
    ):
        run(data, tiny_blip, name="nice", clip=tiny_clip, best_of="nice")


def test_captions_without_a_table_are_no_source(shards, tiny_filter: Path) -> None:
    data = shards(1, 3)
    with pytest.raises(ValueError, match="needs the text decoder"):
        caption(data, tiny_filter, name="c")
    assert set(run(data, tiny_filter)["by_source"]) == {"web"}


def test_wrong_models_and_settings_raise(shards, tiny_captioner: Path, tiny_filter: Path, tmp_path: Path) -> None:
    data = shards(1, 3)
    with pytest.raises(ValueError, match=r"is a captioner.*; filtering needs the ITM head: use a retrieval checkpoint"):
        run(data, tiny_captioner)
    with pytest.raises(ValueError, match="filtering needs the ITM head"):
        run(data, tiny_captioner, scores="s")
    assert (
        run(data, tiny_filter, name="after", scores="s")["texts"] == 3
    )  # a run without a table leaves the folder free
    with pytest.raises(ValueError, match="is not a shard set"):
        run(tiny_filter, tiny_filter)
    with pytest.raises(ValueError, match="has no scores of web; give a --model"):
        run(data, None, scores="nowhere")
    scores = run(data, tiny_filter)["scores"]
    (Path(scores) / "00000.parquet").unlink()
    with pytest.raises(ValueError, match="is not finished; to finish it, give"):
        run(data, None, name="r2", scores=Path(scores).name)


def test_the_pictures_may_be_read_only(shards, tiny_blip: Path, tmp_path: Path) -> None:
    data, work = shards(1, 3), tmp_path / "work"
    caption(data, tiny_blip, out=str(work))
    summary = run(data, tiny_blip, out=str(work))
    assert set(summary["by_source"]) == {"web", "blip"}
    assert sorted(path.name for path in data.iterdir()) == ["00000.tar"]
    assert json.loads((work / "filtered/capfilt/manifest.json").read_text())["images"] == str(data.resolve())


def test_confidence_ranks_and_limits_captions_without_a_new_pass(shards, tiny_blip: Path, no_pictures) -> None:
    data = shards(1, 5)
    caption(data, tiny_blip, name="c", generate=GenerateConfig(num_captions=3))
    every = rows(run(data, tiny_blip, threshold=0))
    no_pictures()
    captions = [row for row in every if row["source"] == "c" and row["keep"]]
    assert all((row["confidence"] is None) == (row["source"] == "web") for row in every)
    best = run(data, tiny_blip, name="best", threshold=0, best_of="confidence")
    highest = {row["key"]: row for row in sorted(captions, key=lambda row: row["confidence"])}
    kept = [row for row in rows(best) if row["keep"]]
    assert {row["key"]: row["text"] for row in kept if row["source"] == "c"} == {
        key: row["text"] for key, row in highest.items()
    }
    assert sum(row["source"] == "web" for row in kept) == 5
    limit = sorted(row["confidence"] for row in captions)[3]
    limited = run(data, tiny_blip, name="limited", threshold=0, min_scores={"confidence": limit})
    reasons = Counter(row["reason"] for row in rows(limited))
    assert sum(count for reason, count in reasons.items() if reason.startswith("confidence<")) == 3
    with pytest.raises(ValueError, match=r"best_of needs the score 'confidence'.*`capfilt caption` wrote"):
        run(data, tiny_blip, name="web", sources=["web"], best_of="confidence")


def test_a_set_begun_without_confidence_is_finished_without_it(shards, tiny_blip: Path) -> None:
    data = shards(2, 3)
    caption(data, tiny_blip, name="c")
    run(data, tiny_blip)
    folder = data / "filtered" / "capfilt"
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["computed"], manifest["counts"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "00001.parquet").unlink()
    run(data, tiny_blip)
    assert "confidence" not in read_table(folder / "00001.parquet").column_names
