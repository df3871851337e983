"""Finds existing scores that cover a request, or names the folder for new ones."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from blipcore.device import resolve_backend, resolve_dtype
from blipcore.io.hub import fingerprint
from blipcore.io.storage import AnyPath
from capfilt.engine.worker import pick_device
from capfilt.filter.config import ScoreConfig
from capfilt.filter.scorer import BLIP_COLUMNS, clip_columns, open_clip_fingerprint
from capfilt.shards.format import read_manifest
from capfilt.shards.manifest import begun_with, forget_if_empty


def _origin(captions: AnyPath | None) -> str:
    """What a source's texts were made with, in 16 hex digits; more shards of the same make do not change it."""
    manifest = read_manifest(captions) if captions else None
    if manifest is None:
        return "not recorded" if captions else "in the shards"
    return hashlib.sha256(json.dumps(manifest["config"], sort_keys=True).encode()).hexdigest()[:16]


def _choose(config: ScoreConfig, origins: dict[str, str]) -> tuple[AnyPath, dict[str, Any]]:
    """Folder with scores that cover what is asked for, or the place for new ones, and what they are made with."""
    asked: dict[str, Any] = {"sources": origins}
    if config.model is not None:
        prints = [open_clip_fingerprint(spec) for spec in config.clips]
        asked |= {
            "fingerprint": fingerprint(config.model, config.tokenizer),
            "first_token": config.first_token,
            "dtype": config.dtype,
            "clip": prints[0] if len(prints) == 1 else prints or None,
        }
    # Finished scores of either number format do for "auto": those of another machine need no pass on this one.
    finished = {name: value for name, value in asked.items() if (name, value) != ("dtype", "auto")}
    if found := _find_scores(config, finished, finished=True):
        return found
    if config.model is not None:
        device = pick_device(config.device, 0)
        asked["dtype"] = resolve_dtype(device, config.dtype)
    if found := _find_scores(config, asked, finished=False):
        return found
    place = config.root / "scores"
    if config.model is None:
        raise ValueError(f"{place / config.scores} has no scores of {', '.join(origins)}; give a model to make them.")
    clip = "".join(f"+{column}" for column in clip_columns(len(config.clips))[-1:])
    folder = place / (config.scores or f"blip-{asked['fingerprint'][:8]}{clip}.{'+'.join(origins)}"[:120])
    if config.world_size == 1:
        forget_if_empty(folder)
    manifest = read_manifest(folder)
    before = manifest["config"]["sources"] if manifest else {}
    changed = [source for source, origin in origins.items() if before.get(source, origin) != origin]
    if changed:
        raise ValueError(
            f"The captions '{changed[0]}' have been made anew since {folder} was made from them; {rescore(folder)}."
        )
    backend = resolve_backend(device, asked["dtype"], config.backend, begun_with(folder))
    return folder, asked if backend == "torch" else asked | {"backend": backend}  # whose rounding is another


def _find_scores(config: ScoreConfig, asked: dict[str, Any], finished: bool) -> tuple[AnyPath, dict[str, Any]] | None:
    """A folder of scores, finished or at least begun, that covers what is `asked`, and what it is made with."""
    place = config.root / "scores"
    for folder in [place / config.scores] if config.scores else sorted(place.glob("*")):
        manifest = read_manifest(folder)
        if manifest is None or manifest["stage"] != "score" or not _covers(manifest["config"], asked):
            continue
        backend = manifest["config"].get("backend", "torch")
        # without a table, and never finished: what a run leaves whose models cannot be loaded, for the same run alone
        same = manifest["config"] | {"backend": backend} == asked | {"backend": backend}
        begun = not finished and (same or any(folder.glob("*.parquet")))
        if ("counts" in manifest or begun) and config.backend in ("auto", backend):
            return folder, manifest["config"]
    return None


def rescore(folder: AnyPath) -> str:
    """What to do about scores that no longer fit."""
    return f"delete {folder}, or score into another folder with --scores NAME"


def _covers(there: dict[str, Any], asked: dict[str, Any]) -> bool:
    """Whether scores made with `there` hold all that is asked for: more sources and CLIP columns do no harm."""
    sources, clips = asked["sources"], _clips(asked)
    return (
        all(there["sources"].get(source) == origin for source, origin in sources.items())
        and _clips(there)[: len(clips)] == clips
        and all(there[name] == value for name, value in asked.items() if name not in ("sources", "clip"))
    )


def _columns(made_with: dict[str, Any]) -> list[str]:
    """Names of the score columns of what was made with these settings."""
    return [*BLIP_COLUMNS, *clip_columns(len(_clips(made_with)))]


def _clips(made_with: dict[str, Any]) -> list[str]:
    """Fingerprints of the open_clip models in a manifest's settings: one, a list or null."""
    clip = made_with.get("clip")
    return clip if isinstance(clip, list) else [clip] if clip else []
