"""`capfilt report`: the page is the same for the same tables, and no text can leave its JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from filtered_set import NASTY, filter_set
from report_page import read_page_data
from typer.testing import CliRunner

from capfilt.cli import app
from capfilt.label.stage import SCRIPTS as LABEL_SCRIPTS
from capfilt.report.render import PAGE, render
from capfilt.report.stage import SCRIPTS, ReportConfig, write_report


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"best": 1}, ["--set=best=1"]),
        (
            {"best_of": "clip", "best_across": True},
            ["--set=best=1", "--best-of", "clip", "--set=best_across=true"],
        ),
    ],
)
def test_the_filter_command_repeats_the_settings_of_the_set(
    filtered: Path, tmp_path: Path, options: dict, words: list[str]
) -> None:
    name = f"odd{len(options)}"
    odd = filter_set(filtered.parents[1], name, threshold=0.333, clip_threshold=0.25, **options)
    write_report(ReportConfig(str(odd), out=str(tmp_path / "r.html"), pictures=2))
    (result,) = read_page_data(tmp_path / "r.html")["datasets"]
    assert result["filter_command"][-len(words) - 1 :] == ["--set=clip_threshold=0.25", *words]
    # a threshold between two bins of the grid has a bin of its own
    threshold_bin = result["scores"]["itm"]["bins"].index(0.333)
    kept = [sum(row[threshold_bin:]) for row in result["decided_by_score"]]
    assert kept == [source["kept"] for source in result["sources"]]


def test_no_text_leaves_its_json(filtered: Path, tmp_path: Path) -> None:
    out = tmp_path / "all.html"
    write_report(ReportConfig(str(filtered), out=str(out), pictures=100))
    pictures = read_page_data(out)["gallery"]["pictures"].values()
    shown = {text["text"] for picture in pictures for text in picture["texts"]}
    assert {text[:400] for text in NASTY} <= shown
    source = out.read_text(encoding="utf-8")
    assert source.count("</script") == 2
    assert "<img" not in source and "onerror='" not in source.split("<script>")[0].split('id="data"')[0]
    assert render({}, "report", "</title><script>alert(1)</script>", SCRIPTS).count("<script") == 2


def test_every_script_is_inlined_in_a_page() -> None:
    paths = list(PAGE.glob("*.js"))
    assert {*SCRIPTS, *LABEL_SCRIPTS} == {path.name for path in paths}
    assert all(path.read_text(encoding="utf-8").count("\n") <= 350 for path in paths)


def test_the_same_tables_make_the_same_page(filtered: Path, tmp_path: Path) -> None:
    pages = [tmp_path / name for name in ("a.html", "b.html")]
    for page in pages:
        write_report(ReportConfig(str(filtered), out=str(page), pictures=4))
    assert pages[0].read_bytes() == pages[1].read_bytes()


def test_compared_sets_share_their_bins(filtered: Path, tmp_path: Path) -> None:
    other = filter_set(filtered.parents[1], "strict", threshold=0.8765, sources=["web"])
    out = tmp_path / "r.html"
    result = CliRunner().invoke(app, ["report", str(filtered), "--compare", str(other), "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    assert [summary["name"] for summary in json.loads(result.output)["datasets"]] == ["r1", "strict"]
    first, second = read_page_data(out)["datasets"]
    assert first["scores"]["itm"]["bins"] == second["scores"]["itm"]["bins"]
    assert 0.8765 in first["scores"]["itm"]["bins"]
    assert [source["name"] for source in second["sources"]] == ["web"]


def test_errors_are_one_sentence(filtered: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not an output of `capfilt filter`; give DATA/filtered/NAME"):
        write_report(ReportConfig(str(filtered.parents[1] / "scores" / "s")))
    with pytest.raises(FileNotFoundError, match="No folder at"):
        write_report(ReportConfig(str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match=r"is a folder; give a file name, such as .*report\.html"):
        ReportConfig(str(filtered), out=str(tmp_path))
    with pytest.raises(ValueError, match="label must be from 0 to 2000, not 3000; `capfilt label` serves more"):
        ReportConfig(str(filtered), label=3000)
    with pytest.raises(ValueError, match="pictures must be from 0 to 1000, not 1001"):
        ReportConfig(str(filtered), pictures=1001)
