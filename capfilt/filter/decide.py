"""Decides which texts to keep: a table of scores and limits in, a reason per row out; a million rows per second."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capfilt.filter.computed import CAPTION_SCORES
from capfilt.filter.judge import JUDGE_ERROR
from capfilt.filter.strata import Strata
from capfilt.filter.texts import as_one_array, clean_texts, to_floats

KEPT, NO_TEXT, DUPLICATE, NOT_BEST, UNDECODABLE = "kept", "no_text", "duplicate", "not_best", "undecodable: "
UNJUDGED = "unjudged: "
ITM_BELOW = "itm<"
# After "<" in the reason of texts with a limit per stratum, which is in the manifest.
OF_STRATUM = "limit of its stratum"
# Reasons of pictures that `capfilt select` drops.
SEMANTIC_DUPLICATE, UNLIKE, CLUSTER_FULL = "semantic_duplicate", "unlike", "cluster_full"
SELECTED_OUT = (SEMANTIC_DUPLICATE, UNLIKE, CLUSTER_FULL)


class BestTexts(NamedTuple):
    """Limit on the texts kept per picture: the `number` with the highest `score`."""

    # 0 keeps all
    number: int = 0
    score: str = "itm"
    # rank all texts of a picture together, not each source alone
    across_sources: bool = False


ALL_TEXTS = BestTexts()


def decide(
    scores: pa.Table,
    limits: Mapping[str, float],
    best: BestTexts = ALL_TEXTS,
    score: str = "itm",
    strata: Strata | None = None,
) -> pa.StringArray:
    """Return the reason of each row of a score table: "kept", or the first of these that applies.

    - `undecodable: <error>`: the picture cannot be decoded.
    - `no_text`: the text is missing, or empty after BLIP's cleaning.
    - `duplicate`: an earlier text of the picture is the same after cleaning.
    - `unjudged: refused`: a judge gave no score that has a limit; its reasons are in judge_server.py.
    - `itm<0.5`: the score is below its limit; the first such score of `limits`.
    - `not_best`: the picture has `best.number` better texts.

    The limit of the deciding score applies after the ranking: no other text replaces a best text that fails it. With
    `strata`, its limit is that of the text's stratum.
    """
    scores = scores.combine_chunks()
    row_limits: dict[str, np.ndarray | float] = dict(limits)
    if strata is not None:
        row_limits[score] = strata.row_limits(scores)
    cleaned, error = clean_texts(scores["text"]), scores["error"].cast(pa.string())
    undecodable, empty = pc.is_valid(error), pc.equal(cleaned, "")
    usable = ~_to_mask(undecodable) & ~_to_mask(empty)
    cases = [
        (undecodable, pc.binary_join_element_wise(UNDECODABLE, pc.fill_null(error, ""), "")),
        (empty, pa.scalar(NO_TEXT)),
        (pa.array(_find_duplicates(scores["key"], cleaned, usable)), pa.scalar(DUPLICATE)),
    ]
    passes = {name: reaches(scores, name, limit) for name, limit in row_limits.items()}
    unjudged = _find_unjudged(scores)
    for name, limit in row_limits.items():
        if unjudged is not None:
            is_missing = pa.array(np.isnan(to_floats(scores[name])))
            cases.append((pc.and_(is_missing, pc.is_valid(unjudged)), unjudged))
        cases.append((pa.array(~passes[name]), _reason_below(name, limit)))
    masks, reasons_by_case = zip(*cases, strict=True)
    reasons = as_one_array(pc.case_when(pc.make_struct(*masks), *reasons_by_case, pa.scalar(KEPT)))
    if best.number:
        candidates = _to_mask(pc.or_(pc.equal(reasons, KEPT), pc.starts_with(reasons, f"{score}<")))
        # A row with the reason itm<... may fail another limit too.
        for name in limits:
            if name != score:
                candidates &= passes[name]
        not_best = pa.array(~select_best(scores, candidates, best))
        reasons = pc.if_else(pc.and_(not_best, pc.equal(reasons, KEPT)), NOT_BEST, reasons)
    return reasons


def _find_unjudged(scores: pa.Table) -> pa.StringArray | None:
    """Return the reason of each row that a judge has not scored, null for others; None for scores without a judge."""
    if JUDGE_ERROR.name not in scores.column_names:
        return None
    kinds = pc.replace_substring_regex(as_one_array(scores[JUDGE_ERROR.name]).cast(pa.string()), "(?s):.*", "")
    return pc.binary_join_element_wise(UNJUDGED, kinds, "")


def _reason_below(name: str, limit: np.ndarray | float) -> pa.Scalar:
    """Return the reason of rows below a limit, or below the limit of their stratum."""
    return pa.scalar(f"{name}<{OF_STRATUM if isinstance(limit, np.ndarray) else format_threshold(limit)}")


def reaches(scores: pa.Table, name: str, limit: np.ndarray | float) -> np.ndarray:
    """Return a mask of the rows whose score `name` is at least `limit`, one number or one per row.

    A missing score is below every limit. A missing confidence is not: only captions have one.
    """
    values = to_floats(scores[name])
    # NaN passes no comparison
    return (values >= limit) | (np.isnan(values) if name in CAPTION_SCORES else False)


def format_threshold(threshold: float) -> str:
    """Format a threshold with all its digits: many ITM scores are close to 1, and `:g` rounds 0.9999999 to 1."""
    short = f"{threshold:g}"
    return short if float(short) == threshold else repr(float(threshold))


def select_best(scores: pa.Table, candidates: np.ndarray, best: BestTexts) -> np.ndarray:
    """Return a mask of the best `candidates` (a mask) of each picture; of equal scores, the earlier row."""
    rows = np.flatnonzero(candidates)
    key, source = (_to_codes(scores[name])[rows] for name in ("key", "source"))
    source = np.zeros_like(source) if best.across_sources else source
    order = np.lexsort((rows, -to_floats(scores[best.score])[rows], source, key))
    group = key[order] * (source.max(initial=0) + 1) + source[order]
    first = np.flatnonzero(np.diff(group, prepend=-1))
    rank = np.arange(len(order)) - np.repeat(first, np.diff(first, append=len(order)))
    selected = np.zeros(len(candidates), bool)
    selected[rows[order[rank < best.number]]] = True
    return selected


def decided_by_score(
    filtered: pa.Table, limits: Mapping[str, float], best: BestTexts = ALL_TEXTS, score: str = "itm"
) -> np.ndarray:
    """Return a mask of the rows of a filtered table that are kept if and only if the score reaches the threshold.

    The mask holds for every threshold, so kept texts can be counted without `decide`.
    """
    reason = filtered["reason"]
    others = pc.is_in(reason, pa.array([NO_TEXT, DUPLICATE, *SELECTED_OUT]))
    excluded = pc.or_(others, pc.starts_with(reason, UNDECODABLE))
    rows = ~_to_mask(excluded)
    for name, limit in limits.items():
        if name != score:
            rows &= reaches(filtered, name, limit)
    rows = select_best(filtered, rows, best) if best.number else rows
    return rows & ~np.isnan(to_floats(filtered[score]))


def _find_duplicates(key: pa.ChunkedArray, cleaned: pa.StringArray, rows: np.ndarray) -> np.ndarray:
    """Return a mask of the `rows` (a mask) that repeat an earlier text of the picture."""
    positions = np.flatnonzero(rows)
    text = _to_codes(cleaned)[positions]
    _, first = np.unique(_to_codes(key)[positions] * (text.max(initial=0) + 1) + text, return_index=True)
    duplicates = rows.copy()
    duplicates[positions[first]] = False
    return duplicates


def _to_codes(values: pa.ChunkedArray | pa.Array) -> np.ndarray:
    return as_one_array(values).dictionary_encode().indices.to_numpy(zero_copy_only=False).astype(np.int64)


def _to_mask(values: pa.ChunkedArray | pa.Array) -> np.ndarray:
    return as_one_array(values).to_numpy(zero_copy_only=False).astype(bool)
