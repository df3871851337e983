"""Each kind of input of `capfilt pack`: folders, Parquet, saved datasets, webdatasets."""

from __future__ import annotations

import errno
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folders import rows_of
from packing import pack_folder, pictures_of, write_pictures
from PIL import Image
from web import picture

from blipcore.io.images import EXIF_ORIENTATION, UPRIGHT_TRANSPOSES
from blipcore.io.samples import TarSample
from capfilt.shards.format import IMAGES, write_shard
from capfilt.shards.manifest import read_manifest


def test_texts_beside_the_tars_of_a_shard_set_are_named(tmp_path: Path) -> None:
    photos = write_pictures(tmp_path / "photos", ["a.jpg"])
    (photos / "a.txt").write_text("one\ntwo")
    pack_folder(photos, tmp_path / "data")
    (note,) = pack_folder(tmp_path / "data", tmp_path / "again")["account"]["notes"]
    assert note.startswith("texts of a shard set in captions/more, not read")


def test_a_folder_of_pictures_with_text_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = write_pictures(tmp_path / "photos", ["b.jpg", "a.v2.jpg", "sub dir/c.JPG", ".hidden.jpg", ".trash/d.jpg"])
    (photos / "a.v2.txt").write_text("\ufeff  a text \n", encoding="utf-8")
    (photos / "sub dir" / "c.JPG.txt").write_text("another")
    (photos / "broken.png").write_bytes(b"")
    (photos / "telephone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (photos / "film.mov").write_bytes(b"x")
    (photos / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (photos / "linked.jpg").symlink_to(photos / "b.jpg")
    os.mkfifo(photos / "pipe.jpg")
    (photos / "link to a folder").symlink_to(tmp_path)
    (photos / "closed").mkdir()
    scandir = os.scandir

    def scan(path: str) -> Any:
        if str(path).endswith("closed"):  # also for root, who may run the tests
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    summary = pack_folder(photos, tmp_path / "data")
    assert summary["outcomes"] == {"ok": 4, "not_found": 1, "decode_error": 2, "other": 1}
    assert (summary["rows"], summary["ignored"], summary["kind"]) == (8, {"mov": 1, "folder not entered": 2}, "folder")
    assert {outcome: example.partition(" (")[0] for outcome, example in summary["for_example"].items()} == {
        "decode_error": "broken.png", "not_found": "gone.jpg", "other": "pipe.jpg"
    }  # fmt: skip
    rows = {row["url"]: row for row in rows_of(tmp_path / "data")}
    assert [*rows] == [
        *("a.v2.jpg", "b.jpg", "broken.png", "gone.jpg", "linked.jpg", "pipe.jpg", "telephone.heic", "sub dir/c.JPG")
    ]
    assert {url: row["caption"] for url, row in rows.items() if row["caption"]} == {
        "a.v2.jpg": "a text",
        "sub dir/c.JPG": "another",
    }
    assert rows["broken.png"]["error"] == "empty"
    assert rows["pipe.jpg"]["error"] == "not a regular file"
    assert [(sample.key, sample.image, sample.text) for sample in pictures_of(tmp_path / "data")] == [
        ("000000000", picture(1), "a text"),
        ("000000001", picture(0), None),
        ("000000004", picture(0), None),
        ("000000007", picture(2), "another"),
    ]
    assert pq.read_schema(tmp_path / "data" / "00000.parquet").remove_metadata() == IMAGES
    assert sorted(path.name for path in (tmp_path / "data").glob("[!.]*")) == [
        *("00000.parquet", "00000.tar", "manifest.json")
    ]


def test_impossible_file_names_are_rows_with_an_outcome(tmp_path: Path) -> None:
    photos = write_pictures(tmp_path / "photos", ["a.JPG"])
    (photos / "a.TXT").write_text("a text")
    (photos / "loop.jpg").symlink_to(photos / "loop.jpg")
    assert pack_folder(photos, tmp_path / "folder")["outcomes"] == {"ok": 1, "not_found": 1}
    assert [sample.text for sample in pictures_of(tmp_path / "folder")] == ["a text"]
    names = ["a.JPG/b.jpg", "x" * 300, "data:image/png;base64," + "A" * 5000, "half \ud83d.jpg", None, "", "a.JPG"]
    (tmp_path / "list.json").write_text(json.dumps([{"image": name, "caption": "t"} for name in names]))
    assert pack_folder(photos, tmp_path / "listed", annotations=str(tmp_path / "list.json"))["ok"] == 1
    statuses = [row["status"] for row in rows_of(tmp_path / "listed")]
    assert statuses == ["not_found"] * 3 + ["bad_url"] * 3 + ["ok"]


@pytest.mark.parametrize("struct", [False, True])
def test_parquet_with_image_bytes(tmp_path: Path, struct: bool) -> None:
    whole = [picture(number) for number in range(150)]
    whole[3], whole[4] = None, b"<html>"
    cells: list[Any] = [data and {"bytes": data, "path": "x.jpg"} for data in whole] if struct else whole
    if struct:
        cells[5] = {"bytes": None, "path": "/etc/x.jpg"}
    columns = {"image" if struct else "jpg": cells, "other": [b"x"] * 150, "text": [f"t{n}" for n in range(150)]}
    if not struct:
        columns |= {"url": [f"http://x/{n}" for n in range(150)]}
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table(columns).slice(0, 140), tmp_path / "in" / "a.parquet", row_group_size=33)
    pq.write_table(pa.table(columns).slice(140), tmp_path / "in" / "b.parquet")
    (tmp_path / "in" / "c.parquet").write_bytes(b"PAR1 no footer")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "in" / "d.parquet")
    summary = pack_folder(tmp_path / "in", tmp_path / "data", shard_size=45)
    outside = {"forbidden": 1} if struct else {}
    assert summary["outcomes"] == {"ok": 148 - struct, "not_found": 1, "decode_error": 1, "other": 2} | outside
    rows = rows_of(tmp_path / "data")
    assert rows[3]["status"] == "not_found"
    assert [row["url"] for row in rows][139:141] == (
        ["a.parquet#139", "b.parquet#0"] if struct else ["http://x/139", "http://x/140"]
    )
    assert "not a readable Parquet file" in rows[150]["error"]
    assert "d.parquet has no column that holds the bytes of pictures" in rows[151]["error"]
    samples = {sample.key: sample for sample in pictures_of(tmp_path / "data")}
    for number, row in enumerate(rows[:150]):
        if row["status"] == "ok":
            assert (samples[row["key"]].image, row["caption"]) == (whole[number], f"t{number}")


def test_a_saved_dataset(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    cells = [{"bytes": picture(n), "path": None} for n in range(100)]
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Sequence(datasets.Value("string"))})
    rows = {"image": cells, "caption": [[f"a {n}", f"b {n}"] for n in range(100)]}
    data = datasets.Dataset.from_dict(rows, features=features)
    shuffled = data.select([5, 99, 3, 3])
    datasets.DatasetDict({"train": shuffled}).save_to_disk(tmp_path / "saved")
    assert pack_folder(tmp_path / "saved", tmp_path / "data", shard_size=3)["account"]["splits"] == ["train"]
    assert [(sample.image, sample.text) for sample in pictures_of(tmp_path / "data")] == [
        (picture(number), f"a {number}") for number in (5, 99, 3, 3)
    ]


def test_webdatasets_of_other_programs(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    samples = [TarSample(f"shot.{n}" if n == 2 else f"x/{n}", picture(n), f"t{n}", {"url": f"u{n}"}) for n in range(4)]
    write_shard(tmp_path / "in" / "part-a.tar", samples[:3])
    write_shard(tmp_path / "in" / "part-b.tar", samples[3:])
    half = [("c.jpg", picture(4)), ("c.json", b'{"url": "half \\ud83d"}'), ("d.jpg", picture(5))]
    with tarfile.open(os.fsencode(tmp_path / "in") + b"/part-\xfc.tar", "w") as tar:  # a name that is not valid text
        for name, data in half:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    with open(tmp_path / "in" / "part-b.tar", "r+b") as file:
        file.truncate(512 + 600)  # in the middle of its only picture
    summary = pack_folder(tmp_path / "in", tmp_path / "data")
    assert summary["outcomes"] == {"ok": 5, "decode_error": 1}
    assert summary["ignored"] == {"truncated_tar": 1}
    assert [(row["url"], row["caption"], row["error"]) for row in rows_of(tmp_path / "data")] == [
        *(("u0", "t0", None), ("u1", "t1", None), ("u2", "t2", None), ("part-b.tar/x/3", None, "truncated_tar")),
        *(("half ?", None, None), ("part-?.tar/d", None, None)),
    ]
    assert read_manifest(tmp_path / "data")["config"]["kind"] == "webdataset"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_img2dataset_pictures_are_rotated_by_the_exif_in_their_metadata(tmp_path: Path, kind: str) -> None:
    """img2dataset encodes pictures anew without rotating them; their orientation is then only in the metadata."""
    exifread = pytest.importorskip("exifread", reason="comes with img2dataset")
    upright = Image.open(io.BytesIO(picture(3))).convert("RGB").crop((0, 0, 40, 20)).resize((160, 80))
    undo = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    samples = []
    for orientation in range(1, 9):
        stored, with_exif, without = upright, io.BytesIO(), io.BytesIO()
        if orientation > 1:
            stored = upright.transpose(undo.get(orientation, UPRIGHT_TRANSPOSES[orientation]))
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = orientation
        stored.save(with_exif, "JPEG", exif=exif)
        stored.save(without, kind, quality=95)
        tags = exifread.process_file(with_exif, details=False)
        meta = {"exif": json.dumps({name: str(value).strip() for name, value in tags.items()})}
        samples += [TarSample(f"{orientation}", without.getvalue(), None, meta)]
        samples += [TarSample(f"{orientation}kept", with_exif.getvalue(), None, meta)]
    samples += [
        TarSample("odd", without.getvalue(), None, {"exif": "[1"}),
        TarSample("none", without.getvalue(), None, {}),
    ]
    (tmp_path / "in").mkdir()
    write_shard(tmp_path / "in" / "0.tar", samples)
    pack_folder(tmp_path / "in", tmp_path / "data")
    packed = [np.asarray(Image.open(io.BytesIO(sample.image)), float) for sample in pictures_of(tmp_path / "data")]
    assert len(packed) == 18
    for pixels in packed[:16]:
        assert pixels.shape == (80, 160, 3) and np.abs(pixels - np.asarray(upright)).mean() < 6
    assert packed[16].shape == packed[17].shape == (160, 80, 3)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "No file or folder at"),
        (lambda path: path.mkdir(), "holds no pictures, tars or Parquet files"),
        (lambda path: path.write_bytes(picture(1)), "to pack a picture, give its folder"),
        (lambda path: write_pictures(path, ["a.txt"]), "holds no pictures, tars or Parquet files"),
        (lambda path: write_shard(path / "a.tar", []), "holds no pictures"),
    ],
)
def test_errors_are_one_sentence(tmp_path: Path, make: Callable[[Path], object], words: str) -> None:
    make(tmp_path / "in")
    with pytest.raises((ValueError, FileNotFoundError), match=words) as caught:
        pack_folder(tmp_path / "in", tmp_path / "data")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()
