"""`capfilt report`: what the page says agrees with the tables, and no text can leave its JSON."""

from __future__ import annotations

import html.parser
import itertools
import json
import shutil
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pytest
from filtered_set import NASTY, filter_set, write_set
from folders import rows_of
from PIL import Image
from typer.testing import CliRunner

from capfilt.cli import app
from capfilt.filter.decide import KEPT
from capfilt.filter.filtered_set import Dataset
from capfilt.report.gallery import _thumbnail
from capfilt.report.stage import ReportConfig, render, report
from capfilt.report.statistics import LONGEST, Least
from capfilt.shards.format import write_shard


@pytest.fixture(scope="module")
def filtered(tmp_path_factory: pytest.TempPathFactory, drawn) -> Path:
    return filter_set(write_set(tmp_path_factory.mktemp("set") / "data", drawn))


def page_data(path: Path) -> dict:
    """What the script of a page finds, by a strict parser's idea of where the JSON ends."""

    class Scripts(html.parser.HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.found: list[list] = []

        def handle_starttag(self, tag, attrs):
            if tag == "script":
                self.found.append([dict(attrs), ""])

        def handle_data(self, data):
            if self.found and self.lasttag == "script":
                self.found[-1][1] += data

    scripts = Scripts()
    scripts.feed(path.read_text(encoding="utf-8"))
    assert len(scripts.found) == 2  # the data and our own script
    return json.loads(next(text for attributes, text in scripts.found if attributes.get("id") == "data"))


@pytest.fixture(scope="module")
def said(filtered: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("page") / "report.html"
    summary = report(ReportConfig(str(filtered), out=str(out), pictures=10))
    assert summary["bytes"] == out.stat().st_size < 5_000_000
    return page_data(out)


def test_texts_are_kept_or_dropped_by_reason_and_source(filtered: Path, said: dict) -> None:
    rows, (facts,) = rows_of(filtered), said["datasets"]
    expected = Counter((row["source"], row["reason"]) for row in rows)
    assert len({reason for _, reason in expected}) >= 3  # kept, itm<0.5, no_text at least
    told = {(source["name"], KEPT): source["kept"] for source in facts["sources"]}
    told |= {(s["name"], reason): number for s in facts["sources"] for reason, number in s["dropped"].items()}
    assert told == expected
    assert sum(source["texts"] for source in facts["sources"]) == len(rows)
    assert facts["pictures"] == len({row["key"] for row in rows})
    assert facts["pictures_kept"] == len({row["key"] for row in rows if row["keep"]})
    assert facts["downloads"] == {"ok": 80, "not_found": 6}


def test_histograms_count_every_score_and_the_slider_counts_what_filter_would_keep(filtered: Path, said: dict) -> None:
    (facts,) = said["datasets"]
    for name, histogram in facts["scores"].items():
        for place, source in enumerate(["web", "c"]):
            scored = [row[name] for row in rows_of(filtered) if row["source"] == source and row[name] is not None]
            assert sum(histogram["counts"][place]) == len(scored)
            expected, _ = np.histogram(np.array(scored), [*histogram["bins"], np.inf])
            assert histogram["counts"][place] == expected.tolist()
    bins = facts["scores"]["itm"]["bins"]
    for number, threshold in enumerate((0.0, 0.3, 0.5, 0.999)):
        again = filter_set(filtered.parents[1], f"again{number}", threshold=threshold)
        kept = Counter(row["source"] for row in rows_of(again) if row["keep"])
        for place, source in enumerate(["web", "c"]):
            assert sum(facts["hangs_on_itm"][place][bins.index(threshold) :]) == kept[source]


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"best": 1}, ["--set=best=1"]),
        (
            {"best_of": "clip", "best_across": True},
            ["--set=best=1", "--best-of", "clip", "--set=best_across=true"],
        ),
    ],
)
def test_a_threshold_between_the_grid_and_other_limits_count_too(
    filtered: Path, tmp_path: Path, choice: dict, words: list[str]
) -> None:
    options = {"threshold": 0.333, "clip_threshold": 0.25, **choice}
    made = filter_set(filtered.parents[1], f"odd{len(choice)}", **options)
    report(ReportConfig(str(made), out=str(tmp_path / "r.html"), pictures=2))
    (facts,) = page_data(tmp_path / "r.html")["datasets"]
    place = facts["scores"]["itm"]["bins"].index(0.333)
    assert [sum(row[place:]) for row in facts["hangs_on_itm"]] == [source["kept"] for source in facts["sources"]]
    assert facts["refilter"][-len(words) - 1 :] == ["--set=clip_threshold=0.25", *words]


def test_what_the_texts_are_like(filtered: Path, said: dict) -> None:
    by_column = {(row["source"], row["kept"]): row for row in said["datasets"][0]["texts"]}
    rows = [row for row in rows_of(filtered) if row["reason"] != "no_text" and row["source"] == "c"]
    for kept in (False, True):
        texts = [row["text"].split() for row in rows if row["keep"] or not kept]
        told = by_column["c", kept]
        assert told["texts"] == told["counted_on"] == len(texts)
        assert told["mean_words"] == pytest.approx(sum(map(len, texts)) / len(texts))
        assert told["vocabulary"] == len({word for text in texts for word in text})
        pairs = [pair for text in texts for pair in itertools.pairwise(text)]
        assert told["distinct"][1] == pytest.approx(len(set(pairs)) / len(pairs))
        times = Counter(map(tuple, texts))
        assert told["repeated"] == pytest.approx(sum(n for n in times.values() if n > 1) / len(texts))
    assert by_column["web", False]["lengths"][LONGEST] == 1  # the text of 300 words


def test_domains_keep_their_own_share(filtered: Path, said: dict) -> None:
    domains = said["datasets"][0]["domains"]
    web = [row for row in rows_of(filtered) if row["source"] == "web"]
    expected = Counter(urlsplit(row["url"]).hostname.removeprefix("www.") for row in web)
    kept = Counter(urlsplit(row["url"]).hostname.removeprefix("www.") for row in web if row["keep"])
    assert {row["host"]: (row["web"], row["web_kept"]) for row in domains["most"]} == {
        host: (number, kept[host]) for host, number in expected.items()
    }


def test_the_gallery_shows_what_its_headings_promise(filtered: Path, said: dict) -> None:
    kinds, pictures = said["gallery"]["kinds"], said["gallery"]["pictures"]
    assert [len(kinds[kind]) for kind in ("threshold", "random", "disagree")] == [10, 10, 10]
    rows = {(row["key"], row["source"]): row for row in rows_of(filtered)}
    picked = {kind: [rows[pick["key"], pick["source"]] for pick in picks] for kind, picks in kinds.items()}
    assert all(row["itm"] == 0.5 for row in picked["threshold"])
    liked = sorted((row for row in rows.values() if row["keep"]), key=lambda row: row["clip"])
    assert picked["disagree"][0] == liked[0]
    assert all(row["keep"] for row in picked["disagree"])
    times = Counter(row["text"] for row in rows.values() if row["reason"] != "no_text")
    assert [pick["times"] for pick in kinds["repeated"]] == [times[row["text"]] for row in picked["repeated"]]
    assert kinds["repeated"][0]["times"] == max(times.values()) > kinds["repeated"][-1]["times"] > 1
    for name, picture in pictures.items():
        assert picture["image"].startswith("data:image/jpeg;base64,")
        of_picture = [row for row in rows.values() if row["key"] == name.split("/")[1]]
        assert [text["source"] for text in picture["texts"]] == [row["source"] for row in of_picture]
        assert [text["itm"] for text in picture["texts"]] == [row["itm"] for row in of_picture]


def test_no_text_leaves_its_json(filtered: Path, tmp_path: Path) -> None:
    out = tmp_path / "all.html"
    report(ReportConfig(str(filtered), out=str(out), pictures=100))
    shown = {text["text"] for picture in page_data(out)["gallery"]["pictures"].values() for text in picture["texts"]}
    assert {text[:400] for text in NASTY} <= shown
    source = out.read_text(encoding="utf-8")
    assert source.count("</script") == 2
    assert "<img" not in source and "onerror='" not in source.split("<script>")[0].split('id="data"')[0]
    assert render({"datasets": [{"name": "</title><script>alert(1)</script>"}]}).count("<script") == 2


def test_the_same_tables_make_the_same_page(filtered: Path, tmp_path: Path) -> None:
    pages = [tmp_path / name for name in ("a.html", "b.html")]
    for page in pages:
        report(ReportConfig(str(filtered), out=str(page), pictures=4))
    assert pages[0].read_bytes() == pages[1].read_bytes()


def test_pictures_may_be_gone_or_broken(drawn, tmp_path: Path) -> None:
    data = write_set(tmp_path / "data", drawn, pictures=12)
    made = filter_set(data)
    broken = drawn(1)
    broken.image = broken.image[:60]
    write_shard(data / "00000.tar", [drawn(0), broken])
    (data / "00001.tar").unlink()
    (data / "00001.parquet").write_bytes(b"PAR1 without a footer")  # in a set of others
    report(ReportConfig(str(made), out=str(tmp_path / "r.html")))
    pictures = page_data(tmp_path / "r.html")["gallery"]["pictures"]
    assert "image" in pictures["00000/000000"]
    assert pictures["00000/000001"]["missing"] in ("truncated", "corrupt")
    assert {picture["missing"] for name, picture in pictures.items() if name > "00000/000001"} == {"not in its tar"}


def test_two_data_sets_side_by_side(filtered: Path, tmp_path: Path) -> None:
    other = filter_set(filtered.parents[1], "strict", threshold=0.8765, sources=["web"])
    out = tmp_path / "r.html"
    result = CliRunner().invoke(app, ["report", str(filtered), "--compare", str(other), "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    assert [about["name"] for about in json.loads(result.output)["datasets"]] == ["r1", "strict"]
    first, second = page_data(out)["datasets"]
    assert first["scores"]["itm"]["bins"] == second["scores"]["itm"]["bins"]
    assert 0.8765 in first["scores"]["itm"]["bins"]
    assert [source["name"] for source in second["sources"]] == ["web"]


def test_mistakes_are_one_sentence(filtered: Path, tmp_path: Path) -> None:
    data = filtered.parents[1]
    assert Dataset.open(filtered).folder == filtered
    with pytest.raises(ValueError, match="was filtered more than once; give one of"):
        report(ReportConfig(str(data)))
    alone = shutil.copytree(
        data, tmp_path / "alone", ignore=lambda _, names: [n for n in names if n in ("odd", "strict")]
    )
    for folder in (alone / "filtered").iterdir():
        if folder.name != "r1":
            shutil.rmtree(folder)
    assert Dataset.open(alone).folder.name == "r1"
    with pytest.raises(ValueError, match=r"is no output of `capfilt filter`; give DATA/filtered/NAME"):
        report(ReportConfig(str(data / "scores" / "s")))
    with pytest.raises(FileNotFoundError, match="No folder at"):
        report(ReportConfig(str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match="is a folder; give the name of a file"):
        ReportConfig(str(filtered), out=str(tmp_path))
    for path in (alone / "filtered" / "r1").glob("*.parquet"):
        path.unlink()
    with pytest.raises(ValueError, match="has no finished table yet"):
        report(ReportConfig(str(alone)))


def test_least_keeps_the_least() -> None:
    rng = np.random.default_rng(0)
    values = rng.random(1000)
    values[::7] = np.nan
    least = Least(25)
    for start in range(0, 1000, 90):
        part = values[start : start + 90]
        least.offer(pa.table({"value": part}), part)
    assert least.rows["value"].to_pylist() == sorted(values[~np.isnan(values)])[:25]


def test_thumbnails_fit_their_budget() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (800, 1200, 3), np.uint8))
    for size in (30_000, 3_000):
        assert len(_thumbnail(noise, size)) <= size
