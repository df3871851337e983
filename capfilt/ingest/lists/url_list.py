"""Lists of URLs with their texts: which columns hold them, and an account of what was read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from blipcore.io.messages import shorten
from blipcore.io.samples import PICTURE_SUFFIXES
from capfilt.ingest.account import MAX_NAMES, NO_TEXTS, Account
from capfilt.ingest.lists.list_files import ListOptions
from capfilt.ingest.lists.rows import ListColumn, RowList, as_text, cell_texts, find_columns, match_columns, open_list
from capfilt.ingest.lists.urls import CAPTION_COLUMNS, URL_COLUMNS

# Parts of the names of columns with texts, if no usual name exists: re_caption, caption_alt_text_description.
CAPTION_WORDS = re.compile(r"caption|description|prompt|(^|[^a-z])(text|alt|title|txt)([^a-z]|$)")
NO_TEXT = re.compile(r"\s*(https?://\S*|[-+0-9.eE%,:]*|[0-9a-fA-F-]{16,})\s*")  # URLs, numbers, hashes
CHECKSUM_COLUMNS = {"sha256": 64, "md5": 32}  # name -> number of hex digits
MIN_BAD_ROWS = 20  # fewer never end a run


class UrlList:
    """The rows of a list of URLs. Iterating yields url, caption, more, columns, checksum, and status of a bad row.

    `columns` are all further columns. Raises ValueError for a list without URLs or with a missing column, and, when all
    rows have been read, for one without the texts that it should have. The account is complete after that.
    """

    def __init__(
        self,
        path: str,
        url_col: str | None = None,
        caption_cols: Sequence[str] = (),
        options: ListOptions | None = None,
        max_bad: float = 0.01,
    ) -> None:
        self.path, self.max_bad = path, max_bad
        self.requested = list(dict.fromkeys(caption_cols))
        self.list = open_list(path, options)
        for name in caption_cols if list(caption_cols) != [NO_TEXTS] else ():
            self.list.add_late_name(name)
        column = ListColumn("a URL", URL_COLUMNS, url_col, "--url-col", fits=is_url)
        (url,) = find_columns(self.list, [column])
        assert url is not None  # a required column
        self.url = url
        self._require_urls_alone()
        cells = self.list.sample_of(url)
        if cells and not any(isinstance(cell, (str, bytes)) for cell in cells):
            raise ValueError(f"{path} has no texts in '{url}', but {str(cells[0])[:100]}. Write a row for each URL.")
        if url in self.requested:
            raise ValueError(f"{path} has its URLs in '{url}', so --caption-col must name another column.")
        others = [name for name in dict.fromkeys(self.list.names) if name != url]
        candidates = [name for name in others if may_be_text(self.list, name)]
        self.texts = self._choose_texts(others, candidates)
        self.unused = tuple(name for name in candidates if name not in self.texts)
        repeated = {name for name in others if self.list.names.count(name) > 1}
        dropped = {*self.texts, *self.list.byte_columns, *repeated}
        self.further_names = [name for name in others if name not in dropped]
        self.counts: Counter[str] = Counter()
        self.by_column: Counter[str] = Counter()
        self.first_error: str | None = None
        self.unread: dict[str, object] = {}  # column of texts -> its first object without a known text

    def _require_urls_alone(self) -> None:
        """Raise ValueError if most lines of a txt hold more than a URL, unless --columns says that they are URLs."""
        if self.list.names != ["1"] or not self.list.text_format:
            return
        cells = self.list.sample_of(self.url)
        longer = [cell for cell in cells if " " in cell or any(map(looks_like_picture_file, _parts(cell)))]
        if len(longer) > len(cells) / 2:
            raise ValueError(
                f"{self.path} has one value per line, but its lines hold more than a URL, such as {longer[0][:100]!r}. "
                "Put a tab before the text, or give the file the suffix .csv; --columns url reads whole lines as URLs."
            )

    def _choose_texts(self, others: list[str], candidates: list[str]) -> list[str]:
        if self.requested == [NO_TEXTS]:
            return []
        if self.requested:
            columns = [ListColumn("a caption", (), name, "--caption-col") for name in self.requested]
            return [name for name in match_columns(self.list.names, columns, self.path) if name]
        if self.list.has_header:
            usual = ListColumn("a caption", CAPTION_COLUMNS, None, "--caption-col", required=False)
            (match,) = match_columns(others, [usual], self.path)
            if match is not None:
                match_columns(self.list.names, [usual._replace(name=match)], self.path)  # the only one of its name
                return [match]
            candidates = [name for name in candidates if CAPTION_WORDS.search(name.lower())] or candidates
        return candidates if len(candidates) == 1 else []

    @property
    def further(self) -> pa.Schema | None:
        """The types of the further columns: None for text formats, empty for JSON, whose values have types."""
        if self.list.text_format:
            return None
        if self.list.schema.names != self.list.names or self.list.format.startswith("json"):
            return pa.schema([])
        return pa.schema([self.list.schema.field(name) for name in self.further_names])

    @property
    def account(self) -> Account:
        """The account of the list, with the counts of the rows read so far."""
        bad = self.counts["bad"]
        notes = [f"rows that cannot be read, with the outcome bad_row: {bad:,}; the first: {self.first_error}."] * bool(
            bad
        )
        for name, cell in self.unread.items():
            notes.append(f"some cells of '{name}' are objects without a text, the first: {str(cell)[:100]}.")
        late = self.list.late_names
        if late:
            notes.append(
                f"only later rows have {shorten(late, MAX_NAMES)}; --caption-col can name them, and they are not kept."
            )
        return Account(
            "URL list",
            len(self.list.files),
            self.list.format,
            self.list.splits,
            picture=f"URLs in column '{self.url}'",
            texts={name: self.by_column[name] for name in self.texts},
            unused=(*self.unused, *filter(CAPTION_WORDS.search, late)),
            kept=tuple(self.further_names),
            rows=self.counts["rows"],
            rows_with_text=self.counts["text"],
            notes=tuple(notes),
        )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.require_columns()
        yield from self.rows()
        self.check()

    def require_columns(self) -> None:
        """Raise ValueError if no column is known to hold texts although some may: this needs no row."""
        if not self.texts:
            self._require_texts(rows=1)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows without checks of the texts."""
        self.counts.clear()
        self.by_column.clear()
        digests = [name for name in self.further_names if name.lower() in CHECKSUM_COLUMNS]
        names = [self.url, *self.texts, *self.further_names]
        last_text = 1 + len(self.texts)
        for row in self.list.read(names):
            self.counts["rows"] += 1
            url = as_text(row.cells[0])
            if row.error is not None:
                self.counts["bad"] += 1
                self.first_error = self.first_error or row.error
                yield {"url": url, "caption": None, "more": [], "status": "bad_row", "error": row.error}
                continue
            texts: list[str] = []
            for name, cell in zip(self.texts, row.cells[1:last_text], strict=True):
                of_column = [text for text in cell_texts(cell) if text is not None]
                self.by_column[name] += any(map(_has_text, of_column))
                if not of_column and _holds_objects(cell):
                    self.unread.setdefault(name, cell)
                texts += of_column
            if len(texts) > 1:  # a blank one has no meaning beside others
                texts = list(filter(_has_text, texts)) or texts[:1]
            self.counts["text"] += any(map(_has_text, texts))
            columns = dict(zip(self.further_names, row.cells[last_text:], strict=True))
            yield {
                "url": url,
                "caption": texts[0] if texts else None,
                "more": texts[1:],
                "columns": columns,
                "checksum": next((digest for name in digests if (digest := _digest(name, columns[name]))), None),
            }

    def check(self) -> None:
        """Raise ValueError if too many of the rows that were read are bad, or have no text that they should have."""
        rows, bad = self.counts["rows"], self.counts["bad"]
        if bad > max(MIN_BAD_ROWS, self.max_bad * rows):
            raise ValueError(
                f"{bad:,} of the {rows:,} rows of {self.path} cannot be read; the first: {self.first_error}. Correct "
                "the list, change how it is read with --encoding or --quoting, or allow more with --set max_bad_rows=1."
            )
        self._require_texts(rows)
        if self.unread and not self.counts["text"]:
            name, cell = next(iter(self.unread.items()))
            raise ValueError(
                f"{self.path} has no text in '{name}', whose cells are objects such as {str(cell)[:100]}. Save the "
                "texts as strings or lists of strings, or give --caption-col none to read no texts."
            )

    def _require_texts(self, rows: int) -> None:
        if self.requested != [NO_TEXTS]:
            replace(self.account, rows=rows).require_texts(self.path, self.requested)


def is_url(cell: object) -> bool:
    """Return whether a cell is an http(s) URL."""
    return isinstance(cell, str) and cell.strip().lower().startswith(("http://", "https://"))


def looks_like_picture_file(text: str) -> bool:
    """Return whether a text ends with the suffix of a picture."""
    return text.rpartition(".")[2].lower() in PICTURE_SUFFIXES


def _parts(cell: str) -> list[str]:
    """Return what stands before each comma, semicolon or bar."""
    return [cell[:position] for position, character in enumerate(cell) if character in ",;|"]


def may_be_text(rows: RowList, name: str) -> bool:
    """Return whether a column may hold captions: by its name, or by words in its first cells."""
    if rows.names.count(name) > 1 or name in rows.byte_columns:
        return False
    texts = [text for cell in rows.sample_of(name) if isinstance(cell, (str, list)) for text in cell_texts(cell)]
    words = [text for text in texts if text and text.strip() and not NO_TEXT.fullmatch(text)]
    if CAPTION_WORDS.search(name.lower()):
        return bool(words) or not rows.sample_of(name)
    if not rows.has_header and words and all(text.strip().isalpha() for text in words):
        return True  # one word each, such as a class
    return any(" " in text.strip() or not text.isascii() for text in words)


def _holds_objects(cell: object) -> bool:
    """Return whether a cell is an object, a map, or a list of these."""
    items = cell if isinstance(cell, list) else [cell]
    return any(isinstance(item, (dict, tuple)) for item in items)


def _has_text(text: str) -> bool:
    return bool(text.strip())


def _digest(name: str, cell: object) -> str | None:
    """Return the checksum in a cell, None if it is none."""
    if not isinstance(cell, str):
        return None
    value = cell.strip().lower()
    return value if len(value) == CHECKSUM_COLUMNS[name.lower()] and not value.strip("0123456789abcdef") else None
