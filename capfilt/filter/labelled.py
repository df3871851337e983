"""The labelled texts of a set of score tables: the rows with a label, on which scores are measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capfilt.filter.intervals import DRAWS, Auc, auc_interval
from capfilt.filter.labels import RANDOM, LabelMatcher, number_pictures
from capfilt.filter.logistic import FOLDS
from capfilt.filter.texts import as_one_array, to_floats


@dataclass(frozen=True)
class LabelledTexts:
    """Labelled rows of score tables, R of them, with the column `shard`."""

    rows: pa.Table
    # (R,) bool
    match: np.ndarray
    # (R,) numbers of the pictures
    picture: np.ndarray
    # (R,) mask of the texts that were drawn at random, on which precision is measured
    random: np.ndarray
    # (R,) ITM by a filter without the picture, NaN where the filter of the scores was not trained on the label
    held_out_itm: np.ndarray
    # labels whose text is in no table
    unknown: int

    @property
    def fold(self) -> np.ndarray:
        """(R,) numbers below FOLDS, the same for all labels of a picture."""
        return self.picture % FOLDS

    @property
    def trained_on(self) -> int:
        """The number of labels that the filter of the scores was trained on."""
        return int((~np.isnan(self.held_out_itm)).sum())

    def column(self, name: str) -> np.ndarray:
        """Return a score of each row, NaN for none; for `itm`, the held-out one where there is one."""
        values = to_floats(self.rows[name])
        return np.where(np.isnan(self.held_out_itm), values, self.held_out_itm) if name == "itm" else values

    def auc(self, values: np.ndarray, sources: Iterable[str], draws: int = DRAWS) -> dict[str, Auc]:
        """Return the AUC of `values` (R,) on the texts drawn at random: of all sources together and of each.

        `draws` are those of the interval.
        """
        source = np.array(self.rows["source"].to_pylist())
        masks = {name: self.random & (source == name) for name in sources}
        masks = {"all": self.random, **masks} if len(masks) > 1 else masks
        return {
            name: auc_interval(values[mask], self.match[mask], self.picture[mask], draws)
            for name, mask in masks.items()
            if mask.any()
        }


def read_labelled(
    tables: Iterable[tuple[str, pa.Table]],
    labels: pa.Table,
    fingerprint: str | None = None,
    trained_on: pa.Table | None = None,
) -> LabelledTexts:
    """Return the labelled rows of the score tables of all shards.

    `fingerprint` is that of the filter of the scores, `trained_on` the labels that it was trained on. Raises
    ValueError if no label has a row, or one has rows of several shards.
    """
    if not len(labels):
        raise ValueError("The file of labels calls no text right or wrong; label some first.")
    matcher, parts, label_rows = LabelMatcher(labels), [], []
    trained_on = labels if trained_on is None else trained_on
    trained_matcher, trained_rows = LabelMatcher(trained_on), []
    for shard, table in tables:
        label_row = matcher.find(shard, table)
        has_label = label_row >= 0
        part = table.filter(pa.array(has_label))
        parts.append(part.append_column("shard", pa.array([shard] * len(part), pa.string())))
        label_rows.append(label_row[has_label])
        trained_rows.append(trained_matcher.find(shard, part))
    if not matcher.found_count:
        raise ValueError(
            f"None of the {len(labels)} labelled texts has a score; "
            "key, source and index of a label must be those of the score tables."
        )
    rows = pa.concat_tables(parts, promote_options="permissive").combine_chunks()
    row_labels = labels.take(pa.array(np.concatenate(label_rows)))
    row = np.concatenate(trained_rows)
    of_row = trained_on.take(pa.array(np.where(row >= 0, row, 0), pa.int64(), mask=row < 0))
    is_trained_on = pc.fill_null(pc.equal(of_row["itm_of"], pa.scalar(fingerprint, pa.string())), False)
    held_out_itm = pc.if_else(is_trained_on, of_row["itm"], pa.scalar(None, pa.float64()))
    return LabelledTexts(
        rows,
        match=row_labels["match"].to_numpy() == 1,
        picture=number_pictures(rows),
        random=pc.fill_null(pc.equal(row_labels["drawn"], RANDOM), True).to_numpy(zero_copy_only=False),
        held_out_itm=as_one_array(held_out_itm).to_numpy(zero_copy_only=False),
        unknown=len(labels) - matcher.found_count,
    )
