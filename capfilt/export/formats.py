"""The formats of `capfilt export`: how each writes the pictures of a shard, and what it adds when all are written.

webdataset       NNNNN.tar with key.jpg, key.txt and key.json, as open_clip and img2dataset use
parquet          NNNNN.parquet with pictures and declared features, for `datasets.load_dataset` and the hub's viewer
json             images/NNNNN/KEY.jpg and pairs.json, one row per text, as BLIP's annotation files
textfiles        images/KEY.jpg and KEY.txt with a text per line, as kohya's sd-scripts and SimpleTuner read
clip_benchmark   test/N.tar with key.jpg and key.txt, a text per line, for its zero-shot retrieval
datacomp         uids.npy: the sorted uids of pictures with a kept web text, for DataComp's resharder
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from blipcore.io.samples import TarSample
from blipcore.io.storage import AnyPath
from blipcore.io.writing import atomic_write, remove_temporary_files, write_json, write_text
from capfilt.export.columns import DRAW_NAMES, ExportColumns, KeptPicture, Row
from capfilt.export.features import parquet_schema
from capfilt.export.names import FileNames
from capfilt.shards.format import WEB, picture_suffix, write_shard
from capfilt.shards.further_columns import json_value

Format = Literal["webdataset", "parquet", "json", "textfiles", "clip_benchmark", "datacomp"]
# Rows per Parquet row group; the hub's viewer reads whole groups, pictures included.
ROW_GROUP_ROWS = 100
# Outcomes of pictures that a format cannot hold.
OTHER_FORMAT, NO_UID = "other_format", "no_uid"


@dataclass
class Writer:
    """Writes a format into a folder; each shard's files have one writer."""

    folder: AnyPath
    columns: ExportColumns
    # the only source whose texts count; None for all
    source: str | None = None
    # opens the pictures' tars
    reads_pictures: bool = True
    # may be given a mixture
    mixes: bool = True

    def write(self, shard: str, pictures: Iterator[KeptPicture]) -> None:
        """Write the pictures of a shard."""
        raise NotImplementedError

    def refuse(self, image: bytes, text: Row) -> str | None:
        """Return the outcome of a picture that the format cannot hold, None for others."""
        return None

    def finish(self, shards: list[str], pictures: list[int]) -> None:
        """Write what describes all shards; `pictures` are the exported ones of each."""

    def begin(self, shards: list[str], *, shared: bool) -> None:
        """Remove leftovers of killed runs on these shards; `shared` if other runs may be writing other shards."""
        remove_temporary_files(self.folder, [f"{shard}.{suffix}" for shard in shards for suffix in ("tar", "parquet")])
        remove_temporary_files(
            self.folder / "parts", [f"{shard}.{suffix}" for shard in shards for suffix in ("jsonl", "npy")]
        )


class TarWriter(Writer):
    """Writer of `webdataset`."""

    def write(self, shard: str, pictures: Iterator[KeptPicture]) -> None:
        write_shard(self.folder / f"{shard}.tar", (self._sample(shard, picture) for picture in pictures))

    def _sample(self, shard: str, picture: KeptPicture) -> TarSample:
        row = self.columns.row(picture)
        if self.columns.mixture is not None:
            row |= dict(zip(DRAW_NAMES, self.columns.draws(shard, picture), strict=True))
        key = self.columns.key(shard, picture.sample.key)
        return TarSample(key, picture.sample.image, picture.text["text"], json_value(row))

    def finish(self, shards: list[str], pictures: list[int]) -> None:
        # open_clip reads the number of pictures from here if --train-num-samples is not given.
        write_json(self.folder / "sizes.json", {f"{s}.tar": number for s, number in zip(shards, pictures, strict=True)})


class ParquetWriter(Writer):
    """Writer of `parquet`."""

    def write(self, shard: str, pictures: Iterator[KeptPicture]) -> None:
        schema = parquet_schema(self.columns.types())
        with (
            atomic_write(self.folder / f"{shard}.parquet") as file,
            pq.ParquetWriter(file, schema, compression="zstd") as writer,
        ):
            rows: list[Row] = []
            for picture in pictures:
                key = self.columns.key(shard, picture.sample.key)
                image = {"bytes": picture.sample.image, "path": f"{key}.{picture_suffix(picture.sample.image)}"}
                rows.append({"image": image, "key": key, **self.columns.row(picture)})
                if len(rows) == ROW_GROUP_ROWS:
                    writer.write_table(pa.Table.from_pylist(rows, schema))
                    rows.clear()
            writer.write_table(pa.Table.from_pylist(rows, schema))


class ListWriter(Writer):
    """Writer of `json`."""

    def write(self, shard: str, pictures: Iterator[KeptPicture]) -> None:
        """Write images and the shard's part of pairs.json, one JSON object per line."""
        lines, folders, names = io.StringIO(), set[AnyPath](), FileNames()
        for sample, texts, _ in pictures:
            name = f"images/{shard}/{names.choose(sample.key, picture_suffix(sample.image))}"
            path = self.folder / name
            if path.parent not in folders:
                path.parent.mkdir(parents=True, exist_ok=True)
                remove_temporary_files(path.parent)
                folders.add(path.parent)
            _write_file(path, sample.image)
            for row in texts:
                pair = {"image": name, "caption": row["text"], "image_id": self.columns.key(shard, sample.key), **row}
                lines.write(json.dumps(json_value(pair), ensure_ascii=False) + "\n")
        write_text(self.folder / "parts" / f"{shard}.jsonl", lines.getvalue())

    def finish(self, shards: list[str], pictures: list[int]) -> None:
        """Join the shards' parts to the JSON list pairs.json, with one part in memory."""
        with atomic_write(self.folder / "pairs.json") as file:
            separator = b"[\n"
            for shard in shards:
                for line in (self.folder / "parts" / f"{shard}.jsonl").read_bytes().splitlines():
                    file.write(separator + line)
                    separator = b",\n"
            file.write(b"\n]\n" if separator != b"[\n" else b"[]\n")


class TextFilesWriter(Writer):
    """Writer of `textfiles`. kohya does not look into subfolders, and draws a line with `enable_wildcard = true`."""

    suffixes = ("jpg", "png", "webp", "bmp")  # which both trainers open

    def refuse(self, image: bytes, text: Row) -> str | None:
        return None if picture_suffix(image) in self.suffixes else OTHER_FORMAT

    def begin(self, shards: list[str], *, shared: bool) -> None:
        if not shared:  # all shards write into one folder
            remove_temporary_files(self.folder / "images")

    def write(self, shard: str, pictures: Iterator[KeptPicture]) -> None:
        names = FileNames()
        (self.folder / "images").mkdir(parents=True, exist_ok=True)
        for picture in pictures:
            key = self.columns.key(shard, picture.sample.key).replace("/", "_")
            text = self.folder / "images" / names.choose(key, "txt")
            image = text.with_name(f"{text.name.removesuffix('.txt')}.{picture_suffix(picture.sample.image)}")
            _write_file(text, f"{self.columns.lines(shard, picture)}\n".encode("utf-8", "replace"))
            _write_file(image, picture.sample.image)


class ClipBenchmarkWriter(Writer):
    """Writer of `clip_benchmark`, whose loader opens 0.tar, 1.tar, ... and splits key.txt into lines."""

    def __init__(self, folder: AnyPath, columns: ExportColumns) -> None:
        super().__init__(folder, columns, mixes=False)
        self.number = {shard: number for number, shard in enumerate(sorted(columns.prefixes))}

    def refuse(self, image: bytes, text: Row) -> str | None:
        return None if picture_suffix(image) in ("jpg", "png", "webp") else OTHER_FORMAT

    def write(self, shard: str, pictures: Iterator[KeptPicture]) -> None:
        samples = (
            TarSample(self.columns.key(shard, kept.sample.key), kept.sample.image, self.columns.lines(shard, kept))
            for kept in pictures
        )
        write_shard(self.folder / "test" / f"{self.number[shard]}.tar", samples)

    def finish(self, shards: list[str], pictures: list[int]) -> None:
        write_text(self.folder / "test" / "nshards.txt", f"{len(shards)}\n")
        write_text(self.folder / "dataset_type.txt", "retrieval\n")

    def begin(self, shards: list[str], *, shared: bool) -> None:
        remove_temporary_files(self.folder / "test", [f"{self.number[shard]}.tar" for shard in shards])


class DatacompWriter(Writer):
    """Writer of `datacomp`, whose resharder takes the web texts of the pool: only web texts count."""

    uid_type = np.dtype("u8,u8")

    def __init__(self, folder: AnyPath, columns: ExportColumns) -> None:
        super().__init__(folder, columns, source=WEB, reads_pictures=False, mixes=False)
        if "uid" not in columns.further.names:
            known = ", ".join(columns.further.names) or "none"
            raise ValueError(
                f"The filtered set has no column 'uid' (its columns of the input: {known}); DataComp's uids are kept "
                "by `capfilt download --keep-columns uid`."
            )

    def refuse(self, image: bytes, text: Row) -> str | None:
        return NO_UID if text["uid"] is None else None

    def write(self, shard: str, pictures: Iterable[KeptPicture]) -> None:
        uids = np.array([self._parse(shard, picture) for picture in pictures], self.uid_type)
        (self.folder / "parts").mkdir(parents=True, exist_ok=True)
        with atomic_write(self.folder / "parts" / f"{shard}.npy") as file:
            np.save(file, uids, allow_pickle=False)

    @staticmethod
    def _parse(shard: str, picture: KeptPicture) -> tuple[int, int]:
        uid: Any = picture.text["uid"]
        if not isinstance(uid, str) or not re.fullmatch("[0-9a-fA-F]{32}", uid):
            raise ValueError(
                f"The uid of {shard}/{picture.sample.key} is {uid!r}, not 32 hexadecimal digits; --format datacomp is "
                "for pools of DataComp."
            )
        return int(uid[:16], 16), int(uid[16:], 16)

    def finish(self, shards: list[str], pictures: list[int]) -> None:
        """Join the shards' uids, sorted and each once; 16 bytes of memory per uid, three times."""
        parts = [self.folder / "parts" / f"{shard}.npy" for shard in shards]
        uids = np.concatenate([np.load(io.BytesIO(part.read_bytes()), allow_pickle=False) for part in parts])
        uids = uids[np.lexsort((uids["f1"], uids["f0"]))]
        with atomic_write(self.folder / "uids.npy") as file:
            np.save(file, uids[np.append(True, uids[1:] != uids[:-1])] if len(uids) else uids, allow_pickle=False)


WRITERS: dict[Format, type[Writer]] = {
    "webdataset": TarWriter,
    "parquet": ParquetWriter,
    "json": ListWriter,
    "textfiles": TextFilesWriter,
    "clip_benchmark": ClipBenchmarkWriter,
    "datacomp": DatacompWriter,
}


def _write_file(path: AnyPath, content: bytes) -> None:
    with atomic_write(path) as file:
        file.write(content)
