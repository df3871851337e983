"""Renders a page: its template, style, scripts and data in one HTML file.

Texts of the data set are untrusted: they are JSON in the file and text nodes in the page, and its content security
policy allows its own script and style only.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent / "page"


def render(content: dict[str, Any], kind: str, title: str, scripts: Iterable[str], own_requests: bool = False) -> str:
    """Return a page of a `kind`, such as "report", with `content` as JSON that no text can end.

    `scripts` are file names of `page/`, in the order of their dependencies. With `own_requests`, the page may load
    pictures from its server and send requests to it, otherwise it sends none.
    """
    style, script = _read_page(["page.css"]), _read_page(scripts)
    parts = {
        "kind": kind,
        "title": html.escape(f"{title} · capfilt {kind}"),
        "style": style,
        "style_hash": _csp_hash(style),
        "script": script,
        "script_hash": _csp_hash(script),
        "sources": "img-src 'self' data:; connect-src 'self'" if own_requests else "img-src data:",
        "data": json.dumps(content, allow_nan=False, separators=(",", ":"))
        .replace("<", r"\u003c")
        .replace(">", r"\u003e")
        .replace("&", r"\u0026"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _read_page(["page.html"]))


def created_by() -> str:
    """Return "capfilt" and its version."""
    try:
        return f"capfilt {metadata.version('capfilt')}"
    except metadata.PackageNotFoundError:
        return "capfilt from source"


def _read_page(names: Iterable[str]) -> str:
    return "\n".join((PAGE / name).read_text(encoding="utf-8") for name in names)


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
