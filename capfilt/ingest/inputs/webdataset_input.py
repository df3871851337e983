"""Webdatasets as inputs of `capfilt pack`."""

from __future__ import annotations

import os
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from blipcore.io.reading import open_read
from blipcore.io.samples import PICTURE_SUFFIXES, TEXT_SUFFIXES, IndexedTar, SampleMembers
from blipcore.io.storage import AnyPath
from blipcore.io.tars import TarMember, TarProblem
from capfilt.ingest.inputs.exif import img2dataset_orientation
from capfilt.ingest.inputs.input import InputOptions, InputRow, PictureInput
from capfilt.ingest.inputs.sample_texts import SampleTexts, further_columns
from capfilt.ingest.inputs.splits import file_split, select_split
from capfilt.ingest.picture_bytes import SPARSE_MEMBER


class WebdatasetInput(PictureInput):
    """Tars of samples, each a picture with or without a text; a damaged tar is read as far as possible."""

    def __init__(self, source: AnyPath, root: AnyPath, files: dict[str, int], options: InputOptions) -> None:
        options.refuse_list_options("webdataset")
        names: list[str] = list(files)
        splits: tuple[str, ...] = ()
        if any(map(file_split, files)):  # otherwise, the JSON of a sample may have its split
            names, splits = select_split(names, file_split, options.split, source)
        super().__init__(source, "webdataset", [(name, files[name]) for name in names], options, splits=splits)
        self.root = root
        self.picture = "tar members"
        self._texts = SampleTexts(self, set(TEXT_SUFFIXES))

    def read_rows(self) -> Iterator[InputRow]:
        for name, _ in self.files:
            path = self.root / name
            fields = [text.removeprefix(".") for text in self.options.text_names]
            with IndexedTar(path, self.options.encoding, fields) as tar:
                # A suffix that no text file has is a key of the JSON.
                members = (member for sample in tar.samples.values() for member in sample.texts)
                self._texts.suffixes = {_suffix(member, fields) for member in members}
                sparse = _sparse_pictures(path) if any(map(_is_sparse, tar.problems)) else {}
                for key in dict.fromkeys((*tar.samples, *sparse)):
                    sample = tar.samples.get(key) or SampleMembers()
                    row = self._row(tar, path, f"{name}/{key}", sample)
                    if sample.image is None and key in sparse:
                        row |= {"status": "ok", "error": None, "body": os.fsencode(str(path))} | sparse[key]
                    yield row
            if sparse:
                tar.problems = [problem for problem in tar.problems if not _is_sparse(problem)]
            self._report(name, tar)

    def _row(self, tar: IndexedTar, path: AnyPath, place: str, sample: SampleMembers) -> InputRow:
        content = tar.read_json(sample)
        if content is None and sample.metadata is not None and sample.metadata.complete:
            self.unreadable = self.unreadable or f"{place}: its JSON is not valid"
            self.add_problem("JSON members that cannot be read", place)
        metadata = content if isinstance(content, dict) else {}
        files: dict[str, Callable[[], str | None]] = {
            _suffix(member, self.options.text_names): partial(tar.read_text_member, member) for member in sample.texts
        }
        url, split = metadata.get("url"), metadata.get("split")
        split = split if isinstance(split, str) else None
        if not self.is_in_split(split):
            return {"split": split}
        row: InputRow = {
            "split": split,
            "url": url if isinstance(url, str) else place,
            "texts": self._texts.choose(files, content, place),
            "columns": further_columns(metadata, self.options.text_names),
        }
        image = sample.image
        if image is None:
            return row | {"status": "not_found", "error": "no picture in the sample"}
        if not image.complete:
            return row | {"status": "decode_error", "error": "truncated_tar"}
        row |= {"body": os.fsencode(str(path)), "offset": image.offset, "size": image.size}
        return row | {"orientation": img2dataset_orientation(metadata)}

    def _report(self, name: str, tar: IndexedTar) -> None:
        counts = Counter(problem.reason for problem in tar.problems)
        self.ignored.update(counts)
        self.ignored.update(tar.unused)
        for suffix in tar.unused:
            if suffix.rpartition(".")[2] in TEXT_SUFFIXES:  # url.txt, alt.txt
                self.unused[f".{suffix}"] += tar.unused[suffix]
        for reason, count in counts.items():  # one line each: a tar made on macOS has a problem per picture
            first: TarProblem = next(problem for problem in tar.problems if problem.reason == reason)
            print(f"{name}: {reason} {first.member}" + f" and {count - 1} more" * (count > 1), file=sys.stderr)
            if reason == "undecodable_text":
                self.unreadable = self.unreadable or f"{name}: {first.member} is not text in UTF-8"
                remedy = "another --encoding" if self.options.encoding else "--encoding, such as cp1252,"
                self.add_problem(
                    f"texts in another encoding, not read; {remedy} may read them", f"{name}/{first.member}"
                )


def _suffix(member: TarMember, fields: Sequence[str]) -> str:
    """Return the suffix of a text, all after the first dot if the user has named it so, as in "alt.txt"."""
    whole = member.name.rpartition("/")[2].partition(".")[2].lower()
    return whole if whole in fields or f".{whole}" in fields else whole.rpartition(".")[2]


def _is_sparse(problem: TarProblem) -> bool:
    return problem.reason == "sparse_member"


def _sparse_pictures(path: AnyPath) -> dict[str, InputRow]:
    """Return key -> place of the sparse pictures of a tar: files stored without their holes, as by `tar --sparse`."""
    places: dict[str, InputRow] = {}
    try:
        with open_read(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                folder, slash, base = member.name.removeprefix("./").rpartition("/")
                stem, _, suffix = base.partition(".")
                if member.issparse() and suffix.rpartition(".")[2].lower() in PICTURE_SUFFIXES:
                    place = {"column": SPARSE_MEMBER, "offset": member.offset, "size": member.size}
                    places.setdefault(folder + slash + stem, place)
    except tarfile.TarError:  # damaged after the pictures that have been found
        pass
    return places
