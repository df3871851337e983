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

# Whole files of weights in order of preference, as in transformers; a sharded one has NAME.index.json.
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
VOCABULARY_FILES = ("tokenizer.json", "vocab.txt")  # in order of preference
TOKENIZER_SETTINGS = "tokenizer_config.json"
TOKENIZER_FILES = (*VOCABULARY_FILES, TOKENIZER_SETTINGS)
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(?<!\.pth)(?<!\.pt)(?<!\.txt)(?<!\.json)")


def download_from_hub(hub_id: str, files: Sequence[str]) -> Path:
    """Download the files of a hub repository that match the patterns `files`; return their folder."""
    import huggingface_hub

    if "://" in hub_id:
        raise FileNotFoundError(f"{hub_id} is a URL: download the model, and give its path.")
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
    patterns = ("config.json", *PROCESSOR_FILES, *TOKENIZER_FILES, "model*.safetensors", "model.safetensors.index.json")
    folder = download_from_hub(str(path_or_id), patterns)
    if not any(folder.glob("*.safetensors")):  # an older repository with only pickles
        pickles = ("pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json")
        folder = download_from_hub(str(path_or_id), (*patterns, *pickles))
    return folder


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files of a model folder: one whole file, else the files of an index.

    Raises FileNotFoundError if a file is missing.
    """
    read_json_object(folder / "config.json")
    missing: list[str] = []
    for name in WEIGHT_FILES:
        # An index beside a whole file is left over from an earlier save.
        shards = [name] if (folder / name).is_file() else _shard_names(folder / f"{name}.index.json")
        absent = [shard for shard in shards if not (folder / shard).is_file()]
        if shards and not absent:
            return [folder / shard for shard in shards]
        missing += absent
    if missing:
        raise FileNotFoundError(f"{folder} has no {missing[0]}: the model was not saved or copied completely.")
    raise FileNotFoundError(
        f"{folder} has no model.safetensors: the model was not saved or copied completely{_describe_content(folder)}."
    )


def _shard_names(index: Path) -> list[str]:
    """Return the files that an index lists; none if there is no index."""
    if not index.is_file():
        return []
    weight_map = read_json_object(index).get("weight_map")
    names = sorted({str(name) for name in weight_map.values()}) if isinstance(weight_map, dict) else []
    if not names or any("/" in name or "\\" in name for name in names):
        raise ValueError(f"{index} is no index of weight files: it must map tensors to files of its folder.")
    return names


def _describe_content(folder: Path) -> str:
    """Return a hint at the checkpoints in a folder that is no model folder."""
    if (folder / ".metadata").is_file() and any(folder.glob("*.distcp")):
        command = f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} {folder}.pth"
        return f", but shards of torch.distributed.checkpoint; make one file of them with `{command}`"
    suffixes = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
    files = sorted(path.name for path in folder.iterdir() if path.suffix in suffixes) if folder.is_dir() else []
    # The hub's cache has the folders snapshots/COMMIT.
    configs = [*folder.glob("*/config.json"), *folder.glob("snapshots/*/config.json")]
    models = sorted(str(path.parent.relative_to(folder)) for path in configs)
    if files:
        return f"; it holds {', '.join(files[:3])}: give the file itself if it is an official checkpoint"
    return f"; it holds the folder{'s' * (len(models) > 1)} {', '.join(models[:3])}" if models else ""


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a model folder."""
    if not path.is_file():
        hint = _describe_content(path.parent)
        raise FileNotFoundError(f"{path.parent} is no model folder: it has no {path.name}{hint}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
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
