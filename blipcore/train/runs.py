"""What a user asks for, made into objects: a run's settings in, a finished run's summary out.

    pretrain   data sets -> tokenizer, model (preset, checkpoint or partial start) -> PretrainTask  -> Trainer
    finetune   annotations, checkpoint (or a new model)                           -> its task      -> Trainer

Each `*Run` dataclass is the whole configuration of its command; its nested parts live beside what they configure.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from blipcore import distributed
from blipcore.checkpoints.load import DEFAULT_TOKENIZER, load_training
from blipcore.checkpoints.start_from import Start, image_start, load_image_start, load_text_start, text_start
from blipcore.data.annotation_sources import PairSource, QuestionSource
from blipcore.data.eval_batches import Pictures
from blipcore.data.source import Source
from blipcore.data.sources import open_source
from blipcore.data.stream import Stream
from blipcore.data.transforms import Transform, eval_transform, train_transform
from blipcore.device import autocast, pick_device
from blipcore.evaluation import Validation, open_exam
from blipcore.model.blip import Blip
from blipcore.model.config import PRESETS, BlipConfig
from blipcore.model.tokenizer import Tokenizer
from blipcore.tasks.captioning import CaptioningConfig, CaptioningTask
from blipcore.tasks.nlvr import NLVRConfig, NLVRTask
from blipcore.tasks.pretrain import PretrainConfig, PretrainTask
from blipcore.tasks.retrieval import RetrievalConfig, RetrievalTask
from blipcore.tasks.vqa import VQAConfig, VQATask
from blipcore.train.optim import TrainConfig
from blipcore.train.trainer import Trainer
from blipcore.train.validation import Judge

ALL_PARTS = ("encode", "decode", "itc", "itm")


class Kind(NamedTuple):
    """What a finetuning task trains, from what, on what."""

    parts: tuple[str, ...]  # of its model
    starts: tuple[str, ...]  # parts that the checkpoint it starts from must have (see `load_model`)
    task: type
    best_by: tuple[str, ...]  # scores whose sum says which model of a run is the best on its validation set
    opener: Callable[[Path, str | Path | None], Source] = open_source


RETRIEVAL = ("encode", "itc", "itm")
TASKS = {
    "caption": Kind(("decode",), ("decode",), CaptioningTask, ("CIDEr", "BLEU-4")),
    "retrieval": Kind(RETRIEVAL, RETRIEVAL, RetrievalTask, ("mean_recall",)),
    "vqa": Kind(("encode", "vqa"), ("encode", "decode|vqa"), VQATask, ("accuracy",), QuestionSource),
    "nlvr": Kind(("encode", "nlvr"), ("encode",), NLVRTask, ("accuracy",), PairSource),
}


@dataclass
class Augment:
    """Training transform; BLIP crops to at least 0.2 of the area in pre-training, 0.5 in finetuning."""

    min_scale: float = 0.2
    randaugment: bool = True
    hflip: float = 0.5  # set 0 where captions say left and right

    def transform(self, image_size: int) -> Transform:
        return train_transform(image_size, self.min_scale, self.randaugment, self.hflip)


@dataclass
class PretrainRun:
    """`capfilt pretrain`: a new model, or with `init` an old one further trained (the two rows of Table 13)."""

    data: list[str]  # DATASET or DATASET=WEIGHT: filtered folder, shard set, annotation JSON
    preset: Literal["tiny", "base", "large"] | None = None  # base, where no part that it starts from says otherwise
    model: dict[str, Any] = field(default_factory=dict)  # sizes that differ from the preset, as in config.json
    init: str | None = None  # checkpoint to continue from
    vision: str | None = None  # image encoder to start from: state-dict file, open_clip:ARCH/TAG, timm:NAME or hub id
    text: str | None = None  # text transformer to start from: BERT folder or hub id
    # Path, hub id, or "train:N" to learn N word pieces from the data; that of `text` or `init`, or else BERT's English.
    tokenizer: str | None = None
    image_root: str | None = None
    augment: Augment = field(default_factory=Augment)
    task: PretrainConfig = field(default_factory=PretrainConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass
class FinetuneRun:
    """`capfilt finetune TASK`: from a checkpoint, or from nothing, on clean annotations."""

    task: Literal["caption", "retrieval", "vqa", "nlvr"]
    annotations: list[str]
    init: str | None = None  # checkpoint to start from; without one, a new model of the size `preset`
    preset: Literal["tiny", "base", "large"] | None = None
    model: dict[str, Any] = field(default_factory=dict)  # sizes that differ from the preset, as in config.json
    tokenizer: str | None = None  # where it is not the checkpoint's; "train:N" for a new model, as in PretrainRun
    image_size: int | None = None
    dropout: float | None = None  # of the text transformer, where it is not to be the checkpoint's
    drop_path: float | None = None  # of the image encoder, likewise (official: 0.1 for VQA and NLVR2)
    image_root: str | None = None
    augment: Augment = field(default_factory=lambda: Augment(min_scale=0.5))
    caption: CaptioningConfig = field(default_factory=CaptioningConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    vqa: VQAConfig = field(default_factory=VQAConfig)
    nlvr: NLVRConfig = field(default_factory=NLVRConfig)
    validation: Validation = field(default_factory=Validation)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(lr=1e-5))

    def __post_init__(self) -> None:
        if (self.init is None) == (self.preset is None):
            raise ValueError(
                "finetuning starts from a checkpoint, or from nothing: give --init CHECKPOINT, or --set preset=tiny "
                "(base, large) for a new model"
            )


def _in_session(work: Callable[[Any, Path], dict[str, Any]]) -> Callable[[Any, Path], dict[str, Any]]:
    """Do `work` in the process group that a launcher has prepared, if one has."""

    @functools.wraps(work)
    def grouped(run: Any, out: Path) -> dict[str, Any]:
        with distributed.session(pick_device(run.train.device)):
            return work(run, out)

    return grouped


@_in_session
def pretrain(run: PretrainRun, out: Path) -> dict[str, Any]:
    """Train on `run.data` into the folder `out`; returns the trainer's summary."""
    torch.manual_seed(run.train.seed)
    vision = image_start(run.vision) if run.vision else None
    text = text_start(run.text) if run.text else None
    image_size = run.model.get("vision", {}).get("image_size")
    if run.init:
        own = None if (run.tokenizer or "train:").startswith("train:") else run.tokenizer
        model, tokenizer, left = load_training(run.init, ALL_PARTS, own, image_size)
        _require_sizes(run, model.config)
        image_size = model.config.vision.image_size
    preset = run.preset or "base"
    image_size = image_size or PRESETS[preset].vision.image_size
    stream = Stream(run.data, run.augment.transform(image_size), run.train.seed, run.image_root)
    if not run.init:
        tokenizer = open_tokenizer(run.tokenizer or run.text or DEFAULT_TOKENIZER, stream)
        model = Blip(sizes(preset, _with_starts(run, vision, text), len(tokenizer)))
    if vision:
        load_image_start(model.visual_encoder, vision)
    if text:
        load_text_start(model.text, text)
    task = PretrainTask(model, tokenizer, run.task)
    if run.init and not (vision or text):
        task.take_up(left)
    return Trainer(task, stream, run.train, out, resolved=asdict(run)).fit()


@_in_session
def finetune(run: FinetuneRun, out: Path) -> dict[str, Any]:
    """Finetune `run.init` on `run.annotations` into the folder `out`; returns the trainer's summary."""
    torch.manual_seed(run.train.seed)
    kind = TASKS[run.task]
    if run.init:
        model, tokenizer, left = load_training(run.init, kind.starts, run.tokenizer, run.image_size)
        image_size = model.config.vision.image_size
    else:
        vision = PRESETS[run.preset].to_dict()["vision"] | run.model.get("vision", {})
        image_size = run.image_size or vision["image_size"]
    transform = run.augment.transform(image_size)
    stream = Stream(run.annotations, transform, run.train.seed, run.image_root, opener=kind.opener)
    if not run.init:
        tokenizer = open_tokenizer(run.tokenizer or DEFAULT_TOKENIZER, stream)
        overrides = run.model | {"vision": vision | {"image_size": image_size}}
        model = Blip(sizes(run.preset, overrides, len(tokenizer)))
    if run.dropout is not None:
        model.config.text.dropout = run.dropout
    if run.drop_path is not None:
        model.config.vision.drop_path = run.drop_path
    model = model.only(*kind.parts)
    task = kind.task(model, tokenizer, getattr(run, run.task))
    if run.init:
        task.take_up(left)
    return Trainer(task, stream, run.train, out, resolved=asdict(run), judge=_judge(run, tokenizer, stream)).fit()


def _judge(run: FinetuneRun, tokenizer: Tokenizer, stream: Stream) -> Judge | None:
    """Evaluation on the validation set, if there is one."""
    how = run.validation
    if not how.annotations:
        return None
    how = replace(how, generate=replace(how.generate, prompt=run.caption.prompt))  # captions begin as it learns them
    exam = open_exam(run.task, how.annotations, run.image_root, how)

    def scores(model: Blip) -> dict[str, float]:
        pictures = Pictures(exam.records, eval_transform(model.config.vision.image_size), how.batch_size)
        with autocast(pick_device(run.train.device), run.train.dtype):
            found, _ = exam.mark(model, tokenizer, pictures)
        return {name: value for name, value in found.items() if isinstance(value, float)}

    epoch = run.train.steps_per_epoch(len(stream), distributed.world_size())
    return Judge(scores, TASKS[run.task].best_by, how.every or max(1, round(epoch)))


def open_tokenizer(spec: str, stream: Stream) -> Tokenizer:
    """The tokenizer at a path or hub id, or for "train:N" one of N pieces learned from the texts of the stream."""
    if not spec.startswith("train:"):
        return Tokenizer.load(spec)
    size = spec.removeprefix("train:")
    if not size.isdigit():
        raise ValueError(f"tokenizer {spec!r}: after 'train:' comes the number of word pieces, as in train:2000")
    return Tokenizer.train(texts(stream), vocab_size=int(size))


def texts(stream: Stream) -> Iterator[str]:
    """Every text that the stream can draw."""
    for source in stream.sources:
        for shard in range(len(source.counts)):
            for picture in source.load(shard):
                yield from (*picture.texts, *picture.more.get("answers", ()))


def _with_starts(run: PretrainRun, vision: Start | None, text: Start | None) -> dict[str, Any]:
    """`run.model` over what the parts it starts from bring: their traits, and where no preset is given their sizes."""
    overrides = dict(run.model)
    for part, start in (("vision", vision), ("text", text)):
        if start:
            brought = start.traits if run.preset else start.sizes | start.traits
            if not run.preset:
                brought.setdefault("heads", max(1, start.sizes["width"] // 64))  # as every ViT of the paper
            overrides[part] = brought | run.model.get(part, {})
    return overrides


def _require_sizes(run: PretrainRun, config: BlipConfig) -> None:
    """ValueError where the checkpoint is not of the preset or the sizes that were asked for beside it."""
    own = config.to_dict()
    geometry = ("width", "depth", "heads", "patch_size", "mlp_ratio", "hidden")
    for part in ("vision", "text"):
        asked = {name: value for name, value in run.model.get(part, {}).items() if name != "image_size"}
        if run.preset:
            preset = PRESETS[run.preset].to_dict()[part]
            asked = {name: preset[name] for name in geometry if name in preset} | asked
        for name, value in asked.items():
            if own[part].get(name) != value:
                raise ValueError(
                    f"{run.init} has {part} {name} {own[part].get(name)}, not the {value} asked for: sizes come from "
                    "the checkpoint, leave out preset and model"
                )


def sizes(preset: str, overrides: dict[str, Any], vocab_size: int) -> BlipConfig:
    """The preset's config with `overrides` and the tokenizer's vocabulary size."""
    config = PRESETS[preset].to_dict()
    for name, value in overrides.items():
        config[name] = config[name] | value if isinstance(config.get(name), dict) else value
    config["text"]["vocab_size"] = vocab_size
    config["text"]["encoder_width"] = config["vision"]["width"]
    return BlipConfig.from_dict(config)
