"""The `capfilt filter` command that makes a filtered set again."""

from __future__ import annotations

import os
from pathlib import Path

from capfilt.filter.filtered_set import FilteredSet


def filter_command(data: FilteredSet) -> list[str]:
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
    for name, limit in data.limits.items():
        if name != data.score:
            setting = f"{name}_threshold" if name in ("itc", "clip") else f"min_scores.{name}"
            words.append(f"--set={setting}={limit:g}")
    if data.score not in ("itm", "itm_min"):
        words.append(f"--set=score={data.score}")
    if data.strata is not None:
        words.append(f"--set=strata={','.join(data.strata.by)}")
    if "mix" in data.columns and "labels" in data.manifest:
        words += ["--labels", data.manifest["labels"]]
    if data.best.number:
        words.append(f"--set=best={data.best.number}")
    if data.best.score != "itm":
        words += ["--best-of", data.best.score]
    if data.best.across_sources:
        words.append("--set=best_across=true")
    return words
