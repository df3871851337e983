"""The cost of a server's answers, from shard to summary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# name of a count of a run; no table records it, because a cached answer costs nothing
MICRODOLLARS = "microdollars"


class Cost:
    """The dollars that models spend on a shard; `spent` of a model is the sum of its run."""

    def __init__(self, *models: Any) -> None:
        """Begin to count. A model without `spent` costs nothing."""
        self.models = models
        self.begin = self.last = self._spent()

    def since_last(self) -> float:
        """Return the dollars since the last call."""
        last, self.last = self.last, self._spent()
        return self.last - last

    def counts(self) -> dict[str, int]:
        """Return the cost of the shard as a count, without any for models that cost nothing."""
        cost = round((self._spent() - self.begin) * 1e6)
        return {MICRODOLLARS: cost} if cost else {}

    def _spent(self) -> float:
        return sum(getattr(model, "spent", 0.0) for model in self.models)


def dollars(counts: Mapping[str, int]) -> float | None:
    """Return the dollars in the counts of a run; None if it cost nothing."""
    return counts[MICRODOLLARS] / 1e6 if counts.get(MICRODOLLARS) else None
