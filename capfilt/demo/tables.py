"""The tables that end the demo: rows compared, the filter against the truth, kept texts by kind, sample pictures."""

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
    """Print all tables of a summary and the paths of the output files."""
    console.print(rows_table(summary))
    console.print(filter_table(summary))
    console.print(kinds_table(summary))
    print_samples(console, summary, out)
    console.print(f"[bold]Files[/]  {out}/data/filtered/bootstrapped/*.parquet  the filtered set, one row per text")
    console.print(f"       {out}/runs/*/model  the models;  {out}/logs  the log of each command;  {out}/summary.json")


def save_svg(summary: dict[str, Any], out: Path) -> None:
    """Save the tables as `result.svg`, for a README or a talk."""
    recorder = Console(record=True, highlight=False, width=110, file=io.StringIO())
    print_tables(recorder, summary, out)
    recorder.save_svg(str(out / "result.svg"), title="capfilt demo")


def rows_table(summary: dict[str, Any]) -> Table:
    columns = ["trained on", "exact scene", "object F1", "CIDEr", "text R@1", "image R@1", "mean recall", "texts kept"]
    table = _table("Held-out clean scenes, in percent", columns)
    for name, label in ROWS.items():
        if name not in summary:
            continue
        row = summary[name]
        recalls = row["retrieval"]
        cells = [100 * row["exact_match"], 100 * row["object_f1"], row["cider"], recalls["i2t_r@1"], recalls["t2i_r@1"]]
        cells.append(row["retrieval_mean_recall"])
        texts_kept = f"{row['texts_kept']:,}" if row["texts_kept"] else ""
        table.add_row(label, *(f"{cell:.1f}" for cell in cells), texts_kept)
    return table


def filter_table(summary: dict[str, Any]) -> Table:
    """Return the filter's scores for web texts and synthetic captions."""
    columns = ["texts", "number", "right before", "kept", "right after", "recall", "ITM AUC"]
    table = _table("The filter, in percent", columns)
    for name, row in summary["filter"].items():
        shares = ("matching_before", "kept", "precision", "recall", "itm_auc")
        cells = ("–" if row[share] is None else f"{100 * row[share]:.1f}" for share in shares)
        table.add_row(name, f"{row['texts']:,}", *cells)
    return table


def kinds_table(summary: dict[str, Any]) -> Table:
    """Return the share kept of each kind of web text; a perfect filter keeps only the right_ kinds."""
    table = _table("Web texts kept, by kind of noise", ["kind", "texts", "kept %"])
    for kind, row in summary["web_texts"].items():
        table.add_row(kind, f"{row['texts']:,}", f"{100 * row['kept']:.1f}")
    return table


def print_samples(console: Console, summary: dict[str, Any], out: Path) -> None:
    """Print six pictures with their texts: green if kept, red if dropped (Figure 4 of the paper)."""
    console.print(f"[bold]Six pictures[/] ({out}/samples/)")
    for sample in summary["samples"]:
        console.print(f"  {sample['picture']}")
        for text in sample["texts"]:
            colour = "green" if text["keep"] else "red"
            verdict = "kept" if text["keep"] else f"dropped: {text['reason']}"
            words = f"[{colour}]{escape(text['text'])}[/]"
            console.print(f"    [dim]{text['source']:<10}[/] {words}  [dim]itm {text['itm']:.2f}  {verdict}[/]")


def _table(title: str, columns: list[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position else "left")
    return table
