"""Reads the pictures of a filtered set with their stored ITC vectors, shard by shard."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from blipcore.io.storage import AnyPath, resolve_reference
from capfilt.filter.filtered_set import FilteredSet
from capfilt.filter.vectors import DTYPE, PICTURE_VECTOR
from capfilt.shards.manifest import read_manifest
from capfilt.shards.shard_set import ShardSet
from capfilt.shards.tables import read_table


@dataclass(frozen=True)
class VectorFolder:
    """A folder of scores with vectors."""

    path: AnyPath
    # of the filter that made them; vectors of two filters cannot be compared
    fingerprint: str
    # the filter as on the command line
    model: str

    @staticmethod
    def open(path: AnyPath) -> VectorFolder | None:
        """Return the scores at a path; None if they have no vectors."""
        manifest = read_manifest(path)
        if manifest is None or manifest["stage"] != "score" or not manifest["config"].get("vectors"):
            return None
        return VectorFolder(path, manifest["config"]["fingerprint"], manifest.get("model", "MODEL"))

    def read(self, shard: str, keys: list[str] | None = None) -> tuple[list[str], np.ndarray]:
        """Return keys and vectors (N, E) of a shard: those of `keys` in their order, or all; float32 unit vectors.

        Raises ValueError if a picture of `keys` has none.
        """
        path = self.path / f"{shard}.parquet"
        table = read_table(path, ["key", PICTURE_VECTOR.name])
        table = table.filter(pc.is_valid(table[PICTURE_VECTOR.name])).combine_chunks()
        if keys is not None:
            rows = pc.index_in(pa.array(keys, pa.string()), value_set=table["key"].combine_chunks())
            if rows.null_count:
                missing = keys[rows.is_null().to_pylist().index(True)]
                raise ValueError(f"{path} has no vector of the kept picture {missing}; score the set again.")
            table = table.take(rows)
        if pc.count_distinct(pc.binary_length(table[PICTURE_VECTOR.name])).as_py() > 1:
            raise ValueError(f"{path} has vectors of different lengths; score the set again.")
        cells = b"".join(table[PICTURE_VECTOR.name].to_pylist())
        vectors = np.frombuffer(cells, DTYPE).astype(np.float32)
        vectors = vectors.reshape(len(table), -1) if len(table) else np.zeros((0, 1), np.float32)
        if not np.isfinite(vectors).all():
            raise ValueError(f"{path} has a vector that is not finite; score the set again.")
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)  # rounded to 16 bits
        return table["key"].to_pylist(), vectors / np.where(lengths > 0, lengths, 1)


def vectors_of_filtered(data: FilteredSet) -> VectorFolder:
    """Return the vectors of a filtered set; raises ValueError if its scores have none."""
    for parent in data.manifest.get("parents", []):
        folder = VectorFolder.open(resolve_reference(data.folder, parent))
        if folder is not None:
            return folder
    raise ValueError(
        f"The scores of {data.folder} have no vectors; make them with `capfilt filter {data.images} --model MODEL "
        "--set vectors=true --name NEW`, and select from filtered/NEW."
    )


def vectors_of_target(path: str, like: VectorFolder) -> Iterator[np.ndarray]:
    """Yield the vectors of the target shard set, shard by shard, by the same filter as `like`."""
    folder = ShardSet.open(path).path
    folders: list[AnyPath] = sorted((folder / "scores").glob("*"), key=str)
    opened = [VectorFolder.open(scores) for scores in folders]
    matching = [scores for scores in opened if scores is not None and scores.fingerprint == like.fingerprint]
    if not matching:
        other = ", only of another filter" if any(opened) else ""
        raise ValueError(
            f"{folder} has no vectors of the filter {like.model}{other}; make them with `capfilt filter {folder} "
            f"--model {like.model} --set vectors=true`."
        )
    tables: list[AnyPath] = sorted(matching[0].path.glob("[!.]*.parquet"), key=str)
    for table in tables:
        yield matching[0].read(table.stem)[1]
