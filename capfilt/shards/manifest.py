"""The manifest of an output folder: settings, versions and counts, in manifest.json beside its tables.

A stage begins its folder with the settings that the output depends on. A later run with the same settings resumes;
other settings raise an error with the difference.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from types import MappingProxyType
from typing import Any

from blipcore.device import Backend
from blipcore.io.config_diff import diff_configs
from blipcore.io.storage import AnyPath, existing_paths, list_names, resolve_reference
from blipcore.io.writing import remove_temporary_files, write_json
from capfilt.shards.tables import sum_footer_counts

MANIFEST = "manifest.json"


def read_manifest(folder: AnyPath) -> dict[str, Any] | None:
    """Return the manifest of an output folder of capfilt; None for any other folder."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        raise ValueError(f"{folder / MANIFEST} is not valid JSON; delete the folder and run again.") from None
    return content if isinstance(content, dict) and "stage" in content else None


def image_folder(folder: AnyPath) -> AnyPath:
    """Return the shard set of an output folder."""
    manifest = read_manifest(folder)
    if manifest is None or "images" not in manifest:
        raise ValueError(f"{folder} has no manifest.json with the path of its pictures.")
    return resolve_reference(folder, manifest["images"])


@dataclass
class Manifest:
    """The manifest of a folder, without time, host or number of workers: a rerun writes the same bytes."""

    folder: AnyPath
    content: dict[str, Any]

    @staticmethod
    def begin(
        folder: AnyPath,
        stage: str,
        config: dict[str, Any],
        *,
        images: AnyPath | None = None,
        parents: Iterable[AnyPath] = (),
        packages: Iterable[str] = ("pillow", "pyarrow"),
        shared: bool = False,
        unchecked: Mapping[str, Any] = MappingProxyType({}),
    ) -> Manifest:
        """Write the manifest of a new folder, or read that of an existing one.

        Raises ValueError with the difference if `config`, `images` or `parents` have changed. `images` is the shard set
        with the pictures, `parents` are the other folders read. `unchecked` is recorded in a new manifest only and may
        change. Temporary files of killed runs are removed, unless the folder is `shared` with runs that may be active.
        """
        settings = {
            "stage": stage,
            "config": json.loads(json.dumps(config)),
            **({} if images is None else {"images": _reference(folder, images, images)}),
            "parents": [_reference(folder, parent, images) for parent in parents],
        }
        if not shared:
            remove_temporary_files(folder)
        recorded = read_manifest(folder)
        if recorded is not None:
            changes = diff_configs({name: recorded.get(name) for name in settings}, settings)
            if changes:
                listing = "".join(f"\n  {line.removeprefix('config.')}" for line in changes)
                raise ValueError(
                    f"{folder} was made with other settings; give another name or folder, or delete it. "
                    f"Changes (recorded -> new):{listing}"
                )
            return Manifest(folder, recorded)
        content = settings | {
            "created_by": f"capfilt {_version('capfilt')}",
            "versions": {name: _version(name) for name in packages},
            **unchecked,
        }
        write_json(folder / MANIFEST, content)
        return Manifest(folder, content)

    def describe_input(self, account: Mapping[str, Any]) -> None:
        """Record how the input was read. It is not compared when a run is resumed."""
        if self.content.get("account") != account:
            self.content["account"] = dict(account)
            write_json(self.folder / MANIFEST, self.content)

    def finish(self, counts: dict[str, int]) -> None:
        self._write({"counts": counts})

    def drop_counts(self) -> None:
        """Mark the folder as unfinished, before its tables change."""
        self._write({})

    def extend(self, fingerprint: str, rows: int) -> None:
        """Mark a shard set as unfinished again: its input has grown by `rows`, which become new shards."""
        config = self.content["config"]
        first = {"input_sha256": config["input_sha256"], "rows": self.content["counts"]["rows"]}
        parts = [*self.content.get("parts", [first]), {"input_sha256": fingerprint, "rows": rows}]
        self._write({"config": {**config, "input_sha256": fingerprint}, "parts": parts})

    def record_run(
        self, tables: Mapping[str, AnyPath], shards: Iterable[str], failed: Mapping[str, str], changed: bool
    ) -> dict[str, int]:
        """Record the outcome of a run over `shards`; return the counts.

        `tables` maps every shard of the folder to its table. If all exist, the folder is finished and the counts cover
        all shards. Otherwise they cover `shards`, and the manifest lists the `failed` ones with reasons. No table of a
        finished folder is read unless it has `changed`.
        """
        present = existing_paths(tables.values())
        complete = len(present) == len(tables)
        if complete and not changed and "counts" in self.content:
            return self.content["counts"]
        counted_shards = set(tables if complete else shards)
        counted = (path for shard, path in tables.items() if path in present and shard in counted_shards)
        counts = sum_footer_counts(counted)
        if complete:
            self.finish(counts)
        elif failed:
            # The manifest may list failed shards of other ranks.
            all_failed = {**(read_manifest(self.folder) or {}).get("failed", {}), **failed}
            still_failed = {shard: reason for shard, reason in all_failed.items() if tables.get(shard) not in present}
            self._write({"failed": still_failed})
        return counts

    def _write(self, outcome: dict[str, Any]) -> None:
        content = {name: value for name, value in self.content.items() if name not in ("counts", "failed")} | outcome
        if content != self.content:
            self.content = content
            write_json(self.folder / MANIFEST, content)


def count_shards(manifest: Mapping[str, Any]) -> int:
    """Return the number of shards in the manifest of a complete shard set; each part of its input begins a new one."""
    parts = manifest.get("parts") or [manifest["counts"]]
    return sum(-(-part["rows"] // manifest["config"]["shard_size"]) for part in parts)


def recorded_backend(folder: AnyPath) -> Backend | None:
    """Return the `backend` in the settings of a folder; None if it has no manifest."""
    manifest = read_manifest(folder)
    return None if manifest is None else manifest["config"].get("backend", "torch")


def remove_manifest_if_empty(folder: AnyPath) -> None:
    """Remove the manifest of a folder without tables, so that the next run may have other settings."""
    names = list_names(folder)
    if MANIFEST in names and not any(name.endswith(".parquet") for name in names):
        (folder / MANIFEST).unlink(missing_ok=True)


def _reference(folder: AnyPath, target: AnyPath, images: AnyPath | None) -> str:
    """Return `target` relative to `folder` if both are inside the shard set, which can be moved; otherwise absolute."""
    root = images.resolve() if images is not None else None
    folder, target = folder.resolve(), target.resolve()
    if all(type(path) is type(root) and path.is_relative_to(root) for path in (folder, target)):
        return posixpath.relpath(str(target), str(folder))
    return str(target)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
