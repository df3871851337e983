"""A shard set: a folder of tar shards with or without tables beside them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from blipcore.io.storage import AnyPath, Remote, list_names, resolve_reference, to_path
from capfilt.shards.format import read_manifest
from capfilt.shards.tables import read_table


@dataclass(frozen=True)
class ShardSet:
    """A folder of `NNNNN.tar` files, with or without tables beside them."""

    path: AnyPath
    shards: list[str]

    @staticmethod
    def open(path: str | AnyPath) -> ShardSet:
        """List the shards of a folder; FileNotFoundError or ValueError in one sentence when it is no shard set.

        One listing, however many shards: no tar and no table is opened.
        """
        folder = to_path(path)
        if isinstance(folder, Path) and folder.is_file():
            raise ValueError(f"{folder} is a file; give the folder that holds the .tar shards.")
        listed = [name for name in list_names(folder) if not name.startswith(".")]
        if not listed and (isinstance(folder, Remote) or not folder.exists()):
            raise FileNotFoundError(f"No folder at {folder}.")
        manifest = read_manifest(folder)
        shards = [name[: -len(".tar")] for name in listed if name.endswith(".tar")]
        if manifest is not None and manifest.get("stage") in ("download", "pack"):
            tables = set(listed)  # these commit the table last: a tar without one is not finished
            shards = [shard for shard in shards if f"{shard}.parquet" in tables]
        if not shards:
            raise ValueError(_why_no_shards(folder, listed, manifest))
        return ShardSet(folder, shards)

    def tar(self, shard: str) -> AnyPath:
        return self.path / f"{shard}.tar"

    def table(self, shard: str) -> AnyPath:
        """Where the shard's image table lies, if it has one."""
        return self.path / f"{shard}.parquet"

    def about(self, shard: str, columns: Iterable[str]) -> pa.Table:
        """`key` and those of these columns that the shard's own table has; no columns where it tells nothing.

        In a set of others the table may be missing, cut short or of another kind, and the pictures are there all the
        same.
        """
        try:
            table = read_table(self.table(shard), [], optional=("key", *columns))
        except (FileNotFoundError, ValueError):
            return pa.table({})
        return table if "key" in table.column_names else pa.table({})


def _why_no_shards(folder: AnyPath, names: list[str], manifest: dict | None) -> str:
    if manifest is not None and "images" in manifest:
        stage, images = manifest["stage"], resolve_reference(folder, manifest["images"])
        return f"{folder} is the output of '{stage}', not a shard set; its pictures are in {images}."
    if manifest is not None:
        return f"{folder} has no finished shard yet; run the same `capfilt {manifest['stage']}` again to finish it."
    if any(name.endswith(".parquet") for name in names):
        return f"{folder} holds Parquet but no .tar shards; a shard set needs img2dataset's 'webdataset' output format."
    return f"{folder} is not a shard set: it holds no .tar files."
