"""Reads the JSON inside a report page as a browser does."""

from __future__ import annotations

import html.parser
import json
from pathlib import Path
from typing import Any


class _ScriptParser(html.parser.HTMLParser):
    """Collects the attributes and the content of each script element."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, str | None], str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self.scripts and self.lasttag == "script":
            attributes, content = self.scripts[-1]
            self.scripts[-1] = (attributes, content + data)


def read_page_data(path: Path) -> dict[str, Any]:
    """Return the data of a page; fails if the page has other scripts than the data and the report's own."""
    parser = _ScriptParser()
    parser.feed(path.read_text(encoding="utf-8"))
    assert len(parser.scripts) == 2
    return json.loads(next(content for attributes, content in parser.scripts if attributes.get("id") == "data"))
