"""Loads checkpoints: blipcore folders, official .pth files, Hugging Face BLIP folders and hub ids.

A blipcore folder has config.json, model.safetensors and tokenizer files. Loading is strict: a missing, unexpected or
misshapen tensor is an error that names it. Only the ITC temperature may be missing (`names.OPTIONAL_TENSORS`).
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from blipcore.checkpoints.files import read_tensors, read_weights
from blipcore.checkpoints.huggingface import huggingface_config
from blipcore.checkpoints.kind import albef_task, checkpoint_kind, describe_use
from blipcore.checkpoints.names import from_official, remove_prefix, require_same, split_training_state, tensor_shapes
from blipcore.checkpoints.numerics import Numerics, describe_numerics
from blipcore.checkpoints.sizes import official_config
from blipcore.io.hub import locate_model, read_json_object
from blipcore.model.blip import Blip
from blipcore.model.config import BlipConfig
from blipcore.model.tokenizer import Tokenizer
from blipcore.model.vit import resize_pos_embed

logger = logging.getLogger(__name__)

# Version of the blipcore folder format.
VERSION = 1
# For official files, which have no tokenizer.
DEFAULT_TOKENIZER = "bert-base-uncased"

# The parts of a model that each task needs.
TASK_PARTS = {
    "pretrain": ("encode", "decode", "itc", "itm"),
    "caption": ("decode",),
    "retrieval": ("encode", "itc", "itm"),
    "features": ("encode",),
    "vqa": ("encode", "vqa"),
    "nlvr": ("encode", "nlvr"),
}
# part -> its purpose, and a checkpoint that has it
_MISSING_PART = {
    "decode": "captioning needs the text decoder: use a captioner or a pre-training checkpoint",
    "encode": "the task needs the text encoder: use a retrieval or a pre-training checkpoint",
    "itc": "image-text similarity needs the ITC projections: use a retrieval checkpoint",
    "itm": "filtering needs the ITM head: use a retrieval checkpoint",
    "vqa": "answering needs a question encoder and an answer decoder: finetune it with `capfilt finetune vqa`",
    "nlvr": "NLVR2 needs the classifier over two images: finetune it with `capfilt finetune nlvr`",
    "decode|vqa": "VQA finetuning needs encoder and decoder: start from a pre-training or a VQA checkpoint",
}


def load_model(
    path_or_id: str | Path,
    *,
    needs: Sequence[str] = (),
    tokenizer: str | Path | None = None,
    image_size: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    numerics: Numerics = "official",
) -> tuple[Blip, Tokenizer]:
    """Return the model, in float32 on the CPU in eval mode, and its tokenizer.

    - `path_or_id`: a blipcore folder, an official .pth, or a Hugging Face BLIP folder or hub id.
    - `needs`: required parts (encode, decode, itc, itm, vqa, nlvr; "decode|vqa" is either).
    - `tokenizer`: replaces the checkpoint's own.
    - `image_size`: resizes the position table.
    - `overrides`: sizes that an official file lacks (see `read_official`).
    - `numerics`: for Hugging Face models (see `blipcore.checkpoints.numerics`); a choice of numbers is logged.

    Raises FileNotFoundError or ValueError for a missing, damaged or unsuitable checkpoint.
    """
    path = locate_model(path_or_id)
    config, state, _ = read_checkpoint(path, overrides, numerics)
    require_parts(config, path_or_id, needs)
    return build_model(config, state, image_size), load_tokenizer(config, path_or_id, path, tokenizer)


def load_for_training(
    path_or_id: str | Path,
    needs: Sequence[str],
    tokenizer: str | Path | None,
    image_size: int | None,
    numerics: Numerics = "official",
) -> tuple[Blip, Tokenizer, dict[str, Tensor]]:
    """Return model, tokenizer and the training state of an official .pth (see `read_official`)."""
    path = locate_model(path_or_id)
    config, state, training_state = read_checkpoint(path, numerics=numerics)
    require_parts(config, path_or_id, needs)
    model = build_model(config, state, image_size)
    name = "momentum.visual_encoder.pos_embed"
    if name in training_state:
        vision = model.config.vision
        training_state[name] = resize_pos_embed(training_state[name].float(), vision.image_size, vision.patch_size)
    return model, load_tokenizer(config, path_or_id, path, tokenizer), training_state


def read_checkpoint(
    path: Path, overrides: Mapping[str, Any] | None = None, numerics: Numerics = "official"
) -> tuple[BlipConfig, dict[str, Tensor], dict[str, Tensor]]:
    """Return config, model state and training state of a checkpoint of any kind."""
    if numerics not in get_args(Numerics):
        raise ValueError(f"numerics is 'official' or 'transformers', not {numerics!r}.")
    if numerics != "official" and (path.is_file() or is_blipcore_folder(path)):
        logger.warning("%s has no config.json of transformers: the numerics '%s' have no effect.", path, numerics)
    if path.is_file():
        return read_official(path, overrides)
    if overrides:
        raise ValueError(f"The sizes of {path} are in its config.json: {sorted(overrides)} cannot be set.")
    if is_blipcore_folder(path):
        return *read_blipcore_folder(path), {}
    kind = checkpoint_kind(path)
    if kind != "blip":
        raise ValueError(describe_use(kind, path))
    choice = describe_numerics(path, numerics)
    if choice:
        logger.warning("%s", choice)
    return *read_huggingface(path, numerics), {}


def require_parts(config: BlipConfig, name: str | Path, needs: Sequence[str]) -> None:
    """Raise ValueError with a remedy unless the checkpoint `name` has all parts in `needs`."""
    for part in needs:
        if not {*config.text.roles, *config.heads}.intersection(part.split("|")):
            raise ValueError(f"{name} is {describe_model(config)}; {_MISSING_PART[part]}.")


def build_model(config: BlipConfig, state: dict[str, Tensor], image_size: int | None) -> Blip:
    """Return the model with the weights `state`, its position table resized to `image_size`."""
    if image_size is not None and image_size != config.vision.image_size:
        config.vision.image_size = image_size
        config.vision.__post_init__()
        table = state["visual_encoder.pos_embed"].float()
        state["visual_encoder.pos_embed"] = resize_pos_embed(table, image_size, config.vision.patch_size)
    # The meta device skips the initialisation, which would draw from the global random generator.
    with torch.device("meta"):
        model = Blip(config)
    state = {name: tensor.float() for name, tensor in state.items()}
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} has numbers that are not finite: its training diverged, or the file is damaged.")
    model.load_state_dict(state, assign=True)
    return model.eval()


def load_tokenizer(
    config: BlipConfig, name: str | Path, path: Path, tokenizer: str | Path | None, unused: int = 0
) -> Tokenizer:
    """Return the tokenizer at `tokenizer`, else in the folder `path`, else BERT's from the hub.

    The model has no embedding of the last `unused` tokens. Raises ValueError if its vocabulary is of another size than
    the model's.
    """
    source = tokenizer or (path if path.is_dir() else DEFAULT_TOKENIZER)
    try:
        loaded = Tokenizer.load(source)
    except FileNotFoundError as error:
        if source != DEFAULT_TOKENIZER:
            raise
        raise FileNotFoundError(
            f"{name} has no tokenizer, and {source} could not be downloaded: pass --tokenizer with BERT's vocab.txt."
        ) from error
    tokens = len(loaded) - unused
    if tokens != config.text.vocab_size:
        raise ValueError(
            f"{name} has {config.text.vocab_size} word embeddings, but the tokenizer {source} has {tokens} "
            "tokens: pass --tokenizer with the vocabulary that the model was trained on."
        )
    return loaded


def read_official(
    path: str | Path, overrides: Mapping[str, Any] | None = None
) -> tuple[BlipConfig, dict[str, Tensor], dict[str, Tensor]]:
    """Return config, model state and training state of an official .pth, under blipcore's names.

    Sizes come from the tensors. A head has 64 channels unless `overrides` sets the number of heads, as in
    {"vision": {"heads": 3}}; an override that contradicts the file raises ValueError. The training state may hold
    "momentum.<name>", image_queue and text_queue (E, Q), idx_queue (1, Q) and queue_ptr (1).
    """
    tensors = remove_prefix(read_tensors(Path(path)), path)
    _require_official_names(tensors, Path(path))
    student, momentum, training_state = split_training_state(tensors)
    config = official_config(student, overrides or {}, path)
    state = from_official(student, config, path)
    # LAVIS saves no parameter without a gradient, so of its momentum half only this buffer remains.
    if any(not name.endswith(".position_ids") for name in momentum):
        try:
            copy = from_official(momentum, config.select_parts("encode", "itc"), "the momentum half")
            training_state |= {f"momentum.{name}": tensor for name, tensor in copy.items() if name != "temp"}
        except ValueError as error:
            logger.warning("%s: its momentum half is left out; training would start with a copy. %s", path, error)
    return config, state, training_state


def _require_official_names(state: Mapping[str, Tensor], path: Path) -> None:
    """Raise ValueError for the weights of another kind of checkpoint, and say what to give instead."""
    task = albef_task(state)
    if task:
        raise ValueError(f"{path} is an ALBEF {task}." if task != "filter" else describe_use("albef", path))
    groups = {name.partition(".")[0] for name in state}
    if "vision_model" in groups or "text" in groups:
        kind = "Hugging Face" if "vision_model" in groups else "blipcore"
        raise ValueError(
            f"{path} holds the weights of a {kind} folder, whose sizes are in its config.json: give the folder "
            f"{path.parent} instead."
        )


def read_huggingface(folder: str | Path, numerics: Numerics = "official") -> tuple[BlipConfig, dict[str, Tensor]]:
    """Return config and model state of a Hugging Face captioner, retrieval or VQA model, under blipcore's names."""
    folder = Path(folder)
    raw = read_json_object(folder / "config.json")
    if raw.get("model_type") != "blip":
        raise ValueError(
            f"{folder} holds a model of type {raw.get('model_type')!r}, not 'blip'; if it is a vision-language model "
            f"of transformers, give it to `capfilt caption --model hf:{folder}`."
        )
    state = read_weights(folder)
    try:
        config = huggingface_config(raw, state, folder, numerics)
        # `save_huggingface` stores the temperature there.
        if "temp" in raw and "itc" in config.heads:
            state["temp"] = torch.tensor(raw["temp"] * 1.0)
    except (AttributeError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"{folder / 'config.json'} describes no model: {error}") from error
    return config, from_official(state, config, folder, hf=True)


def is_blipcore_folder(folder: Path) -> bool:
    """Return whether `folder` is a blipcore folder of any version."""
    config = folder / "config.json"
    return config.is_file() and read_json_object(config).get("format") == "blipcore"


def read_blipcore_folder(folder: Path) -> tuple[BlipConfig, dict[str, Tensor]]:
    raw = read_json_object(folder / "config.json")
    if raw.get("version") != VERSION:
        raise ValueError(
            f"{folder} has format version {raw.get('version')}, but this capfilt reads version {VERSION}: update it."
        )
    try:
        config = BlipConfig.from_dict(raw["config"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'config.json'} describes no model: {error}") from error
    state = read_weights(folder)
    require_same(folder, state, tensor_shapes(config))
    return config, state


def describe_model(config: BlipConfig) -> str:
    """Return the kind of a model, as "a captioner"."""
    if "vqa" in config.heads:
        return "a VQA model"
    if "nlvr" in config.heads:
        return "an NLVR model"
    if set(config.text.roles) == {"encode", "decode"}:
        return "a pre-training model" if config.heads else "a text encoder and decoder without heads"
    if config.text.roles == ("decode",):
        return "a captioner"
    return "a retrieval model" if config.heads else "a feature extractor"
