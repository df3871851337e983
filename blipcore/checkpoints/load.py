"""Checkpoints in and out: blipcore folders, the official code's .pth files, Hugging Face BLIP folders and hub ids.

`load_model` turns any of them into (Blip, Tokenizer); `save_model`, `save_official` and `save_huggingface` write them,
and `convert` is the one after the other. Ours is a folder of config.json, model.safetensors and tokenizer files.
Loading is strict: a tensor that is missing, left over or of another shape is an error that names it, so that no
half-random model ever runs. All that a file may lack is ITC's temperature (`foreign.MAY_LACK`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blipcore.checkpoints.files import read_pickle, read_weights
from blipcore.checkpoints.huggingface import Numerics, huggingface_config
from blipcore.checkpoints.names import (
    official_config,
    require_same,
    shapes,
    split_training_state,
    translate,
)
from blipcore.io.hub import locate, read_json
from blipcore.model.blip import Blip
from blipcore.model.config import BlipConfig
from blipcore.model.tokenizer import Tokenizer
from blipcore.model.vit import resize_pos_embed

VERSION = 1  # of our folder format
DEFAULT_TOKENIZER = "bert-base-uncased"  # official checkpoints bring none

# The parts of a model that a task runs on.
PARTS = {
    "pretrain": ("encode", "decode", "itc", "itm"),
    "caption": ("decode",),
    "retrieval": ("encode", "itc", "itm"),
    "features": ("encode",),
    "vqa": ("encode", "vqa"),
    "nlvr": ("encode", "nlvr"),
}
_WHY = {
    "decode": "captioning needs the text decoder: use a captioner or a pre-training checkpoint",
    "encode": "this needs the text encoder: use a retrieval or a pre-training checkpoint",
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
    """Model in float32 on the CPU, in eval mode, and its tokenizer.

    `path_or_id` is a blipcore folder, an official .pth, or a Hugging Face BLIP folder or hub id. `needs` names the
    parts (encode, decode, itc, itm, vqa, nlvr; "decode|vqa" is either) that the caller cannot do without. Another
    `image_size` resizes the position table. `tokenizer` overrides the checkpoint's own; `overrides` is for official
    files alone (see `read_official`), and `numerics` for Hugging Face ones (see `huggingface_config`).
    """
    path = locate(path_or_id)
    config, state, _ = _read(path, overrides, numerics)
    require_parts(config, path_or_id, needs)
    return _build(config, state, image_size), _tokenizer_for(config, path_or_id, path, tokenizer)


def load_training(
    path_or_id: str | Path, needs: Sequence[str], tokenizer: str | Path | None, image_size: int | None
) -> tuple[Blip, Tokenizer, dict[str, Tensor]]:
    """`load_model`, and the training state that an official .pth has beside the model (see `read_official`)."""
    path = locate(path_or_id)
    config, state, extra = _read(path)
    require_parts(config, path_or_id, needs)
    model = _build(config, state, image_size)
    if (table := extra.get(slow := "momentum.visual_encoder.pos_embed")) is not None:
        extra[slow] = resize_pos_embed(table.float(), model.config.vision.image_size, model.config.vision.patch_size)
    return model, _tokenizer_for(config, path_or_id, path, tokenizer), extra


def _read(
    path: Path, overrides: Mapping[str, Any] | None = None, numerics: Numerics = "official"
) -> tuple[BlipConfig, dict[str, Tensor], dict[str, Tensor]]:
    """Config, model state and training state of a checkpoint of any kind."""
    if path.is_file():
        return read_official(path, overrides)
    if overrides:
        raise ValueError(f"{path} says its sizes in its config.json: {sorted(overrides)} cannot be set")
    return (*(_read_ours(path) if _is_ours(path) else read_huggingface(path, numerics)), {})


def require_parts(config: BlipConfig, name: str | Path, needs: Sequence[str]) -> None:
    """ValueError that says what `name` is and what to use, where it lacks one of the parts in `needs`."""
    for part in needs:
        if not {*config.text.roles, *config.heads}.intersection(part.split("|")):
            raise ValueError(f"{name} is {_kind(config)}; {_WHY[part]}")


def _build(config: BlipConfig, state: dict[str, Tensor], image_size: int | None) -> Blip:
    """The model of `config` with the weights `state`, its position table resized to `image_size`."""
    if image_size is not None and image_size != config.vision.image_size:
        config.vision.image_size = image_size
        config.vision.__post_init__()
        table = state["visual_encoder.pos_embed"].float()
        state["visual_encoder.pos_embed"] = resize_pos_embed(table, image_size, config.vision.patch_size)
    with torch.device("meta"):  # no time for an initialisation that is overwritten, and no draw from the global seed
        model = Blip(config)
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    return model.eval()


def _tokenizer_for(config: BlipConfig, name: str | Path, path: Path, given: str | Path | None) -> Tokenizer:
    source = given or (path if path.is_dir() else DEFAULT_TOKENIZER)
    try:
        tokenizer = Tokenizer.load(source)
    except FileNotFoundError as error:
        if source != DEFAULT_TOKENIZER:
            raise
        raise FileNotFoundError(
            f"{name} brings no tokenizer and {source} could not be fetched: pass --tokenizer with BERT's vocab.txt"
        ) from error
    if len(tokenizer) != config.text.vocab_size:
        raise ValueError(
            f"{name} has {config.text.vocab_size} word embeddings, but the tokenizer {source} has {len(tokenizer)} "
            "tokens: pass --tokenizer with the vocabulary it was trained on"
        )
    return tokenizer


def read_official(
    path: str | Path, overrides: Mapping[str, Any] | None = None
) -> tuple[BlipConfig, dict[str, Tensor], dict[str, Tensor]]:
    """Config, model state and training state of an official .pth, all under our names.

    Sizes come from the tensors; heads have 64 channels unless `overrides` ({"vision": {"heads": 3}, "text": {…}}) says
    otherwise, and a size in `overrides` that the file contradicts is an error. The training state is what the file has
    of "momentum.<our name>", image_queue and text_queue (E, Q), idx_queue (1, Q) and queue_ptr (1).
    """
    student, momentum, extra = split_training_state(read_pickle(Path(path)))
    config = official_config(student, overrides or {}, path)
    state = translate(student, config, path)
    if momentum:
        copy = translate(momentum, config.only("encode", "itc"), f"the momentum half of {path}")
        extra |= {f"momentum.{name}": tensor for name, tensor in copy.items() if name != "temp"}
    return config, state, extra


def read_huggingface(folder: str | Path, numerics: Numerics = "official") -> tuple[BlipConfig, dict[str, Tensor]]:
    """Config and model state, under our names, of a Hugging Face BLIP folder for captioning, retrieval or VQA."""
    folder = Path(folder)
    raw, state = read_json(folder / "config.json"), read_weights(folder)
    try:
        config = huggingface_config(raw, state, folder, numerics)
        if "temp" in raw and "itc" in config.heads:  # our own export keeps it there
            state["temp"] = torch.tensor(raw["temp"] * 1.0)
    except (AttributeError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"{folder / 'config.json'} describes no model: {error}") from error
    return config, translate(state, config, folder, hf=True)


def _kind(config: BlipConfig) -> str:
    if "vqa" in config.heads:
        return "a VQA model"
    if "nlvr" in config.heads:
        return "an NLVR model"
    if set(config.text.roles) == {"encode", "decode"}:
        return "a pre-training model" if config.heads else "a text encoder and decoder without heads"
    if config.text.roles == ("decode",):
        return "a captioner"
    return "a retrieval model" if config.heads else "a feature extractor"


def _is_ours(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    if not (folder / "config.json").is_file():
        return False
    return read_json(folder / "config.json").get("format") == "blipcore"


def _read_ours(folder: Path) -> tuple[BlipConfig, dict[str, Tensor]]:
    raw = read_json(folder / "config.json")
    if raw.get("version") != VERSION:
        raise ValueError(f"{folder} has format version {raw.get('version')}, this program reads {VERSION}: update it")
    try:
        config = BlipConfig.from_dict(raw["config"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'config.json'} describes no model: {error}") from error
    state = read_weights(folder)
    require_same(folder, state, shapes(config))
    return config, state
