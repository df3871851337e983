"""The commands on finished data sets: report, label, select, export, fuse, trial."""

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
    label: options_sets.TextsToLabel = None,
    as_json: options.Json = False,
) -> None:
    """Write an HTML report on a filtered data set: counts, scores, thresholds and pictures."""
    from capfilt.report.stage import ReportConfig, write_report

    finish(write_report(read_settings(context, ReportConfig)), as_json)


@command(app, "capfilt label data/filtered/r2 --out labels.csv")
def label(
    context: typer.Context,
    dataset: options_sets.Filtered,
    number: options_sets.LabelNumber = None,
    order: options_sets.LabelOrder = None,
    seed: options.Seed = None,
    host: options_sets.Host = None,
    port: options_sets.Port = None,
    out: options_sets.LabelsFile = None,
    as_json: options.Json = False,
) -> None:
    """Label texts as right or wrong in a browser, with three keys; every answer is saved."""
    from capfilt.label.stage import LabelConfig, label_texts

    finish(label_texts(read_settings(context, LabelConfig)), as_json)


@command(app, "capfilt select data/filtered/r2 --name r2-balanced --duplicates 0.95 --per-cluster 1000")
def select(
    context: typer.Context,
    dataset: options_sets.Filtered,
    *,
    duplicates: options_sets.CopyCosine = None,
    like: options_sets.Like = None,
    top_fraction: options_sets.LikeFraction = None,
    per_cluster: options_sets.PerCluster = None,
    name: options_sets.SelectedName,
    as_json: options.Json = False,
    sets: options.Sets = None,
) -> None:
    """Drop near duplicates, unlike or too frequent pictures by stored vectors, without reading a picture."""
    from capfilt.select.config import SelectConfig
    from capfilt.select.stage import select_pictures

    finish(select_pictures(read_settings(context, SelectConfig)), as_json)


@command(app, "capfilt export data/filtered/r2 out --format parquet --decontaminate coco/val2017")
def export(
    context: typer.Context,
    dataset: options_sets.Filtered,
    out: options_sets.ExportFolder,
    mixture: options.Mixture = None,
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


@command(app, "capfilt fuse data --model openai:qwen --base-url http://localhost:8000/v1 --source blip")
def fuse(
    context: typer.Context,
    data: options.Shards,
    source: options_sets.CaptionsToMerge = None,
    model: options_sets.TextModel = None,
    base_url: options.BaseUrl = None,
    prompt: options_sets.FusePrompt = None,
    workers: options.Workers = None,
    rank: options.Rank = None,
    world_size: options.WorldSize = None,
    name: options_sets.FusedName = None,
    out: options.Out = None,
    as_json: options.Json = False,
    config: options.Config = None,
    sets: options.Sets = None,
) -> None:
    """Merge web texts and captions into one caption per picture, without invented names and numbers."""
    from capfilt.fuse.stage import FuseConfig, fuse_shards

    fields = {"prompt": "chat.prompt", "base_url": "server.base_url"}
    summary = fuse_shards(read_settings(context, FuseConfig, fields))
    finish(summary, as_json, failed_shards(summary))


@command(app, "capfilt trial data/filtered/r1 data/filtered/r2 --human coco.json --test val.json --out trial")
def trial(
    context: typer.Context,
    selections: options_sets.TrialSets,
    test: options_sets.TrialTests = None,
    human: options_sets.HumanPairs = None,
    seeds: options_sets.TrialSeeds = None,
    steps: options_sets.TrialSteps = None,
    finetune_steps: options_sets.FinetuneSteps = None,
    out: options_sets.TrialFolder = None,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
    config: options.Config = None,
    sets: options.Sets = None,
) -> None:
    """Train small models on each set, and say whether one set is better. Run it again to resume."""
    from rich.console import Console

    from capfilt.trial import run
    from capfilt.trial.plan import TrialConfig

    trial_config = read_settings(context, TrialConfig, {"dry_run": None})
    if dry_run:
        finish(run.dry_run(trial_config, Console(highlight=False, stderr=as_json)), as_json)
    else:
        finish(run.run_trial(trial_config), as_json)
