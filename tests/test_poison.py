"""Damaged and unusual input in every stage: each case has its named outcome, none stops a run or leaves its folder."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from poison import TEXTS, PictureCase, picture_cases, write_damaged_set
from web import Web

from blipcore.io.samples import read_samples
from capfilt.caption.stage import CaptionConfig, caption_shards
from capfilt.filter.config import FilterConfig
from capfilt.filter.stage import filter_shards
from capfilt.ingest.download import download
from capfilt.ingest.download_config import DownloadConfig
from capfilt.ingest.pack import PackConfig, pack
from capfilt.pictures.decode import decode_picture
from capfilt.shards.shard_set import ShardSet
from capfilt.shards.tables import read_table

WORDS = ["a cat on the left", "two red dogs", "one blue tree", "green square", "a picture of the right"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a random model that captions and filters."""
    from blipcore.checkpoints.save import save_model
    from blipcore.model.blip import Blip
    from blipcore.model.tokenizer import Tokenizer
    from blipcore.train.runs import model_config

    tokenizer = Tokenizer.train(WORDS * 3, vocab_size=100)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_model(folder, Blip(model_config("tiny", {}, len(tokenizer))), tokenizer)
    return str(folder)


def run_stages(data: Path, model: str, root: Path) -> tuple[dict[str, Any], dict[str, Any], list[dict]]:
    """Caption, filter at threshold 0, pretrain on both sets; return both summaries and the filtered rows."""
    from blipcore.train.optim import TrainConfig
    from blipcore.train.runs import PretrainRun, pretrain

    captioned = caption_shards(CaptionConfig(data=str(data), model=model, dtype="fp32", batch_size=4), progress=False)
    filtered = filter_shards(
        FilterConfig(data=str(data), model=model, dtype="fp32", batch_size=4, threshold=0.0), progress=False
    )
    assert captioned["shards"]["failed"] == filtered["shards"]["failed"] == {}
    for number, corpus in enumerate((data, Path(filtered["out"]))):
        train = TrainConfig(steps=12, batch_size=4, dtype="fp32", device="cpu")
        run = PretrainRun(data=[str(corpus)], preset="tiny", init=model, train=train)
        summary = pretrain(run, root / f"run{number}")
        assert summary["steps"] == 12
    rows = [row for table in sorted(Path(filtered["out"]).glob("*.parquet")) for row in read_table(table).to_pylist()]
    return captioned, filtered, rows


def list_paths(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if "run" not in path.parts[len(root.parts)]}


def test_stages_on_damaged_tars(tmp_path: Path, model: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    data = write_damaged_set(root / "data")
    cases, before = picture_cases(), list_paths(root)
    captioned, filtered, rows = run_stages(data, model, root)

    reasons = Counter(case.reason for case in cases.values() if case.reason)
    reasons |= {"no_picture": 1}
    counts = captioned["counts"]
    assert {name.partition("/")[2]: n for name, n in counts.items() if name.startswith("undecodable/")} == {
        **reasons,
        "truncated_tar": 1,
    }
    assert {name: count for name, count in counts.items() if name.startswith("tar/")} == {
        "tar/truncated_tar": 2,  # one cut short, one empty
        "tar/corrupt_tar": 2,  # one is no tar, one has a damaged header
        "tar/link_member": 4,
        "tar/unsafe_name": 3,
        "tar/duplicate_member": 2,
        "tar/foreign_member": 2,
        "tar/undecodable_text": 1,
    }
    assert filtered["counts"]["table/unreadable"] == 2
    verdicts = {(row["key"], row["source"]): row for row in rows}
    for number, (name, case) in enumerate(cases.items()):
        row = verdicts[f"{number:04d}", "web"]
        assert row["text"] == f"a cat {number}", name
        assert row["reason"] == ("kept" if case.reason is None else f"undecodable: {case.reason}"), name
    assert verdicts["twice", "web"]["text"] == "one"
    assert verdicts["alone", "web"]["reason"] == "undecodable: no_picture"
    assert verdicts["badjson", "web"]["reason"] == "no_text"
    assert verdicts["badtext", "web"]["reason"] == "no_text"
    assert {"dotted", "with space", "deep/er/folder", "l" * 150} <= {key for key, _ in verdicts}
    assert not {key for key, _ in verdicts if "escape" in key or "absolute" in key}
    assert {key for key, _ in verdicts if key.startswith(("00005", "00006"))} == {
        f"0000{shard}{number}" for shard in (5, 6) for number in range(3)
    }
    assert sum(filtered["dropped"].values()) + filtered["kept"] == filtered["texts"] == len(rows)

    outputs = ("captions", "scores", "filtered")
    assert {name for name in list_paths(root) - before if name.split("/")[1] not in outputs} == set()


def write_url_list(folder: Path, cases: dict[str, PictureCase], url: str) -> tuple[str, list[str]]:
    names = [*cases, *(f"fine.jpg?{name}" for name in TEXTS)]
    texts = ["a cat"] * len(cases) + [text for text, _ in TEXTS.values()]
    urls = [f"{url}/file/{name}" for name in names]
    pq.write_table(pa.table({"url": urls, "caption": texts}), folder / "list.parquet")
    return str(folder / "list.parquet"), names


def check_rows(data: Path, expected: dict[str, str]) -> None:
    """Check the outcome of every row, and that every picture is upright."""
    images = ShardSet.open(data)
    rows = [row for shard in images.shards for row in read_table(images.table(shard)).to_pylist()]
    assert {name: row["status"] for name, row in zip(expected, rows, strict=True)} == expected
    assert all((row["error"] is None) == (row["status"] == "ok") for row in rows)
    samples = {sample.key: sample for shard in images.shards for sample in read_samples(images.tar(shard))}
    for name, row in zip(expected, rows, strict=True):
        if row["status"] == "ok" and name.startswith(("turned", "moving", "modern", "newest", "four", "palette")):
            image = decode_picture(samples[row["key"]].image)
            assert image.size == (96, 72), name
            corners = [image.getpixel(point) for point in ((48, 8), (8, 64), (88, 64))]
            assert [max(range(3), key=pixel.__getitem__) for pixel in corners] == [0, 1, 2], name
    deep = decode_picture(samples[rows[[*expected].index("sixteen bits.png")]["key"]].image)
    assert deep.getpixel((48, 30))[0] == pytest.approx(129, abs=6)


def test_download(tmp_path: Path, model: str) -> None:
    cases = picture_cases()
    with Web() as web:
        web.files = {name: case.data for name, case in cases.items()}
        source, names = write_url_list(tmp_path, cases, web.url)
        config = DownloadConfig(source, str(tmp_path / "data"), workers=1, allow_private=True, shard_size=25)
        summary = download(config, progress=False)
    assert summary["shards"]["failed"] == {}
    check_rows(tmp_path / "data", {name: cases[name].outcome if name in cases else "ok" for name in names})

    _, _, rows = run_stages(tmp_path / "data", model, tmp_path)
    web_rows = [row for row in rows if row["source"] == "web"]
    reasons = {name: row["reason"] for name, row in zip(TEXTS, web_rows[-len(TEXTS) :], strict=True)}
    assert reasons == {name: "kept" if words else "no_text" for name, (_, words) in TEXTS.items()}
    texts = {name: row["text"] for name, row in zip(TEXTS, web_rows[-len(TEXTS) :], strict=True)}
    assert texts == {name: text for name, (text, _) in TEXTS.items()}


def test_pack_a_folder(tmp_path: Path) -> None:
    cases = picture_cases()
    expected = {name: case.outcome for name, case in sorted(cases.items())}
    (tmp_path / "photos").mkdir()
    for name, case in cases.items():
        (tmp_path / "photos" / name).write_bytes(case.data)
    summary = pack(PackConfig(str(tmp_path / "photos"), str(tmp_path / "data"), workers=1), progress=False)
    assert summary["shards"]["failed"] == {}
    check_rows(tmp_path / "data", expected)


def test_pack_damaged_tars_and_tables(tmp_path: Path, model: str) -> None:
    data = write_damaged_set(tmp_path / "in")
    summary = pack(PackConfig(str(data), str(tmp_path / "data"), workers=1), progress=False)
    outcomes = Counter(case.outcome for case in picture_cases().values())
    # 00000 has seven more pictures and a text without picture; then the readable part of the other tars
    outcomes += Counter(ok=7 + 1 + 2 + 3 + 3, not_found=1, decode_error=1)
    assert summary["outcomes"] == outcomes
    assert summary["ignored"]["link_member"] == 4
    captioned, filtered, rows = run_stages(tmp_path / "data", model, tmp_path)
    assert captioned["counts"] == {"captions": summary["ok"], "pictures": summary["ok"]}  # no problem is counted
    assert filtered["texts"] == len(rows) and not any("undecodable" in reason for reason in filtered["dropped"])

    (tmp_path / "tables").mkdir()
    for name in ("00005.parquet", "00006.parquet"):
        (tmp_path / "tables" / name).write_bytes((data / name).read_bytes())
    pq.write_table(
        pa.table({"jpg": [picture_cases()["fine.jpg"].data, None, b"x"]}), tmp_path / "tables" / "00007.parquet"
    )
    summary = pack(PackConfig(str(tmp_path / "tables"), str(tmp_path / "out"), workers=1), progress=False)
    assert summary["outcomes"] == {"ok": 1, "not_found": 1, "decode_error": 1, "other": 2}
    names = {path.name for path in tmp_path.iterdir() if not path.name.startswith("run")}
    assert names == {"in", "data", "tables", "out"}


def test_the_decompression_bomb_is_a_valid_picture() -> None:
    Image.MAX_IMAGE_PIXELS, default = None, Image.MAX_IMAGE_PIXELS
    try:
        import io

        assert Image.open(io.BytesIO(picture_cases()["bomb.png"].data)).size == (30_000, 30_000)
    finally:
        Image.MAX_IMAGE_PIXELS = default
