"""The end of the demo on a terminal: the rows compared, what the filter did to each kind of noise, sample pictures."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

ROWS = {
    "noisy": "noisy web + human",
    "bootstrapped": "captioner + filter",
    "filter_only": "filter only",
    "captioner_only": "captioner only",
    "human_only": "human pairs only (control)",
}


def print_tables(console: Console, summary: dict[str, Any], out: Path) -> None:
    """Print everything that `summary` holds for people."""
    console.print(rows_table(summary))
    console.print(filter_table(summary))
    console.print(kinds_table(summary))
    print_samples(console, summary, out)
    console.print(f"[bold]Files[/]  {out}/data/filtered/bootstrapped/*.parquet  the rewritten data set, one row a text")
    console.print(f"       {out}/runs/*/model  the models;  {out}/logs  what each command said;  {out}/summary.json")


def save_svg(summary: dict[str, Any], out: Path) -> None:
    """The same as `result.svg`, for a README or a talk."""
    recorder = Console(record=True, highlight=False, width=110, file=io.StringIO())
    print_tables(recorder, summary, out)
    recorder.save_svg(str(out / "result.svg"), title="capfilt demo")


def rows_table(summary: dict[str, Any]) -> Table:
    """The models on held-out scenes: same steps, same human share of every batch, other texts."""
    table = Table(title="Held-out clean scenes, in percent", title_justify="left")
    for column in (
        "trained on",
        "exact scene",
        "object F1",
        "CIDEr",
        "text R@1",
        "image R@1",
        "mean recall",
        "texts kept",
    ):
        table.add_column(column, justify="left" if column == "trained on" else "right")
    for name, label in ROWS.items():
        if name not in summary:
            continue
        row = summary[name]
        recalls = row["retrieval"]
        table.add_row(
            label, f"{100 * row['exact_match']:.1f}", f"{100 * row['object_f1']:.1f}", f"{row['cider']:.1f}",
            f"{recalls['i2t_r@1']:.1f}", f"{recalls['t2i_r@1']:.1f}", f"{row['retrieval_mean_recall']:.1f}",
            f"{row['texts_kept']:,}" if row["texts_kept"] else "",
        )  # fmt: skip
    return table


def filter_table(summary: dict[str, Any]) -> Table:
    """What the filter kept, against the truth."""
    table = Table(title="The filter, in percent", title_justify="left")
    for column in ("texts", "number", "right before", "kept", "right after", "recall", "ITM AUC"):
        table.add_column(column, justify="left" if column == "texts" else "right")
    for name, row in summary["filter"].items():
        shares = ("matching_before", "kept", "precision", "recall", "itm_auc")
        told = ("–" if row[share] is None else f"{100 * row[share]:.1f}" for share in shares)
        table.add_row(name, f"{row['texts']:,}", *told)
    return table


def kinds_table(summary: dict[str, Any]) -> Table:
    """Share kept of each kind of web text; a perfect filter keeps the right_ ones alone."""
    table = Table(title="Web texts kept, by kind of noise", title_justify="left")
    for column in ("kind", "texts", "kept %"):
        table.add_column(column, justify="left" if column == "kind" else "right")
    for kind, row in summary["web_texts"].items():
        table.add_row(kind, f"{row['texts']:,}", f"{100 * row['kept']:.1f}")
    return table


def print_samples(console: Console, summary: dict[str, Any], out: Path) -> None:
    """Six pictures with their texts: green is kept, red is dropped (Figure 4 of the paper)."""
    console.print(f"[bold]Six pictures[/] ({out}/samples/)")
    for sample in summary["samples"]:
        console.print(f"  {sample['picture']}")
        for text in sample["texts"]:
            colour = "green" if text["keep"] else "red"
            verdict = "kept" if text["keep"] else f"dropped: {text['reason']}"
            words = f"[{colour}]{escape(text['text'])}[/]"
            console.print(f"    [dim]{text['source']:<10}[/] {words}  [dim]itm {text['itm']:.2f}  {verdict}[/]")
