"""Scores and least values in, a reason for every text out; tables alone, a million texts in a second or two.

`decide` is the middle step of `capfilt filter`. `hangs_on_itm` says which texts another ITM threshold could keep or
drop, so that a report, or whoever chooses a threshold, can count without deciding anew.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capfilt.filter.texts import clean

KEPT, NO_TEXT, DUPLICATE, NOT_BEST, UNDECODABLE = "kept", "no_text", "duplicate", "not_best", "undecodable: "
ITM_BELOW = "itm<"


class Best(NamedTuple):
    """Which of a picture's texts may stay: the `number` of highest score `by`, of each source or `across` them."""

    number: int = 0  # 0 is all
    by: str = "itm"
    across: bool = False


def decide(scores: pa.Table, limits: dict[str, float], best: Best = Best()) -> pa.Array:  # noqa: B008 - immutable
    """The reason of each row of a table of scores: "kept", or the first of these that holds.

    `undecodable: <why>` · `no_text`: there is none, or nothing of it is left after BLIP's cleaning · `duplicate`: an
    earlier text of the picture is the same after cleaning · `itm<0.5`: the first score below its least value ·
    `not_best`: the picture has `best.number` better ones. Which are best is settled among the texts that no other
    limit drops, before ITM's: where the best one's ITM is too low, no other takes its place.
    """
    scores = scores.combine_chunks()
    words, error = clean(scores["text"]), scores["error"].cast(pa.string())
    unusable, empty = pc.is_valid(error), pc.equal(words, "")
    ready = ~_mask(unusable) & ~_mask(empty)
    cases = [
        (unusable, pc.binary_join_element_wise(UNDECODABLE, pc.fill_null(error, ""), "")),
        (empty, pa.scalar(NO_TEXT)),
        (pa.array(_said_before(scores["key"], words, ready)), pa.scalar(DUPLICATE)),
    ]
    for name, least in limits.items():
        cases.append(
            (pa.array(~(_values(scores[name]) >= least)), pa.scalar(f"{name}<{as_typed(least)}"))
        )  # also not a number
    masks, names = zip(*cases, strict=True)
    reasons = _one_array(pc.case_when(pc.make_struct(*masks), *names, pa.scalar(KEPT)))
    if best.number:
        open_to_itm = pc.or_(pc.equal(reasons, KEPT), pc.starts_with(reasons, ITM_BELOW))
        for name, least in limits.items():  # a row that fails another limit after ITM's too
            if name != "itm":
                open_to_itm = pc.and_(open_to_itm, pa.array(_values(scores[name]) >= least))
        beaten = pa.array(~among_best(scores, _mask(open_to_itm), best))
        reasons = pc.if_else(pc.and_(beaten, pc.equal(reasons, KEPT)), NOT_BEST, reasons)
    return reasons


def as_typed(threshold: float) -> str:
    """A threshold in all its digits, to be typed again: ITM crowds at 1, and 0.999999 is not 1."""
    short = f"{threshold:g}"
    return short if float(short) == threshold else repr(float(threshold))


def among_best(scores: pa.Table, rows: np.ndarray, best: Best) -> np.ndarray:
    """Of the `rows` (a mask), those that are `best` of their picture; the earlier of equals."""
    places = np.flatnonzero(rows)
    key, source = (_codes(scores[name])[places] for name in ("key", "source"))
    source = np.zeros_like(source) if best.across else source
    order = np.lexsort((places, -_values(scores[best.by])[places], source, key))
    group = key[order] * (source.max(initial=0) + 1) + source[order]
    first = np.flatnonzero(np.diff(group, prepend=-1))
    rank = np.arange(len(order)) - np.repeat(first, np.diff(first, append=len(order)))
    found = np.zeros(len(rows), bool)
    found[places[order[rank < best.number]]] = True
    return found


def hangs_on_itm(filtered: pa.Table, limits: dict[str, float], best: Best = Best()) -> np.ndarray:  # noqa: B008
    """Mask of the rows of a filtered table that are kept exactly if their ITM reaches the threshold, whatever it is."""
    reason = filtered["reason"]
    settled = pc.or_(pc.is_in(reason, pa.array([NO_TEXT, DUPLICATE])), pc.starts_with(reason, UNDECODABLE))
    rows = ~_mask(settled)
    for name, least in limits.items():
        if name != "itm":
            rows &= _values(filtered[name]) >= least
    rows = among_best(filtered, rows, best) if best.number else rows
    return rows & ~np.isnan(_values(filtered["itm"]))


def _said_before(key: pa.ChunkedArray, words: pa.Array, rows: np.ndarray) -> np.ndarray:
    """Of the `rows`, those whose picture has had the same words in an earlier one of them."""
    places = np.flatnonzero(rows)
    text = _codes(words)[places]
    _, first = np.unique(_codes(key)[places] * (text.max(initial=0) + 1) + text, return_index=True)
    found = rows.copy()
    found[places[first]] = False
    return found


def _codes(values: pa.ChunkedArray | pa.Array) -> np.ndarray:
    return _one_array(values).dictionary_encode().indices.to_numpy(zero_copy_only=False).astype(np.int64)


def _values(scores: pa.ChunkedArray) -> np.ndarray:
    """Scores as 64-bit numbers, as they are compared with a threshold; NaN where there is none."""
    return _one_array(scores.cast(pa.float64())).to_numpy(zero_copy_only=False)


def _mask(values: pa.ChunkedArray | pa.Array) -> np.ndarray:
    return _one_array(values).to_numpy(zero_copy_only=False).astype(bool)


def _one_array(values: pa.ChunkedArray | pa.Array) -> pa.Array:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
