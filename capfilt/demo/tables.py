"""The tables that end the demo: rows compared, the filter against the truth, rounds, tables of the paper, pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from capfilt.demo.paper import TITLES
from capfilt.demo.plan import round_row

ROWS = {
    "noisy": "noisy web + human",
    "bootstrapped": "captioner + filter",
    **{round_row(number): f"captioner + filter, round {number}" for number in range(2, 21)},
    "filter_only": "filter only",
    "captioner_only": "captioner only",
    "human_only": "human pairs only (control)",
    "oracle": "captioner + true filter (bound)",
}

PAPER_RECALLS = {"i2t_r@1": "text_recall", "t2i_r@1": "image_recall"}  # name in a summary -> field of `Published`


def print_tables(console: Console, summary: dict[str, Any], out: Path) -> None:
    """Print all tables of a summary and the paths of the output files."""
    console.print(rows_table(summary, "finetuned", "Finetuned on the human pairs: held-out clean scenes, in percent"))
    if any("zero_shot" in row for row in summary["rows"].values()):
        console.print(rows_table(summary, "zero_shot", "The same models without finetuning"))
    if "oracle_gain_reached" in summary:
        shares = (f"{name} {percent(share)}%" for name, share in summary["oracle_gain_reached"].items())
        console.print(f"Share of the gain of a true filter that the trained filter reaches: {', '.join(shares)}")
    console.print(filter_table(summary["filter"]))
    console.print(synthetic_table(summary["filter"]))
    if "rounds" in summary:
        console.print(rounds_table(summary["rounds"]))
        console.print(f"The best round on the validation pictures is round {summary['best_round']} ({out}/best).")
    for number in dict.fromkeys(row["table"] for row in summary.get("tables", ())):
        console.print(paper_table(summary, number))
    console.print(kinds_table(summary))
    print_samples(console, summary, out)
    console.print(f"[bold]Files[/]  {out}/data/filtered/bootstrapped/*.parquet  the filtered set, one row per text")
    console.print(f"       {out}/runs/*/model  the models;  {out}/logs  the log of each command;  {out}/summary.json")


def save_svg(summary: dict[str, Any], out: Path) -> None:
    """Save the tables as `result.svg`, for a README or a talk."""
    recorder = Console(record=True, highlight=False, width=110, file=io.StringIO())
    print_tables(recorder, summary, out)
    recorder.save_svg(str(out / "result.svg"), title="capfilt demo")


def rows_table(summary: dict[str, Any], models: str, title: str) -> Table:
    """Return the grades of all rows, for their "finetuned" or "zero_shot" models."""
    columns = ["trained on", "exact scene", "object F1", "CIDEr", "text R@1", "image R@1", "mean recall", "texts kept"]
    table = _table(title, columns)
    for name, label in ROWS.items():
        grades = summary["rows"].get(name, {}).get(models)
        if grades is None:
            continue
        recalls = (f"{grades['retrieval'][recall]:.1f}" for recall in ("i2t_r@1", "t2i_r@1"))
        texts = summary["rows"][name].get("texts_kept")
        table.add_row(
            label,
            *(with_margin(grades["exact_match"]), percent(grades["object_f1"]), f"{grades['cider']['value']:.1f}"),
            *(*recalls, f"{grades['mean_recall']['value']:.1f}", f"{texts:,}" if texts else ""),
        )
    return table


def filter_table(grades: Mapping[str, Any]) -> Table:
    """Return the filter's grades on web texts and synthetic captions."""
    columns = ["texts", "number", "right before", "kept", "right after", "right kept", "ITM AUC", "pictures with one"]
    table = _table("The filter, in percent", columns)
    for name, row in grades.items():
        shares = (percent(row[share]) for share in ("right_before", "kept", "right", "recall"))
        table.add_row(
            name, f"{row['texts']:,}", *shares, percent(row["auc"].get("itm")), percent(row.get("pictures_kept"))
        )
    return table


def synthetic_table(grades: Mapping[str, Any]) -> Table:
    """Return the AUC of each score of the synthetic captions, right against wrong, within strata and pictures."""
    columns = ["score", "all", "one object", "two objects", "within a picture", "wrong object", "wrong detail"]
    table = _table("Scores of synthetic captions: AUC in percent, right against wrong", columns)
    row = grades.get("synthetic")
    if row is None:
        return table
    for score in row["auc"]:
        aucs = [row["auc"], *(stratum["auc"] for stratum in row["strata"].values()), row["auc_within_picture"]]
        aucs += row["auc_by_error"].values()
        table.add_row(score, *(with_margin(auc[score]) for auc in aucs))
    two = row["strata"]["two_objects"]
    before, after = percent(two["share_before"]), percent(two["share_kept"])
    table.caption = f"Captions that name two objects: {before} % before the filter, {after} % after"
    return table


def rounds_table(rounds: Sequence[Mapping[str, Any]]) -> Table:
    """Return the gauges of each round."""
    columns = ["round", "CIDEr", "rise", "web kept", "captions kept", "by filter 1", "right", "distinct", "bigrams"]
    columns += ["rare words", "words"]
    table = _table("Rounds: CIDEr of the validation pictures, and the synthetic captions of the round", columns)
    for number, row in enumerate(rounds):
        rise = "{value:+.1f} ({low:+.1f} to {high:+.1f})".format(**row["rise"]) if "rise" in row else ""
        cells = [str(number), f"{row['held_out']:.1f}", rise]
        if "gauges" in row:
            gauges = row["gauges"]
            first = row.get("first_filter", row["filter"]).get("synthetic", {})
            cells += [
                percent(gauges["kept_share_web"]),
                percent(gauges["kept_share_captions"]),
                percent(first.get("kept")),
            ]
            cells += [percent(row["filter"]["synthetic"]["right"]), percent(gauges["distinct_captions"])]
            cells += [f"{gauges['distinct_bigrams']:,}", percent(gauges["rare_word_recall"])]
            cells.append("–" if gauges["words_per_caption"] is None else f"{gauges['words_per_caption']:.1f}")
        table.add_row(*cells)
    return table


def paper_table(summary: Mapping[str, Any], number: int) -> Table:
    """Return a table of the paper: the demo's figures, with the paper's in parentheses."""
    columns = ["", "rejected", "right after", "distinct", "exact scene", "CIDEr", "text R@1", "image R@1"]
    table = _table(f"{TITLES[number]} (the paper's figures in parentheses)", columns)
    for line in summary["tables"]:
        if line["table"] != number:
            continue
        grades, published = summary["rows"][line["row"]]["finetuned"], line["published"]
        rejected, right, distinct = (percent(line.get(name)) for name in ("rejected", "right", "distinct_captions"))
        if published["rejected"] is not None:
            rejected += f" ({published['rejected']})"
        recalls = (f"{grades['retrieval'][name]:.1f} ({published[column]})" for name, column in PAPER_RECALLS.items())
        cider = f"{grades['cider']['value']:.1f} ({published['cider']})"
        table.add_row(line["label"], rejected, right, distinct, with_margin(grades["exact_match"]), cider, *recalls)
    return table


def kinds_table(summary: dict[str, Any]) -> Table:
    """Return the share kept of each kind of web text; a perfect filter keeps only the right_ kinds."""
    table = _table("Web texts kept, by kind of noise", ["kind", "texts", "kept %"])
    for kind, row in summary["web_texts"].items():
        table.add_row(kind, f"{row['texts']:,}", percent(row["kept"]))
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


def percent(share: Mapping[str, float] | float | None) -> str:
    """Return a share, or the value of an estimate, in percent; a dash for None."""
    value = share["value"] if isinstance(share, Mapping) else share
    return "–" if value is None else f"{100 * value:.1f}"


def with_margin(estimate: Mapping[str, float] | None) -> str:
    """Return an estimate in percent with half the width of its interval; a dash for None."""
    if estimate is None:
        return "–"
    return f"{percent(estimate)} ± {50 * (estimate['high'] - estimate['low']):.1f}"


def _table(title: str, columns: list[str]) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left")
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position else "left")
    return table
