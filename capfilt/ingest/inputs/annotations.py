"""Annotation files: which pictures they name, and with which texts.

They are lists with a column of paths, in all formats of `lists/` (among them Flickr8k's and Flickr30k's text files,
Karpathy's JSON, LLaVA's conversations and data-juicer's JSON lines), COCO's JSON, and JSON objects of captions by path.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from blipcore.io.coco import parse_coco
from blipcore.io.reading import open_read
from blipcore.io.samples import TEXT_KEYS
from blipcore.io.storage import AnyPath
from blipcore.io.text_encoding import decode_text
from capfilt.ingest.inputs.annotation_cells import (
    column_of,
    is_conversation,
    keys_of_texts,
    picture_names,
    texts_of,
    texts_of_pictures,
    value_at,
)
from capfilt.ingest.inputs.input import InputOptions, looks_like_caption, may_hold_texts
from capfilt.ingest.lists.arrow_list import is_binary
from capfilt.ingest.lists.delimited import looks_like_picture
from capfilt.ingest.lists.list_files import list_format
from capfilt.ingest.lists.rows import ListColumn, RowList, find_columns, open_list
from capfilt.ingest.lists.urls import CAPTION_COLUMNS

PATH_COLUMNS = (
    *("image", "file_name", "filename", "image_path", "filepath", "path", "file", "img"),
    *("images", "image_name", "image_file", "image_filename", "img_path", "img_name", "image_id"),
)
# `raw` is Flickr30k's of Hugging Face, `comment` Kaggle's; `captions_str` and `reference_strs` are TextCaps'.
TEXT_COLUMNS = (
    *CAPTION_COLUMNS,
    *("conversations", "messages", "comment", "raw", "caption_str", "sentence"),
)
CAPTION_NUMBER = re.compile(r"(\.\w{3,4})#\d+$")  # Flickr8k: x.jpg#0
COCO_FACTS = ("file_name", "width", "height")  # of an image, which are no further columns
HEAD_BYTES = 1 << 16
MAX_NAME = 4096  # characters of a path, by Linux


class AnnotationRow(NamedTuple):
    """A picture and its texts in one row of an annotation file."""

    name: Any  # of the picture
    texts: list[str]
    sources: tuple[str, ...] = ()  # columns that hold the texts
    split: str | None = None
    columns: dict[str, Any] | None = None
    error: str | None = None  # why the row cannot be read


class Annotations:
    """The rows of an annotation file; `picture` and `texts` are columns or keys."""

    format = picture = ""
    texts: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[AnnotationRow]:
        raise NotImplementedError


def open_annotations(path: AnyPath, options: InputOptions) -> Annotations:
    """Open an annotation file; ValueError if it is not one."""
    if list_format(path.name) in ("json", None) and _begins_with_object(path):
        content = _load_json(path, options)
        if isinstance(content, dict):
            if isinstance(content.get("images"), list) and isinstance(content.get("annotations"), list):
                return CocoAnnotations(path, content, options)
            if _is_captions_by_name(content):
                return NamedCaptions(path, content, options)
    list_options = options.list_options("" if list_format(path.name) else "txt")  # Flickr30k's results.token
    return ListAnnotations(open_list(str(path), list_options), options)


def _begins_with_object(path: AnyPath) -> bool:
    """Return whether a file holds one JSON object, not one per line."""
    with open_read(path) as file:
        head = file.read(HEAD_BYTES).lstrip(b"\xef\xbb\xbf \t\r\n")
    first, _, following = head.partition(b"\n")
    return head.startswith(b"{") and not (first.rstrip().endswith(b"}") and following.lstrip().startswith(b"{"))


def _load_json(path: AnyPath, options: InputOptions) -> Any:
    try:
        return json.loads(decode_text(path.read_bytes(), options.encoding))
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply.") from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}).") from None


class ListAnnotations(Annotations):
    """A list with a column of paths."""

    def __init__(self, rows: RowList, options: InputOptions) -> None:
        self.rows = rows
        self.picture, self.texts = self._find_columns(options)
        self.format = rows.format
        used = (self.picture, *self.texts)
        unused = [name for name in rows.names if name not in used and self._may_be_texts(name)]
        columns = [name for name in self.texts if name in rows.names]
        unused += [key for name in columns for cell in rows.sample_of(name) for key in keys_of_texts(name, cell)]
        self.unused = tuple(dict.fromkeys(unused))
        if any(is_conversation(cell) for name in columns for cell in rows.sample_of(name)):
            self.notes = (
                f"'{self.texts[0]}' holds conversations: the first reply is the text, later ones are not used",
            )

    def _find_columns(self, options: InputOptions) -> tuple[str, tuple[str, ...]]:
        rows = self.rows
        own = [name for name in rows.names if name == "file_name" or name.endswith("_file_name")]  # of `imagefolder`
        usual = PATH_COLUMNS if len(own) != 1 else (own[0].lower(), *PATH_COLUMNS)
        picture = ListColumn("the path of a picture", usual, options.image_col, "--image-col", fits=looks_like_picture)
        if len(own) > 1 and "file_name" not in own and options.image_col is None:
            raise ValueError(
                f"{rows.path} has several columns of pictures: {', '.join(own)}. Name one with --image-col."
            )
        text = ListColumn("a caption", TEXT_COLUMNS, None, "--caption-col", required=False, fits=looks_like_caption)
        if options.text_names:
            texts = [text._replace(name=column_of(name, rows.names), fits=None) for name in options.text_names]
        else:
            texts = [text if not rows.has_header else text._replace(fits=None)]
        name, *names = find_columns(rows, [picture, *texts])
        assert name is not None  # required
        cells = [cell for cell in rows.sample_of(name) if isinstance(cell, str)]
        if cells and all(len(cell) > MAX_NAME for cell in cells):
            raise ValueError(
                f"{rows.path} holds long texts in '{name}', which are no paths. Pictures in base64 are not read: write "
                "their bytes to a Parquet file."
            )
        if cells and all(cell.startswith(("http://", "https://")) for cell in cells):
            raise ValueError(
                f"{rows.path} names URLs in '{name}'; fetch them with `capfilt download {rows.path} DATA`."
            )
        return name, tuple(text for text in options.text_names or names if text is not None and text != name)

    def _may_be_texts(self, name: str) -> bool:
        field = self.rows.schema.field(self.rows.names.index(name))
        if pa.types.is_integer(field.type) or pa.types.is_floating(field.type):
            return False
        return may_hold_texts(name) and any(looks_like_caption(cell) for cell in self.rows.sample_of(name))

    def __iter__(self) -> Iterator[AnnotationRow]:
        names, schema = self.rows.names, self.rows.schema
        read = [
            name
            for index, name in enumerate(names)
            if names.count(name) == 1
            and (name in (self.picture, *self.texts) or not is_binary(schema.field(index).type))
        ]
        for row in self.rows.read(read):
            cells = dict(zip(read, row.cells, strict=True))
            yield from self._rows(cells, row.error)

    def _rows(self, cells: dict[str, Any], error: str | None) -> Iterator[AnnotationRow]:
        cell = cells.pop(self.picture)
        values = {name: value_at(cells, name) for name in self.texts}
        cells = {name: value for name, value in cells.items() if name not in self.texts}
        split = cells.get("split")
        split = split if isinstance(split, str) and split else None
        pictures = picture_names(cell)
        if error is not None and (cell is None or not any(values.values())):
            yield AnnotationRow(_one(pictures), [], split=split, columns=cells, error=error)
            return
        folder = cells.pop("filepath", None) if self.picture == "filename" else None  # of Karpathy's COCO
        if isinstance(folder, str) and folder and isinstance(cell, str):
            pictures = [cell if folder.endswith(cell) else f"{folder}/{cell}"]
        if len(pictures) <= 1:
            texts = {name: texts_of(value) for name, value in values.items()}
            found = [text for of_column in texts.values() for text in of_column]
            sources = tuple(name for name, of_column in texts.items() if any(text.strip() for text in of_column))
            yield AnnotationRow(_one(pictures), found, sources, split, cells)
            return
        by_picture = [texts_of_pictures(value, len(pictures)) for value in values.values()]
        if any(texts is None for texts in by_picture):
            names = f"{pictures[0]} and {len(pictures) - 1} more pictures in one row"
            problem = f"{names}, and it is not said which text belongs to which"
            yield AnnotationRow(None, [], split=split, columns=cells, error=problem)
            return
        for number, name in enumerate(pictures):
            found = [text for texts in by_picture for text in (texts or [])[number]]
            yield AnnotationRow(name, found, self.texts if found else (), split, cells)


class CocoAnnotations(Annotations):
    """COCO's JSON of images and annotations."""

    def __init__(self, path: AnyPath, content: dict[str, Any], options: InputOptions) -> None:
        if options.image_col:
            raise ValueError(f"{path} is a COCO file, which names its pictures in 'file_name'; leave out --image-col.")
        self.format, self.picture = "COCO", "file_name"
        self.texts = options.text_names or ("caption",)
        self.coco = parse_coco(content, str(path), require_captions=False, caption_keys=self.texts)
        self.images, annotations = content["images"], content["annotations"]
        example = annotations[0] if annotations else {}
        self.unused = tuple(name for name in example if name not in self.texts and looks_like_caption(example[name]))
        if options.reads_texts and annotations and not any(image.captions for image in self.coco):
            raise ValueError(
                f"{path} has no '{self.texts[0]}' in any of its {len(annotations):,} annotations, which have "
                f"{', '.join(example)}: is it a file of captions? Name a key with --caption-col, or give --caption-col "
                "none to read no texts."
            )

        listed = {str(image.id) for image in self.coco}
        unknown = sum(str(annotation.get("image_id")) not in listed for annotation in annotations)
        if unknown:
            self.notes = (f"{unknown:,} annotations belong to none of the images of {path.name} and are not used",)

    def __iter__(self) -> Iterator[AnnotationRow]:
        for image, content in zip(self.coco, self.images, strict=True):
            texts = [text for caption in image.captions for text in texts_of(caption)]
            further = {name: value for name, value in content.items() if name not in COCO_FACTS}
            yield AnnotationRow(image.file_name, texts, self.texts[: bool(texts)], columns=further)


class NamedCaptions(Annotations):
    """A JSON object of captions by the path of their picture, as kohya's {path: {caption, tags}}."""

    def __init__(self, path: AnyPath, content: dict[str, Any], options: InputOptions) -> None:
        if options.image_col:
            raise ValueError(f"{path} names its pictures in its keys; leave out --image-col.")
        self.format, self.picture, self.content = "JSON object of captions by path", "keys", content
        self.keys = options.text_names
        names = {name: None for value in list(content.values())[:100] if isinstance(value, dict) for name in value}
        if names:
            self.keys = options.text_names or next(((key,) for key in TEXT_KEYS if key in names), ())
            missing = [key for key in self.keys if key not in names]
            if missing:
                raise ValueError(f"{path} has no key '{missing[0]}' (--caption-col); it has {', '.join(names)}.")
            self.unused = tuple(name for name in names if name not in self.keys and may_hold_texts(name))
            self.texts = self.keys
        else:
            if options.text_names:
                raise ValueError(f"{path} has no columns of texts; leave out --caption-col.")
            self.texts = ("values",)

    def __iter__(self) -> Iterator[AnnotationRow]:
        for name, value in self.content.items():
            if isinstance(value, dict):
                texts = [text for key in self.keys for text in texts_of(value.get(key))]
                further = {key: cell for key, cell in value.items() if key not in self.keys}
                yield AnnotationRow(name, texts, self.texts if texts else (), columns=further)
            else:
                texts = texts_of(value)
                yield AnnotationRow(name, texts, ("values",) if texts else ())


def _is_captions_by_name(content: dict[str, Any]) -> bool:
    """Return whether the keys of an object name pictures, by their suffix or by the texts that they have."""
    values = list(content.items())[:100]
    if not values:
        return False
    if all(looks_like_picture(key) for key, _ in values):
        return all(isinstance(value, str | list | dict) for _, value in values)
    if all(isinstance(value, str) or _is_list_of_texts(value) for _, value in values):
        return not any(key.lower() in (*PATH_COLUMNS, *TEXT_COLUMNS) for key, _ in values)  # else a row, or columns
    kohya = all(isinstance(value, dict) and {"caption", "tags"} & value.keys() for _, value in values)
    return kohya and not any(PATH_COLUMNS[0] in value or "file_name" in value for _, value in values)


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _one(pictures: list[Any]) -> Any:
    return pictures[0] if pictures else None


def without_caption_number(name: str) -> str:
    """Return a name without Flickr8k's number of its caption: x.jpg#0."""
    return CAPTION_NUMBER.sub(r"\1", name)
