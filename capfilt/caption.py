"""Pictures -> synthetic captions: step 3 of CapFilt, one table a shard beside the pictures.

In: `NNNNN.tar`. Out: `captions/<name>/NNNNN.parquet` with key, index, text, logprob in the tar's order, and a manifest.
A caption is a function of picture, model, settings, seed and key, so the tables do not depend on workers or restarts. A
picture that cannot be decoded has no rows; it is counted, by reason, in the footer of its table and in the manifest.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pyarrow as pa

from capfilt import engine
from capfilt.captioners import Captioner, Dtype, GenerateConfig, captioner_fingerprint, open_captioner, resolve_dtype
from capfilt.lock import claimed
from capfilt.manifest import Manifest, forget_if_empty
from capfilt.readahead import ReadAhead, decode_threads, speed
from capfilt.shards import CAPTIONS, WEB, ShardSet, write_table
from capfilt.storage import Place, place


@dataclass
class CaptionConfig(engine.Crew):
    """What to caption, with which model, and how it speaks."""

    data: str  # shard set with the pictures
    model: str  # captioner: blipcore folder, official .pth, Hugging Face BLIP folder or hub id
    name: str = "blip"  # of the table folder, and the `source` of these texts from here on
    out: str | None = None  # root of captions/<name>/ when the pictures' folder is not to be written to
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    tokenizer: str | None = None  # vocab.txt or tokenizer.json for a checkpoint that carries none
    batch_size: int = 32  # pictures a forward pass
    dtype: Dtype = "auto"  # bf16 where the device supports it; fp32 for parity

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"[\w][\w.+-]*", self.name) or self.name == WEB:
            raise ValueError(f"name '{self.name}' must be letters, digits, . _ + or -, and not '{WEB}'.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {self.batch_size}.")


@dataclass
class CaptionStage:
    """Captions the pictures of a shard; the engine's view of `capfilt caption`."""

    config: CaptionConfig
    images: ShardSet
    folder: Place
    dtype: Literal["bf16", "fp32"]
    name: str = "caption"

    def output(self, shard: str) -> Place:
        return self.folder / f"{shard}.parquet"

    def setup(self, device: str) -> None:
        config = self.config
        self._captioner: Captioner = open_captioner(
            config.model, config.generate, tokenizer=config.tokenizer, device=device, dtype=self.dtype
        )

    def run(self, shard: str) -> dict[str, int]:
        size = self.config.batch_size
        pictures = ReadAhead(
            self.images.tar(shard), self._captioner.prepare, ahead=2 * size, threads=decode_threads(engine.own_cores())
        )
        rows: dict[str, list[Any]] = {name: [] for name in CAPTIONS.names}
        for batch in pictures.batches(size):
            usable = [picture for picture in batch if picture.error is None]
            keys = [picture.key for picture in usable]
            said = self._captioner.caption([picture.input for picture in usable], keys) if usable else []
            for key, captions in zip(keys, said, strict=True):
                for index, (text, logprob) in enumerate(captions):
                    for column, value in zip(rows.values(), (key, index, text, logprob), strict=True):
                        column.append(value)
            engine.advance(len(batch))
        counts = {"captions": len(rows["key"]), **pictures.counts}
        write_table(self.output(shard), pa.table(rows, schema=CAPTIONS), counts, make_folder=False)
        return counts | pictures.times()


def caption_shards(config: CaptionConfig, *, progress: bool = True) -> dict[str, Any]:
    """Caption every shard that has no table yet; the summary counts all shards, also those of earlier runs.

    Raises ValueError or FileNotFoundError, one sentence, for a folder that is no shard set, a checkpoint without a
    decoder, or a folder of that name made with other settings.
    """
    images = ShardSet.open(config.data)
    folder = place(config.out or config.data) / "captions" / config.name
    dtype = resolve_dtype(engine.pick_device(config.device, 0), config.dtype)
    settings = {
        "fingerprint": captioner_fingerprint(config.model, config.tokenizer),
        "generate": asdict(config.generate),
        "dtype": dtype,
    }
    stage = CaptionStage(config, images, folder, dtype)
    mine = config.share(images.shards)
    with claimed(folder, config.rank, config.world_size):
        if config.world_size == 1:
            forget_if_empty(folder)
        packages = ("torch", "tokenizers", "pillow", "pyarrow")
        manifest = Manifest.begin(
            folder, "caption", settings, images=images.path, packages=packages, shared=config.world_size > 1
        )
        manifest.content.setdefault("model", config.model)  # for people; the fingerprint is what is compared
        ran = engine.run(
            stage, mine, workers=config.workers, device=config.device, engine=config.engine, progress=progress
        )
        tables = {shard: stage.output(shard) for shard in images.shards}
        counts = manifest.settle(tables, mine, ran.failed, changed=ran.done > 0)
    return {
        "stage": "caption",
        "name": config.name,
        "out": str(folder),
        "shards": {"done": ran.done, "skipped": ran.skipped, "failed": ran.failed},
        "counts": counts,
        "seconds": round(ran.seconds, 2),
        **speed(ran.counts, ran.seconds, "pictures"),
    }
