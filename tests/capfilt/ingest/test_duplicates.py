"""Duplicate pictures are marked with the first of them, and stay in the set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from soft_photos import encode, photo

from blipcore.io.samples import read_samples
from capfilt.ingest.duplicates import _find_exact, _find_near, mark_duplicates
from capfilt.ingest.pack import PackConfig, pack
from capfilt.pictures.decode import difference_hash
from capfilt.pictures.look_alikes import LookAlikes
from capfilt.shards.shard_set import ShardSet
from capfilt.shards.tables import read_table


def test_exact_and_near_duplicates_are_marked(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    source.mkdir()
    pictures = {f"{number:02d}.jpg": encode(photo(number), "JPEG", quality=92) for number in range(12)}
    pictures |= {"20 copy of 03.jpg": pictures["03.jpg"]}
    pictures |= {"21 smaller 05.jpg": encode(photo(5).resize((160, 120)), "JPEG", quality=60)}
    pictures |= {"22 other kind 07.png": encode(photo(7), "PNG"), "23 copy of 03.jpg": pictures["03.jpg"]}
    pictures |= {"30 sky.jpg": encode(Image.new("RGB", (64, 48), "skyblue"), "JPEG")}
    pictures |= {"31 page.jpg": encode(Image.new("RGB", (80, 60), "white"), "JPEG"), "32 broken.jpg": b""}
    for name, data in pictures.items():
        (source / name).write_bytes(data)

    def marked(kind: str) -> tuple[dict, dict[str, tuple[str, str]]]:
        out = tmp_path / kind
        config = PackConfig(str(source), str(out), shard_size=8, workers=1, duplicates=kind)
        summary, shards = pack(config, progress=False), ShardSet.open(out)
        assert sum(len(list(read_samples(shards.tar(shard)))) for shard in shards.shards) == len(pictures) - 1
        urls = {r["key"]: r["url"] for shard in shards.shards for r in read_table(shards.table(shard)).to_pylist()}
        rows = [r for shard in shards.shards for r in read_table(out / "duplicates" / f"{shard}.parquet").to_pylist()]
        assert all((row["distance"] <= 3) for row in rows)
        return summary["duplicates"], {urls[row["key"]]: (urls[row["of"]], row["kind"]) for row in rows}

    exact = {"20 copy of 03.jpg": ("03.jpg", "exact"), "23 copy of 03.jpg": ("03.jpg", "exact")}
    near = {"21 smaller 05.jpg": ("05.jpg", "near"), "22 other kind 07.png": ("07.jpg", "near")}
    assert marked("exact") == ({"exact": 2}, exact)
    assert marked("near") == ({"exact": 2, "near": 2}, exact | near)


def test_duplicates_can_be_marked_by_a_later_run(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(3):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(encode(photo(number // 2), "JPEG"))
    config = PackConfig(str(tmp_path / "photos"), str(tmp_path / "data"), workers=1)
    assert pack(config, progress=False)["duplicates"] == {}
    config.duplicates = "exact"
    assert pack(config, progress=False)["duplicates"] == {"exact": 1}


def test_duplicates_are_marked_again_after_a_shard_was_written_again(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(4):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(encode(photo(number // 2), "JPEG"))
    data, marks = tmp_path / "data", tmp_path / "data" / "duplicates" / "00000.parquet"
    config = PackConfig(str(tmp_path / "photos"), str(data), shard_size=2, workers=1, duplicates="near")
    assert pack(config, progress=False)["duplicates"] == {"exact": 2}
    before = marks.read_bytes()
    config.duplicates = ""
    marks.unlink()
    assert pack(config, progress=False)["duplicates"] == {}  # no shard was written
    (data / "00000.parquet").unlink()
    assert pack(config, progress=False)["duplicates"] == {"exact": 2}
    assert marks.read_bytes() == before


def test_a_set_without_pictures_has_no_duplicates(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"")
    config = PackConfig(str(tmp_path / "photos"), str(tmp_path / "data"), workers=1, duplicates="near")
    assert pack(config, progress=False)["duplicates"] == {}
    assert mark_duplicates(tmp_path / "data", [], "near") == {}  # no complete shards


def test_pictures_with_one_hash_are_duplicates_of_the_first() -> None:
    one, near, other = (np.uint64(0x0123456789ABCDEF ^ flip) for flip in (0, 1, 2**64 - 1))
    hashes = np.array([other, *[one] * 100, *[near] * 100, *[other] * 2], np.uint64)
    usable = np.ones(len(hashes), bool)
    usable[5] = False  # an exact duplicate, marked already
    originals = _find_near(hashes, usable)
    assert [int(row) for row in originals] == [-1, -1, 1, 1, 1, -1, *[1] * 195, 0, 0]


def test_the_hash_is_of_the_upright_picture() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = encode(photo(3).transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=95)
    deep = Image.fromarray(np.asarray(photo(3).convert("L")).astype(np.uint16) * 257)
    for same in (stored, encode(deep, "PNG")):
        assert difference_hash(same) in LookAlikes([difference_hash(encode(photo(3), "JPEG", quality=95))])


def test_equal_digests_are_found_and_hashes_have_16_digits() -> None:
    digests = np.array([[1, 2], [3, 4], [1, 2], [1, 3], [1, 2]], np.uint64)
    assert _find_exact(digests).tolist() == [-1, -1, 0, -1, 0]
    assert len(difference_hash(encode(photo(1), "JPEG"))) == 16


def test_near_duplicates_are_found_among_many_pictures() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 20_000, dtype=np.uint64)
    for row in range(10_000, 10_500):  # differ from the row 10,000 before in 1 to 3 bits
        flips = np.uint64(sum(1 << int(bit) for bit in rng.choice(64, 1 + row % 3, replace=False)))
        hashes[row] = hashes[row - 10_000] ^ flips
    originals = _find_near(hashes, np.ones(len(hashes), bool))
    assert np.flatnonzero(originals >= 0).tolist() == list(range(10_000, 10_500))
    assert (originals[10_000:10_500] == np.arange(500)).all()
