"""A shard set: a folder of tar shards, with or without tables beside them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from blipcore.io.storage import AnyPath, Remote, list_names, resolve_reference, to_path
from capfilt.shards.manifest import read_manifest
from capfilt.shards.tables import read_table

# The status of a stored picture, in our tables and in those of img2dataset.
STORED = ["ok", "success"]


@dataclass(frozen=True)
class ShardSet:
    """A folder of `NNNNN.tar` files, and the names of its shards."""

    path: AnyPath
    shards: list[str]

    @staticmethod
    def open(path: str | AnyPath) -> ShardSet:
        """List the shards of a folder in one request; open no tar and no table.

        Raises FileNotFoundError if the folder does not exist, ValueError if it is no shard set.
        """
        folder = to_path(path)
        if isinstance(folder, Path) and folder.is_file():
            raise ValueError(f"{folder} is a file; give the folder that holds the .tar shards.")
        names = [name for name in list_names(folder) if not name.startswith(".")]
        if not names and (isinstance(folder, Remote) or not folder.exists()):
            raise FileNotFoundError(f"No folder at {folder}.")
        manifest = read_manifest(folder)
        shards = [name.removesuffix(".tar") for name in names if name.endswith(".tar")]
        if manifest is not None and manifest.get("stage") in ("download", "pack"):
            # Both stages write the table last: a tar without a table is unfinished, a table without a tar has lost it.
            shards = [name.removesuffix(".parquet") for name in names if re.fullmatch(r"\d+\.parquet", name)]
        if not shards:
            raise ValueError(_explain_no_shards(folder, names, manifest))
        return ShardSet(folder, shards)

    def max_pixels(self) -> int | None:
        """Return the pixel limit with which the set was written; None if its manifest names none."""
        config = (read_manifest(self.path) or {}).get("config")
        limit = config.get("max_pixels") if isinstance(config, dict) else None
        return limit if isinstance(limit, int) else None

    def tar(self, shard: str) -> AnyPath:
        return self.path / f"{shard}.tar"

    def table(self, shard: str) -> AnyPath:
        """Return the path of a shard's own table, which may not exist."""
        return self.path / f"{shard}.parquet"

    def stored_keys(self, shard: str) -> list[str]:
        """Return the keys of the pictures that the shard's own table lists as stored; none without such a table."""
        table = self.read_own_table(shard, ("status",))
        if "status" not in table.column_names:
            return []
        return table.filter(pc.is_in(table["status"], pa.array(STORED)))["key"].to_pylist()

    def read_own_table(self, shard: str, columns: Iterable[str]) -> pa.Table:
        """Return `key` and the `columns` of a shard's own table, as far as they exist.

        A missing, damaged or foreign table gives a table without columns: the pictures can still be used.
        """
        try:
            table = read_table(self.table(shard), [], optional=("key", *columns))
        except (FileNotFoundError, ValueError):
            return pa.table({})
        if "key" not in table.column_names:
            return pa.table({})
        # as in `read_samples`: tables of other tools may have "./00012"
        keys = pc.replace_substring_regex(table["key"].cast(pa.string()), r"^(\./)+", "")
        return table.set_column(table.column_names.index("key"), "key", keys)


def _explain_no_shards(folder: AnyPath, names: list[str], manifest: dict[str, Any] | None) -> str:
    if manifest is not None and "images" in manifest:
        stage, images = manifest["stage"], resolve_reference(folder, manifest["images"])
        return f"{folder} is the output of '{stage}', not a shard set; its pictures are in {images}."
    if manifest is not None:
        return f"{folder} has no finished shard yet; run the same `capfilt {manifest['stage']}` again to finish it."
    if any(name.endswith(".parquet") for name in names):
        return f"{folder} holds Parquet but no .tar shards; a shard set needs img2dataset's 'webdataset' output format."
    return f"{folder} is not a shard set: it holds no .tar files."
