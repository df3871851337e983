"""The formats of `capfilt export`, each read as its trainer reads it."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections import Counter, defaultdict
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filtered_set import filter_set, write_set
from folders import rows_of
from PIL import Image

from blipcore.io.samples import TarSample, read_samples
from blipcore.io.text_mixture import TextMixture
from capfilt.export.formats import WRITERS
from capfilt.export.stage import ExportConfig, Format, export_shards
from capfilt.options_sets import EXPORTS
from capfilt.shards.tables import write_table

HALVES = "web=0.5,c=0.25,second=0.25"


def uid(key: str, shard: int) -> str:
    """Return a uid that is not in the order of the keys."""
    return hashlib.md5(f"{shard}/{key}".encode()).hexdigest()


@pytest.fixture(scope="module")
def filtered(tmp_path_factory: pytest.TempPathFactory, drawn) -> Path:
    data = write_set(tmp_path_factory.mktemp("set") / "data", drawn, captioners=2)
    for shard in range(2):
        path = data / f"{shard:05d}.parquet"
        table = pq.read_table(path)
        write_table(path, table.append_column("uid", pa.array([uid(key, shard) for key in table["key"].to_pylist()])))
    return filter_set(data)


@pytest.fixture(scope="module")
def kept(filtered: Path) -> dict[str, list[dict]]:
    """Return the kept texts of each key, best first."""
    texts = defaultdict(list)
    for row in rows_of(filtered):
        if row["keep"]:
            texts[row["key"]].append(row)
    return {key: sorted(rows, key=lambda row: -row["itm"]) for key, rows in texts.items()}


def export(filtered: Path, out: Path, form: Format, **settings: object) -> dict[str, int]:
    return export_shards(ExportConfig(str(filtered), str(out), form, **settings), progress=False)["counts"]


def test_the_option_offers_every_format() -> None:
    assert tuple(WRITERS) == EXPORTS


def test_parquet_has_every_kept_text_with_its_probability(filtered: Path, kept: dict, tmp_path: Path) -> None:
    counts = export(filtered, tmp_path, "parquet", mixture=HALVES)
    rows = [row for file in sorted(tmp_path.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
    assert len(rows) == counts["exported"] == len(kept)
    shares, drawn, missing = TextMixture.parse(HALVES).shares, Counter(), Counter()
    for row in rows:
        texts = kept[row["key"].split("_")[1]]
        assert row["captions"] == [text["text"] for text in texts]
        present = {text["source"] for text in texts}
        expected = [shares[text["source"]] / sum(shares[name] for name in present) for text in texts]
        assert row["probabilities"] == pytest.approx(expected)
        assert row["text"] in row["captions"] and row["source"] in present
        drawn[f"drawn/{row['source']}"] += 1
        missing.update(f"without/{name}" for name in shares.keys() - present)
    assert {name: counts[name] for name in counts if "/" in name} == dict(drawn + missing)
    assert set(drawn) == {"drawn/web", "drawn/c", "drawn/second"}


def test_the_json_of_tars_has_ten_draws_in_proportion_for_open_clip(filtered: Path, tmp_path: Path) -> None:
    export(filtered, tmp_path, "webdataset", mixture="itm/0.1")
    samples = [sample for tar in sorted(tmp_path.glob("*.tar")) for sample in read_samples(tar)]
    expected, totals = Counter[int](), Counter[int]()
    for sample in samples:
        fields = sample.metadata
        draws = Counter(fields[f"text_{number}"] for number in range(1, 11))
        assert sum(draws.values()) == 10 and set(draws) <= set(fields["captions"])
        assert sample.text == fields["text"]
        for rank, (text, share) in enumerate(zip(fields["captions"], fields["probabilities"], strict=True)):
            assert abs(draws[text] - 10 * share) < 1 or fields["captions"].count(text) > 1
            expected[rank] += share
            totals[rank] += draws[text] / 10
    assert all(abs(totals[rank] - expected[rank]) < 1.5 for rank in expected) and len(expected) == 3
    command = (tmp_path / "README.md").read_text()
    assert "--json-text-key 'text_1;text_2" in command and "--json-text-key-probs 1 1 1 1 1 1 1 1 1 1`" in command


def test_open_clip_draws_the_texts_of_the_json_by_the_mixture(filtered: Path, tmp_path: Path) -> None:
    [folder] = find_spec("open_clip_train").submodule_search_locations  # whose import takes seconds
    if "JsonCaptionExtractor" not in (Path(folder) / "data.py").read_text(encoding="utf-8"):
        pytest.skip(f"open_clip {version('open_clip_torch')} has no --json-text-key; its development version 4.2 has")
    from blipcore.torchvision_shim import heal_torchvision

    heal_torchvision()
    from open_clip_train.data import JsonCaptionExtractor

    export(filtered, tmp_path, "webdataset", mixture=HALVES)
    keys = ";".join(f"text_{number}" for number in range(1, 11))
    extract = JsonCaptionExtractor(keys, sample_probs=[1.0] * 10)
    for sample in read_samples(tmp_path / "00000.tar"):
        drawn = Counter(extract(json.dumps(sample.metadata)) for _ in range(400))
        shares = Counter[str]()
        for text, share in zip(sample.metadata["captions"], sample.metadata["probabilities"], strict=True):
            shares[text.strip()] += share
        assert all(abs(drawn[text] / 400 - share) < 0.2 for text, share in shares.items()), sample.key


def test_text_files_have_a_line_per_text_in_one_folder(filtered: Path, kept: dict, tmp_path: Path) -> None:
    counts = export(filtered, tmp_path / "plain", "textfiles")
    pictures = sorted((tmp_path / "plain" / "images").glob("*.png"))
    assert len(pictures) == counts["exported"] == len(kept) and not list(tmp_path.rglob("*.tmp"))
    for picture in pictures:
        lines = picture.with_suffix(".txt").read_text(encoding="utf-8").split("\n")
        texts = kept[picture.stem.split("_")[1]]
        assert lines == [*(" ".join(text["text"].split()) for text in texts), ""]
    export(filtered, tmp_path / "mixed", "textfiles", mixture="web=0.75,c=0.125,second=0.125")
    ratios = set()
    for picture in (tmp_path / "mixed" / "images").glob("*.png"):
        texts = kept[picture.stem.split("_")[1]]
        lines = Counter(picture.with_suffix(".txt").read_text(encoding="utf-8").splitlines())
        if {text["source"] for text in texts} == {"web", "c"}:
            web = next(" ".join(text["text"].split()) for text in texts if text["source"] == "web")
            ratios.add((lines[web], sum(lines.values())))
    assert ratios and ratios <= {(8, 10), (9, 10), (4, 5)}  # 6 : 1


def test_clip_benchmark_reads_pictures_with_all_their_texts(filtered: Path, kept: dict, tmp_path: Path) -> None:
    import webdataset

    counts = export(filtered, tmp_path, "clip_benchmark")
    assert (tmp_path / "test" / "nshards.txt").read_text() == "2\n"
    assert (tmp_path / "dataset_type.txt").read_text().strip() == "retrieval"
    # The steps of its `build_wds_dataset`.
    pattern = str(tmp_path / "test" / "{0..1}.tar")
    images = webdataset.autodecode.ImageHandler("pil", extensions=["webp", "png", "jpg", "jpeg"])
    data = webdataset.WebDataset(pattern, shardshuffle=False).decode(images)
    rows = list(data.to_tuple("__key__", ["webp", "png", "jpg", "jpeg"], "txt").map_tuple(None, None, str.splitlines))
    assert len(rows) == counts["exported"] == len(kept)
    for key, image, texts in rows:
        assert image.size == (40, 40)
        assert texts == [" ".join(text["text"].split()) for text in kept[key.split("_")[1]]]


def test_datacomp_gets_the_sorted_uids_of_pictures_with_a_kept_web_text(
    filtered: Path, kept: dict, tmp_path: Path
) -> None:
    counts = export(filtered, tmp_path, "datacomp")
    uids = np.load(tmp_path / "uids.npy", mmap_mode="r")
    assert uids.dtype == np.dtype("u8,u8")  # what its resharder requires
    web = {row["uid"] for rows in kept.values() for row in rows if row["source"] == "web"}
    assert [f"{high:016x}{low:016x}" for high, low in uids.tolist()] == sorted(web)
    assert counts["exported"] == len(web) and counts["no_text_to_export"] == len(kept) - len(web) > 0


@pytest.mark.parametrize(
    ("uids", "problem"),
    [
        (["12"] * 43, r"The uid of 00000/\w+ is '12', not 32 hexadecimal digits"),
        (None, "no column 'uid' .its columns of the input: none.; .*--keep-columns uid"),
    ],
)
def test_uids_that_are_no_uids_are_refused(uids: list[str] | None, problem: str, tmp_path: Path, drawn) -> None:
    data = write_set(tmp_path / "data", drawn, shards=1)
    if uids:
        table = pq.read_table(data / "00000.parquet")
        write_table(data / "00000.parquet", table.append_column("uid", pa.array(uids)))
    config = ExportConfig(str(filter_set(data)), str(tmp_path / "out"), "datacomp")
    if uids is None:
        with pytest.raises(ValueError, match=problem):
            export_shards(config, progress=False)
    else:
        [reason] = export_shards(config, progress=False)["shards"]["failed"].values()
        assert re.search(problem, reason)


def test_pictures_that_trainers_do_not_open_are_left_out_and_counted(tmp_path: Path, drawn) -> None:
    def one_gif(number: int) -> TarSample:
        sample = drawn(number)
        if number == 3:
            buffer = io.BytesIO()
            Image.new("RGB", (40, 40), "red").save(buffer, "GIF")
            sample.image = buffer.getvalue()
        return sample

    filtered = filter_set(write_set(tmp_path / "data", one_gif, shards=1), threshold=0.0)
    for form in ("textfiles", "clip_benchmark"):
        counts = export(filtered, tmp_path / form, form)
        assert counts["other_format"] == 1 and counts["exported"] == 39
        assert "a file format that the trainers do not open | 1 |" in (tmp_path / form / "README.md").read_text()


def test_pictures_without_a_text_of_positive_share_are_left_out_and_counted(
    filtered: Path, kept: dict, tmp_path: Path
) -> None:
    counts = export(filtered, tmp_path, "json", mixture="web=1,c=0,second=0")
    web = {key for key, rows in kept.items() if any(row["source"] == "web" for row in rows)}
    assert counts["exported"] == len(web) and counts["no_text_to_export"] == len(kept) - len(web)
    pairs = json.loads((tmp_path / "pairs.json").read_text(encoding="utf-8"))
    assert {(pair["source"], pair["probability"]) for pair in pairs} == {("web", 1.0)}


@pytest.mark.parametrize(
    ("form", "mixture", "problem"),
    [
        ("webdataset", "web=1,c=1", "add second=0"),
        ("parquet", "clip9/1", "no score 'clip9'"),
        ("clip_benchmark", HALVES, "The format clip_benchmark has no probabilities"),
        ("datacomp", "equal", "The format datacomp has no probabilities"),
    ],
)
def test_a_mixture_that_does_not_fit_writes_nothing(
    form: Format, mixture: str, problem: str, filtered: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=problem):
        export(filtered, tmp_path / "out", form, mixture=mixture)
    assert not (tmp_path / "out").exists()


def test_another_mixture_needs_another_folder(filtered: Path, tmp_path: Path) -> None:
    export(filtered, tmp_path, "datacomp")
    with pytest.raises(ValueError, match="other settings"):
        export(filtered, tmp_path, "json", mixture="equal")
