"""`capfilt report`: writes one self-contained HTML page about one or several filtered sets.

    statistics.py, gallery.py   read each set's tables once and return numbers, texts and thumbnails
    page/page.html              the template; the result is inserted as JSON
    page/*.js, page/page.css    draw the page from the JSON; they are inlined too

The page sends no request. Texts of the data set are untrusted: they are JSON in the file and text nodes in the page,
and its content security policy allows its own script and style only.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from blipcore.io.storage import to_path
from blipcore.io.writing import write_text
from capfilt.filter.filtered_set import FilteredSet, count_downloads
from capfilt.report.gallery import GalleryCandidates, Pick, build_gallery, changed_verdicts
from capfilt.report.statistics import (
    HostCounts,
    ScoreHistograms,
    Statistic,
    TextStatistics,
    VerdictCounts,
    itm_bins,
)

PAGE = Path(__file__).parent / "page"
# In the order of their dependencies.
SCRIPTS = (
    "elements.js",
    "verdicts.js",
    "charts.js",
    "overview.js",
    "scores.js",
    "threshold.js",
    "gallery.js",
    "page.js",
)
# Bytes of the gallery, so that the page stays below 5 MB.
GALLERY_BUDGET = 4_400_000


@dataclass
class ReportConfig:
    """Settings of `capfilt report`."""

    # filtered/<name>, or a shard set that was filtered once
    dataset: str
    # filtered sets to show beside it
    compare: list[str] = field(default_factory=list)
    out: str = "report.html"
    # pictures of each kind in the gallery
    pictures: int = 24

    def __post_init__(self) -> None:
        if not 0 <= self.pictures <= 1000:
            raise ValueError(f"pictures must be from 0 to 1000, not {self.pictures}.")
        if Path(self.out).is_dir():
            raise ValueError(f"{self.out} is a folder; give a file name, such as {Path(self.out) / 'report.html'}.")


def write_report(config: ReportConfig) -> dict[str, Any]:
    """Write the page and return a summary. Raises ValueError or FileNotFoundError."""
    start = time.monotonic()
    main, *others = (FilteredSet.open(path) for path in (config.dataset, *config.compare))
    bins = itm_bins(data.threshold for data in (main, *others))
    main_result, picks = _read_set(main, bins, config.pictures)
    results = [main_result, *(_read_set(other, bins, pictures=0)[0] for other in others)]
    if config.pictures and others:
        picks = {"changed": changed_verdicts(main, others, config.pictures), **picks}
    gallery = build_gallery(main, picks, GALLERY_BUDGET, others)
    page = render({"datasets": results, "gallery": gallery, "created_by": f"capfilt {_capfilt_version()}"})
    write_text(to_path(config.out), page)
    return {
        "stage": "report",
        "out": config.out,
        "bytes": len(page.encode("utf-8")),
        "datasets": [
            {
                "name": result["name"],
                "texts": sum(source["texts"] for source in result["sources"]),
                "kept": sum(source["kept"] for source in result["sources"]),
            }
            for result in results
        ],
        "pictures_shown": len(gallery["pictures"]),
        "seconds": round(time.monotonic() - start, 2),
    }


def _read_set(data: FilteredSet, bins: list[float], pictures: int) -> tuple[dict[str, Any], dict[str, list[Pick]]]:
    """Return a set's part of the page, and picks of `pictures` pictures per kind."""
    texts = TextStatistics(data)
    statistics: list[Statistic] = [VerdictCounts(data), ScoreHistograms(data, bins), texts, HostCounts(data)]
    candidates = GalleryCandidates(data, pictures) if pictures else None
    for shard in data.read_shards():
        for statistic in statistics:
            statistic.add(shard)
        if candidates is not None:
            candidates.add(shard)
    result = _describe_set(data)
    for statistic in statistics:
        result |= statistic.result()
    return result, {} if candidates is None else candidates.picks(texts)


def render(content: dict[str, Any]) -> str:
    """Return the page with `content` as JSON, escaped so that no text can end its script element."""
    style, script = _read_page(["page.css"]), _read_page(SCRIPTS)
    names = " and ".join(result["name"] for result in content["datasets"])
    parts = {
        "title": html.escape(f"{names} · capfilt report"),
        "style": style,
        "style_hash": _csp_hash(style),
        "script": script,
        "script_hash": _csp_hash(script),
        "data": json.dumps(content, allow_nan=False, separators=(",", ":"))
        .replace("<", r"\u003c")
        .replace(">", r"\u003e")
        .replace("&", r"\u0026"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _read_page(["page.html"]))


def _read_page(names: Iterable[str]) -> str:
    return "\n".join((PAGE / name).read_text(encoding="utf-8") for name in names)


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _describe_set(data: FilteredSet) -> dict[str, Any]:
    return {
        "name": data.folder.name,
        "path": str(data.folder),
        "complete": "counts" in data.manifest,
        "limits": data.limits,
        "best": data.best._asdict(),
        "made_with": {name: data.manifest.get(name) for name in ("created_by", "config", "parents", "versions")},
        "downloads": count_downloads(data.images),
        "filter_command": _filter_command(data),
    }


def _filter_command(data: FilteredSet) -> list[str]:
    """Return the words of the set's `capfilt filter` command, without name and threshold."""
    root = data.folder.parent.parent
    reference = data.manifest["images"]
    # A relative reference stays relative, as the user typed it.
    images = data.images
    if isinstance(data.folder, Path) and "://" not in reference:
        images = Path(os.path.normpath(data.folder / reference))
    words = ["capfilt", "filter", str(images), "--scores", data.manifest["parents"][0].rpartition("/")[2]]
    if data.images != root.resolve():
        words += ["--out", str(root)]
    for source in data.sources:
        words += ["--sources", source]
    words += [f"--set={name}_threshold={limit:g}" for name, limit in data.limits.items() if name != "itm"]
    if data.best.number:
        words.append(f"--set=best={data.best.number}")
    if data.best.score != "itm":
        words += ["--best-of", data.best.score]
    if data.best.across_sources:
        words.append("--set=best_across=true")
    return words


def _capfilt_version() -> str:
    try:
        return metadata.version("capfilt")
    except metadata.PackageNotFoundError:
        return "from source"
