"""Nearest neighbours of unit vectors: clusters and near duplicates, by faiss.

Nothing here holds the vectors of a whole data set: k-means learns from a sample, and duplicates are searched in one
cluster at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# faiss's k-means uses no more vectors per centroid.
SAMPLE_PER_CENTROID = 256
ITERATIONS = 20
# Vectors compared with all others at a time, which bounds the memory of the result.
BLOCK = 1024


class Clusters:
    """Centroids (K, E) of unit vectors, by spherical k-means: the same for the same sample and seed."""

    def __init__(self, sample: np.ndarray, number: int, seed: int = 0) -> None:
        """Learn `number` centroids from a sample (M, E), at least as many vectors as centroids."""
        faiss = import_faiss()
        kmeans = faiss.Kmeans(
            sample.shape[1],
            number,
            niter=ITERATIONS,
            seed=1 + seed,
            spherical=True,
            min_points_per_centroid=1,
            max_points_per_centroid=SAMPLE_PER_CENTROID,
        )
        kmeans.train(np.ascontiguousarray(sample, np.float32))
        self.index = faiss.IndexFlatIP(sample.shape[1])
        self.index.add(kmeans.centroids)

    def nearest(self, vectors: np.ndarray, number: int) -> np.ndarray:
        """Return the `number` nearest clusters (N, number) of vectors (N, E), nearest first; -1 for none."""
        return self.index.search(np.ascontiguousarray(vectors, np.float32), number)[1]


def highest_cosine(vectors: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the cosine (N,) of each vector (N, E) with the nearest of the targets (M, E)."""
    index = import_faiss().IndexFlatIP(targets.shape[1])
    index.add(np.ascontiguousarray(targets, np.float32))
    return index.search(np.ascontiguousarray(vectors, np.float32), 1)[0][:, 0]


def find_duplicates(vectors: np.ndarray, ranks: np.ndarray, cosine: float) -> tuple[np.ndarray, np.ndarray]:
    """Return for each vector (N, E) the index of the one that it repeats, and their cosine; -1 and NaN for none.

    Vectors are visited by rank, lowest first. Each is compared with the earlier vectors that repeat none. It repeats
    the nearest of them if their cosine is at least `cosine`, so no two remaining vectors are that similar.
    """
    index = import_faiss().IndexFlatIP(vectors.shape[1])
    order = np.argsort(ranks, kind="stable")
    ordered = np.ascontiguousarray(vectors[order], np.float32)
    index.add(ordered)
    original, similarity = np.full(len(order), -1), np.full(len(order), np.nan, np.float32)
    for start in range(0, len(order), BLOCK):
        # faiss's range search finds inner products above the radius.
        radius = float(np.nextafter(np.float32(cosine), np.float32(-2)))
        limits, cosines, rows = index.range_search(ordered[start : start + BLOCK], radius)
        for row in range(len(limits) - 1):
            place = start + row
            neighbours, values = (part[limits[row] : limits[row + 1]] for part in (rows, cosines))
            earlier = (neighbours < place) & (original[neighbours] < 0)
            if earlier.any():
                # The nearest, and of equally near ones the first.
                best = np.lexsort((neighbours[earlier], -values[earlier]))[0]
                original[place], similarity[place] = neighbours[earlier][best], values[earlier][best]
    repeated = np.full(len(order), -1)
    cosines_of = np.full(len(order), np.nan, np.float32)
    repeated[order] = np.where(original >= 0, order[original], -1)
    cosines_of[order] = similarity
    return repeated, cosines_of


def import_faiss() -> Any:
    """Import faiss; raise ImportError with a remedy if it is missing."""
    try:
        import faiss
    except ImportError:
        raise ImportError("Searching vectors needs: pip install 'capfilt[vectors]'") from None
    return faiss
