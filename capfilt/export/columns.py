"""The columns of an exported picture: its texts by source, scores, url, and the columns of the input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from blipcore.io.samples import TarSample
from blipcore.io.text_mixture import TextMixture, count_draws, hash_fraction, shortest_ratio
from capfilt.shards.further_columns import rename_clashes

# Columns `text_1` to `text_10`, of which a trainer draws one; shares are exact to a tenth in each picture.
DRAWS = 10
DRAW_NAMES = [f"text_{number}" for number in range(1, DRAWS + 1)]
Row = dict[str, Any]


class KeptPicture(NamedTuple):
    """A picture and its kept texts."""

    sample: TarSample
    # best first; with a mixture each has its `probability`
    texts: list[Row]
    # the one of `texts` that the mixture draws, otherwise the best
    text: Row


@dataclass(frozen=True)
class ExportColumns:
    """The columns of an exported picture besides its bytes."""

    sources: list[str]
    # names of the score columns; the first one ranks the texts
    scores: list[str]
    # columns of the input
    further: pa.Schema
    # shard -> start of its keys
    prefixes: dict[str, str]
    mixture: TextMixture | None = None

    def key(self, shard: str, key: str) -> str:
        """Return a key that is unique in the export."""
        return self.prefixes[shard] + key

    def row(self, picture: KeptPicture) -> Row:
        """Return the columns of a picture other than key and image."""
        row: Row = {"text": picture.text["text"], "source": picture.text["source"]}
        for source in self.sources:
            best = next((text for text in picture.texts if text["source"] == source), None)
            row[f"caption_{source}"] = best and best["text"]
            row |= {f"{score}_{source}": best and best[score] for score in self.scores}
        row |= {"url": picture.text["url"], "sha256": picture.text["sha256"]}
        if self.mixture is not None:
            row["captions"] = [text["text"] for text in picture.texts]
            row["probabilities"] = [text["probability"] for text in picture.texts]
        names = self._further_names({"key", *row})
        return row | {names[name]: picture.text[name] for name in self.further.names}

    def types(self) -> dict[str, pa.DataType]:
        """Return the columns of a picture other than its image, as `row` fills them."""
        columns = {"key": pa.string(), "text": pa.string(), "source": pa.string()}
        for source in self.sources:
            columns[f"caption_{source}"] = pa.string()
            columns |= {f"{score}_{source}": pa.float32() for score in self.scores}
        columns |= {"url": pa.string(), "sha256": pa.string()}
        if self.mixture is not None:
            columns |= {"captions": pa.list_(pa.string()), "probabilities": pa.list_(pa.float64())}
        names = self._further_names({*columns})
        return columns | {names[field.name]: field.type for field in self.further}

    def draws(self, shard: str, picture: KeptPicture) -> list[str]:
        """Return `DRAWS` texts in the proportions of the mixture; without a mixture, each text once."""
        return _repeat(picture.texts, self._count_draws(shard, picture))

    def lines(self, shard: str, picture: KeptPicture) -> str:
        """Return the texts on one line each, repeated in proportion to their probabilities."""
        texts = _repeat(picture.texts, shortest_ratio(self._count_draws(shard, picture)))
        return "\n".join(" ".join(text.split()) for text in texts)

    def _count_draws(self, shard: str, picture: KeptPicture) -> list[int]:
        if self.mixture is None:
            return [1] * len(picture.texts)
        probabilities = [text["probability"] for text in picture.texts]
        return count_draws(probabilities, DRAWS, hash_fraction("draws", self.key(shard, picture.sample.key)))

    def _further_names(self, taken: set[str]) -> dict[str, str]:
        draws = DRAW_NAMES if self.mixture is not None else []
        return rename_clashes(self.further.names, {"image", *taken, *draws}, ours=False)


def _repeat(texts: list[Row], counts: list[int]) -> list[str]:
    return [text["text"] for text, count in zip(texts, counts, strict=True) for _ in range(count)]
