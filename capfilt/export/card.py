"""The dataset card of an export: README.md with counts, models and settings, in the Hugging Face hub's format."""

from __future__ import annotations

import hashlib
from typing import Any

import yaml

from blipcore.io.storage import resolve_reference
from blipcore.io.text_mixture import TextMixture
from capfilt.export.columns import DRAW_NAMES
from capfilt.filter.decide import BestTexts
from capfilt.filter.filtered_set import FilteredSet
from capfilt.shards.manifest import read_manifest

USAGE = {
    "webdataset": "Tar shards with `key.jpg`, `key.txt` (the text with the highest ITM) and `key.json` (the best text "
    "of each source, with scores). Train open_clip on them with `--dataset-type webdataset --train-data "
    "'DIR/{00000..NNNNN}.tar'`; open_clip needs webdataset 0.2.86 or older.",
    "parquet": "Parquet files that contain the pictures. Load them with `datasets.load_dataset('DIR')`.",
    "json": "`pairs.json` has one row per text, in the format of BLIP's annotation files. Paths are relative to this "
    "folder.",
    "textfiles": "`images` has each picture with a text file, one text per line. Train with kohya's sd-scripts "
    '(`caption_extension = ".txt"`, `enable_wildcard = true` to draw a line at random; braces in a text are wildcards '
    'there) or with SimpleTuner (`"caption_strategy": "textfile"`, which draws a line).',
    "clip_benchmark": "A retrieval set of clip_benchmark: `clip_benchmark eval --dataset wds/NAME --dataset_root DIR "
    "--task zeroshot_retrieval`. Every kept text of a picture is a right answer.",
    "datacomp": "`uids.npy` has the sorted uids of the pictures with a kept web text. DataComp's `resharder.py -s "
    "uids.npy` selects them from the pool.",
}
# Rows on pictures that only some exports leave out.
LEFT_OUT = {
    "no_text_to_export": "no text for this format or mixture",
    "other_format": "a file format that the trainers do not open",
    "no_uid": "no uid",
}
# Upper bounds and names of the hub's size categories.
SIZE_CATEGORIES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
    (1_000_000_000, "100M<n<1B"),
)


def dataset_card(
    data: FilteredSet,
    form: str,
    counts: dict[str, int],
    decontaminated: list[str],
    licence: str | None,
    mixture: TextMixture | None = None,
) -> str:
    """Return the card as Markdown with YAML front matter; `counts` are those of the export."""
    limits = ", ".join(f"{name.upper()} >= {limit:g}" for name, limit in data.limits.items())
    lines = [
        f"# {data.folder.name}",
        "",
        "Image-text pairs filtered with CapFilt (BLIP, arXiv 2201.12086): texts from the web and synthetic captions,",
        f"kept where picture and text match. Limits: {limits}.",
        "",
        USAGE[form] if mixture is None else USAGE[form].replace(" (the text with the highest ITM)", ""),
        "",
        "| | pictures | texts |",
        "|---|---|---|",
        f"| exported | {counts['exported']:,} | {counts['texts']:,} |",
        f"| left out: copy of an evaluation picture | {counts['contaminated']:,} | |",
        f"| left out: missing from its shard | {counts['missing']:,} | |",
        *[f"| left out: {text} | {counts[name]:,} | |" for name, text in LEFT_OUT.items() if counts.get(name)],
        "",
        "| text source | texts | kept |",
        "|---|---|---|",
        *_source_rows(data),
        "",
        *(_mixture_lines(data, form, counts, mixture) if mixture is not None else []),
        "## How it was made",
        "",
        *_step_lines(data, limits),
    ]
    if decontaminated:
        folders = ", ".join(f"`{folder}`" for folder in decontaminated)
        lines.append(f"- decontamination: no copies, exact or near, of the pictures in {folders}")
    lines += [
        "",
        "## Rights",
        "",
        f"Licence of texts and pictures: {licence or 'not stated; the rights remain with their publishers'}.",
        "The column `url` gives the origin of each picture. `capfilt download` skips pictures whose host opts out of",
        "machine learning by HTTP header; the tables of the shard set list them with the status `opted_out`.",
        "",
    ]
    text = "\n".join(lines)
    front = _front_matter(data, form, counts["exported"], licence, text)
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n{text}"


def _mixture_lines(data: FilteredSet, form: str, counts: dict[str, int], mixture: TextMixture) -> list[str]:
    """Return the section on the texts that trainers draw."""
    lines = ["## Mixture", "", f"`{mixture.spec}`: each text has a probability, and those of a picture add up to 1."]
    lines += ["A picture without a text of some source divides its share among its other sources.", ""]
    if form == "webdataset":
        lines += [
            "`key.txt` is one text, drawn once. `key.json` has all `captions` with their `probabilities`, and "
            f"{len(DRAW_NAMES)} draws for open_clip after 3.3, which takes one of them at random each time: "
            f"`--json-text-key '{';'.join(DRAW_NAMES)}' --json-text-key-probs {' '.join('1' * len(DRAW_NAMES))}`.",
            "",
        ]
    if form == "parquet":
        lines += ["`text` is one text, drawn once. `captions` has all texts with their `probabilities`.", ""]
    lines += ["| text source | share asked | share drawn | pictures without such a text |", "|---|---|---|---|"]
    for source in data.sources:
        share = f"{mixture.shares[source]:.1%}" if mixture.shares else ""
        drawn = counts.get(f"drawn/{source}", 0) / max(1, counts["exported"])
        lines.append(f"| {source} | {share} | {drawn:.1%} | {counts.get(f'without/{source}', 0):,} |")
    return [*lines, ""]


def _source_rows(data: FilteredSet) -> list[str]:
    totals: dict[str, int] = {}
    kept: dict[str, int] = {}
    for name, number in data.manifest.get("counts", {}).items():
        source, _, reason = name.partition("/")
        totals[source] = totals.get(source, 0) + number
        kept[source] = kept.get(source, 0) + (number if reason == "kept" else 0)
    return [f"| {source} | {totals[source]:,} | {kept[source]:,} |" for source in sorted(totals)]


def _step_lines(data: FilteredSet, limits: str) -> list[str]:
    lines = []
    for parent in data.manifest.get("parents", []):
        manifest = read_manifest(resolve_reference(data.folder, parent))
        if manifest is None:
            lines.append(f"- {parent.rpartition('/')[2]}: no record")
            continue
        if manifest.get("stage") == "filter":  # the set that `capfilt select` read
            continue
        settings = manifest.get("config", {})
        shown = ("fingerprint", "generate", "chat", "clip", "dtype")
        described = "; ".join(f"`{name}`: {settings[name]}" for name in shown if settings.get(name))
        model = f" with {manifest['model']}" if "model" in manifest else ""
        lines.append(f"- {manifest.get('stage', 'unknown')}{model}, {manifest.get('created_by', '')}: {described}")
    rule = f"sources {', '.join(data.sources)}; {limits}{_best_rule(data.best)}"
    lines.append(f"- filter, {data.manifest.get('created_by', '')}: {rule}")
    selected = data.manifest["config"].get("select", {})
    if selected:
        lines.append("- select: " + ", ".join(f"{name} {value}" for name, value in selected.items()))
    return lines


def _best_rule(best: BestTexts) -> str:
    if not best.number:
        return ""
    group = "picture" if best.across_sources else "picture and source"
    return f"; the best {best.number} per {group} by {best.score.upper()}"


def _front_matter(data: FilteredSet, form: str, pictures: int, licence: str | None, text: str) -> dict[str, Any]:
    size = next((name for bound, name in SIZE_CATEGORIES if pictures < bound), "n>1B")
    front: dict[str, Any] = {"task_categories": ["image-to-text"], "size_categories": [size], "tags": ["capfilt"]}
    if licence:
        front["license"] = licence
    if form == "parquet":
        # `datasets` caches by folder and config name, so another export into the folder needs another name.
        name = f"{data.folder.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        front["configs"] = [{"config_name": name, "data_files": "*.parquet"}]
    return front
