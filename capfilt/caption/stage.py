"""Captions pictures: step 3 of CapFilt, one table per shard beside the pictures.

Reads `NNNNN.tar`. Writes `captions/<name>/NNNNN.parquet` with key, index, text, logprob and error, in the order of the
tar, and a manifest. A caption is a function of picture, model, settings, seed and key, so workers and restarts do not
change the tables. An undecodable picture has no rows; a missing caption has a row without a text. Footer and manifest
count both by reason.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

import pyarrow as pa

from blipcore.checkpoints.numerics import Numerics, describe_numerics
from blipcore.device import Backend, Dtype, resolve_backend, resolve_dtype
from blipcore.generate.config import GenerateConfig
from blipcore.io.lock import lock_folder
from blipcore.io.storage import AnyPath, to_path
from capfilt.caption.captioner import Caption, Captioner
from capfilt.caption.chat import ChatConfig
from capfilt.caption.registry import captioner_fingerprint, captioner_kind, open_captioner, recorded_settings
from capfilt.engine.run import EngineConfig, run_shards
from capfilt.engine.worker import Worker, worker_device
from capfilt.pictures.batching import BatchSplitter, resolve_batch_size
from capfilt.pictures.read_ahead import throughput
from capfilt.pictures.shard_pass import PictureBatch, PictureReader, ShardPass
from capfilt.shards.format import CAPTIONS, WEB
from capfilt.shards.input_check import require_same_inputs
from capfilt.shards.manifest import Manifest, recorded_backend, remove_manifest_if_empty
from capfilt.shards.shard_set import ShardSet
from capfilt.shards.tables import write_table
from capfilt.vlm.cost import Cost, dollars
from capfilt.vlm.server import ServerConfig

# Packages whose versions the manifest records.
PACKAGES = {"blip": ("torch", "tokenizers"), "hf": ("torch", "transformers"), "openai": ("openai",)}


@dataclass
class CaptionConfig(EngineConfig):
    """Settings of `capfilt caption`."""

    # shard set with the pictures
    data: str
    # blipcore folder, official .pth, Hugging Face BLIP folder or hub id, hf:MODEL or openai:MODEL
    model: str
    # folder under captions/, and the `source` of these texts; default: blip, or the name of the hf: or openai: model
    name: str = ""
    # root of captions/; default: `data`
    out: str | None = None
    # decoding of a BLIP captioner
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    # request and decoding of hf: and openai: captioners
    chat: ChatConfig = field(default_factory=ChatConfig)
    # connection of openai: captioners
    server: ServerConfig = field(default_factory=ServerConfig)
    # run the Python code of an hf: model
    trust_remote_code: bool = False
    # vocab.txt or tokenizer.json for a checkpoint without a tokenizer
    tokenizer: str | None = None
    # numbers of a Hugging Face BLIP whose config.json differs from the code that trained it
    numerics: Numerics = "official"
    # image tokens that each layer of BLIP's image encoder merges: faster, not the same captions
    merge_tokens: int = 0
    # pictures per forward pass; default: 32 on a CPU, as many as fit on a GPU
    batch_size: int | None = None
    # auto: bf16 where the device supports it; fp32 for parity
    dtype: Dtype = "auto"
    # of BLIP's image encoder; auto: openvino on a CPU where it is installed, otherwise torch
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        kind = captioner_kind(self.model)
        if not self.name:
            last = self.model.rstrip("/").rpartition("/")[2].rpartition(":")[2]
            self.name = "blip" if kind == "blip" else re.sub(r"[^\w.+-]|^\W+", "", last)
        if not re.fullmatch(r"[\w][\w.+-]*", self.name) or self.name == WEB:
            raise ValueError(f"name '{self.name}' must be letters, digits, . _ + or -, and not '{WEB}'.")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {self.batch_size}.")
        if kind == "blip" and self.chat != ChatConfig():
            raise ValueError("chat.* settings are for hf: and openai: captioners; use generate.* for BLIP.")
        if kind != "blip" and self.generate != GenerateConfig():
            raise ValueError("generate.* settings are for BLIP captioners; use chat.* for hf: and openai:.")
        if self.merge_tokens < 0 or (self.merge_tokens and kind != "blip"):
            raise ValueError(f"merge_tokens is a number of tokens per layer, for BLIP alone, not {self.merge_tokens}.")
        if kind == "hf" and self.chat.extra:
            raise ValueError("chat.extra is for requests of openai: captioners; hf: captioners send none.")

    @property
    def decoding(self) -> GenerateConfig | ChatConfig:
        """The decoding settings of this captioner's kind."""
        return self.generate if captioner_kind(self.model) == "blip" else self.chat


class CaptionTable:
    """The captions table of one shard, in the order of its tar."""

    def __init__(self) -> None:
        self.columns: dict[str, list[Any]] = {name: [] for name in CAPTIONS.names}

    def add(self, keys: Sequence[str], captions: Sequence[Sequence[Caption]]) -> None:
        """Append a row per caption."""
        for key, captions_of_picture in zip(keys, captions, strict=True):
            for index, caption in enumerate(captions_of_picture):
                row = (key, index, caption.text, caption.logprob, caption.error)
                for column, value in zip(self.columns.values(), row, strict=True):
                    column.append(value)

    def write(self, path: AnyPath, pictures: ShardPass) -> dict[str, int]:
        """Write the table with its counts and input in the footer; return the counts."""
        reasons = [error.partition(":")[0] for error in self.columns["error"] if error]
        counts = {"captions": len(self.columns["key"]) - len(reasons), **pictures.counts}
        if reasons:
            counts |= {"no_caption": len(reasons), **Counter(f"no_caption/{reason}" for reason in reasons)}
        table = pa.table(self.columns, schema=CAPTIONS)
        write_table(path, table, counts, make_folder=False, inputs=pictures.inputs)
        return counts


@dataclass
class CaptionStage:
    """Captions the pictures of a shard."""

    config: CaptionConfig
    images: ShardSet
    folder: AnyPath
    # None for a server
    dtype: Literal["bf16", "fp32"] | None
    # of the model that the manifest records
    fingerprint: str
    backend: Backend = "torch"
    name: str = "caption"

    def output(self, shard: str) -> AnyPath:
        return self.folder / f"{shard}.parquet"

    def setup(self, device: str) -> None:
        config = self.config
        self.batch_size = resolve_batch_size(config.batch_size, device)
        self.pictures = PictureReader(self.images, ahead=2 * self.batch_size)
        self.splitter = BatchSplitter()
        self.captioner: Captioner = open_captioner(
            config.model,
            config.decoding,
            tokenizer=config.tokenizer,
            numerics=config.numerics,
            merge_tokens=config.merge_tokens,
            server=config.server,
            trust_remote_code=config.trust_remote_code,
            device=device,
            dtype=self.dtype or "auto",
            backend=self.backend,
        )
        if self.captioner.fingerprint != self.fingerprint:
            raise ValueError(
                f"The model of captioner '{self.captioner.name}' is not the one that the run began with (fingerprint "
                f"{self.captioner.fingerprint}, not {self.fingerprint}): give all workers the same files."
            )

    def run(self, shard: str, worker: Worker) -> dict[str, int]:
        prepare = self.captioner.prepare
        with self.pictures.open(shard, prepare, next_shard=worker.next_shard, cores=worker.cores) as pictures:
            table, cost = CaptionTable(), Cost(self.captioner)
            for batch in pictures.batches(self.batch_size):
                table.add(batch.keys, self.caption(batch))
                worker.advance(len(batch), cost.since_last())
            return table.write(self.output(shard), pictures) | pictures.times() | cost.counts()

    def caption(self, batch: PictureBatch) -> list[Sequence[Caption]]:
        """Caption the decoded pictures of a batch."""
        return list(chain.from_iterable(self.splitter.run(self.captioner.caption, batch.inputs, batch.keys)))


@dataclass
class CaptionFolder:
    """A locked folder of captions with its stage and manifest; `shards` are those of this rank."""

    stage: CaptionStage
    manifest: Manifest
    shards: list[str]

    def finish(self, failed: Mapping[str, str], changed: bool) -> dict[str, int]:
        """Record the result of a run; return the counts of all shards, or of this rank's until all are done."""
        tables = {shard: self.stage.output(shard) for shard in self.stage.images.shards}
        return self.manifest.record_run(tables, self.shards, failed, changed=changed)


@contextmanager
def lock_captions(config: CaptionConfig) -> Iterator[CaptionFolder]:
    """Lock the folder of these captions and begin its manifest.

    Raises ValueError or FileNotFoundError for mistakes in `config`, and for a folder made with other settings.
    """
    images = ShardSet.open(config.data)
    folder = to_path(config.out or config.data) / "captions" / config.name
    kind, device = captioner_kind(config.model), worker_device(config.device, 0)
    dtype = None if kind == "openai" else resolve_dtype(device, config.dtype)
    fingerprint = captioner_fingerprint(config.model, config.tokenizer, config.trust_remote_code)
    settings: dict[str, Any] = {
        "fingerprint": fingerprint,
        "generate" if kind == "blip" else "chat": recorded_settings(
            config.model, config.decoding, config.trust_remote_code
        ),
        "dtype": dtype,
    }
    if config.numerics != "official" and kind == "blip":
        settings["numerics"] = config.numerics
    if config.merge_tokens:
        settings["merge_tokens"] = config.merge_tokens
    with lock_folder(folder, config.rank, config.world_size):
        if config.world_size == 1:
            remove_manifest_if_empty(folder)
        packages = [*PACKAGES[kind], "pillow", "pyarrow"]
        backend: Backend = "torch"
        if kind == "blip":
            backend = resolve_backend(device, config.dtype, config.backend, recorded_backend(folder))
        # another backend rounds differently
        if backend != "torch":
            settings["backend"] = backend
            packages += ["openvino"] if "openvino" in backend else []
        manifest = Manifest.begin(
            folder, "caption", settings, images=images.path, packages=packages, shared=config.world_size > 1
        )
        # for readers; a rerun compares the fingerprint
        manifest.content.setdefault("model", config.model)
        choice = describe_numerics(config.model, config.numerics) if kind == "blip" else None
        if choice:
            manifest.content.setdefault("numerics", choice)
        stage = CaptionStage(config, images, folder, dtype, fingerprint, backend)
        shards = config.shards_of_rank(images.shards)
        remedy = f"delete {folder}, or give another --name"
        require_same_inputs({stage.output(shard): [images.tar(shard)] for shard in shards}, remedy)
        yield CaptionFolder(stage, manifest, shards)


def caption_shards(config: CaptionConfig, *, progress: bool = True) -> dict[str, Any]:
    """Caption every shard that has no table yet; return a summary with the counts of all shards.

    Raises ValueError or FileNotFoundError as `lock_captions`, and ValueError for a checkpoint without a decoder.
    """
    with lock_captions(config) as captions:
        run = run_shards(
            captions.stage,
            captions.shards,
            workers=config.workers,
            device=config.device,
            engine=config.engine,
            progress=progress,
        )
        counts = captions.finish(run.failed, changed=run.done > 0)
    return {
        "stage": "caption",
        "name": config.name,
        "out": str(captions.stage.folder),
        "shards": {"done": run.done, "skipped": run.skipped, "failed": run.failed},
        "counts": counts,
        "dollars": dollars(run.counts),
        "seconds": round(run.seconds, 2),
        **throughput(run.counts, run.seconds, "pictures"),
    }
