"""Text columns: cleaning as BLIP cleans, splitting into words, hashing of texts and n-grams.

Everything works on Arrow buffers, because `capfilt filter` decides on millions of texts and `capfilt report` counts
them.

Tables always hold texts as they were found; nothing stores a cleaned text. A text is cleaned where it is compared or
tokenized: `decide` cleans to find empty and repeated texts, `score` to skip empty texts, and the scorer cleans the
input of the tokenizer (one text at a time, with `clean_caption`). All three use the same rule, so a text that
`decide` calls empty never reaches the model.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# Longest cleaned text, in words, as in BLIP's `pre_caption`.
MAX_WORDS = 30
# The lower case of Σ depends on its neighbours and that of İ is two characters. Arrow lowers letter by letter, so
# texts with these letters are lowered by Python.
_LOWERED_BY_PYTHON = "[İΣ]"
_WITHOUT_PUNCTUATION = np.arange(256, dtype=np.uint8)
_WITHOUT_PUNCTUATION[list(b'.!"()*#:;~')] = ord(" ")
# ASCII white space other than the blank.
_CONTROL = np.isin(np.arange(256), [*b"\t\n\v\f\r\x1c\x1d\x1e\x1f"])
# Python's `\s`; RE2's `\s`, which Arrow uses, is ASCII only.
_SPACE = r"[\t-\r\x1c-\x20\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]"
_SCRIPTS_WITHOUT_SPACES = r"([\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}])"
_NOT_IN_WORDS = r"[^\p{L}\p{M}\p{N}]+"
# The base of the polynomial hash is odd, so that multiplying by it modulo 2^64 loses nothing.
_BASE = np.uint64(0x9E3779B97F4A7C15)
_BYTE_CODES = np.random.Generator(np.random.Philox(20220128)).integers(1, 2**64, 256, np.uint64)


def clean_texts(texts: pa.ChunkedArray | pa.Array) -> pa.StringArray:
    """Clean each text as `blipcore.model.tokenizer.clean_caption` does; a null becomes the empty text."""
    cleaned = _replace_bytes(_lower(texts), _WITHOUT_PUNCTUATION)
    cleaned = _replace_regex(cleaned, _may_hold_runs(cleaned), _SPACE + "{2,}", " ")
    cleaned = pc.utf8_trim(pc.utf8_rtrim(cleaned, characters="\n"), characters=" ")
    is_long = pc.greater_equal(pc.count_substring(cleaned, " "), MAX_WORDS)
    return _replace_regex(cleaned, is_long, rf"(?s)^((?:[^ ]* ){{{MAX_WORDS - 1}}}[^ ]*) .*$", r"\1")


def split_words(texts: pa.ChunkedArray | pa.Array) -> pa.ListArray:
    """Split each text into lower-case words: runs of letters and digits.

    In scripts written without spaces (Chinese, Japanese, Thai, ...) each character is a word.
    """
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
    """Return a column as a single Arrow array."""
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


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
    """Return a mask of the texts that may hold two white-space characters in a row.

    The mask is a cheap upper bound: the exact test costs as much as the rest of the cleaning.
    """
    _, _, data = texts.buffers()
    if data is not None and _CONTROL[np.frombuffer(data, np.uint8)].any():
        return pa.array(np.ones(len(texts), bool))
    return pc.or_(pc.match_substring(texts, "  "), pc.invert(pc.string_is_ascii(texts)))


def _replace_regex(texts: pa.StringArray, rows: pa.BooleanArray, pattern: str, replacement: str) -> pa.StringArray:
    """Replace matches of the pattern in the texts that `rows` selects."""
    if not pc.any(rows).as_py():
        return texts
    return pc.replace_with_mask(texts, rows, pc.replace_substring_regex(texts.filter(rows), pattern, replacement))


def _replace_bytes(texts: pa.StringArray, table: np.ndarray) -> pa.StringArray:
    """Map each byte through a table of 256; the table must leave bytes above 127 alone, or UTF-8 breaks."""
    validity, offsets, data = texts.buffers()
    if data is None:
        return texts
    mapped = pa.py_buffer(table[np.frombuffer(data, np.uint8)])
    return pa.StringArray.from_buffers(len(texts), offsets, mapped, validity, texts.null_count, texts.offset)
