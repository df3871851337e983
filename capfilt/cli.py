"""The commands: each reads its options into a config, runs its stage and prints the summary.

They import their stages inside, so that `capfilt --help` is fast. Commands for models are in
`cli_models.py`, those on finished data sets in `cli_sets.py`.
"""

import typer

from capfilt import cli_models, cli_sets, options
from capfilt.console import command, failed_shards, finish, missing_pictures, too_few_ok
from capfilt.options import read_settings

app = typer.Typer(
    name="capfilt",
    help="BLIP's CapFilt: caption and filter noisy web image-text pairs, rewrite the data set, retrain, repeat.",
    epilog="Try it: capfilt demo",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.add_typer(cli_models.app)
app.add_typer(cli_sets.app)


@command(app, "capfilt download urls.parquet data --image-size 384")
def download(
    context: typer.Context,
    urls: options.Urls,
    out: options.NewShards,
    url_col: options.UrlColumn = None,
    caption_col: options.CaptionColumns = None,
    columns: options.ListColumns = None,
    no_header: options.NoHeader = None,
    quoting: options.Quoting = None,
    encoding: options.Encoding = None,
    split: options.Split = None,
    keep_columns: options.KeepColumns = None,
    retries: options.Retries = None,
    retry_failed: options.RetryFailed = None,
    threads: options.Threads = None,
    allow_private: options.AllowPrivate = None,
    workers: options.IngestWorkers = None,
    shard_size: options.ShardSize = None,
    image_size: options.PictureSize = None,
    duplicates: options.Duplicates = None,
    min_success: options.MinSuccess = None,
    as_json: options.Json = False,
    config: options.Config = None,
    sets: options.Sets = None,
) -> None:
    """Download a list of URLs into shards, with an outcome for every row. Run it again to resume."""
    from capfilt.ingest import download as stage
    from capfilt.ingest.download_config import DownloadConfig

    settings = read_settings(context, DownloadConfig)
    summary = stage.download(settings)
    error = failed_shards(summary) or summary["stopped"] or too_few_ok(summary, settings.min_success)
    finish(summary, as_json, error)


@command(app, "capfilt pack photos data")
def pack(
    context: typer.Context,
    source: options.Source,
    out: options.PackedShards = None,
    texts: options.NewTexts = None,
    name: options.TextsName = None,
    keep_columns: options.KeepColumns = None,
    annotations: options.Annotations = None,
    kind: options.PackKind = None,
    split: options.Split = None,
    image_col: options.ImageColumn = None,
    caption_col: options.CaptionColumns = None,
    no_header: options.NoHeader = None,
    columns: options.ListColumns = None,
    quoting: options.Quoting = None,
    encoding: options.Encoding = None,
    workers: options.IngestWorkers = None,
    shard_size: options.ShardSize = None,
    image_size: options.PictureSize = None,
    duplicates: options.Duplicates = None,
    min_success: options.MinSuccess = None,
    as_json: options.Json = False,
    config: options.Config = None,
    sets: options.Sets = None,
) -> None:
    """Pack existing pictures into shards, or add --texts to a set of shards. Run it again to resume."""
    from capfilt.ingest import pack as stage

    if texts is not None:
        from capfilt.ingest.add_texts import TextsConfig, add_texts

        if out is not None:
            raise ValueError("With --texts give the shard set alone: capfilt pack --texts FILE DATA.")
        added = add_texts(read_settings(context, TextsConfig, {"source": "data"}))
        finish(added, as_json, failed_shards(added))
        return
    if out is None:
        raise ValueError("Give the folder for the shards too: capfilt pack SOURCE DATA.")
    settings = read_settings(context, stage.PackConfig)
    summary = stage.pack(settings)
    finish(summary, as_json, failed_shards(summary) or too_few_ok(summary, settings.min_success))


@command(app, "capfilt inspect urls.parquet")
def inspect(
    context: typer.Context,
    source: options.InspectSource,
    kind: options.InspectKind = None,
    split: options.Split = None,
    annotations: options.Annotations = None,
    url_col: options.UrlColumn = None,
    image_col: options.ImageColumn = None,
    caption_col: options.CaptionColumns = None,
    columns: options.ListColumns = None,
    no_header: options.NoHeader = None,
    quoting: options.Quoting = None,
    encoding: options.Encoding = None,
    as_json: options.Json = False,
) -> None:
    """Show how an input is read, and its first rows. Nothing is fetched or written."""
    from capfilt.ingest import inspect as stage

    inspection = stage.inspect(read_settings(context, stage.InspectConfig))
    if as_json:
        finish(inspection.to_dict(), as_json)
    else:
        stage.print_inspection(inspection)
    if inspection.problem:
        raise ValueError(inspection.problem)


@command(app, "capfilt caption data --model runs/captioner/model --name blip")
def caption(
    context: typer.Context,
    data: options.Shards,
    model: options.CaptionModel = None,
    base_url: options.BaseUrl = None,
    tokenizer: options.TokenizerPath = None,
    numerics: options.Numerics = None,
    prompt: options.Prompt = None,
    mode: options.Mode = None,
    num_captions: options.NumCaptions = None,
    batch_size: options.BatchSize = None,
    device: options.Device = None,
    dtype: options.DtypeName = None,
    backend: options.BackendName = None,
    workers: options.Workers = None,
    engine: options.Engine = None,
    rank: options.Rank = None,
    world_size: options.WorldSize = None,
    name: options.Name = None,
    out: options.Out = None,
    as_json: options.Json = False,
    seed: options.Seed = None,
    config: options.Config = None,
    sets: options.Sets = None,
) -> None:
    """Write synthetic captions to DATA/captions/NAME, one table per shard."""
    from capfilt.caption.registry import captioner_kind
    from capfilt.caption.stage import CaptionConfig, caption_shards
    from capfilt.config import resolve

    # Decoding options set generate.* for BLIP and chat.* for other models. The model may be in the config file.
    named = resolve(CaptionConfig, config, sets or (), {"data": data, "model": model})
    section = "generate" if captioner_kind(named.model) == "blip" else "chat"
    fields = {name: f"{section}.{name}" for name in ("prompt", "mode", "num_captions", "seed")}
    summary = caption_shards(read_settings(context, CaptionConfig, {**fields, "base_url": "server.base_url"}))
    finish(summary, as_json, failed_shards(summary) or missing_pictures(summary))


@command(app, "capfilt filter data --model runs/filter/model --threshold 0.5", name="filter")
def filter_(
    context: typer.Context,
    data: options.Shards,
    sources: options.Sources = None,
    scores: options.ScoresName = None,
    model: options.FilterModel = None,
    clip: options.Clip = None,
    scorer: options.Scorers = None,
    judge: options.Judge = None,
    base_url: options.BaseUrl = None,
    captioner: options.CaptionerModel = None,
    captioner_name: options.CaptionerName = None,
    tokenizer: options.TokenizerPath = None,
    numerics: options.Numerics = None,
    threshold: options.Threshold = None,
    labels: options.Labels = None,
    target: options.Target = None,
    top_fraction: options.TopFraction = None,
    best_of: options.BestOf = None,
    sentences: options.Sentences = None,
    repair: options.Repair = None,
    explain: options.Explain = False,
    batch_size: options.BatchSize = None,
    device: options.Device = None,
    dtype: options.DtypeName = None,
    backend: options.BackendName = None,
    workers: options.Workers = None,
    engine: options.Engine = None,
    rank: options.Rank = None,
    world_size: options.WorldSize = None,
    name: options.FilteredName = None,
    out: options.Out = None,
    as_json: options.Json = False,
    config: options.Config = None,
    sets: options.Sets = None,
) -> None:
    """Score texts against their pictures, keep those that match, write DATA/filtered/NAME."""
    from capfilt.caption_and_filter import CaptionFilterConfig, caption_and_explain, caption_and_filter
    from capfilt.filter.decide import format_threshold
    from capfilt.filter.threshold_table import format_strata_table, format_threshold_table

    fields = {"captioner": "captioner.model", "captioner_name": "captioner.name", "explain": None}
    fields |= {"judge": "judge.model", "base_url": "judge.server.base_url"}
    settings = read_settings(context, CaptionFilterConfig, fields)
    if explain and settings.repair:
        raise ValueError("--explain compares ITM thresholds of whole texts, which --repair does not use; give one.")
    summary = caption_and_explain(settings) if explain else caption_and_filter(settings)
    error = None if explain else failed_shards(summary) or missing_pictures(summary)
    if as_json:
        finish(summary, as_json, error)
        return
    readable = summary | {"threshold": format_threshold(summary["threshold"]), "thresholds": None, "strata": None}
    finish(readable, as_json, error)
    if explain:
        print("\n".join(format_threshold_table(summary["thresholds"], summary["threshold"], summary["score"])))
    if summary["strata"]:
        print("\n".join(format_strata_table(summary["strata"])))


@command(app, "capfilt doctor /data")
def doctor(
    data: options.DataFolder = ".",
    as_json: options.Json = False,
) -> None:
    """Check whether this machine is ready, and print a remedy for each problem."""
    from capfilt.doctor import format_findings, run_checks, summarize_findings

    findings = run_checks(data)
    summary = summarize_findings(findings)
    if as_json:
        finish(summary, as_json)
    else:
        print("\n".join(format_findings(findings)))
    if not summary["ready"]:
        raise typer.Exit(1)


@command(app, "capfilt bootstrap bootstrap.yaml --dry-run")
def bootstrap(
    context: typer.Context,
    config: options.LoopConfig,
    as_json: options.Json = False,
    rounds: options.Rounds = None,
    dry_run: options.DryRun = False,
    sets: options.Sets = None,
) -> None:
    """Run rounds of captioning, filtering and retraining from one YAML file. Run it again to resume."""
    from rich.console import Console

    from capfilt.bootstrap import run as loop
    from capfilt.bootstrap.plan import BootstrapConfig

    settings = read_settings(context, BootstrapConfig, {"dry_run": None})
    if dry_run:
        finish(loop.dry_run(settings, Console(highlight=False, stderr=as_json)), as_json)
    else:
        finish(loop.bootstrap(settings), as_json)


@command(app, "capfilt demo --out demo --rows all")
def demo(
    context: typer.Context,
    out: options.DemoFolder = None,
    as_json: options.Json = False,
    scale: options.Scale = None,
    rounds: options.Rounds = None,
    rows: options.Rows = None,
    table: options.PaperTables = None,
    quick: options.Quick = None,
    lang: options.Language = None,
    seed: options.Seed = None,
) -> None:
    """Run the whole loop on an embedded corpus and print each command: 15 minutes on two cores."""
    from capfilt.demo.plan import DemoConfig
    from capfilt.demo.run import run_demo

    summary = run_demo(read_settings(context, DemoConfig))
    if as_json:
        finish(summary, as_json)


def main() -> None:
    """Entry point of `capfilt`."""
    app(prog_name="capfilt")
