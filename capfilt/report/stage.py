"""`capfilt report`: writes one self-contained HTML page about one or several filtered sets.

    statistics.py, gallery.py   read each set's tables once and return numbers, texts and thumbnails
    label_texts.py              draws the texts of its labelling view, label_view.py describes the view
    render.py, page/page.html   the template; the result is inserted as JSON
    page/*.js, page/page.css    draw the page from the JSON; they are inlined too

The page sends no request.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blipcore.io.storage import to_path
from blipcore.io.writing import write_text
from capfilt.filter.filtered_set import FilteredSet, count_downloads
from capfilt.report.filter_command import filter_command
from capfilt.report.gallery import GalleryCandidates, Pick, build_gallery, changed_verdicts
from capfilt.report.label_texts import draw_texts
from capfilt.report.label_view import describe_labelling, read_pictures
from capfilt.report.render import created_by, render
from capfilt.report.statistics import (
    HostCounts,
    ScoreHistograms,
    Statistic,
    TextStatistics,
    VerdictCounts,
    itm_bins,
)

# In the order of their dependencies.
SCRIPTS = (
    "elements.js",
    "verdicts.js",
    "charts.js",
    "overview.js",
    "scores.js",
    "threshold.js",
    "gallery.js",
    "label_stores.js",
    "label.js",
    "page.js",
)
# Bytes of the gallery, so that the page stays below 5 MB.
GALLERY_BUDGET = 4_400_000
# Each adds up to 16 kB to the page.
MAX_LABELS = 2000


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
    # texts of the labelling view; 0 for no such view
    label: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.pictures <= 1000:
            raise ValueError(f"pictures must be from 0 to 1000, not {self.pictures}.")
        if not 0 <= self.label <= MAX_LABELS:
            raise ValueError(
                f"label must be from 0 to {MAX_LABELS}, not {self.label}; `capfilt label` serves more texts."
            )
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
    content: dict[str, Any] = {"datasets": results, "gallery": gallery, "label": None, "created_by": created_by()}
    if config.label:
        texts = draw_texts(main, config.label, seed=0)
        content["label"] = describe_labelling(main, texts, seed=0) | {"pictures": read_pictures(main, texts)}
    names = " and ".join(result["name"] for result in results)
    page = render(content, "report", names, SCRIPTS)
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
        "texts_to_label": 0 if content["label"] is None else len(content["label"]["texts"]),
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


def _describe_set(data: FilteredSet) -> dict[str, Any]:
    return {
        "name": data.folder.name,
        "path": str(data.folder),
        "complete": "counts" in data.manifest,
        "limits": data.limits,
        "score": data.score,
        "strata": data.manifest.get("strata", []),
        "has_strata": data.strata is not None,
        "best": data.best._asdict(),
        "made_with": {name: data.manifest.get(name) for name in ("created_by", "config", "parents", "versions")},
        "downloads": count_downloads(data.images),
        "filter_command": filter_command(data),
    }
