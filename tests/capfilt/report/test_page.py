"""The report in a real browser: what it draws, what the slider recounts, keyboard, contrast, and that it stays home."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filtered_set import NASTY, filter_set, write_set
from folders import rows_of

from capfilt.report.stage import ReportConfig, report

pytestmark = pytest.mark.browser
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"]

# Text whose contrast with the ground behind it is less than WCAG's AA asks: 4.5, or 3 for large letters.
LOW_CONTRAST = """() => {
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const linear = (v) => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const [r, g, b, alpha = 1] = parse(getComputedStyle(node).backgroundColor);
      if (alpha > 0.99) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const contrast = (text, behind) => {
    const [more, less] = [light(text), light(behind)].sort((a, b) => b - a);
    return (more + .05) / (less + .05);
  };
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.data.trim(), node = walker.currentNode.parentElement;
    if (!text || node.matches("script, noscript, :disabled") || !node.checkVisibility()) continue;
    const style = getComputedStyle(node), size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    const drawn = node.closest("svg"), ratio = contrast(parse(drawn ? style.fill : style.color), ground(node));
    if (ratio < (large ? 3 : 4.5)) found.push(`${text.slice(0, 30)}: ${ratio.toFixed(2)}`);
  }
  return found;
}"""
# What the Tab key should reach, in the order of reading.
FOCUSABLE = """() => [...document.querySelectorAll("a[href], button:not(:disabled), input, summary, [tabindex='0']")]
  .filter((node) => node.checkVisibility() && node.tabIndex >= 0).length"""
NAMELESS = """() => [...document.querySelectorAll("button, a, input, img, nav, section, [role]")].filter((node) =>
    !["aria-label", "aria-labelledby", "alt"].some((name) => node.getAttribute(name)) && !node.labels?.length
    && !(node.matches("button, a, [role=status]") && node.textContent.trim()))
  .map((node) => node.outerHTML.slice(0, 80))"""
DANGLING = """() => [...document.querySelectorAll("[aria-labelledby], [aria-controls], label[for], output[for], nav a")]
  .flatMap((node) => ["aria-labelledby", "aria-controls", "for", "href"].map((name) => node.getAttribute(name)))
  .filter((id) => id && !document.getElementById(id.replace("#", "")))"""
TWICE = """() => [...document.querySelectorAll("[id]")].map((node) => node.id)
  .filter((id, n, all) => all.indexOf(id) !== n)"""
VERDICTS = """() => [...document.querySelectorAll(".card .mine .text")].map((text) =>
  [text.closest(".card").querySelector(".key").textContent, text.querySelector(".source").textContent,
   text.dataset.reason, text.querySelector(".mark").textContent, text.classList.contains("kept")])"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, drawn) -> Path:
    return write_set(tmp_path_factory.mktemp("set") / "data", drawn, pictures=15, captioners=2)


@pytest.fixture(scope="module")
def filtered(data: Path) -> Path:
    return filter_set(data)


@pytest.fixture(scope="module")
def html(filtered: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "report.html"
    report(ReportConfig(str(filtered), out=str(out), pictures=40))
    return out


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Any]:
    """Open a file in a fresh context; at the end nothing may have gone wrong in it or been asked of the network."""
    seen: list[tuple[Any, list[str]]] = []

    def open_(path: Path, **options: Any) -> Any:
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        page, wrong = context.new_page(), []
        page.on("console", lambda message: wrong.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request",
            lambda asked: None if asked.url.startswith(("data:", path.as_uri())) else wrong.append(asked.url),
        )
        seen.append((context, wrong))
        page.goto(path.as_uri())
        return page

    yield open_
    for context, wrong in seen:
        context.close()
        assert wrong == []


def move(page: Any, threshold: str) -> None:
    """Put the slider at a threshold."""
    page.evaluate(
        """(threshold) => {
            const slider = document.getElementById("threshold");
            slider.value = REPORT.datasets[0].scores.itm.bins.indexOf(Number(threshold));
            slider.dispatchEvent(new Event("input"));
        }""",
        threshold,
    )


def shown_verdicts(page: Any) -> dict[tuple[str, str], str]:
    """(key, source) -> reason of the texts in view."""
    found = {}
    for key, source, reason, mark, green in page.evaluate(VERDICTS):
        assert (mark == "✓") == green == (reason == "kept")
        found[key, source.replace("Web", "web")] = reason
    return found


def test_the_counts_are_those_of_the_tables(open_page, html: Path, filtered: Path) -> None:
    page, rows = open_page(html), rows_of(filtered)
    kept = sum(row["keep"] for row in rows)
    assert f"{len(rows)} texts of 30 pictures went in, {kept} ({100 * kept / len(rows):.1f}%) stay" in page.inner_text(
        ".lead"
    )
    cells = page.locator("#overview table tbody tr").all_inner_texts()
    for line, source in zip(cells, ("web", "c", "second"), strict=False):
        mine = [row for row in rows if row["source"] == source]
        assert line.split()[1:3] == [str(len(mine)), str(sum(row["keep"] for row in mine))]
    assert page.locator("#downloads tbody tr").all_inner_texts() == ["ok\t30\t83.3%", "not found\t6\t16.7%"]


def test_the_slider_recounts_and_recolours_as_filter_would(open_page, html: Path, data: Path) -> None:
    page = open_page(html)
    page.get_by_role("tab", name="At random").click()
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
    page.get_by_role("button", name="Back to 0.5").click()
    assert page.get_by_label("Least ITM").get_attribute("aria-valuetext").startswith("0.5, keeps")


@pytest.mark.parametrize("most", [16, 1])  # texts shown of a picture: the best may be among the others
def test_the_slider_knows_which_texts_are_best(
    open_page, data: Path, tmp_path: Path, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("capfilt.report.gallery.FEWEST_TEXTS", 1)
    monkeypatch.setattr("capfilt.report.gallery.TEXTS", most)
    best = {"best_of": "clip", "best_across": True}
    report(ReportConfig(str(filter_set(data, "best", **best)), out=str(tmp_path / "best.html"), pictures=6))
    page = open_page(tmp_path / "best.html")
    page.get_by_role("tab", name="At random").click()
    seen: set[str] = set()
    for number, threshold in enumerate(("0.5", "0.05", "0.9")):
        again = rows_of(filter_set(data, f"best{number}", threshold=float(threshold), **best))
        move(page, threshold)
        reasons = {(row["key"], row["source"]): row["reason"] for row in again}
        shown = shown_verdicts(page)
        assert shown == {pair: reasons[pair] for pair in shown}
        seen |= set(shown.values())
        assert f"{sum(row['keep'] for row in again)} of {len(again)} texts" in page.inner_text(".control output")
    assert "not_best" in seen


def test_the_gallery_turns_its_pages(open_page, html: Path) -> None:
    page = open_page(html)
    page.get_by_role("tab", name="At random").click()
    earlier, later = (page.get_by_role("button", name=name) for name in ("Earlier", "Later"))
    seen, pages = [], 1
    assert earlier.is_disabled()
    while True:
        seen += page.locator(".card .key").all_inner_texts()
        assert page.locator(".pager [role=status]").inner_text() == f"Page {pages} of 5"
        assert page.evaluate(
            "[...document.querySelectorAll('.card img')].every((image) => image.complete && image.naturalWidth)"
        )
        if later.is_disabled():
            break
        later.click()
        pages += 1
    assert (len(seen), len(set(seen)), pages) == (30, 30, 5)
    earlier.click()
    assert page.locator(".pager [role=status]").inner_text() == "Page 4 of 5"


def test_a_text_that_is_markup_shows_as_text(open_page, html: Path) -> None:
    page = open_page(html)
    page.get_by_role("tab", name="At random").click()
    shown: set[str] = set()
    for _ in range(5):
        shown |= set(page.evaluate("[...document.querySelectorAll('.words')].map((words) => words.firstChild.data)"))
        page.get_by_role("button", name="Later").click(force=True)
    assert {text[:400] for text in NASTY} <= shown
    assert page.evaluate("window.broken") is None
    assert page.evaluate("document.scripts.length") == 2


def test_it_works_with_the_keyboard_alone(open_page, html: Path) -> None:
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
    places = [place for place, _, _ in reached]
    assert places == sorted(set(places)) and len(places) == expected  # in the order of reading, each once
    assert all(outline == "solid" for _, outline, _ in reached)
    assert reached[0][2] == "skip"
    page.focus("#threshold")
    page.keyboard.press("ArrowRight")
    assert page.inner_text(".control .at") == "≥ 0.51"
    page.keyboard.press("Home")
    assert page.inner_text(".control .at") == "≥ 0"
    page.get_by_role("tab", name="At the threshold").focus()
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("tab", name="At random").get_attribute("aria-selected") == "true"
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.textContent") == "Most repeated"
    assert "occurs" in page.locator(".card").first.inner_text()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_it_can_be_read(open_page, html: Path, theme: str, width: int) -> None:
    page = open_page(html, color_scheme=theme, viewport={"width": width, "height": 800})
    page.wait_for_function(
        "document.querySelectorAll('.plot svg').length === document.querySelectorAll('.plot').length"
    )
    assert page.evaluate(LOW_CONTRAST) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.click("#theme")
    assert page.evaluate("document.documentElement.dataset.theme") == {"light": "dark", "dark": "light"}[theme]
    assert page.evaluate(LOW_CONTRAST) == []


def test_everything_has_a_name_and_a_place(open_page, html: Path) -> None:
    page = open_page(html)
    assert page.evaluate("document.documentElement.lang") == "en"
    assert [page.locator(tag).count() for tag in ("main", "body > header", "body > footer", "h1")] == [1, 1, 1, 1]
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map((node) => Number(node.tagName[1]))")
    assert levels[0] == 1 and all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert [page.evaluate(problem) for problem in (NAMELESS, DANGLING, TWICE)] == [[], [], []]
    assert page.evaluate("[...document.querySelectorAll('th')].filter((cell) => !cell.scope).length") == 0


def test_tables_sort_and_numbers_unfold(open_page, html: Path) -> None:
    page = open_page(html)
    heading = page.locator("#domains th").nth(2)
    for order, sign in (("descending", -1), ("ascending", 1)):
        heading.get_by_role("button").click()
        assert heading.get_attribute("aria-sort") == order
        shares = [float(text.strip("%\n")) for text in page.locator("#domains td:nth-child(3)").all_inner_texts()]
        assert shares == sorted(shares, key=lambda share: sign * share)
    page.locator("#scores summary").first.click()
    assert re.search(r"0\.95 to 1\.00\t", page.locator("#scores details table").first.inner_text())


def test_two_data_sets_side_by_side(open_page, data: Path, filtered: Path, tmp_path: Path) -> None:
    other = filter_set(data, "strict", threshold=0.9, sources=["web"])
    report(ReportConfig(str(filtered), compare=[str(other)], out=str(tmp_path / "both.html"), pictures=3))
    page = open_page(tmp_path / "both.html")
    assert page.inner_text("h1") == "r1 and strict"
    kept = [sum(row["keep"] for row in rows_of(folder)) for folder in (filtered, other)]
    line = page.locator("#compare tbody tr", has_text="Texts kept").first.inner_text()
    assert line == f"Texts kept\t{kept[0]}\t{kept[1]} −{kept[0] - kept[1]}"
    assert page.locator("#scores .plot").count() == 6
    assert "strict · Web" in page.inner_text("#kept-table")
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    page.set_viewport_size({"width": 390, "height": 844})  # on a phone both columns of numbers are in view
    assert page.evaluate(
        "(({ scrollWidth, clientWidth }) => scrollWidth <= clientWidth)(document.querySelector('#compare .scroll'))"
    )


def test_the_same_pictures_with_both_verdicts(open_page, data: Path, filtered: Path, tmp_path: Path) -> None:
    other = filter_set(data, "strict", threshold=0.9, sources=["web"])
    summary = report(ReportConfig(str(filtered), compare=[str(other)], out=str(tmp_path / "both.html"), pictures=30))
    assert summary["bytes"] < 5_000_000
    page = open_page(tmp_path / "both.html")
    mine, theirs = ({(row["key"], row["source"]): row for row in rows_of(folder)} for folder in (filtered, other))
    changed = {key for (key, source), row in theirs.items() if row["keep"] != mine[key, source]["keep"]}
    seen: dict[str, dict[str, str]] = {}
    while True:  # the first kind: texts that are judged otherwise
        for card in page.locator(".card").all():
            assert card.locator(".of").all_inner_texts() == ["r1", "strict"]
            texts = card.locator(".theirs .text").evaluate_all("all => all.map((text) => text.dataset.reason)")
            key = card.locator(".key").inner_text()
            seen[key] = {"theirs": texts, "mine": card.locator(".mine .text").count()}
        if page.get_by_role("button", name="Later").is_disabled():
            break
        page.get_by_role("button", name="Later").click()
    assert set(seen) == changed and page.locator("[role=tab]").first.inner_text() == "Judged otherwise"
    for key, found in seen.items():
        assert found == {"theirs": [theirs[key, "web"]["reason"]], "mine": 3}
    move(page, "0.999")  # the slider moves the first set alone
    reason = page.locator(".card .theirs .text").first.get_attribute("data-reason")
    assert reason == theirs[page.locator(".card .key").first.inner_text(), "web"]["reason"]


def test_pictures_of_the_same_name_that_nothing_calls_the_same(
    open_page, filtered: Path, tmp_path: Path, drawn
) -> None:
    copy = write_set(tmp_path / "copy", drawn, pictures=15)
    for table in copy.glob("*.parquet"):  # without it nobody knows the pictures' hashes
        table.unlink()
    report(ReportConfig(str(filtered), compare=[str(filter_set(copy))], out=str(tmp_path / "both.html"), pictures=3))
    page = open_page(tmp_path / "both.html")
    assert page.locator("[role=tab]").first.inner_text() == "At the threshold"
    assert "Does not have this picture." in page.locator(".card .theirs").first.inner_text()
    assert page.locator(".theirs .text").count() == 0
