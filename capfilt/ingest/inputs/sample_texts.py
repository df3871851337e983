"""Texts of a picture that has text files and a JSON beside it, in a folder or in a tar."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from blipcore.io.samples import TEXT_SUFFIXES, choose_texts, find_captions
from capfilt.ingest.inputs.annotation_cells import texts_of, value_at
from capfilt.ingest.inputs.input import PictureInput, caption_keys

# Keys of a JSON that are no further columns: img2dataset's facts about the stored picture, which `pack` stores anew.
# Its `exif` would rotate the upright picture again.
NOT_KEPT = frozenset(
    [
        *("key", "url", "status", "error_message", "exif", "sha256"),
        *("width", "height", "original_width", "original_height"),
    ]
)


class SampleTexts:
    """Chooses texts for a `PictureInput`, and counts there where they come from."""

    def __init__(self, source: PictureInput, suffixes: set[str]) -> None:
        self.source = source
        self.suffixes = suffixes  # of the text files that exist

    def choose(self, files: Mapping[str, Callable[[], str | None]], content: Any, picture: str) -> list[str]:
        """Return the texts of a picture. `files` reads its text files by suffix; `content` is its JSON or None."""
        if self.source.options.text_names:
            return self._by_name(files, content)
        read, chosen = [], ""  # suffixes of the files that are read, and of the one that is used

        def contents() -> Iterator[str | None]:
            nonlocal chosen
            for suffix in TEXT_SUFFIXES:
                if suffix in files:
                    text = files[suffix]()
                    read.append(suffix)
                    chosen = suffix if text and not text.isspace() else ""
                    yield text

        texts = choose_texts(contents(), lambda: content)
        key = "" if chosen else find_captions(content)[0]
        if any(text.strip() for text in texts):
            self.source.texts[f".{chosen}" if chosen else (key or "list of .json")] += 1
            if len(texts) > 1 and chosen:
                self.source.add_problem("text files with several lines, each a caption of its own", picture)
        self._count_unused([suffix for suffix in files if suffix not in read], content, {key})
        return texts

    def _by_name(self, files: Mapping[str, Callable[[], str | None]], content: Any) -> list[str]:
        texts: list[str] = []
        for name in self.source.options.text_names:
            suffix = name.removeprefix(".")
            if suffix in self.suffixes or name.startswith("."):
                found = choose_texts([files[suffix]()], lambda: content) if suffix in files else []
            else:
                found = texts_of(value_at(content, name)) if isinstance(content, dict) else []
            self.source.texts[name] += any(text.strip() for text in found)
            texts += found
        names = {name.removeprefix(".") for name in self.source.options.text_names}
        self._count_unused([suffix for suffix in files if suffix not in names], content, names)
        return texts

    def _count_unused(self, suffixes: list[str], content: Any, used: set[str]) -> None:
        self.source.unused.update(f".{suffix}" for suffix in suffixes)
        if isinstance(content, dict):
            names = caption_keys(content)
            self.source.unused.update(name for name in names if name not in used)


def further_columns(content: Any, used: tuple[str, ...]) -> dict[str, Any]:
    """Return the JSON of a picture without its texts and img2dataset's own keys."""
    if not isinstance(content, dict):
        return {}
    texts = used or (find_captions(content)[0],)
    return {name: value for name, value in content.items() if name not in NOT_KEPT and name not in texts}
