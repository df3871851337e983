"""Whatever pictures lie in, the same shards come out: every picture a row with its outcome, every text in its place."""

from __future__ import annotations

import errno
import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folders import contents, rows_of
from PIL import Image
from web import picture

from blipcore.io.images import EXIF_ORIENTATION, TURNS
from blipcore.io.samples import TarSample, read_samples
from blipcore.io.storage import to_path
from capfilt.filter.config import FilterConfig
from capfilt.filter.stage import filter_shards
from capfilt.ingest import table_pictures as columns
from capfilt.ingest.pack import PackConfig, pack
from capfilt.shards.format import IMAGES, write_shard
from capfilt.shards.manifest import read_manifest
from capfilt.shards.shard_set import ShardSet
from capfilt.shards.tables import read_table


def run(source: Path, out: Path, **settings: Any) -> dict[str, Any]:
    return pack(PackConfig(str(source), str(out), **({"workers": 1} | settings)), progress=False)


def pictures_of(out: Path) -> list[TarSample]:
    found, problems = ShardSet.open(out), []
    pictures = [sample for shard in found.shards for sample in read_samples(found.tar(shard), problems)]
    assert problems == []
    return pictures


def folder(root: Path, names: list[str]) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(number))
    return root


def test_a_folder_of_pictures_with_texts_beside_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = folder(tmp_path / "photos", ["b.jpg", "a.v2.jpg", "sub dir/c.JPG", ".hidden.jpg", ".trash/d.jpg"])
    (photos / "a.v2.txt").write_text("\ufeff  a text \n", encoding="utf-8")
    (photos / "sub dir" / "c.JPG.txt").write_bytes(b"bad \xff")
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
        if str(path).endswith("closed"):  # whoever runs the tests
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    summary = run(photos, tmp_path / "data")
    assert summary["outcomes"] == {"ok": 4, "not_found": 1, "decode_error": 2, "other": 1}
    assert (summary["rows"], summary["ignored"], summary["kind"]) == (8, {"mov": 1, "folder not entered": 2}, "folder")
    assert {name: said.partition(" (")[0] for name, said in summary["for_example"].items()} == {
        "decode_error": "broken.png", "not_found": "gone.jpg", "other": "pipe.jpg"
    }  # fmt: skip
    rows = {row["url"]: row for row in rows_of(tmp_path / "data")}
    assert [*rows] == [
        *("a.v2.jpg", "b.jpg", "broken.png", "gone.jpg", "linked.jpg", "pipe.jpg", "telephone.heic", "sub dir/c.JPG")
    ]
    assert {url: row["caption"] for url, row in rows.items() if row["caption"]} == {
        "a.v2.jpg": "a text",
        "sub dir/c.JPG": "bad \ufffd",
    }
    assert rows["broken.png"]["error"] == "empty"
    assert rows["pipe.jpg"]["error"] == "not a regular file"
    assert [(sample.key, sample.image, sample.text) for sample in pictures_of(tmp_path / "data")] == [
        ("000000000", picture(1), "a text"),
        ("000000001", picture(0), None),
        ("000000004", picture(0), None),
        ("000000007", picture(2), "bad \ufffd"),
    ]
    assert pq.read_schema(tmp_path / "data" / "00000.parquet").remove_metadata() == IMAGES
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        *("00000.parquet", "00000.tar", "manifest.json")
    ]


def test_run_again_changed_and_in_shards(tmp_path: Path) -> None:
    photos = folder(tmp_path / "photos", [f"{number:02d}.jpg" for number in range(25)])
    summary = run(photos, tmp_path / "data", shard_size=10, workers=2)
    assert summary["shards"] == {"done": 3, "skipped": 0, "failed": {}}
    assert [row["key"] for row in rows_of(tmp_path / "data")][9:12] == ["000009", "000010", "000011"]
    before = {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()}
    assert run(photos, tmp_path / "data", shard_size=10)["shards"] == {"done": 0, "skipped": 3, "failed": {}}
    (tmp_path / "data" / "00001.parquet").unlink()  # as a kill before the last word would leave it
    (tmp_path / "data" / "manifest.json").write_bytes(
        before["manifest.json"].replace(b',\n  "counts": {\n    "ok": 25,\n    "rows": 25\n  }', b"")
    )
    assert run(photos, tmp_path / "data", shard_size=10)["shards"] == {"done": 1, "skipped": 2, "failed": {}}
    assert {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()} == before
    with pytest.raises(ValueError, match=r"other settings.*\n  image_size: 512 -> 64$"):
        run(photos, tmp_path / "data", shard_size=10, image_size=64)
    folder(photos, ["new.jpg"])
    with pytest.raises(ValueError, match=r"other settings.*\n  input_sha256: "):
        run(photos, tmp_path / "data", shard_size=10)


def test_a_shard_that_was_taken_away_is_made_again(tmp_path: Path) -> None:
    photos = folder(tmp_path / "photos", [f"{number}.jpg" for number in range(4)])
    run(photos, tmp_path / "data", shard_size=2)
    before = contents(tmp_path / "data")
    (tmp_path / "data" / "00001.parquet").unlink()
    assert run(photos, tmp_path / "data", shard_size=2)["shards"] == {"done": 1, "skipped": 1, "failed": {}}
    assert contents(tmp_path / "data") == before


def test_names_that_no_file_can_have_are_rows(tmp_path: Path) -> None:
    photos = folder(tmp_path / "photos", ["a.JPG"])
    (photos / "a.TXT").write_text("a text")
    (photos / "loop.jpg").symlink_to(photos / "loop.jpg")
    assert run(photos, tmp_path / "folder")["outcomes"] == {"ok": 1, "not_found": 1}
    assert [sample.text for sample in pictures_of(tmp_path / "folder")] == ["a text"]
    names = ["a.JPG/b.jpg", "x" * 300, "data:image/png;base64," + "A" * 5000, "half \ud83d.jpg", None, "", "a.JPG"]
    (tmp_path / "list.json").write_text(json.dumps([{"image": name, "caption": "t"} for name in names]))
    assert run(photos, tmp_path / "listed", annotations=str(tmp_path / "list.json"))["ok"] == 1
    found = [row["status"] for row in rows_of(tmp_path / "listed")]
    assert found == ["not_found"] * 3 + ["bad_url"] * 3 + ["ok"]


def test_whole_paths_may_go_through_a_link_to_the_folder(tmp_path: Path) -> None:
    photos = folder(tmp_path / "disk" / "photos", ["a.jpg"])
    (tmp_path / "photos").symlink_to(photos)
    names = [str(tmp_path / "photos" / "a.jpg"), str(photos / "a.jpg"), "a.jpg", str(tmp_path / "photos/../x.jpg")]
    (tmp_path / "list.json").write_text(json.dumps([{"image": name, "caption": name} for name in names]))
    for source in (tmp_path / "photos", photos):
        out = tmp_path / f"data {len(str(source))}"
        run(source, out, annotations=str(tmp_path / "list.json"))
        there = {"ok"} if source == tmp_path / "photos" else {"forbidden"}
        assert [row["status"] for row in rows_of(out)] == [*there, "ok", "ok", "forbidden"]


def test_pictures_of_one_large_row_group_are_not_held_together(tmp_path: Path, monkeypatch) -> None:
    table = pa.table({"jpg": [os.urandom(50_000) for _ in range(400)]})
    layout = {"use_dictionary": False, "compression": "none", "write_batch_size": 10}
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=400, **layout)
    sizes: list[int] = []

    class Watched(io.FileIO):
        def read(self, size: int = -1) -> bytes:
            sizes.append(size)
            return super().read(size)

    monkeypatch.setattr(columns, "open_read", Watched)
    cells = list(columns.open_columns(str(tmp_path / "a.parquet"), ["jpg"]))
    assert [cell for (cell,) in cells] == table["jpg"].to_pylist()
    assert max(sizes) < 4 << 20


def test_shards_may_go_to_any_fsspec_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    photos = folder(tmp_path / "photos", ["a.jpg", "b.jpg"])
    pack(PackConfig(str(photos), "memory://bucket/data", shard_size=1, workers=1), progress=False)
    run(photos, tmp_path / "data", shard_size=1)
    there = {path.name: path.read_bytes() for path in to_path("memory://bucket/data").iterdir()}
    assert there == {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()}
    assert not any((tmp_path / "cache").rglob("*.parquet"))
    assert ShardSet.open("memory://bucket/data").shards == ["00000", "00001"]


ANNOTATIONS = [("a.jpg", ["one", "uno"]), ("deep/b c.jpg", ["two"]), ("missing.jpg", ["x"]), ("../outside.jpg", ["y"])]


def annotations(path: Path, kind: str) -> Path:
    if kind == "coco":
        content: Any = {
            "images": [{"id": 7 + n, "file_name": name} for n, (name, _) in enumerate(ANNOTATIONS)],
            "annotations": [
                {"image_id": 7 + n, "id": 0, "caption": text} for n, (_, own) in enumerate(ANNOTATIONS) for text in own
            ],
        }
    elif kind == "blip":
        content = [{"image": name, "caption": own if len(own) > 1 else own[0]} for name, own in ANNOTATIONS]
    else:
        lines = [f'"{name}","{text}"\n' for name, own in ANNOTATIONS for text in own]
        path.write_text("file_name,text\n" + "".join(lines))
        return path
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("kind", ["coco", "blip", "csv"])
def test_annotation_files_and_several_texts(tmp_path: Path, kind: str) -> None:
    photos = folder(tmp_path / "photos", ["a.jpg", "deep/b c.jpg", "../outside.jpg"])
    file = annotations(tmp_path / f"list.{'csv' if kind == 'csv' else 'json'}", kind)
    summary = run(photos, tmp_path / "data", annotations=str(file))
    assert summary["outcomes"] == {"ok": 2, "not_found": 1, "forbidden": 1}
    rows = rows_of(tmp_path / "data")
    assert [(row["url"], row["caption"], row["status"]) for row in rows] == [
        ("a.jpg", "one", "ok"),
        ("deep/b c.jpg", "two", "ok"),
        ("missing.jpg", "x", "not_found"),
        ("../outside.jpg", "y", "forbidden"),
    ]
    assert rows[3]["error"] == "outside of photos"
    more = read_table(tmp_path / "data" / "captions" / "more" / "00000.parquet", ["key", "index", "text"]).to_pylist()
    assert more == [{"key": "000000000", "index": 0, "text": "uno"}]


def test_the_annotation_file_itself_is_a_source(tmp_path: Path) -> None:
    folder(tmp_path, ["a.jpg", "deep/b c.jpg"])
    assert run(annotations(tmp_path / "list.json", "blip"), tmp_path / "data")["ok"] == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")])
def test_a_run_that_ends_at_any_file_is_gone_on_with(tmp_path: Path, monkeypatch, error: BaseException) -> None:
    folder(tmp_path, ["a.jpg", "deep/b c.jpg"])
    source = annotations(tmp_path / "list.json", "coco")
    run(source, tmp_path / "whole", shard_size=2)
    whole, replace = contents(tmp_path / "whole"), os.replace
    for last in range(1, 100):
        data, renames = tmp_path / f"data{last}", iter(range(1, 100))

        def replace_or_end(old: str, new: str, last: int = last, renames: Iterator[int] = renames) -> None:
            if next(renames) == last:
                raise error
            replace(old, new)

        monkeypatch.setattr(os, "replace", replace_or_end)
        try:
            run(source, data, shard_size=2)
            break
        except type(error):
            monkeypatch.undo()
        there = contents(data)
        finished = [name for name in there if not name.startswith(".staging") and not name.endswith("manifest.json")]
        assert all(there[name] == whole[name] for name in finished)
        run(source, data, shard_size=2)
        assert contents(data) == whole, last
    assert last > 10


def test_texts_after_the_first_are_judged_too(tmp_path: Path, tiny_filter: Path) -> None:
    photos = folder(tmp_path / "photos", ["a.jpg", "deep/b c.jpg"])
    run(photos, tmp_path / "data", annotations=str(annotations(tmp_path / "list.json", "coco")))
    filter_shards(FilterConfig(data=str(tmp_path / "data"), model=str(tiny_filter), dtype="fp32"), progress=False)
    table = read_table(tmp_path / "data" / "filtered" / "capfilt" / "00000.parquet", ["source", "text"])
    assert [tuple(row.values()) for row in table.to_pylist()] == [("web", "one"), ("more", "uno"), ("web", "two")]


@pytest.mark.parametrize("broken", [False, True])
def test_a_row_group_of_many_shards_is_read_once(tmp_path: Path, monkeypatch, broken: bool) -> None:
    """From its start for every shard would be work that grows with the square of its rows."""
    cells = [picture(number) for number in range(60)]
    pq.write_table(pa.table({"jpg": cells}), tmp_path / "a.parquet")
    starts: list[int] = []
    read_from = columns.ParquetColumns._read_from

    def watched(self: columns.ParquetColumns, row: int) -> Iterator[tuple[Any, ...]]:
        starts.append(row)
        for number, found in enumerate(read_from(self, row), row):
            if broken and number == 25 and len(starts) == 1:
                raise ValueError("damaged for once")
            yield found

    monkeypatch.setattr(columns.ParquetColumns, "_read_from", watched)
    assert run(tmp_path / "a.parquet", tmp_path / "data", shard_size=10)["ok"] == 60
    assert starts == ([0, 20] if broken else [0])  # the shard that failed is read again
    assert [sample.image for sample in pictures_of(tmp_path / "data")] == cells


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
    summary = run(tmp_path / "in", tmp_path / "data", shard_size=45)
    assert summary["outcomes"] == {"ok": 148 - struct, "not_found": 1 + struct, "decode_error": 1, "other": 2}
    rows = rows_of(tmp_path / "data")
    assert rows[3]["status"] == "not_found"
    assert [row["url"] for row in rows][139:141] == (
        ["a.parquet#139", "b.parquet#0"] if struct else ["http://x/139", "http://x/140"]
    )
    assert "not a readable Parquet file" in rows[150]["error"]
    assert rows[151]["error"] == "no column holds the bytes of pictures"
    at = {sample.key: sample for sample in pictures_of(tmp_path / "data")}
    for number, row in enumerate(rows[:150]):
        if row["status"] == "ok":
            assert (at[row["key"]].image, row["caption"]) == (whole[number], f"t{number}")


def test_a_saved_dataset(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    cells = [{"bytes": picture(n), "path": None} for n in range(100)]
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Sequence(datasets.Value("string"))})
    rows = {"image": cells, "caption": [[f"a {n}", f"b {n}"] for n in range(100)]}
    data = datasets.Dataset.from_dict(rows, features=features)
    shuffled = data.select([5, 99, 3, 3])
    datasets.DatasetDict({"train": shuffled}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="holds the splits train; give one"):
        run(tmp_path / "saved", tmp_path / "data")
    run(tmp_path / "saved" / "train", tmp_path / "data", shard_size=3)
    assert [(sample.image, sample.text) for sample in pictures_of(tmp_path / "data")] == [
        (picture(number), f"a {number}") for number in (5, 99, 3, 3)
    ]


def test_other_webdatasets(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    samples = [TarSample(f"shot.{n}" if n == 2 else f"x/{n}", picture(n), f"t{n}", {"url": f"u{n}"}) for n in range(4)]
    write_shard(tmp_path / "in" / "part-a.tar", samples[:3])
    write_shard(tmp_path / "in" / "part-b.tar", samples[3:])
    half = [("c.jpg", picture(4)), ("c.json", b'{"url": "half \\ud83d"}'), ("d.jpg", picture(5))]
    with tarfile.open(os.fsencode(tmp_path / "in") + b"/part-\xfc.tar", "w") as tar:  # a name that is no text
        for name, data in half:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    with open(tmp_path / "in" / "part-b.tar", "r+b") as file:
        file.truncate(512 + 600)  # in the middle of its only picture
    summary = run(tmp_path / "in", tmp_path / "data")
    assert summary["outcomes"] == {"ok": 5, "decode_error": 1}
    assert summary["ignored"] == {"truncated_tar": 1}
    assert [(row["url"], row["caption"], row["error"]) for row in rows_of(tmp_path / "data")] == [
        *(("u0", "t0", None), ("u1", "t1", None), ("u2", "t2", None), ("part-b.tar/x/3", None, "truncated_tar")),
        *(("half ?", None, None), ("part-?.tar/d", None, None)),
    ]
    assert read_manifest(tmp_path / "data")["config"]["kind"] == "webdataset"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_pictures_of_img2dataset_are_turned_as_their_lost_exif_says(tmp_path: Path, kind: str) -> None:
    """It encodes pictures anew without looking at their orientation, which is then in the sample's `exif` alone."""
    exifread = pytest.importorskip("exifread", reason="comes with img2dataset")
    upright = Image.open(io.BytesIO(picture(3))).convert("RGB").crop((0, 0, 40, 20)).resize((160, 80))
    undo = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    samples = []
    for lying in range(1, 9):
        stored, with_exif, without = upright, io.BytesIO(), io.BytesIO()
        if lying > 1:
            stored = upright.transpose(undo.get(lying, TURNS[lying]))
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = lying
        stored.save(with_exif, "JPEG", exif=exif)
        stored.save(without, kind, quality=95)
        tags = exifread.process_file(with_exif, details=False)
        meta = {"exif": json.dumps({name: str(value).strip() for name, value in tags.items()})}
        samples += [TarSample(f"{lying}", without.getvalue(), None, meta)]
        samples += [TarSample(f"{lying}kept", with_exif.getvalue(), None, meta)]
    samples += [
        TarSample("odd", without.getvalue(), None, {"exif": "[1"}),
        TarSample("none", without.getvalue(), None, {}),
    ]
    (tmp_path / "in").mkdir()
    write_shard(tmp_path / "in" / "0.tar", samples)
    run(tmp_path / "in", tmp_path / "data")
    packed = [np.asarray(Image.open(io.BytesIO(sample.image)), float) for sample in pictures_of(tmp_path / "data")]
    assert len(packed) == 18
    for pixels in packed[:16]:
        assert pixels.shape == (80, 160, 3) and np.abs(pixels - np.asarray(upright)).mean() < 6
    assert packed[16].shape == packed[17].shape == (160, 80, 3)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda at: None, "Nothing at"),
        (lambda at: at.mkdir(), "holds no pictures, tars or Parquet files"),
        (lambda at: at.write_bytes(picture(1)), "to pack a picture, give its folder"),
        (lambda at: folder(at, ["a.txt"]), "holds no pictures, tars or Parquet files"),
        (lambda at: write_shard(at / "a.tar", []), "holds no pictures"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path: Path, make, words: str) -> None:
    make(tmp_path / "in")
    with pytest.raises((ValueError, FileNotFoundError), match=words) as caught:
        run(tmp_path / "in", tmp_path / "data")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", '{"x": 1}', "must hold a list of rows, or an object of"),
        ("a.json", '[{"x": 1}]', "no column that looks like the path of a picture; name it with --image-col: x"),
        ("a.csv", "image,b\nx.jpg,2\n", None),
        ("a.parquet", "PAR1", "not a readable Parquet file"),
    ],
)
def test_mistakes_in_annotations(tmp_path: Path, name: str, content: str, words: str | None) -> None:
    (tmp_path / name).write_text(content)
    if words is None:  # no caption at all is none
        assert run(tmp_path / name, tmp_path / "data")["outcomes"] == {"not_found": 1}
        return
    with pytest.raises(ValueError, match=words):
        run(tmp_path / name, tmp_path / "data")
