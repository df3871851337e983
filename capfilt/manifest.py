"""What made a folder: settings, versions and counts, written beside the tables of a stage.

A stage begins its folder with the settings that its output depends on; the same settings later go on with it,
others are refused with a readable diff.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from capfilt.config import diff
from capfilt.shards import MANIFEST, read_manifest, sweep, write_json


@dataclass
class Manifest:
    """What made a folder. Holds no clock time, host or number of workers: a rerun writes the same bytes."""

    folder: Path
    content: dict

    @staticmethod
    def begin(
        folder: Path,
        stage: str,
        config: dict,
        *,
        images: Path | None = None,
        parents: Iterable[Path] = (),
        packages: Iterable[str] = ("pillow", "pyarrow"),
    ) -> Manifest:
        """Claim `folder` for these settings; ValueError with a readable diff when it was made with others.

        `config` is what the output depends on (no workers, no device). `images` is the shard set of the pictures and
        `parents` the folders that were read; both are kept relative to `folder` where it lies inside the shard set.
        """
        config = json.loads(json.dumps(config))
        here = {
            "stage": stage,
            "config": config,
            **({} if images is None else {"images": _reference(folder, images, images)}),
            "parents": [_reference(folder, parent, images) for parent in parents],
        }
        sweep(folder)
        there = read_manifest(folder)
        if there is not None:
            changes = diff({name: there.get(name) for name in here}, here)
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
        if self.content.get("counts") != counts:
            self.content = {**self.content, "counts": counts}
            write_json(self.folder / MANIFEST, self.content)


def _reference(folder: Path, target: Path, images: Path | None) -> str:
    folder, target = folder.resolve(), target.resolve()
    root = None if images is None else images.resolve()
    if root is not None and folder.is_relative_to(root) and target.is_relative_to(root):
        return os.path.relpath(target, folder)  # the set can be moved as a whole
    return str(target)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
