"""The report in a real browser: counts, slider, gallery, keyboard, contrast, and no network requests."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from browser import checked_page, launch_chromium
from filtered_set import NASTY, filter_set, write_set
from folders import rows_of
from page_checks import DANGLING, FOCUSABLE, LOW_CONTRAST, NAMELESS, TWICE, VERDICTS

from capfilt.report.stage import ReportConfig, write_report

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with launch_chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, drawn) -> Path:
    return write_set(tmp_path_factory.mktemp("set") / "data", drawn, pictures=15, captioners=2)


@pytest.fixture(scope="module")
def filtered(data: Path) -> Path:
    return filter_set(data)


@pytest.fixture(scope="module")
def html(filtered: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "report.html"
    write_report(ReportConfig(str(filtered), out=str(out), pictures=40))
    return out


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Any]:
    """Open a file in a fresh context; fails at the end if it logged, raised or sent a request."""
    with ExitStack() as stack:

        def open_(path: Path, **options: Any) -> Any:
            context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
            stack.callback(context.close)
            return stack.enter_context(checked_page(context, path.as_uri()))

        yield open_


def move(page: Any, threshold: str) -> None:
    """Move the slider to a threshold."""
    page.evaluate(
        """(threshold) => {
            const slider = document.getElementById("threshold");
            slider.value = REPORT.datasets[0].scores.itm.bins.indexOf(Number(threshold));
            slider.dispatchEvent(new Event("input"));
        }""",
        threshold,
    )


def shown_verdicts(page: Any) -> dict[tuple[str, str], str]:
    """Return (key, source) -> reason of the texts in view."""
    reasons = {}
    for key, source, reason, mark, green in page.evaluate(VERDICTS):
        assert (mark == "✓") == green == (reason == "kept")
        reasons[key, source.replace("Web", "web")] = reason
    return reasons


def test_the_counts_are_those_of_the_tables(open_page, html: Path, filtered: Path) -> None:
    page, rows = open_page(html), rows_of(filtered)
    kept = sum(row["keep"] for row in rows)
    lead = page.inner_text(".lead")
    assert f"{len(rows)} texts of 30 pictures: {kept} ({100 * kept / len(rows):.1f}%) kept" in lead
    cells = page.locator("#overview table tbody tr").all_inner_texts()
    for line, source in zip(cells, ("web", "c", "second"), strict=False):
        of_source = [row for row in rows if row["source"] == source]
        assert line.split()[1:3] == [str(len(of_source)), str(sum(row["keep"] for row in of_source))]
    assert page.locator("#downloads tbody tr").all_inner_texts() == ["ok\t30\t83.3%", "not found\t6\t16.7%"]


def test_the_slider_agrees_with_filter_at_every_threshold(open_page, html: Path, data: Path) -> None:
    page = open_page(html)
    page.get_by_role("tab", name="Random").click()
    for number, threshold in enumerate(("0.5", "0.05", "0.9", "0.999")):
        again = rows_of(filter_set(data, f"at{number}", threshold=float(threshold)))
        move(page, threshold)
        kept = sum(row["keep"] for row in again)
        assert f"{kept} of {len(again)} texts" in page.inner_text(".control output")
        assert page.inner_text("#kept-table tbody tr:last-child td:nth-child(2)") == str(kept)
        reasons = {(row["key"], row["source"]): row["reason"] for row in again}
        shown = shown_verdicts(page)
        assert len(shown) == 18
        assert shown == {pair: reasons[pair] for pair in shown}
    assert page.inner_text("#command").endswith("--name r1-itm0.999 --threshold 0.999")
    page.get_by_role("button", name="Reset to 0.5").click()
    assert page.get_by_label("ITM threshold").get_attribute("aria-valuetext").startswith("0.5, keeps")


@pytest.mark.parametrize("most", [16, 1])  # texts shown per picture; the best may not be among them
def test_the_slider_respects_the_limit_on_texts_per_picture(
    open_page, data: Path, tmp_path: Path, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("capfilt.report.gallery.MIN_TEXTS_PER_SET", 1)
    monkeypatch.setattr("capfilt.report.gallery.MAX_TEXTS", most)
    best = {"best_of": "clip", "best_across": True}
    write_report(ReportConfig(str(filter_set(data, "best", **best)), out=str(tmp_path / "best.html"), pictures=6))
    page = open_page(tmp_path / "best.html")
    page.get_by_role("tab", name="Random").click()
    all_reasons: set[str] = set()
    for number, threshold in enumerate(("0.5", "0.05", "0.9")):
        again = rows_of(filter_set(data, f"best{number}", threshold=float(threshold), **best))
        move(page, threshold)
        reasons = {(row["key"], row["source"]): row["reason"] for row in again}
        shown = shown_verdicts(page)
        assert shown == {pair: reasons[pair] for pair in shown}
        all_reasons |= set(shown.values())
        assert f"{sum(row['keep'] for row in again)} of {len(again)} texts" in page.inner_text(".control output")
    assert "not_best" in all_reasons


def test_the_gallery_has_pages(open_page, html: Path) -> None:
    page = open_page(html)
    page.get_by_role("tab", name="Random").click()
    previous, following = (page.get_by_role("button", name=name) for name in ("Previous", "Next"))
    keys, pages = [], 1
    assert previous.is_disabled()
    while True:
        keys += page.locator(".card .key").all_inner_texts()
        assert page.locator(".pager [role=status]").inner_text() == f"Page {pages} of 5"
        assert page.evaluate(
            "[...document.querySelectorAll('.card img')].every((image) => image.complete && image.naturalWidth)"
        )
        if following.is_disabled():
            break
        following.click()
        pages += 1
    assert (len(keys), len(set(keys)), pages) == (30, 30, 5)
    previous.click()
    assert page.locator(".pager [role=status]").inner_text() == "Page 4 of 5"


def test_markup_in_a_text_is_shown_as_text(open_page, html: Path) -> None:
    page = open_page(html)
    page.get_by_role("tab", name="Random").click()
    shown: set[str] = set()
    for _ in range(5):
        shown |= set(page.evaluate("[...document.querySelectorAll('.words')].map((words) => words.firstChild.data)"))
        page.get_by_role("button", name="Next").click(force=True)
    assert {text[:400] for text in NASTY} <= shown
    assert page.evaluate("window.broken") is None
    assert page.evaluate("document.scripts.length") == 2


def test_the_page_works_with_the_keyboard_alone(open_page, html: Path) -> None:
    page = open_page(html)
    expected = page.evaluate(FOCUSABLE)
    reached = []
    for _ in range(expected):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                """() => {
                    const node = document.activeElement, all = [...document.querySelectorAll("*")];
                    return [all.indexOf(node), getComputedStyle(node).outlineStyle, node.className];
                }"""
            )
        )
    positions = [position for position, _, _ in reached]
    assert positions == sorted(set(positions)) and len(positions) == expected  # reading order, each once
    assert all(outline == "solid" for _, outline, _ in reached)
    assert reached[0][2] == "skip"
    page.focus("#threshold")
    page.keyboard.press("ArrowRight")
    assert page.inner_text(".control .at") == "≥ 0.51"
    page.keyboard.press("Home")
    assert page.inner_text(".control .at") == "≥ 0"
    page.get_by_role("tab", name="Near the threshold").focus()
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("tab", name="Random").get_attribute("aria-selected") == "true"
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.textContent") == "Most repeated"
    assert "occurs" in page.locator(".card").first.inner_text()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_contrast_and_width_are_sufficient(open_page, html: Path, theme: str, width: int) -> None:
    page = open_page(html, color_scheme=theme, viewport={"width": width, "height": 800})
    page.wait_for_function(
        "document.querySelectorAll('.plot svg').length === document.querySelectorAll('.plot').length"
    )
    assert page.evaluate(LOW_CONTRAST) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.click("#theme")
    assert page.evaluate("document.documentElement.dataset.theme") == {"light": "dark", "dark": "light"}[theme]
    assert page.evaluate(LOW_CONTRAST) == []


def test_elements_have_accessible_names_and_references_resolve(open_page, html: Path) -> None:
    page = open_page(html)
    assert page.evaluate("document.documentElement.lang") == "en"
    assert [page.locator(tag).count() for tag in ("main", "body > header", "body > footer", "h1")] == [1, 1, 1, 1]
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map((node) => Number(node.tagName[1]))")
    assert levels[0] == 1 and all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert [page.evaluate(problem) for problem in (NAMELESS, DANGLING, TWICE)] == [[], [], []]
    assert page.evaluate("[...document.querySelectorAll('th')].filter((cell) => !cell.scope).length") == 0


def test_tables_can_be_sorted_and_numbers_shown(open_page, html: Path) -> None:
    page = open_page(html)
    heading = page.locator("#hosts th").nth(2)
    for order, sign in (("descending", -1), ("ascending", 1)):
        heading.get_by_role("button").click()
        assert heading.get_attribute("aria-sort") == order
        shares = [float(text.strip("%\n")) for text in page.locator("#hosts td:nth-child(3)").all_inner_texts()]
        assert shares == sorted(shares, key=lambda share: sign * share)
    page.locator("#scores summary").first.click()
    assert re.search(r"0\.95 to 1\.00\t", page.locator("#scores details table").first.inner_text())


def test_two_data_sets_side_by_side(open_page, data: Path, filtered: Path, tmp_path: Path) -> None:
    other = filter_set(data, "strict", threshold=0.9, sources=["web"])
    write_report(ReportConfig(str(filtered), compare=[str(other)], out=str(tmp_path / "both.html"), pictures=3))
    page = open_page(tmp_path / "both.html")
    assert page.inner_text("h1") == "r1 and strict"
    kept = [sum(row["keep"] for row in rows_of(folder)) for folder in (filtered, other)]
    line = page.locator("#compare tbody tr", has_text="Texts kept").first.inner_text()
    assert line == f"Texts kept\t{kept[0]}\t{kept[1]} −{kept[0] - kept[1]}"
    assert page.locator("#scores .plot").count() == 6
    assert "strict · Web" in page.inner_text("#kept-table")
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    page.set_viewport_size({"width": 390, "height": 844})  # a phone shows both columns of numbers
    assert page.evaluate(
        "(({ scrollWidth, clientWidth }) => scrollWidth <= clientWidth)(document.querySelector('#compare .scroll'))"
    )


def test_pictures_show_the_verdicts_of_both_sets(open_page, data: Path, filtered: Path, tmp_path: Path) -> None:
    other = filter_set(data, "strict", threshold=0.9, sources=["web"])
    summary = write_report(
        ReportConfig(str(filtered), compare=[str(other)], out=str(tmp_path / "both.html"), pictures=30)
    )
    assert summary["bytes"] < 5_000_000
    page = open_page(tmp_path / "both.html")
    main_rows, other_rows = (
        {(row["key"], row["source"]): row for row in rows_of(folder)} for folder in (filtered, other)
    )
    changed = {key for (key, source), row in other_rows.items() if row["keep"] != main_rows[key, source]["keep"]}
    shown: dict[str, dict[str, Any]] = {}
    while True:  # the first kind: texts with different verdicts
        for card in page.locator(".card").all():
            assert card.locator(".set-name").all_inner_texts() == ["r1", "strict"]
            texts = card.locator(".other-set .text").evaluate_all("all => all.map((text) => text.dataset.reason)")
            key = card.locator(".key").inner_text()
            shown[key] = {"other": texts, "main": card.locator(".main-set .text").count()}
        if page.get_by_role("button", name="Next").is_disabled():
            break
        page.get_by_role("button", name="Next").click()
    assert set(shown) == changed and page.locator("[role=tab]").first.inner_text() == "Different verdicts"
    for key, entry in shown.items():
        assert entry == {"other": [other_rows[key, "web"]["reason"]], "main": 3}
    move(page, "0.999")  # the slider applies to the first set only
    reason = page.locator(".card .other-set .text").first.get_attribute("data-reason")
    assert reason == other_rows[page.locator(".card .key").first.inner_text(), "web"]["reason"]


def test_pictures_with_the_same_key_and_no_common_hash_are_different(
    open_page, filtered: Path, tmp_path: Path, drawn
) -> None:
    copy = write_set(tmp_path / "copy", drawn, pictures=15)
    for table in copy.glob("*.parquet"):  # without it, the hashes of the pictures are unknown
        table.unlink()
    write_report(
        ReportConfig(str(filtered), compare=[str(filter_set(copy))], out=str(tmp_path / "both.html"), pictures=3)
    )
    page = open_page(tmp_path / "both.html")
    assert page.locator("[role=tab]").first.inner_text() == "Near the threshold"
    assert "This set does not have the picture." in page.locator(".card .other-set").first.inner_text()
    assert page.locator(".other-set .text").count() == 0
