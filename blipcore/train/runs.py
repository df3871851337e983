"""`capfilt pretrain` and `capfilt finetune`: builds stream, model and task from the settings of a run, and trains."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from blipcore import distributed
from blipcore.checkpoints.load import DEFAULT_TOKENIZER, load_for_training
from blipcore.checkpoints.numerics import Numerics
from blipcore.checkpoints.start_from import (
    StartingWeights,
    load_bert,
    load_image_encoder,
    read_bert,
    read_image_encoder,
)
from blipcore.data.annotation_datasets import PairDataset, QuestionDataset
from blipcore.data.dataset import SampleStream, ShardedDataset
from blipcore.data.eval_batches import EvalBatches
from blipcore.data.judged_texts import JudgedStream, require_judged_share
from blipcore.data.shard_datasets import open_dataset
from blipcore.data.stream import Stream
from blipcore.data.transforms import EvalTransform, TrainTransform, Transform
from blipcore.device import autocast, pick_device
from blipcore.evaluation import ValidationConfig, make_evaluator
from blipcore.io.hub import model_fingerprint
from blipcore.io.memory import require_memory
from blipcore.io.text_mixture import TextMixture
from blipcore.model.blip import Blip
from blipcore.model.config import PRESETS, BlipConfig
from blipcore.model.tokenizer import Tokenizer
from blipcore.tasks.captioning import CaptioningConfig, CaptioningTask
from blipcore.tasks.near_misses import TABLE as NEAR_MISSES
from blipcore.tasks.near_misses import NearMissConfig, make_near_misses
from blipcore.tasks.nlvr import NLVRConfig, NLVRTask
from blipcore.tasks.pretrain import PretrainConfig, PretrainTask
from blipcore.tasks.retrieval import RetrievalConfig, RetrievalTask
from blipcore.tasks.task import Task
from blipcore.tasks.vqa import VQAConfig, VQATask
from blipcore.train.optim import TrainConfig
from blipcore.train.trainer import Trainer
from blipcore.train.validation import Validator

PRETRAIN_PARTS = ("encode", "decode", "itc", "itm")
RETRIEVAL_PARTS = ("encode", "itc", "itm")

Preset = Literal["tiny", "base", "large"]
# Settings of later versions: their defaults are not recorded, so that earlier runs resume.
LATER_DEFAULTS = {"numerics": "official", "mixture": None}


class TaskSpec(NamedTuple):
    """A finetuning task."""

    parts: tuple[str, ...]  # of the trained model
    needs: tuple[str, ...]  # parts that the checkpoint must have (see `load_model`)
    task: Callable[[Blip, Tokenizer, Any], Task]
    best_by: tuple[str, ...]  # the best model has the largest sum of these validation scores
    opener: Callable[[Path, str | Path | None], ShardedDataset] = open_dataset


TASKS = {
    "caption": TaskSpec(("decode",), ("decode",), CaptioningTask, ("CIDEr", "BLEU-4")),
    "retrieval": TaskSpec(RETRIEVAL_PARTS, RETRIEVAL_PARTS, RetrievalTask, ("mean_recall",)),
    "vqa": TaskSpec(("encode", "vqa"), ("encode", "decode|vqa"), VQATask, ("accuracy",), QuestionDataset),
    "nlvr": TaskSpec(("encode", "nlvr"), ("encode",), NLVRTask, ("accuracy",), PairDataset),
}


@dataclass
class AugmentConfig:
    """Training transform; BLIP crops to at least 0.2 of the area in pre-training, 0.5 in finetuning."""

    min_scale: float = 0.2
    randaugment: bool = True
    hflip: float = 0.5  # probability; set 0 for captions with left and right

    def transform(self, image_size: int) -> Transform:
        return TrainTransform(image_size, self.min_scale, self.randaugment, self.hflip)


@dataclass
class PretrainRun:
    """Settings of `capfilt pretrain`: a new model, or with `init` an existing one (the two rows of Table 13)."""

    data: list[str]  # DATASET or DATASET=WEIGHT: filtered folder, shard set, annotation JSON
    preset: Preset | None = None  # default: base, but with the sizes of `vision` and `text`
    model: dict[str, Any] = field(default_factory=dict)  # sizes that differ from the preset, as in config.json
    init: str | None = None  # checkpoint to continue from
    numerics: Numerics = "official"  # numbers of a Hugging Face `init` (see `blipcore.checkpoints.numerics`)
    vision: str | None = None  # image encoder to start from: state-dict file, open_clip:ARCH/TAG, timm:NAME or hub id
    text: str | None = None  # text transformer to start from: BERT folder or hub id
    # path, hub id, or "train:N" to learn N word pieces from the data; default: that of `text` or `init`, or BERT's
    tokenizer: str | None = None
    image_root: str | None = None
    # how often each text of a picture is drawn, see `TextMixture`; default: all alike
    mixture: str | None = None
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    task: PretrainConfig = field(default_factory=PretrainConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass
class FinetuneRun:
    """Settings of `capfilt finetune TASK`: trains a checkpoint or a new model on clean annotations."""

    task: Literal["caption", "retrieval", "vqa", "nlvr"]
    annotations: list[str]
    init: str | None = None  # checkpoint to start from; default: a new model of the size `preset`
    numerics: Numerics = "official"  # numbers of a Hugging Face `init` (see `blipcore.checkpoints.numerics`)
    preset: Preset | None = None
    model: dict[str, Any] = field(default_factory=dict)  # sizes that differ from the preset, as in config.json
    tokenizer: str | None = None  # default: the checkpoint's; "train:N" for a new model, as in PretrainRun
    image_size: int | None = None  # default: the checkpoint's
    dropout: float | None = None  # of the text transformer; default: the checkpoint's
    drop_path: float | None = None  # of the image encoder; default: the checkpoint's (official: 0.1 for VQA and NLVR2)
    image_root: str | None = None
    augment: AugmentConfig = field(default_factory=lambda: AugmentConfig(min_scale=0.5))
    caption: CaptioningConfig = field(default_factory=CaptioningConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    vqa: VQAConfig = field(default_factory=VQAConfig)
    nlvr: NLVRConfig = field(default_factory=NLVRConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(lr=1e-5))

    def __post_init__(self) -> None:
        if bool(self.init) == bool(self.preset):
            raise ValueError(
                "Finetuning starts from a checkpoint or from a new model: give --init CHECKPOINT, or --set preset=tiny "
                "(base, large)."
            )


def _in_process_group(work: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Decorate `work` to run in the process group of a launcher, if there is one."""

    @functools.wraps(work)
    def work_in_group(run: Any, out: Path, may_change: bool = False) -> dict[str, Any]:
        require_memory(0, "Training")
        with distributed.process_group(pick_device(run.train.device)):
            return work(run, out, may_change)

    return work_in_group


@_in_process_group
def pretrain(run: PretrainRun, out: Path, may_change: bool = False) -> dict[str, Any]:
    """Pre-train on `run.data` into the folder `out`; return the trainer's summary. See `Trainer` for `may_change`."""
    torch.manual_seed(run.train.seed)
    vision = read_image_encoder(run.vision) if run.vision else None
    text = read_bert(run.text) if run.text else None
    image_size = run.model.get("vision", {}).get("image_size")
    extra: dict[str, torch.Tensor] = {}
    if run.init:
        # "train:N" is for new models: a checkpoint keeps its tokenizer.
        tokenizer_path = run.tokenizer if not (run.tokenizer or "").startswith("train:") else None
        model, tokenizer, extra = load_for_training(run.init, PRETRAIN_PARTS, tokenizer_path, image_size, run.numerics)
        _require_sizes(run, model.config)
        image_size = model.config.vision.image_size
    preset = run.preset or "base"
    image_size = image_size or PRESETS[preset].vision.image_size
    stream = _pretrain_stream(run, image_size)
    if not run.init:
        tokenizer = open_tokenizer(run.tokenizer or run.text or DEFAULT_TOKENIZER, stream)
        model = Blip(model_config(preset, _model_overrides(run, vision, text), len(tokenizer)))
    if vision:
        load_image_encoder(model.visual_encoder, vision)
    if text:
        load_bert(model.text, text)
    task = PretrainTask(model, tokenizer, run.task)
    if run.init and not (vision or text):
        task.load_extra(extra)
    return Trainer(task, stream, run.train, out, resolved=_resolve(run), may_change=may_change).fit()


@_in_process_group
def finetune(run: FinetuneRun, out: Path, may_change: bool = False) -> dict[str, Any]:
    """Finetune `run.init` or a new model on `run.annotations` into the folder `out`; return the trainer's summary.

    See `Trainer` for `may_change`.
    """
    torch.manual_seed(run.train.seed)
    spec = TASKS[run.task]
    if run.init:
        model, tokenizer, extra = load_for_training(run.init, spec.needs, run.tokenizer, run.image_size, run.numerics)
        stream = _finetune_stream(run, model.config.vision.image_size)
    else:
        assert run.preset is not None  # see `FinetuneRun.__post_init__`
        vision = PRESETS[run.preset].to_dict()["vision"] | run.model.get("vision", {})
        vision["image_size"] = run.image_size or vision["image_size"]
        stream = _finetune_stream(run, vision["image_size"])
        tokenizer = open_tokenizer(run.tokenizer or DEFAULT_TOKENIZER, stream)
        model = Blip(model_config(run.preset, run.model | {"vision": vision}, len(tokenizer)))
        extra = {}
    if run.dropout is not None:
        model.config.text.dropout = run.dropout
    if run.drop_path is not None:
        model.config.vision.drop_path = run.drop_path
    samples: SampleStream = stream
    if run.task == "retrieval" and run.retrieval.uses_judged_texts:
        samples = _judged_stream(run, model, tokenizer, stream, out)
    task = spec.task(model.select_parts(*spec.parts), tokenizer, getattr(run, run.task))
    task.load_extra(extra)
    validator = make_validator(run, tokenizer, stream)
    return Trainer(task, samples, run.train, out, _resolve(run), validator, may_change).fit()


def _resolve(run: PretrainRun | FinetuneRun) -> dict[str, Any]:
    """Return the settings to record, without defaults that runs of earlier versions do not have."""
    settings = asdict(run)
    if isinstance(run, FinetuneRun):
        settings["retrieval"] = run.retrieval.recorded()
    return {name: value for name, value in settings.items() if LATER_DEFAULTS.get(name, ...) != value}


def _pretrain_stream(run: PretrainRun, image_size: int) -> Stream:
    mixture = None if run.mixture is None else TextMixture.parse(run.mixture)
    opener = functools.partial(open_dataset, mixture=mixture)
    stream = Stream(run.data, run.augment.transform(image_size), run.train.seed, run.image_root, opener=opener)
    if mixture is not None and not stream.notes:
        raise ValueError(
            f"The mixture '{run.mixture}' is for filtered sets, and none is among {', '.join(run.data)}; give "
            "DATA/filtered/NAME, or leave it out."
        )
    distributed.run_on_main(stream.check_pictures)
    return stream


def _finetune_stream(run: FinetuneRun, image_size: int) -> Stream:
    transform, opener = run.augment.transform(image_size), TASKS[run.task].opener
    stream = Stream(run.annotations, transform, run.train.seed, run.image_root, opener=opener)
    if run.task == "retrieval" and run.retrieval.uses_judged_texts:
        require_judged_share(run.retrieval.judged_share, run.train.batch_size)
    distributed.run_on_main(stream.check_pictures)
    return stream


def _judged_stream(run: FinetuneRun, model: Blip, tokenizer: Tokenizer, stream: Stream, out: Path) -> SampleStream:
    """Return `stream` with judged texts; make near misses first, on the main process."""
    config, device = run.retrieval, pick_device(run.train.device)
    tables = list(config.judged_texts)
    if config.near_misses:
        if not run.init or model.text.lm_head is None:
            raise ValueError(
                "Near misses are sampled from the decoder of the starting checkpoint, and "
                f"{run.init or 'a new model'} has none: give --init a pre-trained model, or leave out "
                "retrieval.near_misses."
            )
        content = NearMissConfig(
            config.near_misses,
            config.near_miss_pictures,
            config.near_miss_samples,
            config.max_tokens,
            run.train.seed,
            model_fingerprint(run.init),
            run.annotations,
        )
        table = out / NEAR_MISSES
        distributed.run_on_main(
            lambda: make_near_misses(table, model.to(device), tokenizer, stream.datasets, content, run.train.dtype)
        )
        model.cpu()
        tables.append(str(table))
    samples = JudgedStream(stream, tables, run.image_root, config.judged_share, config.texts_per_picture)
    distributed.run_on_main(samples.check_tables)
    return samples


def make_validator(run: FinetuneRun, tokenizer: Tokenizer, stream: Stream) -> Validator | None:
    """Return the evaluation on the validation set; None without one."""
    config, annotations = run.validation, run.validation.annotations
    if not annotations:
        return None
    # Captions start with the prompt that the task trains on.
    config = replace(config, generate=replace(config.generate, prompt=run.caption.prompt))
    evaluator = make_evaluator(run.task, annotations, run.image_root, config)
    distributed.run_on_main(lambda: evaluator.check_pictures(annotations, run.image_root))

    def evaluate(model: Blip) -> dict[str, float]:
        transform = EvalTransform(model.config.vision.image_size)
        pictures = EvalBatches(evaluator.records, transform, config.batch_size)
        with autocast(pick_device(run.train.device), run.train.dtype):
            scores, _ = evaluator.evaluate(model, tokenizer, pictures)
        return {name: value for name, value in scores.items() if isinstance(value, float)}

    epoch = run.train.steps_per_epoch(len(stream), distributed.world_size())
    return Validator(evaluate, TASKS[run.task].best_by, config.every or max(1, round(epoch)))


def open_tokenizer(spec: str, stream: Stream) -> Tokenizer:
    """Load the tokenizer at a path or hub id, or with "train:N" train one of N word pieces on the texts of `stream`."""
    if not spec.startswith("train:"):
        return Tokenizer.load(spec)
    size = spec.removeprefix("train:")
    if not size.isdigit():
        raise ValueError(f"The tokenizer {spec!r} needs a number of word pieces after 'train:', as in train:2000.")
    return Tokenizer.train(iterate_texts(stream), vocab_size=int(size))


def iterate_texts(stream: Stream) -> Iterator[str]:
    """Iterate over every text that the stream can draw."""
    for dataset in stream.datasets:
        for shard in range(len(dataset.counts)):
            for entry in dataset.load(shard):
                yield from (*entry.texts, *entry.extra.get("answers", ()))


def _model_overrides(run: PretrainRun, vision: StartingWeights | None, text: StartingWeights | None) -> dict[str, Any]:
    """Return `run.model` with the traits of the starting weights and, without a preset, their sizes."""
    overrides = dict(run.model)
    for part, weights in (("vision", vision), ("text", text)):
        if weights:
            values = weights.traits if run.preset else weights.sizes | weights.traits
            if not run.preset:
                values.setdefault("heads", max(1, weights.sizes["width"] // 64))  # as in every ViT of the paper
            overrides[part] = values | run.model.get(part, {})
    return overrides


def _require_sizes(run: PretrainRun, config: BlipConfig) -> None:
    """Raise ValueError if `config` differs from the sizes of `run.preset` and `run.model`."""
    sizes = config.to_dict()
    geometry = ("width", "depth", "heads", "patch_size", "mlp_ratio", "hidden")
    for part in ("vision", "text"):
        requested = {name: value for name, value in run.model.get(part, {}).items() if name != "image_size"}
        if run.preset:
            preset = PRESETS[run.preset].to_dict()[part]
            requested = {name: preset[name] for name in geometry if name in preset} | requested
        for name, value in requested.items():
            if sizes[part].get(name) != value:
                raise ValueError(
                    f"{run.init} has {part} {name} {sizes[part].get(name)}, not the requested {value}: sizes come from "
                    "the checkpoint, leave out preset and model."
                )


def model_config(preset: str, overrides: dict[str, Any], vocab_size: int) -> BlipConfig:
    """Return the preset's config with `overrides` and the tokenizer's vocabulary size."""
    config = PRESETS[preset].to_dict()
    for name, value in overrides.items():
        config[name] = config[name] | value if isinstance(config.get(name), dict) else value
    config["text"]["vocab_size"] = vocab_size
    config["text"]["encoder_width"] = config["vision"]["width"]
    return BlipConfig.from_dict(config)
