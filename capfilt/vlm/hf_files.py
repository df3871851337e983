"""The files of an `hf:` model: its folder, its adapter and its fingerprint; without torch."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from blipcore.io.hub import download_from_hub, read_json_object

FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
PICKLES = ("pytorch_model*.bin", "adapter_model.bin")
CODE = "*.py"
ADAPTER = "adapter_config.json"


class HfFolders(NamedTuple):
    """The folder of a complete model, and that of an adapter trained on top of it."""

    base: Path
    adapter: Path | None = None


def find_folders(model: str, trust_remote_code: bool = False) -> HfFolders:
    """Return the local folders of a model or adapter, downloaded from the hub if there is no such folder.

    Raises FileNotFoundError for a path that is no model folder, or an adapter without its base model.
    """
    folder = _find_folder(model, trust_remote_code)
    if not (folder / ADAPTER).is_file():
        return HfFolders(folder)
    name = read_json_object(folder / ADAPTER).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{folder / ADAPTER} does not name its base model (base_model_name_or_path).")
    # a relative path was relative to the folder of the training; the adapter's own is the only other candidate
    if not Path(name).exists() and (folder / name).exists():
        name = str(folder / name)
    try:
        base = _find_folder(name, trust_remote_code)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{model} is an adapter of {name}, which is missing ({error}) Correct base_model_name_or_path in {ADAPTER}."
        ) from None
    if (base / ADAPTER).is_file():
        raise ValueError(f"{model} is an adapter of {name}, which is an adapter too; merge that one into its model.")
    return HfFolders(base, folder)


def hf_fingerprint(model: str, trust_remote_code: bool = False) -> str:
    """Return the commit of a hub repository, or 16 hex digits of a folder's files; load no model.

    The fingerprint of an adapter includes that of its base model.
    """
    folders = find_folders(model, trust_remote_code)
    if folders.adapter:
        parts = [_fingerprint(model, folders.adapter), _fingerprint(str(folders.base), folders.base)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]
    return _fingerprint(model, folders.base)


def model_family(folder: Path) -> str:
    """Return the model_type in the config of a model folder, "" if it has none."""
    family = read_json_object(folder / "config.json").get("model_type")
    return family if isinstance(family, str) else ""


def _find_folder(model: str, trust_remote_code: bool) -> Path:
    path = Path(model)
    if not path.exists():
        patterns = (*FILES, CODE) if trust_remote_code else FILES
        path = download_from_hub(model, patterns)
        if not any(path.glob("*.safetensors")):  # an older repository
            path = download_from_hub(model, (*patterns, *PICKLES))
    if not (path / "config.json").is_file() and not (path / ADAPTER).is_file():
        raise FileNotFoundError(f"{path} is not a model folder: it has no config.json.")
    return path


def _fingerprint(model: str, folder: Path) -> str:
    # the hub's cache stores each commit as snapshots/<commit>
    if folder.parent.name == "snapshots":
        return f"hf:{model}@{folder.name[:16]}"
    patterns = (*FILES, CODE) if any(folder.glob("*.safetensors")) else (*FILES, CODE, *PICKLES)
    digest = hashlib.sha256()
    for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
