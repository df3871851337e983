"""Pictures -> synthetic captions: step 3 of CapFilt, one table a shard beside the pictures.

In: `NNNNN.tar`. Out: `captions/<name>/NNNNN.parquet` with key, index, text, logprob, error in the tar's order, and a
manifest. A caption is a function of picture, model, settings, seed and key, so the tables do not depend on workers or
restarts. A picture that cannot be decoded has no rows, a caption that the model did not give is a row without a text;
both are counted, by reason, in the footer of the table and in the manifest.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any, Literal

import pyarrow as pa

from blipcore.device import Backend, Dtype, resolve_backend, resolve_dtype
from blipcore.generate.config import GenerateConfig
from blipcore.io.storage import AnyPath, to_path
from capfilt.caption.captioner import Captioner, captioner_fingerprint, kind_of, open_captioner
from capfilt.caption.chat import Caption, ChatConfig
from capfilt.caption.server import ServerConfig
from capfilt.engine import run as engine
from capfilt.engine.worker import pick_device
from capfilt.pictures.batching import Fit, batch_size
from capfilt.pictures.read_ahead import Ready, speed
from capfilt.pictures.shard_pass import Look
from capfilt.shards.format import CAPTIONS, WEB
from capfilt.shards.lock import lock_folder
from capfilt.shards.manifest import Manifest, begun_with, forget_if_empty
from capfilt.shards.shard_set import ShardSet
from capfilt.shards.tables import write_table

MADE_WITH = {"blip": ("torch", "tokenizers"), "hf": ("torch", "transformers"), "openai": ("openai",)}


@dataclass
class CaptionConfig(engine.EngineConfig):
    """What to caption, with which model, and how it speaks."""

    data: str  # shard set with the pictures
    model: str  # captioner: blipcore folder, official .pth, Hugging Face BLIP folder or hub id, hf:… or openai:…
    name: str = (
        ""  # of the table folder, and the `source` of these texts from here on; blip, or the hf:, openai: model's
    )
    out: str | None = None  # root of captions/<name>/ when the pictures' folder is not to be written to
    generate: GenerateConfig = field(default_factory=GenerateConfig)  # how a BLIP captioner speaks
    chat: ChatConfig = field(default_factory=ChatConfig)  # how hf: and openai: captioners do
    server: ServerConfig = field(default_factory=ServerConfig)  # of openai:
    trust_remote_code: bool = False  # hf: run code that comes with the model
    tokenizer: str | None = None  # vocab.txt or tokenizer.json for a checkpoint that carries none
    batch_size: int | None = None  # pictures a forward pass; 32 on a CPU, what fits on a GPU
    dtype: Dtype = "auto"  # bf16 where the device supports it; fp32 for parity
    backend: Backend = "auto"  # of the image encoder: openvino on a CPU that has it, else torch; or another

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.name:
            last = self.model.rstrip("/").rpartition("/")[2].rpartition(":")[2]
            self.name = "blip" if kind_of(self.model) == "blip" else re.sub(r"[^\w.+-]|^\W+", "", last)
        if not re.fullmatch(r"[\w][\w.+-]*", self.name) or self.name == WEB:
            raise ValueError(f"name '{self.name}' must be letters, digits, . _ + or -, and not '{WEB}'.")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {self.batch_size}.")

    @property
    def speech(self) -> GenerateConfig | ChatConfig:
        """How the captioner speaks."""
        return self.generate if kind_of(self.model) == "blip" else self.chat


@dataclass
class CaptionStage:
    """Captions the pictures of a shard; the engine's view of `capfilt caption`."""

    config: CaptionConfig
    images: ShardSet
    folder: AnyPath
    dtype: Literal["bf16", "fp32"] | None  # None where it is not ours to choose
    backend: Backend = "torch"
    name: str = "caption"

    def output(self, shard: str) -> AnyPath:
        return self.folder / f"{shard}.parquet"

    def setup(self, device: str) -> None:
        config = self.config
        self._look, self._fit = Look(self.images, batch_size(config.batch_size, device)), Fit()
        self._captioner: Captioner = open_captioner(
            config.model,
            config.speech,
            tokenizer=config.tokenizer,
            server=config.server,
            trust_remote_code=config.trust_remote_code,
            device=device,
            dtype=self.dtype or "auto",
            backend=self.backend,
        )

    def run(self, shard: str) -> dict[str, int]:
        return self._look(shard, lambda: [self.begin(shard)])

    def begin(self, shard: str, said: Said | None = None) -> Captions:
        """The captions of a shard, to be shown its pictures; they are put into `said` too, as they are made."""
        return Captions(self._captioner, self._fit, self.output(shard), said)


Said = dict[str, list[tuple[int, str | None]]]  # key -> its captions with their indices


class Captions:
    """The captions of a shard while its pictures go by: a `look.Viewer`."""

    def __init__(self, captioner: Captioner, fit: Fit, output: AnyPath, said: Said | None) -> None:
        self.captioner, self.fit, self.output, self.said = captioner, fit, output, said
        self.prepare = captioner.prepare
        self.rows: dict[str, list[Any]] = {name: [] for name in CAPTIONS.names}

    def see(self, batch: Sequence[Ready[Any]]) -> None:
        usable = [picture for picture in batch if picture.error is None]
        if not usable:
            return
        inputs, keys = [picture.input for picture in usable], [picture.key for picture in usable]
        said = chain.from_iterable(self.fit(self.captioner.caption, inputs, keys))
        for key, captions in zip(keys, said, strict=True):
            whole = [Caption(*caption) for caption in captions]
            for index, caption in enumerate(whole):
                for column, value in zip(self.rows.values(), (key, index, *caption), strict=True):
                    column.append(value)
            if self.said is not None:
                self.said[key] = [(index, caption.text) for index, caption in enumerate(whole)]

    def close(self, pictures: Mapping[str, int]) -> dict[str, int]:
        without = [error.partition(":")[0] for error in self.rows["error"] if error]
        counts = {"captions": len(self.rows["key"]) - len(without), **pictures}
        if without:
            counts |= {"no_caption": len(without), **Counter(f"no_caption/{reason}" for reason in without)}
        write_table(self.output, pa.table(self.rows, schema=CAPTIONS), counts, make_folder=False)
        return counts


@dataclass
class Captioning:
    """A folder of captions that is held for a run over `mine` of the shards."""

    stage: CaptionStage
    manifest: Manifest
    mine: list[str]

    def settle(self, failed: Mapping[str, str], changed: bool) -> dict[str, int]:
        """Record what became of the run; returns the counts of all shards, or of this rank's until all are there."""
        tables = {shard: self.stage.output(shard) for shard in self.stage.images.shards}
        return self.manifest.settle(tables, self.mine, failed, changed=changed)


@contextmanager
def captioning(config: CaptionConfig) -> Iterator[Captioning]:
    """Hold the folder of these captions, its manifest begun, while the block writes them."""
    images = ShardSet.open(config.data)
    folder = to_path(config.out or config.data) / "captions" / config.name
    kind, device = kind_of(config.model), pick_device(config.device, 0)
    dtype = None if kind == "openai" else resolve_dtype(device, config.dtype)
    settings = {
        "fingerprint": captioner_fingerprint(config.model, config.tokenizer, config.trust_remote_code),
        "generate" if kind == "blip" else "chat": asdict(config.speech),
        "dtype": dtype,
    }
    with lock_folder(folder, config.rank, config.world_size):
        if config.world_size == 1:
            forget_if_empty(folder)
        packages = (*MADE_WITH[kind], "pillow", "pyarrow")
        backend = resolve_backend(device, dtype, config.backend, begun_with(folder)) if kind == "blip" else "torch"
        if backend != "torch":  # its rounding is another
            settings["backend"], packages = backend, (*packages, *(["openvino"] if "openvino" in backend else ()))
        manifest = Manifest.begin(
            folder, "caption", settings, images=images.path, packages=packages, shared=config.world_size > 1
        )
        manifest.content.setdefault("model", config.model)  # for people; the fingerprint is what is compared
        yield Captioning(CaptionStage(config, images, folder, dtype, backend), manifest, config.share(images.shards))


def caption_shards(config: CaptionConfig, *, progress: bool = True) -> dict[str, Any]:
    """Caption every shard that has no table yet; the summary counts all shards, also those of earlier runs.

    Raises ValueError or FileNotFoundError, one sentence, for a folder that is no shard set, a checkpoint without a
    decoder, or a folder of that name made with other settings.
    """
    with captioning(config) as job:
        ran = engine.run(
            job.stage, job.mine, workers=config.workers, device=config.device, engine=config.engine, progress=progress
        )
        counts = job.settle(ran.failed, changed=ran.done > 0)
    return {
        "stage": "caption",
        "name": config.name,
        "out": str(job.stage.folder),
        "shards": {"done": ran.done, "skipped": ran.skipped, "failed": ran.failed},
        "counts": counts,
        "seconds": round(ran.seconds, 2),
        **speed(ran.counts, ran.seconds, "pictures"),
    }
