"""Data sets on disk: their entries, and one sentence for each way they can be wrong."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tar_files import write_tar

from blipcore.data.shard_datasets import open_dataset
from blipcore.io.text_mixture import TextMixture

# --- shard sets ------------------------------------------------------------------------------------------------------


def test_a_shard_set_gives_the_pictures_with_a_text(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "00000.tar",
        {
            **{"a.jpg": b"A", "a.txt": b" a text \n", "a.json": b'{"caption": "unused"}'},
            **{"b.png": b"B", "b.json": b'{"caption": "from json"}'},
            **{"c.jpg": b"C", "c.txt": b""},
            **{"d.jpg": b"D", "d.json": b'{"caption": null}'},
            **{"e.txt": b"no picture"},
            **{"f.jpg": b"F", "f.json": b"[1"},
        },
    )
    write_tar(tmp_path / "00001.tar", {"g.webp": b"G", "g.txt": "été 夏".encode()})
    dataset = open_dataset(tmp_path)
    assert dataset.counts == [2, 1]
    first, second = dataset.load(0), dataset.load(1)
    assert [(p.key, p.texts) for p in first] == [("a", ("a text",)), ("b", ("from json",))]
    assert [(p.key, p.texts) for p in second] == [("g", ("été 夏",))]
    assert [dataset.read(0, p) for p in first] == [b"A", b"B"] and dataset.read(1, second[0]) == b"G"
    assert dataset.describe(1, second[0]) == "00001.tar/g"
    assert len({p.image_id for p in first + second}) == 3
    again = pickle.loads(pickle.dumps(dataset))  # for a worker process
    assert again.read(0, first[0]) == b"A" and again.load(0) == first


def test_pictures_of_two_tars_with_the_same_key_have_different_ids(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tar(tmp_path / f"{name}.tar", {"0.jpg": name.encode(), "0.txt": b"a text"})
        (tmp_path / "filtered").mkdir(exist_ok=True)
        rows = {"key": ["0", "0"], "text": ["one", "two"], "keep": [True, True]}
        pq.write_table(pa.table(rows), tmp_path / "filtered" / f"{name}.parquet")
    (tmp_path / "filtered" / "manifest.json").write_text('{"images": ".."}')
    for folder in (tmp_path, tmp_path / "filtered"):
        dataset = open_dataset(folder)
        entries = [entry for shard in (0, 1) for entry in dataset.load(shard)]
        assert len(entries) == len({entry.image_id for entry in entries}) == 2, folder


# --- filtered folders ------------------------------------------------------------------------------------------------

ROWS = {
    "key": ["a", "a", "a", "b", "c", "c", "d"],
    "source": ["web", "blip", "blip", "web", "web", "blip", "web"],
    "index": [0, 0, 1, 0, 0, 0, 0],
    "text": ["a web", "a one", "a two", "b web", None, "", "d web"],
    "keep": [False, True, True, False, True, True, True],
}


def write_filtered(tmp_path: Path, rows: dict[str, list[Any]] = ROWS, images: object = "../..") -> Path:
    """Write data/00000.tar and data/filtered/r1."""
    folder = tmp_path / "data" / "filtered" / "r1"
    folder.mkdir(parents=True)
    write_tar(tmp_path / "data" / "00000.tar", {f"{key}.jpg": key.encode() for key in "abc"})
    pq.write_table(pa.table(rows), folder / "00000.parquet")
    if images is not None:
        (folder / "manifest.json").write_text(json.dumps({"images": images}))
    return folder


@pytest.mark.parametrize("absolute", [False, True])
def test_a_filtered_set_gives_the_kept_texts_by_picture(tmp_path: Path, absolute: bool) -> None:
    dataset = open_dataset(write_filtered(tmp_path, images=str(tmp_path / "data") if absolute else "../.."))
    assert dataset.counts == [2]
    assert [(p.key, p.texts) for p in dataset.load(0)] == [("a", ("a one", "a two")), ("d", ("d web",))]
    assert dataset.read(0, dataset.load(0)[0]) == b"a"
    with pytest.raises(OSError, match="not in the tar"):
        dataset.read(0, dataset.load(0)[1])


def test_image_ids_do_not_depend_on_the_folder(tmp_path: Path) -> None:
    one, two = (open_dataset(write_filtered(tmp_path / name)) for name in ("one", "two"))
    assert [p.image_id for p in one.load(0)] == [p.image_id for p in two.load(0)]


@pytest.mark.parametrize("column", ["key", "text", "keep"])
def test_a_missing_column_is_named(tmp_path: Path, column: str) -> None:
    folder = write_filtered(tmp_path, {name: values for name, values in ROWS.items() if name != column})
    with pytest.raises(ValueError, match=f"00000.parquet is no filtered table: it lacks the column {column}"):
        open_dataset(folder)


@pytest.mark.parametrize(
    ("manifest", "error", "words"),
    [
        (None, ValueError, "no manifest.json"),
        ("{}", ValueError, 'has no "images"'),
        ('{"stage": "filter", "images": "../.."}', ValueError, "is not finished"),
        ("[]", ValueError, 'has no "images"'),
        ('{"images": 3}', ValueError, 'has no "images"'),
        ("{", ValueError, 'has no "images"'),
        ('{"images": "nowhere"}', FileNotFoundError, "takes its pictures from .*nowhere"),
        ('{"images": "."}', FileNotFoundError, "00000.tar, which does not exist"),
    ],
)
def test_a_manifest_must_lead_to_the_images(
    tmp_path: Path, manifest: str | None, error: type[Exception], words: str
) -> None:
    folder = write_filtered(tmp_path, images=None)
    if manifest is not None:
        (folder / "manifest.json").write_text(manifest)
    with pytest.raises(error, match=words):
        open_dataset(folder)


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    folder = write_filtered(tmp_path)
    (folder / "00000.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"00000.parquet is not a readable Parquet file"):
        open_dataset(folder)


def test_files_being_written_are_not_read(tmp_path: Path) -> None:
    folder = write_filtered(tmp_path)
    (folder / ".00001.parquet").write_bytes(b"half")
    assert open_dataset(folder).counts == [2]


# --- mixtures --------------------------------------------------------------------------------------------------------

MIXED = {
    "key": ["a", "a", "a", "b", "c", "c", "d"],
    "source": ["web", "blip", "blip", "web", "blip", "blip", "blip"],
    "index": [0, 0, 1, 0, 0, 1, 0],
    "text": ["a web", "a one", "a two", "b web", "c one", "c two", "d one"],
    "itm": [0.9, 0.8, 0.7, 0.9, None, 0.6, 0.9],
    "keep": [True, True, True, True, True, True, False],
}


def test_a_mixture_gives_each_kept_text_its_probability_and_says_what_is_drawn(tmp_path: Path) -> None:
    folder = write_filtered(tmp_path, MIXED)
    dataset = open_dataset(folder, mixture=TextMixture.parse("web=0.5,blip=0.5"))
    assert [(p.key, p.probabilities) for p in dataset.load(0)] == [
        ("a", (0.5, 0.25, 0.25)),
        ("b", (1.0,)),
        ("c", (0.5, 0.5)),
    ]
    assert dataset.note == "texts drawn: blip 50.0% (share 50%), web 50.0% (share 50%)"
    by_score = open_dataset(folder, mixture=TextMixture.parse("itm/0.01"))
    assert [p.probabilities for p in by_score.load(0)][1:] == [(1.0,), (0.0, 1.0)]
    assert all(not p.probabilities for p in open_dataset(folder).load(0))


def test_pictures_without_a_text_of_positive_share_are_left_out_and_counted(tmp_path: Path) -> None:
    dataset = open_dataset(write_filtered(tmp_path, MIXED), mixture=TextMixture.parse("web=1,blip=0"))
    assert [p.key for p in dataset.load(0)] == ["a", "b"] and dataset.counts == [2]
    assert (
        dataset.note == "texts drawn: web 100.0% (share 100%); left out, without a text of positive share: 1 pictures"
    )
    assert pickle.loads(pickle.dumps(dataset)).load(0) == dataset.load(0)


def test_a_mixture_that_does_not_fit_a_set_is_refused(tmp_path: Path) -> None:
    folder = write_filtered(tmp_path, MIXED)
    with pytest.raises(ValueError, match=r"r1 has no texts of 'kosmos'; its sources are blip, web"):
        open_dataset(folder, mixture=TextMixture.parse("web=1,blip=1,kosmos=1"))
    with pytest.raises(ValueError, match=r"r1 has no score 'clip' for the mixture 'clip/0.1'; it has length, itm"):
        open_dataset(folder, mixture=TextMixture.parse("clip/0.1"))
    rejected = MIXED | {"keep": [source == "blip" for source in MIXED["source"]]}
    no_web = write_filtered(tmp_path / "no_web", rejected)
    with pytest.raises(ValueError, match="text to train on and a share in the mixture 'web=1,blip=0'"):
        open_dataset(no_web, mixture=TextMixture.parse("web=1,blip=0"))
    without_source = {name: values for name, values in MIXED.items() if name != "source"}
    with pytest.raises(ValueError, match="no column 'source', which a mixture needs"):
        open_dataset(write_filtered(tmp_path / "other", without_source), mixture=TextMixture.parse("web=1"))


# --- neither ---------------------------------------------------------------------------------------------------------


def test_nothing_kept_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no picture with a text"):
        open_dataset(write_filtered(tmp_path, ROWS | {"keep": [False] * 7}))


def test_a_file_that_is_no_tar_is_named(tmp_path: Path) -> None:
    (tmp_path / "00000.tar").write_bytes(b"not a tar" * 200)
    with pytest.raises(ValueError, match=r"no picture with a text.*00000.tar: corrupt_tar byte 0"):
        open_dataset(tmp_path)


def test_paths_without_a_data_set(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No data set at"):
        open_dataset(tmp_path / "absent")
    with pytest.raises(ValueError, match="is empty"):
        open_dataset(tmp_path)
    (tmp_path / "x.zip").write_text("a,b")
    for path in (tmp_path, tmp_path / "x.zip"):
        with pytest.raises(
            ValueError, match=r"is no filtered set, shard set or annotation file\. Make a shard set of it"
        ):
            open_dataset(path)
