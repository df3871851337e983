"""Columns of texts in, columns of what they say out: cleaned as BLIP cleans them, split into words, hashed.

All of it on Arrow's buffers, since `capfilt filter` decides on millions of texts and `capfilt report` counts them.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

MAX_WORDS = 30  # of a cleaned text, as in BLIP's own cleaning
_LOWER_AS_ONE = "[İΣ]"  # lower case depends on neighbours or is two characters; Arrow's tables know neither
_WITHOUT_PUNCTUATION = np.arange(256, dtype=np.uint8)
_WITHOUT_PUNCTUATION[list(b'.!"()*#:;~')] = ord(" ")
_CONTROL = np.isin(np.arange(256), [*b"\t\n\v\f\r\x1c\x1d\x1e\x1f"])  # blanks that match no "  "
_SPACE = r"[\t-\r\x1c-\x20\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]"
_SCRIPTS_WITHOUT_SPACES = r"([\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}])"
_NO_WORD = r"[^\p{L}\p{M}\p{N}]+"


def clean(texts: pa.ChunkedArray | pa.Array) -> pa.Array:
    """What `blipcore.model.tokenizer.clean_caption` makes of each text; a null becomes the empty text."""
    texts = _translate(_lower(texts), _WITHOUT_PUNCTUATION)
    texts = _replaced(texts, _may_hold_runs(texts), _SPACE + "{2,}", " ")
    texts = pc.utf8_trim(pc.utf8_rtrim(texts, characters="\n"), characters=" ")
    long = pc.greater_equal(pc.count_substring(texts, " "), MAX_WORDS)
    texts = _replaced(texts, long, rf"(?s)^((?:[^ ]* ){{{MAX_WORDS - 1}}}[^ ]*) .*$", r"\1")
    return texts


def words(texts: pa.ChunkedArray | pa.Array) -> pa.ListArray:
    """Lower-cased runs of letters and digits of each text; where a script writes no spaces, each character."""
    texts = pc.replace_substring_regex(_lower(texts), _SCRIPTS_WITHOUT_SPACES, r" \1 ")
    texts = pc.utf8_trim(pc.replace_substring_regex(texts, _NO_WORD, " "), characters=" ")
    split = pc.split_pattern(texts, " ")
    some = pc.greater(pc.binary_length(texts), 0)
    return pc.if_else(some, split, pa.scalar([], split.type))


def hashes(strings: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """A 64-bit number for each string, equal for equal strings in every run; 0 for the empty one."""
    strings = _one_array(strings).cast(pa.large_string())
    _, offset_buffer, data = strings.buffers()
    offsets = np.frombuffer(offset_buffer, np.int64)[strings.offset :][: len(strings) + 1]
    found = np.zeros(len(strings), np.uint64)
    sizes = np.diff(offsets)
    some = np.flatnonzero(sizes)
    if not len(some):
        return found
    bytes_ = np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]]
    starts = (offsets[:-1] - offsets[0])[some]
    place = np.arange(len(bytes_)) - np.repeat(starts, sizes[some])
    powers = np.cumprod(np.full(sizes.max(), _BASE, np.uint64))
    found[some] = np.add.reduceat(_OF_BYTE[bytes_] * powers[place], starts)
    return found


def ngrams(lists: pa.ListArray, n: int) -> np.ndarray:
    """A 64-bit number for each run of `n` words that lies within one text."""
    of_word = hashes(lists.flatten())
    text = np.repeat(np.arange(len(lists)), pc.list_value_length(lists).to_numpy(zero_copy_only=False))
    total = max(0, len(of_word) - n + 1)
    found = np.zeros(total, np.uint64)
    for place in range(n):
        found = found * _BASE + of_word[place : place + total]
    return found[text[:total] == text[n - 1 :][:total]]


_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplying by it loses nothing
_OF_BYTE = np.random.Generator(np.random.Philox(20220128)).integers(1, 2**64, 256, np.uint64)


def _lower(texts: pa.ChunkedArray | pa.Array) -> pa.Array:
    texts = pc.fill_null(_one_array(texts), "")
    if pc.all(pc.string_is_ascii(texts)).as_py():
        return pc.ascii_lower(texts)
    lower = pc.utf8_lower(texts)
    odd = pc.match_substring_regex(texts, _LOWER_AS_ONE)
    if pc.any(odd).as_py():
        by_python = pa.array([text.lower() for text in texts.filter(odd).to_pylist()], pa.string())
        lower = pc.replace_with_mask(lower, odd, by_python)
    return lower


def _may_hold_runs(texts: pa.StringArray) -> pa.Array:
    """Mask of the texts in which two blanks may stand together; to look closer costs as much as all the rest."""
    _, _, data = texts.buffers()
    if data is not None and _CONTROL[np.frombuffer(data, np.uint8)].any():
        return pa.array(np.ones(len(texts), bool))
    return pc.or_(pc.match_substring(texts, "  "), pc.invert(pc.string_is_ascii(texts)))


def _replaced(texts: pa.StringArray, rows: pa.Array, pattern: str, replacement: str) -> pa.StringArray:
    """What the pattern matches replaced, in these rows of the texts."""
    if not pc.any(rows).as_py():
        return texts
    return pc.replace_with_mask(texts, rows, pc.replace_substring_regex(texts.filter(rows), pattern, replacement))


def _translate(texts: pa.StringArray, table: np.ndarray) -> pa.StringArray:
    """Other bytes for bytes; with a table that touches ASCII alone, UTF-8 stays UTF-8."""
    validity, offsets, data = texts.buffers()
    if data is None:
        return texts
    translated = pa.py_buffer(table[np.frombuffer(data, np.uint8)])
    return pa.StringArray.from_buffers(len(texts), offsets, translated, validity, texts.null_count, texts.offset)


def _one_array(values: pa.ChunkedArray | pa.Array) -> pa.Array:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
