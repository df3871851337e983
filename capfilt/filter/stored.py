"""Scores new texts by ITC with the stored vectors of pictures: reads no picture and runs no image encoder.

`capfilt filter --set from_vectors=true` needs scores of the same filter with vectors (vectors.py). ITM needs the whole
picture, so the column itm is empty: decide with `--set score=itc`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from blipcore.io.storage import AnyPath
from capfilt.filter.blip import BlipScorer
from capfilt.filter.config import ScoreConfig
from capfilt.filter.scorer import group_by_picture, picture_of_each_text
from capfilt.filter.vectors import DTYPE, PICTURE_VECTOR
from capfilt.shards.input_check import input_digests
from capfilt.shards.manifest import read_manifest
from capfilt.shards.tables import read_table

# Outcome of a picture that had no vector when it was scored, and no other error.
NO_VECTOR = "no_vector"


class StoredItcScorer(BlipScorer):
    """Cosine of BLIP's text features and stored picture vectors."""

    uses_backend = False

    def __init__(self, path: str, settings: Any = None) -> None:
        super().__init__(path, settings)
        self.name = "blip-itc"

    @cached_property
    def fingerprint(self) -> str:
        # Another fingerprint than in a full pass: neither kind of scores is reused for the other.
        return f"{super().fingerprint}-itc"

    def score(self, inputs: Sequence[Any], texts: Sequence[Sequence[str]]) -> dict[str, list[Any]]:
        """Return no ITM, and the ITC cosines of the texts of B pictures with vectors (E,)."""
        import torch

        from blipcore.model.tokenizer import clean_caption

        flat_texts = [clean_caption(text) for picture_texts in texts for text in picture_texts]  # R texts
        picture = picture_of_each_text(texts)
        itc: list[float] = []
        with torch.inference_mode():
            for start in range(0, len(flat_texts), self.pairs_per_pass):
                rows = slice(start, start + self.pairs_per_pass)
                ids, mask = (part.to(self.device) for part in self.tokenizer(flat_texts[rows], self.max_length))
                vectors = torch.from_numpy(np.stack([inputs[index] for index in picture[rows]])).float()
                itc += (self._text_feat(ids, mask).float().cpu() * vectors).sum(-1).tolist()
        return {"itm": [[None] * len(of_picture) for of_picture in texts], "itc": group_by_picture(itc, texts)}


@dataclass(frozen=True)
class StoredPictures:
    """The pictures of a shard with their stored vectors, in place of a pass over them."""

    keys: list[str]
    # None for a picture without one
    vectors: list[np.ndarray | None]
    errors: list[str | None]
    # for the footer of the table
    inputs: Mapping[str, str] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """The number of pictures, and of those without a vector by reason."""
        failed = [error for error in self.errors if error is not None]
        reasons = {f"undecodable/{error}": failed.count(error) for error in sorted(set(failed))}
        return {"pictures": len(self.keys), **({"undecodable": len(failed)} if failed else {}), **reasons}

    @staticmethod
    def read(path: AnyPath) -> StoredPictures:
        """Read the table of scores at a path, in its order."""
        table = read_table(path, ["key", "error", PICTURE_VECTOR.name])
        cells: dict[str, bytes | None] = {}
        errors: dict[str, str | None] = {}
        for row in table.to_pylist():
            cells[row["key"]] = cells.get(row["key"]) or row[PICTURE_VECTOR.name]
            errors[row["key"]] = row["error"]
        vectors = [None if cell is None else np.frombuffer(cell, DTYPE) for cell in cells.values()]
        reasons = [errors[key] or (NO_VECTOR if cell is None else None) for key, cell in cells.items()]
        return StoredPictures(list(cells), vectors, reasons, input_digests([path]))


def find_vectors(config: ScoreConfig, fingerprint: str) -> AnyPath:
    """Return the finished scores with vectors of the filter with this fingerprint, of `StoredItcScorer`.

    Raises ValueError if there are none.
    """
    folders: list[AnyPath] = sorted((config.root / "scores").glob("*"), key=str)
    for folder in folders:
        manifest = read_manifest(folder)
        if manifest is None or manifest["stage"] != "score" or "counts" not in manifest:
            continue
        settings = manifest["config"]
        if settings.get("vectors") and f"{settings['fingerprint']}-itc" == fingerprint:
            return folder
    raise ValueError(
        f"{config.root / 'scores'} has no vectors of the filter {config.model}; make them with `capfilt filter "
        f"{config.data} --model {config.model} --set vectors=true`."
    )
