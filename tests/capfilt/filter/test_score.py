"""Scoring: every model is a column of one pass over the pictures, and damaged inputs are named."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from filter_runs import caption, rows, run, scores
from tiny_filters import WORDS
from wide_huggingface import save_wide_model

from capfilt.shards.tables import read_table, write_table


def test_scores_depend_neither_on_batches_nor_on_workers(shards, tiny_blip: Path) -> None:
    data = shards(2, 12)
    caption(data, tiny_blip)
    tables = [
        scores(run(data, tiny_blip, name=name, scores=name, batch_size=batch_size, workers=workers))
        for name, batch_size, workers in (("a", 3, 1), ("b", 32, 1), ("c", 5, 2))
    ]
    assert len({row["itm"] for row in tables[0]}) > 20
    for other in tables[1:]:
        for row, other_row in zip(tables[0], other, strict=True):
            assert all(row[name] == other_row[name] for name in ("key", "source", "index", "text"))
            assert (row["itm"], row["itc"]) == pytest.approx((other_row["itm"], other_row["itc"]), abs=1e-5)


def test_clip_is_one_more_column_in_the_same_pass(shards, tiny_filter: Path, tiny_clip: str, no_pictures) -> None:
    data = shards(1, 8)
    with pytest.raises(
        ValueError, match="clip_threshold needs the score 'clip', but the scores are itm, itc; add --clip"
    ):
        run(data, tiny_filter, clip_threshold=0.1)
    assert not (data / "scores").exists()  # raised before any picture is scored
    plain = run(data, tiny_filter)
    assert "clip" not in rows(plain)[0]
    both = run(data, tiny_filter, name="both", clip=tiny_clip)
    assert {row["clip"] for row in rows(both)}.isdisjoint({None}) and len({row["clip"] for row in rows(both)}) == 8
    assert [row["itm"] for row in rows(both)] == pytest.approx([row["itm"] for row in rows(plain)], abs=1e-6)
    (Path(both["scores"]) / "00000.parquet").unlink()
    with pytest.raises(ValueError, match="is not finished; to finish it, give the same --model, --clip"):
        run(data, tiny_filter, name="both", scores=Path(both["scores"]).name)
    assert rows(run(data, tiny_filter, name="both", clip=tiny_clip)) == rows(both)
    no_pictures()
    limit = sorted(row["clip"] for row in rows(both))[4]
    half = run(data, tiny_filter, name="half", clip=tiny_clip, threshold=0, clip_threshold=limit)
    assert half["kept"] == 4 and half["dropped"] == {f"clip<{limit}": 4}


def test_several_clips_are_columns_in_the_same_pass(shards, tiny_filter: Path, tiny_clip: str, no_pictures) -> None:
    data = shards(1, 6)
    both = run(data, tiny_filter, name="both", clip=[tiny_clip, tiny_clip])
    assert Path(both["scores"]).name.split(".")[0].endswith("+clip2")
    assert [row["clip2"] for row in rows(both)] == [row["clip"] for row in rows(both)]
    no_pictures()
    assert run(data, tiny_filter, name="one", clip=tiny_clip, best_of="clip2")["scores"] == both["scores"]
    assert run(data, tiny_filter, name="none")["scores"] == both["scores"]


def test_a_truncated_tar_keeps_its_complete_pictures(shards, tiny_filter: Path) -> None:
    data = shards(2, 10)
    tar = data / "00001.tar"
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    summary = run(data, tiny_filter)
    assert summary["shards"]["failed"] == {} and summary["counts"]["tar/truncated_tar"] == 1
    assert 10 < summary["texts"] < 20 and summary["texts"] == summary["kept"] + sum(summary["dropped"].values())


def test_wrong_captions_raise(shards, tiny_blip: Path, tiny_filter: Path) -> None:
    data = shards(2, 3)
    caption(data, tiny_blip, name="c")
    with pytest.raises(FileNotFoundError, match=r"No captions named 'd' in .*; the sources are web, c\."):
        run(data, tiny_filter, sources=["web", "d"])
    good = read_table(data / "captions/c/00001.parquet")
    (data / "captions/c/00001.parquet").unlink()
    with pytest.raises(ValueError, match=r"lacks 1 of 2 shards, 00001 first; run the same `capfilt caption` again"):
        run(data, tiny_filter)
    write_table(data / "captions/c/00001.parquet", good.set_column(0, "key", pa.array([f"x{n}" for n in range(3)])))
    failed = run(data, tiny_filter)["shards"]["failed"]
    assert list(failed) == ["00001"] and "have 3 keys that are not in its tar, x0 first" in failed["00001"]
    write_table(data / "captions/c/00000.parquet", good.drop_columns("text"))
    with pytest.raises(
        ValueError, match=r"00000.parquet has no column 'text'; its columns are key, index, logprob, error\."
    ):
        run(data, tiny_filter, name="r2")


def test_the_numbers_of_a_hugging_face_filter_are_chosen_aloud(
    shards, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    model, data = save_wide_model(tmp_path / "model", vocabulary, "encode", "itc", "itm"), shards(1, 4)
    official = run(data, model)
    assert "runs with 12 text heads, as the released BLIP was trained, instead of the 8 text heads" in caplog.text
    manifest = json.loads((Path(official["scores"]) / "manifest.json").read_text())
    assert "runs with 12 text heads" in manifest["numerics"] and "numerics" not in manifest["config"]
    own = run(data, model, name="own", numerics="transformers", scores="own")
    manifest = json.loads((Path(own["scores"]) / "manifest.json").read_text())
    assert "runs with the 8 text heads" in manifest["numerics"]
    assert manifest["config"]["numerics"] == "transformers"
    assert [row["itm"] for row in rows(own)] != [row["itm"] for row in rows(official)]
    assert run(data, model, name="again")["scores"] == official["scores"]
