"""Settings of `capfilt select`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any


@dataclass(kw_only=True)
class SelectConfig:
    """Settings of `capfilt select`."""

    # filtered/<name>, or a shard set that was filtered once
    dataset: str
    # folder under filtered/ to write
    name: str
    # drop pictures whose cosine with a better kept picture is at least this
    duplicates: float | None = None
    # shard set of a target, scored with vectors by the same filter
    like: str | None = None
    # share of the pictures to keep: those whose cosine with a target picture is highest
    top_fraction: float | None = None
    # pictures to keep per cluster, the best
    per_cluster: int | None = None
    # number of clusters; default: the square root of the number of pictures
    clusters: int | None = None
    seed: int = 0
    # vectors in memory at a time, in GB; with less, `duplicates` reads the tables more often
    memory_gb: float = 4.0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.+-]*", self.name):
            raise ValueError(f"name must consist of letters, digits and . _ + -, not '{self.name}'.")
        if self.duplicates is None and self.like is None and self.per_cluster is None:
            raise ValueError("Give what to select by: --duplicates COSINE, --like DATA or --per-cluster NUMBER.")
        if self.duplicates is not None and not -1 <= self.duplicates <= 1:
            raise ValueError(f"duplicates is a cosine from -1 to 1, such as 0.95, not {self.duplicates}.")
        if (self.like is None) != (self.top_fraction is None):
            raise ValueError("like and top_fraction go together, as in --like val --top-fraction 0.3.")
        if self.top_fraction is not None and not 0 < self.top_fraction <= 1:
            raise ValueError(f"top_fraction must be above 0 and at most 1, not {self.top_fraction}.")
        if not self.memory_gb > 0:
            raise ValueError(f"memory_gb must be above 0, not {self.memory_gb}.")
        for name in ("per_cluster", "clusters"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}.")

    def rule(self) -> dict[str, Any]:
        """Return the settings that change the selection."""
        names = ("duplicates", "like", "top_fraction", "per_cluster", "clusters", "seed")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}
