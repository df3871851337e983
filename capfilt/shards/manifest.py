"""What made a folder: settings, versions and counts, written beside the tables of a stage.

A stage begins its folder with the settings that its output depends on; the same settings later go on with it,
others are refused with a readable diff.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata

from blipcore.io.config_diff import diff_configs
from blipcore.io.storage import AnyPath, existing, list_names
from blipcore.io.writing import remove_temporary_files, write_json
from capfilt.shards.format import MANIFEST, read_manifest
from capfilt.shards.tables import read_counts


@dataclass
class Manifest:
    """What made a folder. Holds no clock time, host or number of workers: a rerun writes the same bytes."""

    folder: AnyPath
    content: dict

    @staticmethod
    def begin(
        folder: AnyPath,
        stage: str,
        config: dict,
        *,
        images: AnyPath | None = None,
        parents: Iterable[AnyPath] = (),
        packages: Iterable[str] = ("pillow", "pyarrow"),
        shared: bool = False,
    ) -> Manifest:
        """Claim `folder` for these settings; ValueError with a readable diff when it was made with others.

        `config` is what the output depends on (no workers, no device). `images` is the shard set of the pictures and
        `parents` the folders that were read; both are kept relative to `folder` where it lies inside the shard set.
        A folder that is not `shared` with other ranks is swept of what a killed run has left.
        """
        config = json.loads(json.dumps(config))
        here = {
            "stage": stage,
            "config": config,
            **({} if images is None else {"images": _reference(folder, images, images)}),
            "parents": [_reference(folder, parent, images) for parent in parents],
        }
        if not shared:
            remove_temporary_files(folder)
        there = read_manifest(folder)
        if there is not None:
            changes = diff_configs({name: there.get(name) for name in here}, here)
            if changes:
                listing = "".join(f"\n  {line.removeprefix('config.')}" for line in changes)
                raise ValueError(
                    f"{folder} was made with other settings; give another name or folder, or delete it. "
                    f"What differs (there -> now):{listing}"
                )
            return Manifest(folder, there)
        content = here | {
            "created_by": f"capfilt {_version('capfilt')}",
            "versions": {name: _version(name) for name in packages},
        }
        write_json(folder / MANIFEST, content)
        return Manifest(folder, content)

    def finish(self, counts: dict[str, int]) -> None:
        """Record the counts of the finished folder."""
        self._write({"counts": counts})

    def reopen(self) -> None:
        """Take the counts back: the folder's tables are about to change, or some of them are not there any more."""
        self._write({})

    def settle(
        self, tables: Mapping[str, AnyPath], mine: Iterable[str], failed: Mapping[str, str], changed: bool
    ) -> dict[str, int]:
        """Record what became of a run over `mine` of the shards, whose tables are `tables`; returns the counts.

        All counts, once every table is there, whoever wrote them; until then those of `mine`, and the shards that have
        failed with the reason. Where the run has `changed` nothing, no table of a finished folder is opened.
        """
        there = existing(tables.values())
        whole = len(there) == len(tables)
        if whole and not changed and "counts" in self.content:
            return self.content["counts"]
        mine = set(mine)
        counts = read_counts(table for shard, table in tables.items() if table in there and (whole or shard in mine))
        if whole:
            self.finish(counts)
        elif failed:
            before = (read_manifest(self.folder) or {}).get("failed", {})  # those of the other ranks
            self._write({"failed": {s: why for s, why in {**before, **failed}.items() if tables.get(s) not in there}})
        return counts

    def _write(self, outcome: dict) -> None:
        content = {name: value for name, value in self.content.items() if name not in ("counts", "failed")} | outcome
        if content != self.content:
            self.content = content
            write_json(self.folder / MANIFEST, content)


def begun_with(folder: AnyPath) -> str | None:
    """The `backend` in the settings of a folder that has been begun; None where there is nothing yet."""
    there = read_manifest(folder)
    return None if there is None else there["config"].get("backend", "torch")


def forget_if_empty(folder: AnyPath) -> None:
    """Remove the manifest of a run that ended before its first table: it has settled nothing."""
    listed = list_names(folder)
    if MANIFEST in listed and not any(name.endswith(".parquet") for name in listed):
        (folder / MANIFEST).unlink(missing_ok=True)


def _reference(folder: AnyPath, target: AnyPath, images: AnyPath | None) -> str:
    root = images.resolve() if images is not None else None
    folder, target = folder.resolve(), target.resolve()
    if all(type(place) is type(root) and place.is_relative_to(root) for place in (folder, target)):
        return posixpath.relpath(str(target), str(folder))  # the set can be moved as a whole
    return str(target)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
