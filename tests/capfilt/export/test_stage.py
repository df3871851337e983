"""`capfilt export`: each format is read by the library that it is for."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import unicodedata
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from filtered_set import filter_set, write_set
from folders import rows_of
from typer.testing import CliRunner

from blipcore.io.samples import TarSample, read_samples
from capfilt.cli import app
from capfilt.export.stage import ExportConfig, Format, export_shards


@pytest.fixture(scope="module")
def filtered(tmp_path_factory: pytest.TempPathFactory, drawn) -> Path:
    return filter_set(write_set(tmp_path_factory.mktemp("set") / "data", drawn, captioners=2))


@pytest.fixture(scope="module")
def kept_texts(filtered: Path) -> dict[str, list[dict]]:
    """Return the kept texts of each key, best first."""
    texts = defaultdict(list)
    for row in rows_of(filtered):
        if row["keep"]:
            texts[row["key"]].append(row)
    return {key: sorted(rows, key=lambda row: -row["itm"]) for key, rows in texts.items()}


def test_tars_contain_the_kept_pictures_with_their_texts(filtered: Path, kept_texts: dict, tmp_path: Path) -> None:
    summary = export_shards(ExportConfig(str(filtered), str(tmp_path / "out")), progress=False)
    texts = sum(map(len, kept_texts.values()))
    assert summary["counts"] == {"contaminated": 0, "exported": len(kept_texts), "missing": 0, "texts": texts}
    pictures = [p for tar in sorted((tmp_path / "out").glob("*.tar")) for p in read_samples(tar)]
    assert len(pictures) == len(kept_texts) > 20
    stored = {p.key: p.image for tar in sorted(filtered.parents[1].glob("*.tar")) for p in read_samples(tar)}
    for picture in pictures:
        best, key = kept_texts[picture.key.split("_")[1]], picture.key.split("_")[1]
        assert picture.image == stored[key] and picture.text == best[0]["text"]
        for source in ("web", "c", "second"):
            of_source = [row for row in best if row["source"] == source]
            assert picture.metadata[f"caption_{source}"] == (of_source[0]["text"] if of_source else None)
            assert picture.metadata[f"itm_{source}"] == (of_source[0]["itm"] if of_source else None)
        assert picture.metadata["url"].startswith("https://www.host")
    assert sum(json.loads((tmp_path / "out" / "sizes.json").read_text()).values()) == len(kept_texts)


def test_output_does_not_depend_on_the_number_of_workers(filtered: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for form in ("webdataset", "parquet", "json"):
        export_shards(ExportConfig(str(filtered), str(first / form), form), progress=False)
        export_shards(ExportConfig(str(filtered), str(second / form), form, workers=2), progress=False)
    files = [path.relative_to(first) for path in sorted(first.rglob("*")) if path.is_file() and path.name != ".lock"]
    assert len(files) > 40
    assert not [path for path in files if (first / path).read_bytes() != (second / path).read_bytes()]
    again = export_shards(ExportConfig(str(filtered), str(first / "json"), "json"), progress=False)
    assert again["shards"]["done"] == 0 and again["counts"]["exported"] > 20


def test_open_clip_trains_on_the_tars(filtered: Path, kept_texts: dict, tmp_path: Path) -> None:
    export_shards(ExportConfig(str(filtered), str(tmp_path)), progress=False)
    from blipcore.torchvision_shim import heal_torchvision

    heal_torchvision()
    import open_clip
    import torch
    from open_clip_train.data import get_wds_dataset

    sizes = {"width": 32, "layers": 1}
    model = open_clip.CLIP(
        embed_dim=16,
        vision_cfg={**sizes, "image_size": 32, "patch_size": 16, "head_width": 16},
        text_cfg={**sizes, "heads": 2, "context_length": 16, "vocab_size": 49408},
    )
    arguments = argparse.Namespace(
        train_data=str(tmp_path / "{00000..00001}.tar"), train_num_samples=None, train_data_upsampling_factors=None,
        dataset_resampled=False, seed=0, batch_size=4, workers=0, world_size=1,
    )  # fmt: skip
    preprocess = open_clip.image_transform((32, 32), is_train=True)
    tokenizer = open_clip.SimpleTokenizer(context_length=16)
    data = get_wds_dataset(arguments, preprocess, is_train=True, epoch=0, tokenizer=tokenizer)
    assert len(kept_texts) <= data.dataloader.num_samples < len(kept_texts) + 4
    optimizer, loss_of, losses = torch.optim.AdamW(model.parameters(), lr=1e-3), open_clip.ClipLoss(), []
    for epoch in range(20):
        data.set_epoch(epoch)
        for images, texts in data.dataloader:
            image, text, scale = model(images, texts)
            loss = loss_of(image, text, scale)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        if len(losses) >= 20:
            break
    assert len(losses) >= 20 and all(loss == loss for loss in losses)


def test_datasets_reads_pictures_from_the_parquet(filtered: Path, kept_texts: dict, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    export_shards(ExportConfig(str(filtered), str(tmp_path / "out"), "parquet"), progress=False)
    loaded = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == len(kept_texts)
    assert isinstance(loaded.features["image"], datasets.Image)
    row = loaded[0]
    assert row["image"].size == (40, 40) and row["text"] == kept_texts[row["key"].split("_")[1]][0]["text"]
    shutil.rmtree(tmp_path / "out")  # `datasets` does not reuse its cache for another export into the same folder
    strict = filter_set(filtered.parents[1], "strict", threshold=0.95)
    export_shards(ExportConfig(str(strict), str(tmp_path / "out"), "parquet"), progress=False)
    again = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert 0 < len(again) < len(loaded)


def test_the_json_list_has_a_row_per_text_and_its_files_exist(filtered: Path, kept_texts: dict, tmp_path: Path) -> None:
    export_shards(ExportConfig(str(filtered), str(tmp_path), "json"), progress=False)
    rows = json.loads((tmp_path / "pairs.json").read_text(encoding="utf-8"))
    assert len(rows) == sum(map(len, kept_texts.values()))
    assert all((tmp_path / row["image"]).is_file() for row in rows)
    assert {row["caption"] for row in rows} == {row["text"] for texts in kept_texts.values() for row in texts}

    from blipcore.data.annotations import read_captioned_images

    assert sum(len(row["texts"]) for row in read_captioned_images(tmp_path / "pairs.json")) == len(rows)


def test_keys_and_shard_names_of_other_tools_stay_unique(tmp_path: Path, drawn) -> None:
    import webdataset

    def sample_of_another_tool(number: int) -> TarSample:
        """Return a picture; the keys 3/x and 3_x are different."""
        return replace(drawn(number), key=f"{number // 2}{'/_'[number % 2]}x")

    data = write_set(tmp_path / "data", sample_of_another_tool, pictures=30, shards=1)
    for path in list(data.rglob("00000.*")):
        path.rename(path.with_name(f"part.v1{path.suffix}"))
    stored = {picture.key: picture.image for picture in read_samples(data / "part.v1.tar")}
    filtered = filter_set(data)
    exported = export_shards(ExportConfig(str(filtered), str(tmp_path / "tars")), progress=False)["counts"]["exported"]
    samples = list(webdataset.WebDataset(str(tmp_path / "tars" / "part.v1.tar"), shardshuffle=False))
    assert len(samples) == exported > 10 and all("png" in sample and "txt" in sample for sample in samples)

    # temporary files of a killed run
    names = ("images/part.v1/.3_x.png", "parts/.part.v1.jsonl", ".part.v1.tar")
    temporary = [tmp_path / "lists" / f"{name}.0123abcd.tmp" for name in names]
    for path in temporary:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    export_shards(ExportConfig(str(filtered), str(tmp_path / "lists"), "json", rank=0, world_size=2), progress=False)
    rows = json.loads((tmp_path / "lists" / "pairs.json").read_text())
    assert len({row["image_id"] for row in rows}) == len({row["image"] for row in rows}) == exported
    for row in rows:
        assert (tmp_path / "lists" / row["image"]).read_bytes() == stored[row["image_id"].removeprefix("part_v1_")]
    assert not any(path.exists() for path in temporary)


def test_file_names_differ_by_more_than_case(tmp_path: Path, drawn) -> None:
    """A file system that ignores case, as on macOS, must be able to hold the images."""
    keys = ("a", "A", "a-2", "A-2", "e\u0301", "\u00e9", "b")
    data = write_set(tmp_path / "data", lambda number: replace(drawn(number), key=keys[number]), len(keys), 1)
    stored = {picture.key: picture.image for picture in read_samples(data / "00000.tar")}
    export_shards(ExportConfig(str(filter_set(data, threshold=0.0)), str(tmp_path / "lists"), "json"), progress=False)
    rows = json.loads((tmp_path / "lists" / "pairs.json").read_text())
    names = {row["image_id"].removeprefix("00000_"): row["image"] for row in rows}
    assert len({unicodedata.normalize("NFC", name).lower() for name in names.values()}) == len(names) == len(keys)
    assert names["a"] == "images/00000/a.png" and names["A"] == "images/00000/A-2.png"
    assert all((tmp_path / "lists" / name).read_bytes() == stored[key] for key, name in names.items())


@pytest.mark.parametrize(
    ("form", "workers"),
    [
        ("webdataset", 1),
        ("parquet", 1),
        ("json", 1),
        *(pytest.param(form, 2, marks=pytest.mark.slow) for form in ("webdataset", "parquet", "json")),
    ],
)
def test_a_missing_tar_fails_alone_and_by_name(tmp_path: Path, drawn, form: Format, workers: int) -> None:
    data = write_set(tmp_path / "data", drawn, pictures=8)
    filtered = filter_set(data)
    (data / "00000.tar").rename(tmp_path / "away.tar")
    config = ExportConfig(str(filtered), str(tmp_path / "out"), form, workers=workers)
    summary = export_shards(config, progress=False)
    assert summary["shards"]["done"] == 1 and "00000.tar" in summary["shards"]["failed"]["00000"]
    assert not (tmp_path / "out" / "README.md").exists()
    (tmp_path / "away.tar").rename(data / "00000.tar")
    assert export_shards(config, progress=False)["shards"] == {"done": 1, "skipped": 1, "failed": {}}


def test_pictures_that_the_tar_has_lost_are_counted(tmp_path: Path, drawn, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_set(tmp_path / "data", drawn, pictures=8, shards=1)
    filtered, tar = filter_set(data, threshold=0.0), data / "00000.tar"
    whole = export_shards(ExportConfig(str(filtered), str(tmp_path / "whole")), progress=False)["counts"]
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    result = CliRunner().invoke(app, ["export", str(filtered), str(tmp_path / "out"), "--json"])
    counts = json.loads(result.stdout)["counts"]
    assert counts["exported"] + counts["missing"] == whole["exported"] and counts["missing"] > 2
    assert result.exit_code == 1 and f"{counts['missing']} pictures" in result.stderr


def test_pictures_with_any_key_are_exported_as_files(tmp_path: Path, drawn) -> None:
    keys = ["x" * 250, "aux", "a:b", "k/" * 100 + "k", "ok", "é" * 120]
    data = write_set(tmp_path / "data", lambda number: replace(drawn(number), key=keys[number]), len(keys), 1)
    stored = {picture.key: picture.image for picture in read_samples(data / "00000.tar")}
    assert len(stored) == len(keys)
    summary = export_shards(
        ExportConfig(str(filter_set(data, threshold=0.0)), str(tmp_path / "out"), "json"), progress=False
    )
    assert summary["shards"] == {"done": 1, "skipped": 0, "failed": {}}
    rows = json.loads((tmp_path / "out" / "pairs.json").read_text())
    by_key = {row["image_id"].removeprefix("00000_"): row["image"] for row in rows}
    assert {key: (tmp_path / "out" / image).read_bytes() for key, image in by_key.items()} == stored


@pytest.mark.parametrize("form", ["webdataset", "parquet", "json"])
def test_equal_keys_of_two_tars_stay_two_pictures(tmp_path: Path, drawn, form: Format) -> None:
    data = write_set(tmp_path / "data", lambda number: replace(drawn(number), key=f"{number % 1000:06d}"), pictures=6)
    summary = export_shards(
        ExportConfig(str(filter_set(data, threshold=0.0)), str(tmp_path / "out"), form), progress=False
    )
    if form == "webdataset":
        keys = [picture.key for tar in sorted((tmp_path / "out").glob("*.tar")) for picture in read_samples(tar)]
    elif form == "parquet":
        keys = [row["key"] for row in rows_of(tmp_path / "out")]
    else:
        keys = list({row["image_id"] for row in json.loads((tmp_path / "out" / "pairs.json").read_text())})
    assert len(keys) == len(set(keys)) == summary["counts"]["exported"] == 12


def test_errors_are_one_sentence(filtered: Path, tmp_path: Path) -> None:
    def error_of(*words: str) -> str:
        command = [sys.executable, "-m", "capfilt", "export", *words]
        process = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert process.returncode == 2 and "Traceback" not in process.stderr, process.stderr
        return process.stderr

    assert "format" in error_of(str(filtered), str(tmp_path / "a"), "--format", "csv")
    assert "No folder of pictures" in error_of(
        str(filtered), str(tmp_path / "a"), "--decontaminate", str(tmp_path / "no")
    )
    export_shards(ExportConfig(str(filtered), str(tmp_path / "a")), progress=False)
    assert "format: 'webdataset' -> 'json'" in error_of(str(filtered), str(tmp_path / "a"), "--format", "json")
