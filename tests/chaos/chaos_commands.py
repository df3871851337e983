"""The commands that are killed: one entry each. A new command needs one more entry."""

from __future__ import annotations

from dataclasses import dataclass

# Options of the commands with a model: small, and the same bytes for any number of workers.
MODEL = ("--model", "{inputs}/model", "--device", "cpu", "--dtype", "fp32", "--backend", "torch", "--batch-size", "8")
TRAIN = ("--steps", "6", "--batch-size", "4", "--device", "cpu", "--dtype", "fp32", "--out", "{work}/run")
SAVE_OFTEN = ("--set", "train.save_every=2", "--set", "train.log_every=1")
PRETRAIN = ("pretrain", "{work}/data", "--init", "{inputs}/model", *TRAIN, *SAVE_OFTEN, "--set", "task.queue_size=8")
FINETUNE = ("--init", "{inputs}/model", *TRAIN, *SAVE_OFTEN)

TRIAL = ("trial", "{work}/data/filtered/capfilt", "{inputs}/human.json", "--test", "{inputs}/test.json")
TRIAL += ("--steps", "3", "--seeds", "2", "--out", "{work}/trial", "--set", "pretrain.init={inputs}/model")
TRIAL += ("--set", "pretrain.task.queue_size=8", "--set", "evaluate={device: cpu, dtype: fp32, words: plain, k: 4}")
TRIAL += ("--set", "pretrain.train={batch_size: 4, device: cpu, dtype: fp32, save_every: 1, log_every: 1}")


@dataclass(frozen=True)
class Entry:
    """A command with `{inputs}`, `{work}`, `{url}` and `{chat}`, a server of a model, in its arguments.

    `start` names the entry whose result is copied to `{work}` first. `outputs` are the files and folders below `{work}`
    that must have the bytes of an uninterrupted run. `share` is the number of its tries relative to other entries. A
    command with `once` refuses to write over its outputs.
    """

    name: str
    arguments: tuple[str, ...]
    outputs: tuple[str, ...]
    start: str | None = None
    share: int = 4
    once: bool = False


ENTRIES = [
    Entry("pack", ("pack", "{inputs}/photos", "{work}/data", "--shard-size", "8", "--workers", "1"), ("data",)),
    Entry(
        "download",
        ("download", "{inputs}/urls.txt", "{work}/data", "--shard-size", "6", "--workers", "1", "--allow-private"),
        ("data",),
        share=2,
    ),
    Entry("inspect", ("inspect", "{inputs}/photos"), (), share=2),
    Entry("caption", ("caption", "{work}/data", *MODEL), ("data",), start="pack", share=8),
    Entry("caption --workers 2", ("caption", "{work}/data", *MODEL, "--workers", "2"), ("data",), start="pack"),
    Entry("filter", ("filter", "{work}/data", *MODEL), ("data",), start="caption", share=8),
    Entry("filter --workers 2", ("filter", "{work}/data", *MODEL, "--workers", "2"), ("data",), start="caption"),
    Entry(
        "filter --captioner",
        ("filter", "{work}/data", *MODEL, "--captioner", "{inputs}/model"),
        ("data",),
        start="pack",
        share=8,
    ),
    Entry(
        "filter --judge",
        (
            *("filter", "{work}/data", *MODEL, "--judge", "openai:tiny-vlm", "--base-url", "{chat}"),
            *("--set", "judge.server.cache={work}/answers.sqlite", "--set", "min_scores.vqa=0.3"),
        ),
        ("data",),
        start="caption",
    ),
    Entry(
        "fuse",
        (
            *("fuse", "{work}/data", "--model", "openai:tiny-vlm", "--base-url", "{chat}", "--source", "blip"),
            *("--set", "server.cache={work}/answers.sqlite"),
        ),
        ("data",),
        start="caption",
    ),
    Entry(
        "filter with vectors", ("filter", "{work}/data", *MODEL, "--set", "vectors=true"), ("data",), start="caption"
    ),
    Entry(
        "select",
        (
            *("select", "{work}/data/filtered/capfilt", "--name", "selected"),
            *("--duplicates", "0.99", "--per-cluster", "3"),
        ),
        ("data",),
        start="filter with vectors",
    ),
    Entry("report", ("report", "{work}/data", "--out", "{work}/report.html"), ("report.html",), start="filter"),
    *(
        Entry(
            f"export --format {form}",
            ("export", "{work}/data", "{work}/out", "--format", form),
            ("out",),
            start="filter",
        )
        for form in ("webdataset", "parquet", "json", "textfiles", "clip_benchmark")
    ),
    Entry(
        "export --workers 2",
        ("export", "{work}/data", "{work}/out", "--workers", "2"),
        ("out",),
        start="filter",
        share=1,
    ),
    Entry(
        "convert --to hf",
        ("convert", "{inputs}/model", "{work}/hf", "--to", "hf", "--task", "caption"),
        ("hf",),
        share=2,
        once=True,
    ),
    Entry(
        "convert --to official",
        ("convert", "{inputs}/model", "{work}/m.pth", "--to", "official"),
        ("m.pth",),
        share=2,
        once=True,
    ),
    Entry("finetune caption", ("finetune", "caption", "{inputs}/human.json", *FINETUNE), ("run/model",)),
    Entry(
        "finetune retrieval",
        ("finetune", "retrieval", "{inputs}/human.json", *FINETUNE, "--set", "retrieval.queue_size=8"),
        ("run/model",),
    ),
    Entry("pretrain", PRETRAIN, ("run/model",), start="filter"),
    Entry("pretrain --nproc 2", (*PRETRAIN, "--nproc", "2"), ("run/model",), start="filter", share=1),
    Entry(
        "evaluate",
        (
            *("evaluate", "retrieval", "{inputs}/test.json", "--model", "{inputs}/model"),
            *("--device", "cpu", "--dtype", "fp32"),
        ),
        (),
    ),
    Entry("trial", TRIAL, ("trial/result.json", "trial/result.svg", "trial/runs"), start="filter", share=1),
    Entry("bootstrap", ("bootstrap", "{work}/loop.yaml"), ("data", "loop"), start="pack", share=1),
]

# Files that hold times, process numbers or messages.
VOLATILE = r"(^|/)(logs/|tensorboard/|metrics\.jsonl|launches\.jsonl|summary\.json|losses\.svg|\.lock|checkpoints/)"
