"""The commands on finished data sets: report, export."""

import typer

from capfilt import options, options_sets
from capfilt.console import command, failed_shards, finish, missing_pictures
from capfilt.options import read_settings

app = typer.Typer()


@command(app, "capfilt report data/filtered/r2 --compare data/filtered/r1 --out report.html")
def report(
    context: typer.Context,
    dataset: options_sets.Filtered,
    compare: options_sets.Compare = None,
    out: options_sets.Page = None,
    pictures: options_sets.GalleryPictures = None,
    as_json: options.Json = False,
) -> None:
    """Write an HTML report on a filtered data set: counts, scores, thresholds and pictures."""
    from capfilt.report.stage import ReportConfig, write_report

    finish(write_report(read_settings(context, ReportConfig)), as_json)


@command(app, "capfilt export data/filtered/r2 out --format parquet --decontaminate coco/val2017")
def export(
    context: typer.Context,
    dataset: options_sets.Filtered,
    out: options_sets.ExportFolder,
    decontaminate: options_sets.Decontaminate = None,
    workers: options.Workers = None,
    format: options_sets.ExportFormat = None,
    licence: options_sets.Licence = None,
    as_json: options.Json = False,
) -> None:
    """Export the kept pairs for other trainers: open_clip, Hugging Face datasets, BLIP."""
    from capfilt.export.stage import ExportConfig, export_shards

    summary = export_shards(read_settings(context, ExportConfig))
    finish(summary, as_json, failed_shards(summary) or missing_pictures(summary))
