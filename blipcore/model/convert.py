"""Checkpoints in and out: blipcore folders, the official code's .pth files, Hugging Face BLIP folders and hub ids.

`load_model` turns any of them into (Blip, Tokenizer), `save_model` writes ours: a folder of config.json,
model.safetensors and tokenizer files. Loading is strict: a tensor that is missing, left over or of another shape is an
error that names it, so that no half-random model ever runs. Pickles are read with `weights_only=True` alone.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from blipcore.model.blip import Blip, BlipConfig
from blipcore.model.foreign import (
    huggingface_config,
    official_config,
    require_fit,
    shapes,
    split_training_state,
    translate,
)
from blipcore.model.tokenizer import TOKENIZER_FILES, Tokenizer, download
from blipcore.model.vit import resize_pos_embed

VERSION = 1  # of our folder format
DEFAULT_TOKENIZER = "bert-base-uncased"  # official checkpoints bring none

_INDEX = "model.safetensors.index.json"
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
) -> tuple[Blip, Tokenizer]:
    """Model in float32 on the CPU, in eval mode, and its tokenizer.

    `path_or_id` is a blipcore folder, an official .pth, or a Hugging Face BLIP folder or hub id. `needs` names the
    parts (encode, decode, itc, itm, vqa, nlvr; "decode|vqa" is either) that the caller cannot do without. Another
    `image_size` resizes the position table. `tokenizer` overrides the checkpoint's own; `overrides` is for official
    files alone (see `read_official`).
    """
    path = _local(path_or_id)
    if path.is_file():
        config, state, _ = read_official(path, overrides)
    elif _is_ours(path):
        config, state = _read_ours(path)
    else:
        config, state = read_huggingface(path)
    for part in needs:
        if not {*config.text.roles, *config.heads}.intersection(part.split("|")):
            raise ValueError(f"{path_or_id} is {_kind(config)}; {_WHY[part]}")
    if image_size is not None and image_size != config.vision.image_size:
        table = state["visual_encoder.pos_embed"].float()
        config.vision.image_size = image_size
        config.vision.__post_init__()
        state["visual_encoder.pos_embed"] = resize_pos_embed(table, image_size, config.vision.patch_size)
    with torch.device("meta"):  # no time for an initialisation that is overwritten, and no draw from the global seed
        model = Blip(config)
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    return model.eval(), _tokenizer_for(config, path_or_id, path, tokenizer)


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


def save_model(folder: str | Path, model: Blip, tokenizer: Tokenizer) -> None:
    """Write a blipcore folder; it appears complete or not at all, and replaces an older one of the same place."""
    folder = Path(folder)
    if folder.exists() and not (_is_ours(folder) or (folder.is_dir() and not any(folder.iterdir()))):
        raise ValueError(f"{folder} exists and is no blipcore model: choose another place to save to")
    staging, old = folder.with_name(f".{folder.name}.tmp"), folder.with_name(f".{folder.name}.old")
    for leftover in (staging, old):  # of a run that was killed here
        shutil.rmtree(leftover, ignore_errors=True)
    staging.mkdir(parents=True)
    content = {"format": "blipcore", "version": VERSION, "config": model.config.to_dict()}
    (staging / "config.json").write_text(json.dumps(content, indent=2) + "\n")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(state, staging / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(staging)
    for file in staging.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    if folder.exists():
        folder.rename(old)
    staging.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def read_official(
    path: str | Path, overrides: Mapping[str, Any] | None = None
) -> tuple[BlipConfig, dict[str, Tensor], dict[str, Tensor]]:
    """Config, model state and training state of an official .pth, all under our names.

    Sizes come from the tensors; heads have 64 channels unless `overrides` ({"vision": {"heads": 3}, "text": {…}}) says
    otherwise, and a size in `overrides` that the file contradicts is an error. The training state is what the file has
    of "momentum.<our name>", image_queue and text_queue (E, Q), idx_queue (1, Q) and queue_ptr (1).
    """
    student, momentum, extra = split_training_state(_read_pickle(Path(path)))
    config = official_config(student, overrides or {}, path)
    state = translate(student, config, path)
    if momentum:
        copy = translate(momentum, config.only("encode", "itc"), f"the momentum half of {path}")
        extra |= {f"momentum.{name}": tensor for name, tensor in copy.items() if name != "temp"}
    return config, state, extra


def read_huggingface(folder: str | Path) -> tuple[BlipConfig, dict[str, Tensor]]:
    """Config and model state, under our names, of a Hugging Face BLIP folder for captioning, retrieval or VQA."""
    folder = Path(folder)
    raw = _read_json(folder / "config.json")
    state: dict[str, Tensor] = {}
    for file in _weight_files(folder):
        state |= _read_safetensors(file) if file.suffix == ".safetensors" else _read_pickle(file)
    config = huggingface_config(raw, state, folder)
    return config, translate(state, config, folder, hf=True)


def fingerprint(path_or_id: str | Path, tokenizer: str | Path | None = None) -> str:
    """16 hex digits that change with weights, config or vocabulary: what tables record as the model they came from."""
    path = _local(path_or_id)
    files = [path]
    if path.is_dir():
        names = ("config.json", *(() if tokenizer else TOKENIZER_FILES))
        files = [*_weight_files(path), *(path / name for name in names if (path / name).is_file())]
    if tokenizer and Path(tokenizer).exists():
        given = Path(tokenizer)
        files += [given / name for name in TOKENIZER_FILES if (given / name).is_file()] if given.is_dir() else [given]
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()[:16]


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


def _local(path_or_id: str | Path) -> Path:
    """The file or folder itself, or the folder that the hub's files of this name were fetched to."""
    path = Path(path_or_id)
    if path.exists():
        return path
    wanted = ("config.json", *TOKENIZER_FILES, "model*.safetensors", _INDEX)
    folder = download(str(path_or_id), wanted)
    if not any(folder.glob("*.safetensors")):  # older repositories hold a pickle alone
        folder = download(str(path_or_id), (*wanted, "pytorch_model.bin"))
    return folder


def _is_ours(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    if not (folder / "config.json").is_file():
        return False
    return _read_json(folder / "config.json").get("format") == "blipcore"


def _read_ours(folder: Path) -> tuple[BlipConfig, dict[str, Tensor]]:
    raw = _read_json(folder / "config.json")
    if raw.get("version") != VERSION:
        raise ValueError(f"{folder} has format version {raw.get('version')}, this program reads {VERSION}: update it")
    try:
        config = BlipConfig.from_dict(raw["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'config.json'} describes no model: {error}") from error
    (file,) = _weight_files(folder)
    state, expected = _read_safetensors(file), shapes(config)
    require_fit(
        folder,
        missing=[name for name in expected if name not in state],
        unexpected=[name for name in state if name not in expected],
        misshapen=[
            f"{name} {tuple(state[name].shape)} for {tuple(shape)}"
            for name, shape in expected.items()
            if name in state and state[name].shape != shape
        ],
    )
    return config, state


def _weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights: one safetensors file, several by an index, or a pickle."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} is no model folder: it has no config.json")
    names = ["model.safetensors"]
    if (folder / _INDEX).is_file():
        names = sorted(set(_read_json(folder / _INDEX).get("weight_map", {}).values()))
    elif not (folder / names[0]).is_file() and (folder / "pytorch_model.bin").is_file():
        names = ["pytorch_model.bin"]
    for name in names:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}: the model was not saved or copied completely")
    return [folder / name for name in names]


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} is no model folder: it has no {path.name}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object")
    return content


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is cut short or no safetensors file ({error}): copy or save it again") from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    """The state dict of a torch file: its "model" entry, as official files have, or the whole."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its several readers stumble over
        raise ValueError(
            f"{path} is no PyTorch checkpoint of plain tensors ({type(error).__name__}): it is cut short, "
            "another kind of file, or holds pickled code, which is never run"
        ) from error
    state = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(f"{path} is a PyTorch file, but no checkpoint: it holds no state dict of tensors")
    return state
