"""Locates scores: existing ones that cover a request, otherwise the folder for new ones.

A folder of scores covers a request if model and settings are the same and it has all requested sources and score
columns, perhaps more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from blipcore.device import resolve_backend, resolve_dtype
from blipcore.io.storage import AnyPath, existing_paths
from capfilt.engine.worker import worker_device
from capfilt.filter.computed import CAPTION_SCORES, declare_computed
from capfilt.filter.confidence import require_logprobs
from capfilt.filter.config import ScoreConfig
from capfilt.filter.judge import AXES, JUDGE_ERROR, VQA
from capfilt.filter.registry import FILTER_COLUMNS, DeclaredScorer, declare_scorers
from capfilt.filter.sentences import SENTENCE_COLUMNS
from capfilt.shards.format import WEB
from capfilt.shards.manifest import read_manifest, recorded_backend, remove_manifest_if_empty
from capfilt.shards.shard_set import ShardSet
from capfilt.shards.tables import read_table

# Columns of a captions table that scoring reads.
CAPTIONS_TABLE_COLUMNS = ["key", "index", "text"]
NO_CAPTIONS: Mapping[str, AnyPath] = MappingProxyType({})
NO_COLUMNS: Mapping[str, str] = MappingProxyType({})
# Settings of a filter that change its scores and are recorded only if they are set.
OPTIONAL_SETTINGS = ("numerics", "merge_tokens")


@dataclass(frozen=True)
class ScoreFolder:
    """A folder of scores that covers a request: complete, begun or new."""

    path: AnyPath
    # settings in the manifest of the scores
    settings: dict[str, Any]
    # requested sources -> folder of their captions, None for the web texts
    captions: dict[str, AnyPath | None]
    # all shards have scores, and captions if these are written in the same pass
    is_complete: bool
    # as `captions`, for all sources in the folder
    captions_to_score: dict[str, AnyPath | None]

    @property
    def columns(self) -> list[str]:
        """Names of the scores, in the order of the tables."""
        return [column for columns in _columns_by_scorer(self.settings) for column in columns]


def locate_scores(
    config: ScoreConfig,
    images: ShardSet,
    required_columns: Mapping[str, str] = NO_COLUMNS,
    new_captions: Mapping[str, AnyPath] = NO_CAPTIONS,
) -> ScoreFolder:
    """Return existing scores that cover the request, otherwise the folder for new ones; write nothing.

    `required_columns` maps required score columns to the settings that need them. `new_captions` maps captions written
    in the same pass to their folders.

    Raises ValueError or FileNotFoundError for missing, unfinished or changed captions, a missing score column, and a
    missing model.
    """
    captions = _find_captions(config, images, config.sources, new_captions)
    path, settings = _choose_folder(config, {source: _origin(folder) for source, folder in captions.items()})
    outputs = [folder / f"{shard}.parquet" for folder in (path, *new_captions.values()) for shard in images.shards]
    is_complete = len(existing_paths(outputs)) == len(outputs)
    scores = ScoreFolder(path, settings, captions, is_complete, captions)
    available = [*scores.columns, *(computed.name for computed in declare_computed(scores.columns, captions))]
    for column, setting in required_columns.items():
        if column not in available:
            raise ValueError(
                f"{setting} needs the score '{column}', but the scores are {', '.join(available)}; "
                f"add {_option_for(column)}."
            )
        if column in CAPTION_SCORES:
            require_logprobs(captions, images.shards[0], setting)
    if is_complete:
        if config.vectors and not settings.get("vectors"):
            raise ValueError(f"{path} has no vectors; to store them, score again with --model and another --scores.")
        return scores
    requested = 0 if config.model is None else 1 + len(config.clips) + len(config.scorers) + bool(config.judge.model)
    if requested < len(_columns_by_scorer(settings)):
        raise ValueError(
            f"{path} is not finished; to finish it, give the same --model, --clip, --scorer and --judge as before."
        )
    for name in ("sentences", "vectors"):
        if bool(settings.get(name)) != getattr(config, name):
            given = str(bool(settings.get(name))).lower()
            raise ValueError(f"{path} is not finished; to finish it, give --set {name}={given} as before.")
    to_score = _find_captions(config, images, list(settings["sources"]), new_captions)
    return ScoreFolder(path, settings, captions, is_complete, to_score)


def _option_for(column: str) -> str:
    """Return the option of `capfilt filter` that gives a score column."""
    if column in SENTENCE_COLUMNS:
        return "--sentences"
    if column in CAPTION_SCORES:
        return "a source that `capfilt caption` wrote"
    if column in (VQA, *AXES):
        return "--judge MODEL" if column == VQA else "--judge openai:MODEL --set judge.by=rubric"
    return "--clip open_clip:ARCH/TAG, once per CLIP score, or a --scorer that gives it"


def rescore_advice(folder: AnyPath) -> str:
    """Return a remedy for scores that no longer fit."""
    return f"delete {folder}, or write other scores with --scores NAME"


def _find_captions(
    config: ScoreConfig, images: ShardSet, sources: Iterable[str], new_captions: Mapping[str, AnyPath]
) -> dict[str, AnyPath | None]:
    """Return source -> folder of its captions, None for the web texts: "web" first, then by name.

    Empty `sources` selects all. Captions that are not new must be finished.
    """
    roots = [config.root / "captions", images.path / "captions"]
    # `capfilt caption` leaves a folder without a table if its model cannot be loaded.
    old_folders = [path for root in reversed(roots) for path in root.glob("[!.]*") if any(path.glob("*.parquet"))]
    folders = {path.name: path for path in old_folders} | dict(new_captions)
    names = set(sources) or {WEB, *folders}
    # `capfilt pack --texts --name web` replaces the web texts.
    captions: dict[str, AnyPath | None] = {WEB: folders.get(WEB)} if WEB in names else {}
    if captions.get(WEB) is not None:
        _require_finished(folders[WEB], images)
    for name in sorted(names - {WEB}):
        if name not in folders:
            known = ", ".join([WEB, *sorted(folders)])
            raise FileNotFoundError(f"No captions named '{name}' in {roots[0]}; the sources are {known}.")
        captions[name] = folders[name]
        if name not in new_captions:
            _require_finished(folders[name], images)
    return captions


def _require_finished(folder: AnyPath, images: ShardSet) -> None:
    tables = [folder / f"{shard}.parquet" for shard in images.shards]
    missing = [path.stem for path in sorted(set(tables) - existing_paths(tables))]
    if missing:
        stage = (read_manifest(folder) or {}).get("stage", "caption")
        raise ValueError(
            f"{folder} lacks {len(missing)} of {len(tables)} shards, {missing[0]} first; run the same "
            f"`capfilt {stage}` again to finish it, or leave it out with --sources."
        )
    # reports a table with other columns before the model is loaded
    read_table(tables[0], CAPTIONS_TABLE_COLUMNS)


def _origin(captions: AnyPath | None) -> str:
    """Return a digest of the settings of a source's captions, 16 hex digits; it is the same for more shards."""
    if captions is None:
        return "in the shards"
    manifest = read_manifest(captions)
    if manifest is None:
        return "not recorded"
    return hashlib.sha256(json.dumps(manifest["config"], sort_keys=True).encode()).hexdigest()[:16]


def _choose_folder(config: ScoreConfig, origins: dict[str, str]) -> tuple[AnyPath, dict[str, Any]]:
    """Return a folder of scores for sources with these origins, and its settings."""
    scorers = declare_scorers(config) if config.model is not None else []
    request: dict[str, Any] = {"sources": origins}
    if scorers:
        request |= _scorer_settings(scorers, len(config.clips)) | {"dtype": config.dtype}
    # Finished scores of any dtype cover "auto", so scores from another machine need no pass on this one.
    any_dtype = {name: value for name, value in request.items() if (name, value) != ("dtype", "auto")}
    match = _find_match(config, any_dtype, finished=True)
    if match is not None:
        return match
    device = ""
    if config.model is not None:
        device = worker_device(config.device, 0)
        request["dtype"] = resolve_dtype(device, config.dtype)
    match = _find_match(config, request, finished=False)
    if match is not None:
        return match
    root = config.root / "scores"
    if config.model is None:
        raise ValueError(f"{root / str(config.scores)} has no scores of {', '.join(origins)}; give a --model.")
    folder = root / (config.scores or _default_name(scorers, origins))
    if config.world_size == 1:
        remove_manifest_if_empty(folder)
    manifest = read_manifest(folder)
    scored_origins = manifest["config"]["sources"] if manifest else {}
    changed = [source for source, origin in origins.items() if scored_origins.get(source, origin) != origin]
    if changed:
        raise ValueError(
            f"The settings of the captions '{changed[0]}' have changed since they were scored in {folder}; "
            f"{rescore_advice(folder)}."
        )
    if not scorers[0].scorer.uses_backend:
        if config.backend not in ("auto", "torch"):
            raise ValueError(f"backend {config.backend} is for BLIP and ALBEF, not for {config.model}; use torch.")
        return folder, request
    backend = resolve_backend(device, request["dtype"], config.backend, recorded_backend(folder))
    # another backend rounds differently
    return folder, request if backend == "torch" else request | {"backend": backend}


def _default_name(scorers: list[DeclaredScorer], sources: Iterable[str]) -> str:
    """Return a name of the model, the last further score and the sources; those of a judge differ by its settings."""
    model, *others = scorers
    extra = "".join(f"+{other.columns[-1]}" for other in others[-1:])
    if others and JUDGE_ERROR.name in others[-1].list_columns:
        settings = json.dumps(others[-1].settings(), sort_keys=True)
        extra += f"-{hashlib.sha256(settings.encode()).hexdigest()[:6]}"
    return f"{model.scorer.name}-{model.scorer.fingerprint[:8]}{extra}.{'+'.join(sources)}"[:120]


def _find_match(config: ScoreConfig, request: dict[str, Any], finished: bool) -> tuple[AnyPath, dict[str, Any]] | None:
    """Return a folder of scores that covers the request, finished or else begun, and its settings."""
    root = config.root / "scores"
    folders: list[AnyPath] = [root / config.scores] if config.scores else sorted(root.glob("*"), key=str)
    for folder in folders:
        manifest = read_manifest(folder)
        if manifest is None or manifest["stage"] != "score" or not _covers(manifest["config"], request):
            continue
        backend = manifest["config"].get("backend", "torch")
        # A run whose models cannot be loaded leaves a manifest without tables; only the same request reuses it.
        is_same = manifest["config"] | {"backend": backend} == request | {"backend": backend}
        is_begun = not finished and (is_same or any(folder.glob("*.parquet")))
        if ("counts" in manifest or is_begun) and config.backend in ("auto", backend):
            return folder, manifest["config"]
    return None


def _covers(settings: dict[str, Any], request: dict[str, Any]) -> bool:
    """Return True if scores with these settings cover the request."""
    clips, scorers = _clips(request), request.get("scorers", {})
    return (
        all(settings["sources"].get(source) == origin for source, origin in request["sources"].items())
        and _clips(settings)[: len(clips)] == clips
        and all(settings.get("scorers", {}).get(columns) == scorer for columns, scorer in scorers.items())
        and all(
            settings.get(name) == value for name, value in request.items() if name not in ("sources", "clip", "scorers")
        )
        # recorded only if set: their absence is a setting too
        and all("fingerprint" not in request or settings.get(name) == request.get(name) for name in OPTIONAL_SETTINGS)
    )


def _scorer_settings(scorers: list[DeclaredScorer], clips: int) -> dict[str, Any]:
    """Return what identifies the scores: settings of the filter, fingerprints of `clips` models, further scorers.

    `scorers` maps the columns of each further scorer to its settings; without one, the key is left out.
    """
    model, *others = scorers
    fingerprints = [other.scorer.fingerprint for other in others[:clips]]
    settings = model.settings() | {"clip": fingerprints[0] if clips == 1 else fingerprints or None}
    further = {",".join(other.columns): other.settings() for other in others[clips:]}
    return settings | ({"scorers": further} if further else {})


def _columns_by_scorer(settings: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the columns of each scorer in the settings of a manifest."""
    clips = [(f"clip{number}" if number > 1 else "clip",) for number in range(1, len(_clips(settings)) + 1)]
    of_filter = FILTER_COLUMNS + (SENTENCE_COLUMNS if "sentences" in settings else ())
    return [of_filter, *clips, *(tuple(columns.split(",")) for columns in settings.get("scorers", {}))]


def _clips(settings: dict[str, Any]) -> list[str]:
    """Return the fingerprints of the open_clip models; manifests have one, a list or null."""
    clip = settings.get("clip")
    return clip if isinstance(clip, list) else [clip] if clip else []
