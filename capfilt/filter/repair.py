"""`capfilt filter --repair`: drops the sentences of a text that fail, and keeps the rest."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from capfilt.filter.sentences import SENTENCES

# Null for an unchanged text; `sentences` of a repaired text are places in `original`.
REPAIRED = pa.schema([("original", pa.string()), ("cut", pa.list_(pa.string()))])


def repair(scores: pa.Table, threshold: float) -> pa.Table:
    """Drop the sentences with an ITM below `threshold` from texts that have others; return the table with `REPAIRED`.

    `itm_min` and `itm_mean` become those of the remaining sentences; all other scores stay those of the whole text. A
    text without a sentence that passes is not changed.
    """
    scores = scores.combine_chunks()
    columns: dict[str, list[Any]] = {name: scores[name].to_pylist() for name in ("text", "itm_min", "itm_mean")}
    columns |= {name: [None] * len(scores) for name in REPAIRED.names}
    several = pc.greater(pc.fill_null(pc.list_value_length(scores[SENTENCES.name]), 0), 1)
    # NaN fails, as in `decide`
    passes = pc.greater_equal(scores["itm_min"].cast(pa.float64()), threshold)
    for row in pc.indices_nonzero(pc.and_(several, pc.invert(pc.fill_null(passes, True)))).to_pylist():
        text, sentences = columns["text"][row], scores[SENTENCES.name][row].as_py()
        kept = [sentence for sentence in sentences if sentence["itm"] >= threshold]
        if not kept:
            continue
        columns["original"][row] = text
        columns["cut"][row] = [text[item["start"] : item["end"]] for item in sentences if item not in kept]
        columns["text"][row] = _join(text, sentences, kept)
        columns["itm_min"][row] = min(sentence["itm"] for sentence in kept)
        columns["itm_mean"][row] = sum(sentence["itm"] for sentence in kept) / len(kept)
    for name, values in columns.items():
        if name in REPAIRED.names:
            scores = scores.append_column(REPAIRED.field(name), [pa.array(values, REPAIRED.field(name).type)])
        else:
            place = scores.column_names.index(name)
            scores = scores.set_column(place, scores.field(name), [pa.array(values, scores.field(name).type)])
    return scores


def _join(text: str, sentences: list[dict[str, Any]], kept: list[dict[str, Any]]) -> str:
    """Return the kept sentences, each with the white space that follows it in the text."""
    ends = [*(sentence["start"] for sentence in sentences[1:]), len(text)]
    pieces = (text[item["start"] : end] for item, end in zip(sentences, ends, strict=True) if item in kept)
    return "".join(pieces).strip()
