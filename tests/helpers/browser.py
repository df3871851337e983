"""Chromium for tests of pages; they are skipped where it is missing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"]

TIMEOUT = 150_000  # milliseconds: other tests may use the machine


@contextmanager
def launch_chromium() -> Iterator[Any]:
    """Start a browser; skip the test without Chromium or playwright."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@contextmanager
def checked_page(context: Any, url: str, others: tuple[str, ...] = ()) -> Iterator[Any]:
    """Open a page; fails at the end if it logged, raised, or sent a request elsewhere than to `url` and `others`."""
    problems: list[str] = []
    page = context.new_page()
    page.set_default_timeout(TIMEOUT)
    page.on("console", lambda message: problems.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: problems.append(str(error)))
    allowed = ("data:", "blob:", url, *others)
    page.on("request", lambda request: None if request.url.startswith(allowed) else problems.append(request.url))
    page.goto(url)
    yield page
    page.close()
    assert problems == []
