"""Which files a model is made of, where they are, and what tells two models apart; no tensor is read here.

In: a path, or a Hugging Face hub id. Out: paths and a fingerprint. Free of torch, so that a command which only has to
know whether a model is the one of before does not wait for it.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

INDEX = "model.safetensors.index.json"
# The vocabulary, in the order it is looked for, and how a text is normalised before.
VOCABULARIES, SETTINGS = ("tokenizer.json", "vocab.txt"), "tokenizer_config.json"
TOKENIZER_FILES = (*VOCABULARIES, SETTINGS)
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(?<!\.pth)(?<!\.pt)(?<!\.txt)(?<!\.json)")


def download(hub_id: str, files: Sequence[str]) -> Path:
    """Local folder with the files of a Hugging Face hub repository that match the patterns `files`."""
    import huggingface_hub

    if not _HUB_ID.fullmatch(hub_id):
        raise FileNotFoundError(f"there is no file or folder {hub_id}")
    try:
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=list(files)))
    except (OSError, ValueError) as error:  # no network, no such repository
        raise FileNotFoundError(
            f"{hub_id} is no file or folder here, and the Hugging Face hub did not give it ({type(error).__name__}): "
            "check the path, or the name and the network"
        ) from error


def locate(path_or_id: str | Path, also: Sequence[str] = ()) -> Path:
    """The file or folder itself, or the folder that a hub repository's model, tokenizer and `also` were fetched to."""
    path = Path(path_or_id)
    if path.exists():
        return path
    wanted = ("config.json", *TOKENIZER_FILES, "model*.safetensors", INDEX, *also)
    folder = download(str(path_or_id), wanted)
    if not any(folder.glob("*.safetensors")):  # older repositories hold a pickle alone
        folder = download(str(path_or_id), (*wanted, "pytorch_model.bin"))
    return folder


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights: one safetensors file, several by an index, or a pickle."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} is no model folder: it has no config.json")
    names = ["model.safetensors"]
    if (folder / INDEX).is_file():
        names = sorted(set(read_json(folder / INDEX).get("weight_map", {}).values()))
    elif not (folder / names[0]).is_file() and (folder / "pytorch_model.bin").is_file():
        names = ["pytorch_model.bin"]
    for name in names:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}: the model was not saved or copied completely")
    return [folder / name for name in names]


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a model folder's file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} is no model folder: it has no {path.name}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object")
    return content


def fingerprint(path_or_id: str | Path, tokenizer: str | Path | None = None) -> str:
    """16 hex digits that change with weights, config or vocabulary: what tables record as the model they came from."""
    path = locate(path_or_id)
    files = [path]
    if path.is_dir():
        names = ("config.json", *(() if tokenizer else TOKENIZER_FILES))
        files = [*weight_files(path), *(path / name for name in names if (path / name).is_file())]
    if tokenizer and Path(tokenizer).exists():
        given = Path(tokenizer)
        files += [given / name for name in TOKENIZER_FILES if (given / name).is_file()] if given.is_dir() else [given]
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()[:16]
