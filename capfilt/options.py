"""Command-line options, grouped by their panels in `--help`, and the step from options to a config.

An option sets the config field of the same name, unless its command passes another. None means that it is not given.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from capfilt.config import resolve

T = TypeVar("T")

# The panels of --help, the same in every command.
READ = "What to read"
DOWNLOAD = "How to download"
MODEL = "Which model"
CAPTION = "How to caption"
DECIDE = "How to decide"
TRAIN = "How to train"
RUN = "Where to run"
OUTPUT = "Output"
SETTINGS = "Other settings"

NOT_SETTINGS = ("config", "sets", "as_json")  # parameters that are no fields of a config


class FinetuneTask(enum.StrEnum):
    """Tasks that `capfilt finetune` trains for."""

    caption = "caption"
    retrieval = "retrieval"
    vqa = "vqa"
    nlvr = "nlvr"


class EvaluateTask(enum.StrEnum):
    """Tasks that `capfilt evaluate` scores."""

    caption = "caption"
    retrieval = "retrieval"
    vqa = "vqa"
    nlvr = "nlvr"
    classify = "classify"
    judge = "judge"


class CheckpointFormat(enum.StrEnum):
    """Formats that `capfilt convert` writes."""

    blipcore = "blipcore"
    hf = "hf"
    official = "official"


def argument(metavar: str | None, text: str) -> Any:
    """Return a positional argument for `Annotated`."""
    return typer.Argument(metavar=metavar, help=text)


def option(
    panel: str, text: str, *flags: str, default: object = None, values: Collection[str] = (), metavar: str | None = None
) -> Any:
    """Return an option for `Annotated`. The Tab key completes `values`; the config checks the value.

    `default` is only displayed. It repeats the config's default, because importing the config would make `--help` slow.
    """
    if default is not None:
        text += rf" [dim]\[default: {default}][/dim]"
    completion = (lambda: list(values)) if values else None
    return typer.Option(*flags, help=text, rich_help_panel=panel, metavar=metavar, autocompletion=completion)


def flag(panel: str, text: str, name: str) -> Any:
    """Return an option without a value for `Annotated`."""
    return typer.Option(name, help=text, rich_help_panel=panel, metavar="")  # `--help` would show <bool>


def read_settings(context: typer.Context, cls: type[T], fields: Mapping[str, str | None] | None = None) -> T:
    """Build the config of a command from its options, `--set`, `--config` and its defaults.

    `fields` maps an option to a field of another name, with dots for nested fields, or to None if it is no setting.
    Raises ValueError for an invalid setting.
    """
    fields = fields or {}
    overrides = {}
    for name, value in context.params.items():
        field = fields.get(name, name)
        is_empty = value is None or (isinstance(value, (list, tuple)) and not value)
        if field is not None and name not in NOT_SETTINGS and not is_empty:
            overrides[field] = value.value if isinstance(value, enum.Enum) else value
    return resolve(cls, context.params.get("config"), context.params.get("sets") or (), overrides)


# --- Arguments ------------------------------------------------------------------------------------------------------

Urls = Annotated[str, argument("URLS", "List of URLs: a file of any format, a folder or a pattern of parts.")]
Source = Annotated[str, argument("SOURCE", "Picture folder, annotation file, Parquet, saved dataset or tars.")]
InspectSource = Annotated[str, argument("SOURCE", "Any input of download or pack, a shard set or a filtered set.")]
NewShards = Annotated[str, argument("DATA", "Folder or URL to write the shards to.")]
PackedShards = Annotated[str | None, argument("DATA", "Folder or URL to write the shards to; not with --texts.")]
Shards = Annotated[str, argument("DATA", "Shard set: the output of download or pack.")]
Datasets = Annotated[
    list[str], argument("DATASET", "Filtered set, shard set or JSON file; add =WEIGHT to all or none.")
]
FinetuneArgument = Annotated[FinetuneTask, argument("TASK", "caption trains a captioner, retrieval a filter.")]
TrainFiles = Annotated[
    list[str], argument("ANNOTATIONS", "JSON or CSV files, image folders, shard sets; for vqa and nlvr JSON files.")
]
EvaluateArgument = Annotated[
    EvaluateTask, argument("TASK", "caption: CIDEr, BLEU; retrieval: recall; judge: tests of scores; others: accuracy.")
]
TestFile = Annotated[
    str, argument("ANNOTATIONS", "As for finetune; for classify a JSON file or a folder of class folders.")
]
CheckpointSource = Annotated[str, argument("SRC", "blipcore folder, official .pth or Hugging Face BLIP folder.")]
CheckpointTarget = Annotated[Path, argument("DST", "Folder to write; for official, a .pth file.")]
LoopConfig = Annotated[Path, argument("CONFIG", "YAML file: data, human, out, and a section per command.")]
DataFolder = Annotated[str, argument("DATA", "Folder planned for the data; its disk is checked.")]

# --- What to read ---------------------------------------------------------------------------------------------------

UrlColumn = Annotated[str | None, option(READ, "Column of the URLs.", default="a usual name, such as url")]
CaptionColumns = Annotated[
    list[str] | None,
    option(
        READ,
        "Column of texts, the web text first; repeatable; none for no texts.",
        "--caption-col",
        default="a usual name, such as caption",
        metavar="NAME",
    ),
]
NoHeader = Annotated[bool | None, flag(READ, "The list has no header; its columns are 1, 2, ...", "--no-header")]
ListColumns = Annotated[
    str | None, option(READ, "Names of the columns of a list without a header, joined by commas.", "--columns")
]
Quoting = Annotated[
    str | None,
    option(
        READ,
        "Quotes in csv and tsv: none (part of the text), double or backslash.",
        default="detected",
        values=("none", "double", "backslash"),
    ),
]
KeepColumns = Annotated[
    list[str] | None,
    option(READ, "Further column to keep, or none; repeatable.", default="all", metavar="COLUMN"),
]
NewTexts = Annotated[
    str | None, option(READ, "List of keys or URLs with texts to add to the shard set SOURCE.", "--texts")
]
Encoding = Annotated[
    str | None, option(READ, "Encoding of text files, such as cp1252.", default="UTF-8, or by its byte order mark")
]
KINDS = ("folder", "imagefolder", "annotations", "parquet", "dataset", "webdataset")
PackKind = Annotated[
    str | None, option(READ, f"Kind of SOURCE: {', '.join(KINDS)}.", "--kind", default="detected", values=KINDS)
]
InspectKind = Annotated[
    str | None,
    option(READ, f"Kind of SOURCE: list, {', '.join(KINDS)}.", "--kind", default="detected", values=("list", *KINDS)),
]
Split = Annotated[str | None, option(READ, "Split to read, several as train+val, or all.", default="the only one")]
ImageColumn = Annotated[str | None, option(READ, "Column of pictures or paths.", default="a usual name, such as image")]
Annotations = Annotated[str | None, option(READ, "CSV, JSON or COCO file that names pictures under SOURCE.")]
ImageRoot = Annotated[str | None, option(READ, "Root of relative picture paths.", default="folder of the JSON file")]
Sources = Annotated[
    list[str] | None, option(READ, "Texts: web or a captioner's name; repeatable.", default="all", metavar="NAME")
]
Mixture = Annotated[
    str | None,
    option(READ, "How often each text is drawn: web=0.5,blip=0.5 or itm/0.1.", default="all alike"),
]
ScoresName = Annotated[str | None, option(READ, "Name of the scores to reuse or write.", default="reuse any that fit")]
TrainLabels = Annotated[
    str | None, option(READ, "For retrieval: learn ITM from labels of the filtered set ANNOTATIONS.", "--labels")
]
Answers = Annotated[str | None, option(READ, "For vqa: possible answers, as a JSON list or one per line.")]

# --- How to download ------------------------------------------------------------------------------------------------

Retries = Annotated[int | None, option(DOWNLOAD, "Retries of temporary failures, such as timeouts.", default=1)]
RetryFailed = Annotated[bool | None, flag(DOWNLOAD, "Retry the temporary failures of earlier runs.", "--retry-failed")]
Threads = Annotated[int | None, option(DOWNLOAD, "Connections per process.", default=64)]
AllowPrivate = Annotated[
    bool | None, flag(DOWNLOAD, "Also fetch from private addresses, such as localhost.", "--allow-private")
]

# --- Which model ----------------------------------------------------------------------------------------------------

Model = Annotated[str | None, option(MODEL, "Checkpoint to evaluate: folder, .pth or hub id.")]
CaptionModel = Annotated[str | None, option(MODEL, "Captioner: folder, .pth, hub id, hf:MODEL or openai:MODEL.")]
BaseUrl = Annotated[str | None, option(MODEL, "URL of the server of openai:MODEL.", default="$OPENAI_BASE_URL")]
FilterModel = Annotated[str | None, option(MODEL, "Filter: a checkpoint with ITM and ITC heads.")]
Clip = Annotated[list[str] | None, option(MODEL, "Also score with open_clip:ARCH/TAG; repeatable.", metavar="MODEL")]
Scorers = Annotated[
    list[str] | None,
    option(
        MODEL,
        "Also score with lm:CAPTIONER, FILE.py:CLASS or another filter; repeatable.",
        "--scorer",
        metavar="SCORER",
    ),
]
JudgeUrl = Annotated[str | None, option(MODEL, "For judge: URL of the server of openai:MODEL.", "--base-url")]
Judge = Annotated[str | None, option(MODEL, "Also judge the texts with hf:MODEL or openai:MODEL, as vqa.")]
CaptionerModel = Annotated[str | None, option(MODEL, "Captioner that writes captions in the same pass.")]
CaptionerName = Annotated[str | None, option(MODEL, "Name of its captions.", default="blip, or the model's name")]
ModelSize = Annotated[
    str | None,
    option(MODEL, "Size of a new model: tiny, base or large.", default="base", values=("base", "tiny", "large")),
]
Init = Annotated[str | None, option(MODEL, "Checkpoint to start from.")]
Vision = Annotated[str | None, option(MODEL, "Image encoder: file, open_clip:ARCH/TAG, timm:NAME or hub id.")]
Text = Annotated[str | None, option(MODEL, "Text transformer: BERT folder or hub id.")]
TokenizerPath = Annotated[str | None, option(MODEL, "Tokenizer: folder, vocab.txt or hub id.", default="the model's")]
NewTokenizer = Annotated[
    str | None, option(MODEL, "Tokenizer, or train:N to learn N word pieces.", default="of --init, --text or BERT")
]
ImageSize = Annotated[int | None, option(MODEL, "Side of the input image in pixels.", default="the model's")]
Numerics = Annotated[
    str | None,
    option(
        MODEL,
        "Numbers of a Hugging Face BLIP: official or transformers.",
        default="official",
        values=("official", "transformers"),
    ),
]

# --- How to caption -------------------------------------------------------------------------------------------------

Prompt = Annotated[str | None, option(CAPTION, "Start of BLIP's captions; instruction to hf: and openai: models.")]
Mode = Annotated[
    str | None,
    option(CAPTION, "Decoding: nucleus, beam or greedy.", default="nucleus", values=("nucleus", "beam", "greedy")),
]
NumCaptions = Annotated[int | None, option(CAPTION, "Captions per picture.", default=1)]

# --- How to decide --------------------------------------------------------------------------------------------------

Threshold = Annotated[str | None, option(DECIDE, "Minimum ITM; auto: a learned mix reaches --target.", default=0.5)]
Labels = Annotated[str | None, option(DECIDE, "File with columns key, source, index, match (1 or 0); learns mix.")]
Target = Annotated[str | None, option(DECIDE, "For auto: precision=X or recall=X.", default="precision=0.9")]
TopFraction = Annotated[float | None, option(DECIDE, "Share of the texts to keep, instead of a threshold.")]
BestOf = Annotated[
    str | None, option(DECIDE, "Keep one text per picture and source, best by a score: itm, mix, clip ...")
]
Sentences = Annotated[bool | None, flag(DECIDE, "Also score each sentence, as itm_min and itm_mean.", "--sentences")]
Repair = Annotated[
    bool | None, flag(DECIDE, "Drop the sentences below the threshold, and keep the others.", "--repair")
]
Explain = Annotated[
    bool, flag(DECIDE, "Print how many texts each threshold keeps; write no filtered set.", "--explain")
]

# --- How to train ---------------------------------------------------------------------------------------------------

Steps = Annotated[int | None, option(TRAIN, "Optimizer steps.")]
Epochs = Annotated[float | None, option(TRAIN, "Passes over the pictures, instead of --steps.")]
PretrainRate = Annotated[float | None, option(TRAIN, "Peak learning rate.", default=3e-4)]
FinetuneRate = Annotated[float | None, option(TRAIN, "Peak learning rate.", default=1e-5)]
TrainBatchSize = Annotated[int | None, option(TRAIN, "Pictures per batch and process.", default=32)]
Continue = Annotated[bool, flag(TRAIN, "Continue a run with other --steps, --lr or validation settings.", "--continue")]
TrainSeed = Annotated[int | None, option(TRAIN, "Random seed.", default=42)]

# --- Where to run ---------------------------------------------------------------------------------------------------

BatchSize = Annotated[int | None, option(RUN, "Pictures per batch.", default="32 on a CPU, what fits on a GPU")]
EvaluateBatchSize = Annotated[int | None, option(RUN, "Pictures per batch.", default=64)]
Device = Annotated[
    str | None, option(RUN, "auto, cpu, cuda or cuda:N.", default="auto", values=("auto", "cpu", "cuda"))
]
DtypeName = Annotated[
    str | None,
    option(RUN, "bf16, fp32 or auto: bf16 where it is fast.", default="auto", values=("auto", "bf16", "fp32")),
]
BACKENDS = ("auto", "torch", "compile", "openvino", "openvino-int8")
BackendName = Annotated[
    str | None,
    option(RUN, "Encoder: torch, compile, openvino, openvino-int8.", default="auto", values=BACKENDS),
]
Workers = Annotated[int | None, option(RUN, "Worker processes.", default=1)]
IngestWorkers = Annotated[int | None, option(RUN, "Worker processes.", default="one per core")]
DecodeWorkers = Annotated[int | None, option(RUN, "Extra processes that decode pictures.", default=0)]
Nproc = Annotated[int, option(RUN, "Training processes on this machine; use one per GPU.")]
Engine = Annotated[str | None, option(RUN, "local, or ray for a cluster.", default="local", values=("local", "ray"))]
Rank = Annotated[int | None, option(RUN, "Index of this run among --world-size, from 0.", default=0)]
WorldSize = Annotated[int | None, option(RUN, "Runs that share the shards, on any machines.", default=1)]

# --- Output ---------------------------------------------------------------------------------------------------------

ShardSize = Annotated[int | None, option(OUTPUT, "Rows per shard.", default=10_000)]
PictureSize = Annotated[int | None, option(OUTPUT, "Longest side in pixels; 0 keeps every size.", default=512)]
Duplicates = Annotated[
    str | None, option(OUTPUT, "Mark duplicate pictures: exact or near.", default="off", values=("exact", "near"))
]
MinSuccess = Annotated[float | None, option(OUTPUT, "Exit with code 1 if a smaller share of rows is ok.", default=0.2)]
TextsName = Annotated[
    str | None, option(OUTPUT, "Name of added --texts, otherwise the file's; web replaces the web texts.", "--name")
]
Name = Annotated[str | None, option(OUTPUT, "Name of the captions.", default="blip, or the model's name")]
FilteredName = Annotated[str | None, option(OUTPUT, "Name of the filtered set.", default="capfilt")]
Out = Annotated[str | None, option(OUTPUT, "Folder or URL for the tables.", default="DATA")]
RunPath = Annotated[Path, option(OUTPUT, "Run folder; the model goes to RUN/model.", metavar="RUN")]
ResultsFile = Annotated[str | None, option(OUTPUT, "JSON file to write captions, answers or classes to.")]
WriteFormat = Annotated[CheckpointFormat, option(OUTPUT, "Format to write.")]
CONVERTIBLE_TASKS = ("caption", "retrieval", "vqa", "nlvr")
KeepParts = Annotated[
    str | None, option(OUTPUT, "Keep only the parts for caption, retrieval, vqa or nlvr.", values=CONVERTIBLE_TASKS)
]
DemoFolder = Annotated[Path | None, option(OUTPUT, "Folder of the demo.", default="demo")]
Json = Annotated[bool, flag(OUTPUT, "Print the summary as one JSON object on stdout.", "--json")]

# --- Other settings -------------------------------------------------------------------------------------------------

Seed = Annotated[int | None, option(SETTINGS, "Random seed.", default=0)]
Rounds = Annotated[int | None, option(SETTINGS, "Rounds of captioning, filtering and retraining.", default=1)]
PaperTables = Annotated[
    list[int] | None, option(SETTINGS, "Table of the paper to repeat: 2, 3, 4, 12 or 13; repeatable.", "--table")
]
DryRun = Annotated[bool, flag(SETTINGS, "Print the plan; run nothing.", "--dry-run")]
Scale = Annotated[float | None, option(SETTINGS, "Factor on the numbers of pictures and training steps.", default=1.0)]
Rows = Annotated[
    str | None,
    option(SETTINGS, "Rows of the result table: main or all.", default="main", values=("main", "all")),
]
Quick = Annotated[bool | None, flag(SETTINGS, "Two-minute smoke run; its scores mean nothing.", "--quick")]
Language = Annotated[
    str | None, option(SETTINGS, "Language of the texts: en or zh.", default="en", values=("en", "zh"))
]
Config = Annotated[Path | None, option(SETTINGS, "YAML file of settings; --set and options override it.")]
Sets = Annotated[
    list[str] | None,
    option(SETTINGS, "Any setting by its name; repeatable.", "--set", metavar="NAME=VALUE"),
]
