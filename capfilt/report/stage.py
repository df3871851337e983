"""Filtered folders in, one HTML file out that opens from disk and asks the network for nothing.

    survey.py and gallery.py read each folder's tables once -> plain numbers, texts, thumbnails
    -> JSON inside page/page.html, which page/page.js draws with page/page.css

Texts of strangers reach the page as JSON alone, and the script writes them as text nodes alone; the page's content
security policy lets no other script or style run and no address be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from blipcore.io.storage import to_path
from capfilt.filter.filtered_set import Dataset, downloads
from capfilt.report.gallery import Candidates, Pick, changed, gallery
from capfilt.report.statistics import Domains, Scores, Texts, Verdicts, thresholds
from capfilt.shards.format import write_text

PAGE = Path(__file__).parent / "page"
GALLERY = 4_400_000  # bytes of thumbnails and texts, so that the page stays below 5 MB


@dataclass
class ReportConfig:
    """`capfilt report`."""

    dataset: str  # filtered/<name>, or a shard set that was filtered once
    compare: list[str] = field(default_factory=list)  # others to show beside it
    out: str = "report.html"
    pictures: int = 24  # of each kind in the gallery

    def __post_init__(self) -> None:
        if not 0 <= self.pictures <= 1000:
            raise ValueError(f"pictures is a number from 0 to 1000, not {self.pictures}.")
        if Path(self.out).is_dir():
            raise ValueError(
                f"{self.out} is a folder; give the name of a file, such as {Path(self.out) / 'report.html'}."
            )


def report(config: ReportConfig) -> dict[str, Any]:
    """Write the page; returns what it says in numbers. Raises ValueError or FileNotFoundError, one sentence."""
    start = time.monotonic()
    datasets = [Dataset.open(path) for path in (config.dataset, *config.compare)]
    places = thresholds(data.threshold for data in datasets)
    (main, picks), *others = (_read(data, places, 0 if n else config.pictures) for n, data in enumerate(datasets))
    facts = [main, *(about for about, _ in others)]
    if config.pictures and others:
        picks = {"changed": changed(datasets[0], datasets[1:], config.pictures), **picks}
    shown = gallery(datasets[0], picks, GALLERY, datasets[1:])
    page = render({"datasets": facts, "gallery": shown, "created_by": f"capfilt {_version()}"})
    write_text(to_path(config.out), page)
    return {
        "stage": "report",
        "out": config.out,
        "bytes": len(page.encode("utf-8")),
        "datasets": [
            {
                "name": about["name"],
                "texts": sum(source["texts"] for source in about["sources"]),
                "kept": sum(source["kept"] for source in about["sources"]),
            }
            for about in facts
        ],
        "pictures_shown": len(shown["pictures"]),
        "seconds": round(time.monotonic() - start, 2),
    }


def _read(data: Dataset, places: list[float], pictures: int) -> tuple[dict[str, Any], dict[str, list[Pick]]]:
    """What there is to say about a data set, and so many pictures of each kind that are worth a look."""
    counters = [Verdicts(data), Scores(data, places), texts := Texts(data), Domains(data)]
    candidates = [Candidates(data, pictures)] if pictures else []
    for batch in data.batches():
        for counter in (*counters, *candidates):
            counter.add(batch)
    facts = _about(data) | {name: value for counter in counters for name, value in counter.facts().items()}
    return facts, candidates[0].picks(texts) if candidates else {}


def render(content: dict[str, Any]) -> str:
    """The page around its data; whatever the texts in `content` are, none of them can leave the JSON."""
    style, script = ((PAGE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    names = " and ".join(about["name"] for about in content["datasets"])
    parts = {
        "title": html.escape(f"{names} · capfilt report"),
        "style": style,
        "style_hash": _hash(style),
        "script": script,
        "script_hash": _hash(script),
        "data": json.dumps(content, allow_nan=False, separators=(",", ":"))
        .replace("<", r"\u003c")
        .replace(">", r"\u003e")
        .replace("&", r"\u0026"),
    }
    template = (PAGE / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _about(data: Dataset) -> dict[str, Any]:
    """Names and settings of a data set, and how another threshold would be given for it."""
    return {
        "name": data.folder.name,
        "path": str(data.folder),
        "complete": "counts" in data.manifest,
        "limits": data.limits,
        "best": data.best._asdict(),
        "made_with": {name: data.manifest.get(name) for name in ("created_by", "config", "parents", "versions")},
        "downloads": downloads(data.images),
        "refilter": _refilter(data),
    }


def _refilter(data: Dataset) -> list[str]:
    """The command that decides anew, up to the threshold: words, to be quoted and followed by it."""
    root = data.folder.parent.parent
    reference = data.manifest["images"]  # as the user would type it: relative, where the data set was named so
    inside = isinstance(data.folder, Path) and "://" not in reference
    images = Path(os.path.normpath(data.folder / reference)) if inside else data.images
    words = ["capfilt", "filter", str(images), "--scores", data.manifest["parents"][0].rpartition("/")[2]]
    words += ["--out", str(root)] if data.images != root.resolve() else []
    words += [word for source in data.sources for word in ("--sources", source)]
    words += [f"--set={name}_threshold={least:g}" for name, least in data.limits.items() if name != "itm"]
    best = data.best
    words += [f"--set=best={best.number}"] if best.number else []
    words += ["--best-of", best.by] if best.by != "itm" else []
    return words + (["--set=best_across=true"] if best.across else [])


def _version() -> str:
    try:
        return metadata.version("capfilt")
    except metadata.PackageNotFoundError:
        return "from source"
