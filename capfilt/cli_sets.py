"""The commands on finished data sets: report, export."""

import typer

from capfilt import options
from capfilt.console import command, failed_shards, finish, missing_pictures
from capfilt.options import read_settings

app = typer.Typer()


@command(app, "capfilt report data/filtered/r2 --compare data/filtered/r1 --out report.html")
def report(
    context: typer.Context,
    dataset: options.Filtered,
    compare: options.Compare = None,
    out: options.Page = None,
    pictures: options.GalleryPictures = None,
    as_json: options.Json = False,
) -> None:
    """Write an HTML report on a filtered data set: counts, scores, thresholds and pictures."""
    from capfilt.report.stage import ReportConfig, write_report

    finish(write_report(read_settings(context, ReportConfig)), as_json)


@command(app, "capfilt export data/filtered/r2 out --format parquet --decontaminate coco/val2017")
def export(
    context: typer.Context,
    dataset: options.Filtered,
    out: options.ExportFolder,
    decontaminate: options.Decontaminate = None,
    workers: options.Workers = None,
    format: options.ExportFormat = None,
    licence: options.Licence = None,
    as_json: options.Json = False,
) -> None:
    """Export the kept pairs for other trainers: open_clip, Hugging Face datasets, BLIP."""
    from capfilt.export.stage import ExportConfig, export_shards

    summary = export_shards(read_settings(context, ExportConfig))
    finish(summary, as_json, failed_shards(summary) or missing_pictures(summary))
