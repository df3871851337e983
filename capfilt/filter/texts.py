"""Text columns: BLIP's cleaning, words, hashes of texts and n-grams, on Arrow buffers for millions of texts.

No table stores cleaned texts. The same rule cleans a text wherever it is needed: `score` skips empty texts, the BLIP
scorer tokenizes cleaned texts, `decide` finds empty and repeated ones.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# Longest cleaned text, in words, as in BLIP's `pre_caption`.
MAX_WORDS = 30
# Arrow lowers letter by letter: wrong for Σ, which depends on its neighbours, and for İ, which becomes two letters.
_LOWERED_BY_PYTHON = "[İΣ]"
_WITHOUT_PUNCTUATION = np.arange(256, dtype=np.uint8)
_WITHOUT_PUNCTUATION[list(b'.!"()*#:;~')] = ord(" ")
# ASCII white space other than the blank.
_CONTROL = np.isin(np.arange(256), [*b"\t\n\v\f\r\x1c\x1d\x1e\x1f"])
# Python's `\s`; RE2's `\s`, which Arrow uses, is ASCII only.
_SPACE = r"[\t-\r\x1c-\x20\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]"
_SCRIPTS_WITHOUT_SPACES = r"([\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}])"
_NOT_IN_WORDS = r"[^\p{L}\p{M}\p{N}]+"
# Base of the polynomial hash: odd, so that multiplication modulo 2^64 can be inverted.
_BASE = np.uint64(0x9E3779B97F4A7C15)
_BYTE_CODES = np.random.Generator(np.random.Philox(20220128)).integers(1, 2**64, 256, np.uint64)


def clean_texts(texts: pa.ChunkedArray | pa.Array) -> pa.StringArray:
    """Clean each text as `blipcore.model.tokenizer.clean_caption`; null becomes the empty text."""
    cleaned = _replace_bytes(_lower(texts), _WITHOUT_PUNCTUATION)
    cleaned = _replace_regex(cleaned, _may_hold_runs(cleaned), _SPACE + "{2,}", " ")
    cleaned = pc.utf8_trim(pc.utf8_rtrim(cleaned, characters="\n"), characters=" ")
    is_long = pc.greater_equal(pc.count_substring(cleaned, " "), MAX_WORDS)
    return _replace_regex(cleaned, is_long, rf"(?s)^((?:[^ ]* ){{{MAX_WORDS - 1}}}[^ ]*) .*$", r"\1")


def split_words(texts: pa.ChunkedArray | pa.Array) -> pa.ListArray:
    """Split each text into lower-case runs of letters and digits; scripts without spaces into characters."""
    spaced = pc.replace_substring_regex(_lower(texts), _SCRIPTS_WITHOUT_SPACES, r" \1 ")
    trimmed = pc.utf8_trim(pc.replace_substring_regex(spaced, _NOT_IN_WORDS, " "), characters=" ")
    split = pc.split_pattern(trimmed, " ")
    not_empty = pc.greater(pc.binary_length(trimmed), 0)
    return pc.if_else(not_empty, split, pa.scalar([], split.type))


def hash_strings(strings: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Return a 64-bit hash per string, the same in every run; 0 for the empty string."""
    array = as_one_array(strings).cast(pa.large_string())
    _, offset_buffer, data = array.buffers()
    offsets = np.frombuffer(offset_buffer, np.int64)[array.offset :][: len(array) + 1]
    hashes = np.zeros(len(array), np.uint64)
    sizes = np.diff(offsets)
    not_empty = np.flatnonzero(sizes)
    if not len(not_empty):
        return hashes
    text_bytes = np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]]
    starts = (offsets[:-1] - offsets[0])[not_empty]
    position = np.arange(len(text_bytes)) - np.repeat(starts, sizes[not_empty])
    powers = np.cumprod(np.full(sizes.max(), _BASE, np.uint64))
    hashes[not_empty] = np.add.reduceat(_BYTE_CODES[text_bytes] * powers[position], starts)
    return hashes


def hash_ngrams(lists: pa.ListArray, n: int) -> np.ndarray:
    """Return a 64-bit hash per n-gram of the word lists; no n-gram spans two texts."""
    word_hashes = hash_strings(lists.flatten())
    text = np.repeat(np.arange(len(lists)), pc.list_value_length(lists).to_numpy(zero_copy_only=False))
    total = max(0, len(word_hashes) - n + 1)
    hashes = np.zeros(total, np.uint64)
    for position in range(n):
        hashes = hashes * _BASE + word_hashes[position : position + total]
    return hashes[text[:total] == text[n - 1 :][:total]]


def as_one_array(values: pa.ChunkedArray | pa.Array) -> pa.Array:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


def to_floats(values: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Return numbers as 64-bit floats, the type of the limits, with NaN for null."""
    return as_one_array(values.cast(pa.float64())).to_numpy(zero_copy_only=False)


def count_words(texts: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Return the number of words of each text; characters in scripts without spaces."""
    lengths = pc.fill_null(as_one_array(pc.list_value_length(split_words(texts))), 0)
    return lengths.to_numpy(zero_copy_only=False)


def _lower(texts: pa.ChunkedArray | pa.Array) -> pa.StringArray:
    filled = pc.fill_null(as_one_array(texts), "")
    if pc.all(pc.string_is_ascii(filled)).as_py():
        return pc.ascii_lower(filled)
    lower = pc.utf8_lower(filled)
    irregular = pc.match_substring_regex(filled, _LOWERED_BY_PYTHON)
    if pc.any(irregular).as_py():
        by_python = pa.array([text.lower() for text in filled.filter(irregular).to_pylist()], pa.string())
        lower = pc.replace_with_mask(lower, irregular, by_python)
    return lower


def _may_hold_runs(texts: pa.StringArray) -> pa.BooleanArray:
    """Return a mask that includes all texts with two white-space characters in a row.

    The exact mask would cost as much as the rest of the cleaning.
    """
    _, _, data = texts.buffers()
    if data is not None and _CONTROL[np.frombuffer(data, np.uint8)].any():
        return pa.array(np.ones(len(texts), bool))
    return pc.or_(pc.match_substring(texts, "  "), pc.invert(pc.string_is_ascii(texts)))


def _replace_regex(texts: pa.StringArray, rows: pa.BooleanArray, pattern: str, replacement: str) -> pa.StringArray:
    if not pc.any(rows).as_py():
        return texts
    return pc.replace_with_mask(texts, rows, pc.replace_substring_regex(texts.filter(rows), pattern, replacement))


def _replace_bytes(texts: pa.StringArray, table: np.ndarray) -> pa.StringArray:
    """Map bytes through a table of 256 that leaves bytes above 127, parts of UTF-8 sequences, unchanged."""
    validity, offsets, data = texts.buffers()
    if data is None:
        return texts
    mapped = pa.py_buffer(table[np.frombuffer(data, np.uint8)])
    return pa.StringArray.from_buffers(len(texts), offsets, mapped, validity, texts.null_count, texts.offset)
