"""`capfilt select`: drops kept pictures of a filtered set by their stored vectors; reads no picture.

    setting       drops                                          reason of the texts
    duplicates    pictures similar to a better one               semantic_duplicate
    like          pictures far from those of a target set        unlike
    per_cluster   all but the best pictures of each cluster      cluster_full

The settings apply in this order to pictures with a kept text; the score of a picture is that of its best text. The
result is another filtered set. `pictures/NNNNN.parquet` has the outcome, cluster and cosines of each kept picture.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from blipcore.io.lock import lock_folder
from blipcore.io.storage import existing_paths, to_path
from capfilt.filter.decide import CLUSTER_FULL, KEPT, SEMANTIC_DUPLICATE, UNLIKE
from capfilt.filter.filtered_set import FilteredSet
from capfilt.select.config import SelectConfig
from capfilt.select.neighbours import SAMPLE_PER_CENTROID, Clusters, find_duplicates, highest_cosine, import_faiss
from capfilt.select.vectors import VectorFolder, vectors_of_filtered, vectors_of_target
from capfilt.shards.input_check import input_digests, require_same_inputs
from capfilt.shards.manifest import Manifest, remove_manifest_if_empty
from capfilt.shards.tables import read_table, write_table

# Pictures per group in which duplicates are searched: fewer are compared all with all, in 3 s.
GROUP = 10_000
# Vectors from which k-means learns: 1 GB of BLIP's.
MAX_SAMPLE = 1_000_000


@dataclass
class Pictures:
    """The kept pictures of a filtered set, by position: 30 bytes each."""

    # shard -> position of its first picture; the last is the number of pictures
    starts: list[int]
    # of the best text; higher is better
    score: np.ndarray
    reason: np.ndarray  # index into REASONS
    cluster: np.ndarray
    like: np.ndarray
    original: np.ndarray  # position of the picture that this one repeats, or -1
    cosine: np.ndarray

    def __len__(self) -> int:
        return len(self.score)

    @property
    def remaining(self) -> np.ndarray:
        return self.reason == 0


REASONS = (KEPT, SEMANTIC_DUPLICATE, UNLIKE, CLUSTER_FULL)
OUTCOMES = pa.schema(
    [
        ("key", pa.string()),
        ("outcome", pa.string()),
        ("cluster", pa.int32()),
        # highest cosine with a picture of the target set
        ("like", pa.float32()),
        # the better picture: its shard, its row of that shard's table of outcomes, and the cosine with it
        ("duplicate_shard", pa.string()),
        ("duplicate_row", pa.int32()),
        ("cosine", pa.float32()),
    ]
)


@dataclass
class Selection:
    """Decides on the kept pictures of a filtered set."""

    config: SelectConfig
    data: FilteredSet
    vectors: VectorFolder
    pictures: Pictures = field(init=False)

    def __post_init__(self) -> None:
        scores = [self._scores(number)[1] for number in range(len(self.data.tables))]
        starts = np.cumsum([0, *map(len, scores)]).tolist()
        number = starts[-1]
        if not number:
            raise ValueError(f"{self.data.folder} has no kept picture to select from.")
        self.pictures = Pictures(
            starts,
            np.concatenate(scores),
            np.zeros(number, np.int8),
            np.full(number, -1, np.int32),
            np.full(number, np.nan, np.float32),
            np.full(number, -1, np.int64),
            np.full(number, np.nan, np.float32),
        )

    def run(self) -> None:
        """Set the reason of each picture."""
        config, pictures = self.config, self.pictures
        if config.duplicates is not None:
            self._drop_duplicates(config.duplicates)
        if config.like is not None:
            self._keep_like(config.like, config.top_fraction or 1.0)
        if config.per_cluster is not None:
            number = config.clusters or max(1, round(int(pictures.remaining.sum()) ** 0.5))
            self._assign(number)
            self._balance(config.per_cluster)

    def keys(self, number: int) -> list[str]:
        """Return the keys of the kept pictures of a shard, in the order of their first row."""
        return self._scores(number)[0]

    def _scores(self, number: int) -> tuple[list[str], np.ndarray]:
        """Return the key of each kept picture of a shard, and the highest score of its texts."""
        column = self.data.score
        table = read_table(self.data.tables[number], ["key", column, "keep"])
        table = table.filter(table["keep"])
        best = table.group_by("key", use_threads=False).aggregate([(column, "max")])
        scores = best[f"{column}_max"].cast(pa.float64()).to_numpy().astype(np.float32)
        return best["key"].to_pylist(), np.nan_to_num(scores, nan=-np.inf)

    def _read(self, number: int) -> np.ndarray:
        """Return the vectors of the kept pictures of a shard (N, E)."""
        return self.vectors.read(self.data.tables[number].stem, self.keys(number))[1]

    def span(self, number: int) -> slice:
        """Return the positions of the pictures of a shard."""
        return slice(self.pictures.starts[number], self.pictures.starts[number + 1])

    def _sample(self, size: int) -> np.ndarray:
        """Return the vectors of up to `size` remaining pictures, drawn at random with the seed."""
        places = np.flatnonzero(self.pictures.remaining)
        if len(places) > size:
            places = np.sort(np.random.default_rng(self.config.seed).choice(places, size, replace=False))
        return self._gather(places)

    def _gather(self, places: np.ndarray) -> np.ndarray:
        """Return the vectors of the pictures at ascending positions, with one shard in memory beside them."""
        parts = []
        for number in range(len(self.data.tables)):
            span = self.span(number)
            first, last = np.searchsorted(places, [span.start, span.stop])
            if first < last:
                parts.append(self._read(number)[places[first:last] - span.start])
        return np.concatenate(parts)

    def _clusters(self, number: int) -> Clusters:
        number = min(number, int(self.pictures.remaining.sum()))
        size = max(number, min(number * SAMPLE_PER_CENTROID, MAX_SAMPLE))
        return Clusters(self._sample(size), number, self.config.seed)

    def _assign(self, number: int) -> None:
        """Set the cluster of each remaining picture."""
        clusters = self._clusters(number)
        for shard in range(len(self.data.tables)):
            span = self.span(shard)
            if span.start < span.stop:
                self.pictures.cluster[span] = clusters.nearest(self._read(shard), 1)[:, 0]

    def _balance(self, per_cluster: int) -> None:
        places = np.flatnonzero(self.pictures.remaining)
        clusters = self.pictures.cluster[places]
        order = np.lexsort((places, -self.pictures.score[places], clusters))
        first = np.flatnonzero(np.diff(clusters[order], prepend=-1))
        rank = np.arange(len(order)) - np.repeat(first, np.diff(first, append=len(order)))
        self.pictures.reason[places[order[rank >= per_cluster]]] = REASONS.index(CLUSTER_FULL)

    def _keep_like(self, target: str, share: float) -> None:
        parts = [part for part in vectors_of_target(target, self.vectors) if len(part)]
        if not parts:
            raise ValueError(f"{target} has no picture with a vector.")
        targets = np.concatenate(parts)
        for shard in range(len(self.data.tables)):
            span = self.span(shard)
            if span.start < span.stop:
                self.pictures.like[span] = highest_cosine(self._read(shard), targets)
        places = np.flatnonzero(self.pictures.remaining)
        order = places[np.lexsort((places, -self.pictures.like[places]))]
        self.pictures.reason[order[max(1, round(share * len(order))) :]] = REASONS.index(UNLIKE)

    def _drop_duplicates(self, cosine: float) -> None:
        """Drop pictures that repeat a better one of the same group.

        A group is a cluster and the pictures for which it is the second nearest, so that two near pictures on either
        side of a border meet. A few groups are in memory at a time, and each pass reads all vectors.
        """
        pictures = self.pictures
        number = len(pictures)
        groups = np.zeros((number, 2), np.int32)
        groups[:, 1] = -1
        count = -(-number // GROUP)
        if count > 1:
            clusters = self._clusters(count)
            for shard in range(len(self.data.tables)):
                span = self.span(shard)
                if span.start < span.stop:
                    groups[span] = clusters.nearest(self._read(shard), 2)
        sizes = np.bincount(groups[groups >= 0], minlength=count)
        pairs: list[tuple[int, int, float]] = []
        width = self._gather(np.array([0])).shape[1]
        for members in _batches(sizes, int(self.config.memory_gb * 1e9 / (4 * width))):
            places = np.flatnonzero(np.isin(groups, members).any(axis=1))
            vectors = self._gather(places)
            for group in members:
                inside = np.flatnonzero((groups[places] == group).any(axis=1))
                rank = np.lexsort((places[inside], -pictures.score[places[inside]]))
                ranks = np.empty(len(rank), np.int64)
                ranks[rank] = np.arange(len(rank))
                original, similarity = find_duplicates(vectors[inside], ranks, cosine)
                for row in np.flatnonzero(original >= 0):
                    pairs.append((int(places[inside[row]]), int(places[inside[original[row]]]), float(similarity[row])))
        for place, original_place, value in pairs:
            if not pictures.cosine[place] >= value:
                pictures.original[place], pictures.cosine[place] = original_place, value
        pictures.reason[pictures.original >= 0] = REASONS.index(SEMANTIC_DUPLICATE)


def _batches(sizes: np.ndarray, limit: int) -> list[list[int]]:
    """Return the groups in batches of at most `limit` pictures, or of one group."""
    batches: list[list[int]] = []
    total = 0
    for group, size in enumerate(sizes.tolist()):
        if not batches or total + size > limit:
            batches.append([])
            total = 0
        batches[-1].append(group)
        total += size
    return batches


def select_pictures(config: SelectConfig) -> dict[str, Any]:
    """Select and write the new filtered set; return a summary. A rerun writes missing tables only.

    Raises ValueError or FileNotFoundError if the set or its vectors cannot be read, ImportError without faiss.
    """
    import_faiss()
    started = time.monotonic()
    data = FilteredSet.open(config.dataset)
    if "counts" not in data.manifest:
        raise ValueError(f"{data.folder} is not finished; repeat the `capfilt filter` command first.")
    vectors = vectors_of_filtered(data)
    folder = data.folder.parent / config.name
    if folder == data.folder:
        raise ValueError(f"The new set needs another name than {config.name}, which it is selected from.")
    if config.like is not None and to_path(config.like).resolve() == data.images.resolve():
        raise ValueError(f"{config.like} is the set itself; give the shard set of a target as like.")
    with lock_folder(folder, 0, 1):
        remove_manifest_if_empty(folder)
        manifest = Manifest.begin(
            folder,
            "filter",
            data.manifest["config"] | {"select": config.rule()},
            images=data.images,
            parents=[data.folder, vectors.path],
            packages=("pyarrow", "faiss-cpu"),
            unchecked={"further_columns": data.further.names},
        )
        tables = {table.stem: folder / table.name for table in data.tables}
        inputs = {tables[table.stem]: [table] for table in data.tables}
        require_same_inputs(inputs, "delete the selected set, or give another --name")
        present = existing_paths(tables.values())
        missing = [number for number, table in enumerate(data.tables) if tables[table.stem] not in present]
        if missing:
            selection = Selection(config, data, vectors)
            selection.run()
            for number in missing:
                _write_shard(selection, number, folder)
        counts = manifest.record_run(tables, list(tables), {}, changed=bool(missing))
    outcomes: Counter[str] = Counter()
    for table in data.tables:
        outcomes.update(read_table(folder / "pictures" / table.name, ["outcome"])["outcome"].to_pylist())
    return {
        "stage": "select",
        "name": config.name,
        "out": str(folder),
        "pictures": {reason: outcomes[reason] for reason in REASONS if outcomes[reason]},
        "texts": sum(counts.values()),
        "kept": sum(count for name, count in counts.items() if name.endswith(f"/{KEPT}")),
        "shards": {"done": len(missing), "skipped": len(tables) - len(missing), "failed": {}},
        "seconds": round(time.monotonic() - started, 2),
    }


def _write_shard(selection: Selection, number: int, folder: Any) -> None:
    """Write the outcomes of a shard's pictures, then its filtered table."""
    source = selection.data.tables[number]
    digests = input_digests([source])
    keys, span, pictures = selection.keys(number), selection.span(number), selection.pictures
    outcomes = [REASONS[reason] for reason in pictures.reason[span]]
    original = pictures.original[span]
    shard_of = np.searchsorted(pictures.starts, original, side="right") - 1
    shards = [selection.data.tables[place].stem if place >= 0 else None for place in shard_of.tolist()]
    rows_of = np.where(original >= 0, original - np.array(pictures.starts)[shard_of], -1).astype(np.int32)
    columns = [keys, outcomes, _cells(pictures.cluster[span], -1), _cells(pictures.like[span]), shards]
    rows = pa.table([*columns, _cells(rows_of, -1), _cells(pictures.cosine[span])], schema=OUTCOMES)
    write_table(folder / "pictures" / source.name, rows)
    table = read_table(source)
    place = pc.index_in(table["key"], value_set=pa.array(keys, pa.string()))
    outcome = pc.fill_null(pa.array(outcomes, pa.string()).take(place.combine_chunks()), KEPT)
    is_dropped = pc.and_(table["keep"], pc.not_equal(outcome, KEPT))
    for name, column in (
        ("keep", pc.and_not(table["keep"], is_dropped)),
        ("reason", pc.if_else(is_dropped, outcome, table["reason"])),
    ):
        at = table.column_names.index(name)
        table = table.set_column(at, table.field(at), column)
    groups = table.group_by(["source", "reason"]).aggregate([([], "count_all")])
    counts = {f"{row['source']}/{row['reason']}": row["count_all"] for row in groups.to_pylist()}
    write_table(folder / source.name, table, counts, inputs=digests)


def _cells(values: np.ndarray, missing: int | None = None) -> pa.Array:
    """Return an array with null for NaN, or for the number `missing`."""
    return pa.array(values, mask=np.isnan(values) if missing is None else values == missing)
