"""The commands, one short function each: options in, a config resolved, the work called, its summary printed.

Importing this file costs no torch; whatever a command needs is imported inside it.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from capfilt.config import resolve
from capfilt.console import (
    Backend,
    BatchSize,
    Config,
    Device,
    Dtype,
    Duplicates,
    Engine,
    Epochs,
    ImageRoot,
    ImageSize,
    Json,
    LearningRate,
    Name,
    Nproc,
    Out,
    Rank,
    Run,
    Seed,
    Sets,
    Steps,
    Tokenizer,
    Workers,
    WorldSize,
    failed_shards,
    finish,
    one_of,
    sentences,
    too_few,
)

app = typer.Typer(
    name="capfilt",
    help="BLIP's CapFilt: caption and filter noisy web pairs, rewrite the data set, retrain, repeat.",
    epilog="See it all at work: capfilt demo",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


class Task(StrEnum):
    """What a checkpoint is finetuned for."""

    caption = "caption"
    retrieval = "retrieval"
    vqa = "vqa"
    nlvr = "nlvr"


class Exam(StrEnum):
    """What a checkpoint is evaluated on."""

    caption = "caption"
    retrieval = "retrieval"
    vqa = "vqa"
    nlvr = "nlvr"
    classify = "classify"


class Format(StrEnum):
    """The kinds of checkpoints that can be written."""

    blipcore = "blipcore"
    hf = "hf"
    official = "official"


@app.command(epilog="Example: capfilt download urls.parquet data --image-size 384")
@sentences
def download(
    urls: Annotated[str, typer.Argument(metavar="URLS", help="txt, csv, tsv, json, jsonl (.gz too) or parquet.")],
    data: Annotated[str, typer.Argument(metavar="DATA", help="Folder for the shards.")],
    url_col: Annotated[str | None, typer.Option(help="Column of the URLs; found by its usual names.")] = None,
    caption_col: Annotated[str | None, typer.Option(help="Column of the texts; found by its usual names.")] = None,
    shard_size: Annotated[int | None, typer.Option(help="Rows to a shard. (10000)")] = None,
    image_size: Annotated[int | None, typer.Option(help="Longer side at most; 0 keeps all. (512)")] = None,
    retries: Annotated[int | None, typer.Option(help="Later passes over what may mend. (1)")] = None,
    retry_failed: Annotated[bool | None, typer.Option("--retry-failed", help="Ask again for what may mend.")] = None,
    threads: Annotated[int | None, typer.Option(help="Connections to a process. (64)")] = None,
    allow_private: Annotated[bool | None, typer.Option("--allow-private", help="Fetch from private hosts too.")] = None,
    duplicates: Duplicates = None,
    min_success: Annotated[float | None, typer.Option(help="Share of rows for exit code 0. (0.2)")] = None,
    workers: Workers = None,
    config: Config = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Fetch a list of URLs into shards; every row ends with an outcome. Run it again to finish what is left."""
    from capfilt.ingest import download as stage

    settings = resolve(stage.DownloadConfig, config, sets or (), {
        "urls": urls, "out": data, "url_col": url_col, "caption_col": caption_col, "shard_size": shard_size,
        "image_size": image_size, "retries": retries, "retry_failed": retry_failed,
        "threads": threads, "allow_private": allow_private, "duplicates": duplicates, "min_success": min_success,
        "workers": workers,
    })  # fmt: skip
    summary = stage.download(settings)
    finish(summary, as_json, failed_shards(summary) or summary["stopped"] or too_few(summary, settings.min_success))


@app.command(epilog="Example: capfilt pack photos data")
@sentences
def pack(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Folder, annotation file, Parquet, dataset or tars.")],
    data: Annotated[str, typer.Argument(metavar="DATA", help="Folder for the shards.")],
    annotations: Annotated[str | None, typer.Option(help="CSV, JSON or COCO file for the pictures of SOURCE.")] = None,
    image_col: Annotated[str | None, typer.Option(help="Column of the pictures or their paths.")] = None,
    caption_col: Annotated[str | None, typer.Option(help="Column of the texts; found by its usual names.")] = None,
    shard_size: Annotated[int | None, typer.Option(help="Rows to a shard. (10000)")] = None,
    image_size: Annotated[int | None, typer.Option(help="Longer side at most; 0 keeps all. (512)")] = None,
    duplicates: Duplicates = None,
    min_success: Annotated[float | None, typer.Option(help="Share of rows for exit code 0. (0.2)")] = None,
    workers: Workers = None,
    config: Config = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Make shards of pictures that you have; each ends with an outcome. Run it again to finish what is left."""
    from capfilt.ingest import pack as stage

    settings = resolve(stage.PackConfig, config, sets or (), {
        "source": source, "out": data, "annotations": annotations, "image_col": image_col, "caption_col": caption_col,
        "shard_size": shard_size, "image_size": image_size, "duplicates": duplicates, "min_success": min_success,
        "workers": workers,
    })  # fmt: skip
    summary = stage.pack(settings)
    finish(summary, as_json, failed_shards(summary) or too_few(summary, settings.min_success))


@app.command(epilog="Example: capfilt caption data --model runs/captioner/model --name blip")
@sentences
def caption(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Shard set with the pictures.")],
    model: Annotated[str | None, typer.Option(help="Folder, .pth or hub id; hf:MODEL, openai:MODEL.")] = None,
    base_url: Annotated[str | None, typer.Option(help="Server of openai:MODEL; or OPENAI_BASE_URL.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What to ask hf: and openai: for, or BLIP to begin with.")] = None,
    mode: Annotated[str | None, one_of("--mode", "nucleus", "beam", "greedy")] = None,
    num_captions: Annotated[int | None, typer.Option(help="Captions of a picture. (1)")] = None,
    tokenizer: Tokenizer = None,
    name: Name = None,
    out: Out = None,
    batch_size: BatchSize = None,
    device: Device = None,
    dtype: Dtype = None,
    backend: Backend = None,
    workers: Workers = None,
    engine: Engine = None,
    rank: Rank = None,
    world_size: WorldSize = None,
    seed: Seed = None,
    config: Config = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Write synthetic captions: DATA/captions/NAME, one table a shard."""
    from capfilt.caption.stage import CaptionConfig, caption_shards

    settings = resolve(CaptionConfig, config, sets or (), {
        "data": data, "model": model, "server.base_url": base_url,
        "generate.prompt": prompt, "generate.mode": mode, "generate.num_captions": num_captions, "generate.seed": seed,
        "chat.prompt": prompt, "chat.mode": mode, "chat.num_captions": num_captions, "chat.seed": seed,
        "tokenizer": tokenizer, "name": name, "out": out, "batch_size": batch_size,
        "device": device, "dtype": dtype, "backend": backend, "workers": workers, "engine": engine, "rank": rank,
        "world_size": world_size,
    })  # fmt: skip
    summary = caption_shards(settings)
    finish(summary, as_json, failed_shards(summary))


@app.command(name="filter", epilog="Example: capfilt filter data --model runs/filter/model --threshold 0.5")
@sentences
def filter_(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Shard set with the pictures.")],
    model: Annotated[str | None, typer.Option(help="Filter: a checkpoint with ITM and ITC heads.")] = None,
    threshold: Annotated[str | None, typer.Option(help="Least ITM probability; auto reaches --target. (0.5)")] = None,
    labels: Annotated[str | None, typer.Option(help="Labelled texts: key, source, index, match.")] = None,
    target: Annotated[str | None, typer.Option(help="Of auto: precision=S or recall=S. (precision=0.9)")] = None,
    top_fraction: Annotated[float | None, typer.Option(help="Keep this share of the texts, the best.")] = None,
    best_of: Annotated[str | None, typer.Option(help="Of each source's texts keep the best by itm, itc, clip.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Print what each threshold keeps; write none.")] = False,
    sources: Annotated[list[str] | None, typer.Option(help="web or a captioner; repeatable. (all)")] = None,
    captioner: Annotated[str | None, typer.Option(help="Also caption, in the same pass: folder, .pth or id.")] = None,
    captioner_name: Annotated[str | None, typer.Option(help="Name of those captions. (blip, or the model's)")] = None,
    clip: Annotated[list[str] | None, typer.Option(help="Also score with open_clip:ARCH/TAG; repeatable.")] = None,
    scores: Annotated[str | None, typer.Option(help="Folder under scores/ to use or to make.")] = None,
    tokenizer: Tokenizer = None,
    name: Name = None,
    out: Out = None,
    batch_size: BatchSize = None,
    device: Device = None,
    dtype: Dtype = None,
    backend: Backend = None,
    workers: Workers = None,
    engine: Engine = None,
    rank: Rank = None,
    world_size: WorldSize = None,
    config: Config = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Score texts against their pictures, keep what matches, rewrite: DATA/filtered/NAME, one table a shard."""
    from capfilt.caption_and_filter import CaptionFilterConfig, caption_and_filter
    from capfilt.filter.decide import as_typed
    from capfilt.filter.stage import explain_thresholds
    from capfilt.filter.threshold import as_lines

    settings = resolve(CaptionFilterConfig, config, sets or (), {
        "data": data, "model": model, "threshold": threshold, "labels": labels, "target": target,
        "top_fraction": top_fraction, "best_of": best_of, "sources": sources or None, "clip": clip or None,
        "captioner.model": captioner, "captioner.name": captioner_name,
        "scores": scores, "tokenizer": tokenizer, "name": name, "out": out, "batch_size": batch_size,
        "device": device, "dtype": dtype, "backend": backend, "workers": workers, "engine": engine, "rank": rank,
        "world_size": world_size,
    })  # fmt: skip
    if explain:
        told = caption_and_filter(settings, then=explain_thresholds)
        shown = {"threshold": as_typed(told["threshold"]), "thresholds": None}
        finish(told if as_json else told | shown, as_json)
        if not as_json:
            print("\n".join(as_lines(told["thresholds"], told["threshold"])))
        return
    summary = caption_and_filter(settings)
    shown = {} if as_json else {"threshold": as_typed(summary["threshold"])}
    finish(summary | shown, as_json, failed_shards(summary))


@app.command(epilog="Example: capfilt pretrain data/filtered/r1=0.8 coco.json=0.2 --out runs/r1 --steps 20000")
@sentences
def pretrain(
    data: Annotated[
        list[str], typer.Argument(metavar="DATASET...", help="Filtered folder, shard set or JSON; all with =W or none.")
    ],
    out: Run,
    preset: Annotated[str | None, one_of("--preset", "base", "tiny", "large")] = None,
    init: Annotated[str | None, typer.Option(help="Checkpoint to continue from; a new model without.")] = None,
    vision: Annotated[str | None, typer.Option(help="Image encoder: file, open_clip:…, timm:… or hub id.")] = None,
    text: Annotated[str | None, typer.Option(help="Text transformer: BERT folder or hub id.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Tokenizer, or train:N for N word pieces of the data.")] = None,
    image_root: ImageRoot = None,
    steps: Steps = None,
    epochs: Epochs = None,
    lr: LearningRate = None,
    batch_size: BatchSize = None,
    device: Device = None,
    dtype: Dtype = None,
    workers: Workers = None,
    nproc: Nproc = 1,
    seed: Seed = None,
    config: Config = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Train a model on image-text pairs with BLIP's three losses; run it again to resume."""
    from blipcore.train import runs
    from blipcore.train.launch import launch

    settings = resolve(runs.PretrainRun, config, sets or (), {
        "data": data, "preset": preset, "init": init, "vision": vision, "text": text, "tokenizer": tokenizer,
        "image_root": image_root, "train.steps": steps, "train.epochs": epochs, "train.lr": lr,
        "train.batch_size": batch_size, "train.device": device, "train.dtype": dtype, "train.workers": workers,
        "train.seed": seed,
    })  # fmt: skip
    finish(launch(nproc, runs.pretrain, settings, out), as_json)


@app.command(epilog="Example: capfilt finetune caption coco_train.json --init runs/r1/model --out runs/captioner")
@sentences
def finetune(
    task: Annotated[Task, typer.Argument(help="caption gives a captioner, retrieval a filter; vqa, nlvr.")],
    annotations: Annotated[
        list[str],
        typer.Argument(metavar="ANNOTATIONS...", help="JSON of pictures and captions, questions or sentences."),
    ],
    out: Run,
    init: Annotated[str | None, typer.Option(help="Checkpoint to start from.")] = None,
    tokenizer: Tokenizer = None,
    image_size: ImageSize = None,
    image_root: ImageRoot = None,
    steps: Steps = None,
    epochs: Epochs = None,
    lr: LearningRate = None,
    batch_size: BatchSize = None,
    device: Device = None,
    dtype: Dtype = None,
    workers: Workers = None,
    nproc: Nproc = 1,
    seed: Seed = None,
    config: Config = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Finetune a checkpoint on clean data: a captioner, a filter, VQA or NLVR2; run it again to resume."""
    from blipcore.train import runs
    from blipcore.train.launch import launch

    settings = resolve(runs.FinetuneRun, config, sets or (), {
        "task": task.value, "annotations": annotations, "init": init, "tokenizer": tokenizer,
        "image_size": image_size, "image_root": image_root, "train.steps": steps, "train.epochs": epochs,
        "train.lr": lr, "train.batch_size": batch_size, "train.device": device, "train.dtype": dtype,
        "train.workers": workers, "train.seed": seed,
    })  # fmt: skip
    finish(launch(nproc, runs.finetune, settings, out), as_json)


@app.command(epilog="Example: capfilt evaluate retrieval coco_test.json --model runs/r1/model")
@sentences
def evaluate(
    task: Annotated[
        Exam, typer.Argument(help="caption: CIDEr and others; retrieval: recall; vqa, nlvr, classify: accuracy.")
    ],
    annotations: Annotated[
        str, typer.Argument(metavar="ANNOTATIONS", help="JSON of pictures and what is said of them, or class folders.")
    ],
    model: Annotated[str | None, typer.Option(help="Checkpoint to evaluate.")] = None,
    results: Annotated[str | None, typer.Option(help="Write captions, answers or classes to this JSON file.")] = None,
    answers: Annotated[str | None, typer.Option(help="vqa: rank these candidates, a JSON list or lines.")] = None,
    tokenizer: Tokenizer = None,
    image_size: ImageSize = None,
    image_root: ImageRoot = None,
    batch_size: BatchSize = None,
    device: Device = None,
    dtype: Dtype = None,
    config: Config = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Score a checkpoint on an annotation file."""
    from blipcore import evaluation

    settings = resolve(evaluation.EvaluateRun, config, sets or (), {
        "task": task.value, "annotations": annotations, "model": model, "results": results, "answers": answers,
        "tokenizer": tokenizer, "image_size": image_size, "image_root": image_root, "batch_size": batch_size,
        "device": device, "dtype": dtype,
    })  # fmt: skip
    finish(evaluation.evaluate(settings), as_json)


@app.command(epilog="Example: capfilt convert model_base_retrieval_coco.pth filter --to hf")
@sentences
def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="blipcore folder, official .pth, Hugging Face BLIP.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="Folder to write; a .pth file for official.")],
    to: Annotated[Format, typer.Option(help="What to write.")] = Format.blipcore,
    task: Annotated[
        str | None, one_of("--task", *Task, about="Keep only what this task runs on, e.g. caption.")
    ] = None,
    tokenizer: Tokenizer = None,
    image_size: ImageSize = None,
    numerics: Annotated[
        str | None,
        one_of("--numerics", "official", "transformers", about="Of a HF source: official or transformers. (official)"),
    ] = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Turn any BLIP checkpoint into another kind: same tensors, same numbers."""
    from blipcore.checkpoints.convert import ConvertRun
    from blipcore.checkpoints.convert import convert as convert_checkpoint

    settings = resolve(ConvertRun, None, sets or (), {
        "source": source, "target": target, "to": to.value, "task": task, "tokenizer": tokenizer,
        "image_size": image_size, "numerics": numerics,
    })  # fmt: skip
    finish(convert_checkpoint(settings), as_json)


@app.command(epilog="Example: capfilt report data/filtered/r2 --compare data/filtered/r1 --out report.html")
@sentences
def report(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="A filtered folder, or a set filtered once.")],
    compare: Annotated[list[str] | None, typer.Option(help="Another to show beside it; repeatable.")] = None,
    out: Annotated[str | None, typer.Option("--out", metavar="FILE", help="The page. (report.html)")] = None,
    pictures: Annotated[int | None, typer.Option(help="Of each kind in the gallery. (24)")] = None,
    as_json: Json = False,
) -> None:
    """Show what the filter did: one HTML file with counts, scores, a threshold to move and pictures."""
    from capfilt.report import stage as page

    settings = resolve(page.ReportConfig, None, (), {
        "dataset": dataset, "compare": compare or None, "out": out, "pictures": pictures,
    })  # fmt: skip
    finish(page.report(settings), as_json)


@app.command(epilog="Example: capfilt doctor /data")
@sentences
def doctor(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Where the data will lie.")] = ".",
    as_json: Json = False,
) -> None:
    """Say whether this machine is ready, and what to do if it is not."""
    from capfilt import doctor as checks

    findings = checks.examine(data)
    if as_json:
        finish(checks.report(findings), as_json)
    else:
        print("\n".join(checks.as_lines(findings)))
    if not checks.report(findings)["ready"]:
        raise typer.Exit(1)


@app.command(epilog="Example: capfilt export data/filtered/r2 out --format parquet --decontaminate coco/val2017")
@sentences
def export(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="A filtered folder, or a set filtered once.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder for the files.")],
    format: Annotated[str | None, one_of("--format", "webdataset", "parquet", "json")] = None,
    decontaminate: Annotated[
        list[str] | None, typer.Option(metavar="DIR", help="Leave out what looks like a picture there; repeatable.")
    ] = None,
    licence: Annotated[str | None, typer.Option(help="Of the pairs, for the data set card.")] = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Hand the kept pairs on to other trainers: open_clip, datasets, BLIP's lists."""
    from capfilt.export import stage

    settings = resolve(stage.ExportConfig, None, (), {
        "dataset": dataset, "out": out, "format": format, "decontaminate": decontaminate or None,
        "licence": licence, "workers": workers,
    })  # fmt: skip
    summary = stage.export(settings)
    finish(summary, as_json, failed_shards(summary))


@app.command(epilog="Example: capfilt bootstrap bootstrap.yaml --dry-run")
@sentences
def bootstrap(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML: data, human, out, and each step's settings.")],
    rounds: Annotated[int | None, typer.Option(help="Rounds of caption, filter, retrain. (1)")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, run nothing.")] = False,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Run the loop from one YAML, round after round; run it again to go on where it was."""
    from rich.console import Console

    from capfilt import bootstrap as loop
    from capfilt.bootstrap_plan import BootstrapConfig

    settings = resolve(BootstrapConfig, config, sets or (), {"rounds": rounds})
    if dry_run:
        finish(loop.dry_run(settings, Console(highlight=False, stderr=as_json)), as_json)
    else:
        finish(loop.bootstrap(settings), as_json)


@app.command(epilog="Example: capfilt demo --out demo --rows all")
@sentences
def demo(
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the demo. (demo)")] = None,
    scale: Annotated[float | None, typer.Option(help="Size of corpus and training. (1)")] = None,
    seed: Seed = None,
    rows: Annotated[
        str | None, one_of("--rows", "main", "all", about="main, or all: filter-only and captioner-only too.")
    ] = None,
    quick: Annotated[bool | None, typer.Option("--quick", help="A smoke run of two minutes; no claim.")] = None,
    lang: Annotated[str | None, one_of("--lang", "en", "zh", about="Language of the texts, en or zh. (en)")] = None,
    as_json: Json = False,
) -> None:
    """Run the whole loop on an embedded corpus, printing the commands: 15 minutes on two cores."""
    from capfilt.demo.run import DemoConfig, run_demo

    settings = resolve(DemoConfig, None, (), {
        "out": out, "scale": scale, "seed": seed, "rows": rows, "quick": quick, "lang": lang,
    })  # fmt: skip
    summary = run_demo(settings)
    if as_json:
        finish(summary, as_json)


def main() -> None:
    """Entry point of `capfilt`."""
    app(prog_name="capfilt")
