"""Finds the files of a model, in a local folder or on the Hugging Face hub, and computes its fingerprint.

torch is not imported: a command that only compares fingerprints starts at once.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WEIGHT_INDEX = "model.safetensors.index.json"
VOCABULARY_FILES = ("tokenizer.json", "vocab.txt")  # in order of preference
TOKENIZER_SETTINGS = "tokenizer_config.json"
TOKENIZER_FILES = (*VOCABULARY_FILES, TOKENIZER_SETTINGS)
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(?<!\.pth)(?<!\.pt)(?<!\.txt)(?<!\.json)")


def download_from_hub(hub_id: str, files: Sequence[str]) -> Path:
    """Download the files of a hub repository that match the patterns `files`; return their folder."""
    import huggingface_hub

    if not _HUB_ID.fullmatch(hub_id):
        raise FileNotFoundError(f"No file or folder at {hub_id}.")
    try:
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=list(files)))
    except (OSError, ValueError) as error:  # no network, or no such repository
        raise FileNotFoundError(
            f"No file or folder at {hub_id}, and the Hugging Face hub did not provide it ({type(error).__name__}): "
            "check the path, or the name and the network."
        ) from error


def locate_model(path_or_id: str | Path) -> Path:
    """Return a local path, or the folder of a model and its tokenizer downloaded from the hub."""
    path = Path(path_or_id)
    if path.exists():
        return path
    patterns = ("config.json", *TOKENIZER_FILES, "model*.safetensors", WEIGHT_INDEX)
    folder = download_from_hub(str(path_or_id), patterns)
    if not any(folder.glob("*.safetensors")):  # an older repository with only a pickle
        folder = download_from_hub(str(path_or_id), (*patterns, "pytorch_model.bin"))
    return folder


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files of a model folder: one safetensors file, those of an index, or a pickle."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} is no model folder: it has no config.json.")
    names = ["model.safetensors"]
    if (folder / WEIGHT_INDEX).is_file():
        names = sorted(set(read_json_object(folder / WEIGHT_INDEX).get("weight_map", {}).values()))
    elif not (folder / names[0]).is_file() and (folder / "pytorch_model.bin").is_file():
        names = ["pytorch_model.bin"]
    for name in names:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}: the model was not saved or copied completely.")
    return [folder / name for name in names]


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a model folder."""
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} is no model folder: it has no {path.name}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object.")
    return content


def model_fingerprint(path_or_id: str | Path, tokenizer: str | Path | None = None) -> str:
    """Return 16 hex digits that change with the weights, the config or the vocabulary of a model.

    A `tokenizer` (file or folder) replaces the model's own.
    """
    path = locate_model(path_or_id)
    files = [path]
    if path.is_dir():
        names = ["config.json"] if tokenizer else ["config.json", *TOKENIZER_FILES]
        files = [*weight_files(path), *_existing_files(path, names)]
    if tokenizer and Path(tokenizer).exists():
        vocabulary = Path(tokenizer)
        files += _existing_files(vocabulary, TOKENIZER_FILES) if vocabulary.is_dir() else [vocabulary]
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()[:16]


def _existing_files(folder: Path, names: Sequence[str]) -> list[Path]:
    return [folder / name for name in names if (folder / name).is_file()]
