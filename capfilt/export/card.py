"""What a filtered folder's manifests know -> README.md of an export: a data set card as the hub shows it."""

from __future__ import annotations

import hashlib
from typing import Any

import yaml

from blipcore.io.storage import resolve_reference
from capfilt.filter.decide import Best
from capfilt.filter.filtered_set import Dataset
from capfilt.shards.format import read_manifest

READ = {
    "webdataset": "Tar shards of `key.jpg`, `key.txt` (the text that the filter likes best) and `key.json`; "
    "open_clip trains on them with `--dataset-type webdataset --train-data 'DIR/{00000..NNNNN}.tar'` (webdataset up to "
    "0.2.86, as it asks for).",
    "parquet": "Parquet with the pictures inside: `datasets.load_dataset('DIR')`.",
    "json": "`pairs.json`, one row a text, paths relative to this folder: BLIP's own lists.",
}
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
SIZES += ((10_000_000, "1M<n<10M"), (100_000_000, "10M<n<100M"), (1_000_000_000, "100M<n<1B"))


def card(data: Dataset, form: str, counts: dict[str, int], decontaminated: list[str], licence: str | None) -> str:
    """The card in Markdown, with the front matter that the hub reads."""
    size = next((name for limit, name in SIZES if counts["exported"] < limit), "n>1B")
    front: dict[str, Any] = {"task_categories": ["image-to-text"], "size_categories": [size], "tags": ["capfilt"]}
    if licence:
        front["license"] = licence
    limits = ", ".join(f"{name.upper()} >= {least:g}" for name, least in data.limits.items())
    lines = [
        f"# {data.folder.name}",
        "",
        "Image-text pairs that a filter calls matched: texts from the web and written by a captioner (CapFilt, BLIP,",
        f"arXiv 2201.12086). Kept: {limits}.",
        "",
        READ[form],
        "",
        "| | pictures | texts |",
        "|---|---|---|",
        f"| here | {counts['exported']:,} | {counts['texts']:,} |",
        f"| left out: looks like a picture of an evaluation set | {counts['contaminated']:,} | |",
        f"| left out: no longer in its shard | {counts['missing']:,} | |",
        "",
        "| text source | judged | kept |",
        "|---|---|---|",
    ]
    judged: dict[str, list[int]] = {}
    for name, number in data.manifest.get("counts", {}).items():
        source, _, reason = name.partition("/")
        of_source = judged.setdefault(source, [0, 0])
        of_source[0] += number
        of_source[1] += number if reason == "kept" else 0
    lines += [f"| {source} | {all_:,} | {kept:,} |" for source, (all_, kept) in sorted(judged.items())]
    lines += ["", "## How it was made", ""]
    for parent in data.manifest.get("parents", []):
        made = read_manifest(resolve_reference(data.folder, parent)) or {}
        settings = made.get("config", {})
        told = [
            f"`{name}`: {settings[name]}"
            for name in ("fingerprint", "generate", "chat", "clip", "dtype")
            if settings.get(name)
        ]
        model = f" by {made['model']}" if "model" in made else ""
        lines.append(f"- {made.get('stage', 'unknown')}{model}, {made.get('created_by', '')}: {'; '.join(told)}")
    limits += _best(data.best)
    lines.append(f"- filter, {data.manifest.get('created_by', '')}: sources {', '.join(data.sources)}; {limits}")
    if decontaminated:
        lines.append(f"- decontaminated against {', '.join(f'`{path}`' for path in decontaminated)}")
    lines += [
        "",
        "## Rights",
        "",
        f"Licence of texts and pictures: {licence or 'not stated; they belong to whoever published them'}.",
        "The column `url` says where each picture came from. Hosts that opted out of machine learning by HTTP header",
        "were left out by `capfilt download`; the tables beside the shards name them (status `opted_out`).",
        "",
    ]
    text = "\n".join(lines)
    if form == "parquet":
        # a name of its own: `datasets` gives what it has cached for a folder as long as the name is the same
        name = f"{data.folder.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        front["configs"] = [{"config_name": name, "data_files": "*.parquet"}]
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n{text}"


def _best(best: Best) -> str:
    whose = "picture" if best.across else "source for a picture"
    return f"; of each {whose} the best {best.number} by {best.by.upper()}" if best.number else ""
