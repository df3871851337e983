"""ITC vectors beside the scores: they give the cosines of the full pass, for pictures without words too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from blipcore.io.samples import TarSample
from capfilt.filter.blip import BlipScorer
from capfilt.filter.blip2 import Blip2Scorer
from capfilt.filter.config import FilterConfig
from capfilt.filter.scorer import FilterSettings, Runtime
from capfilt.filter.stage import filter_shards
from capfilt.filter.vectors import DTYPE
from capfilt.ingest.add_texts import TextsConfig
from capfilt.ingest.add_texts import add_texts as texts_stage
from capfilt.shards.format import write_shard


def write_pictures(folder: Path, drawn, wordless: tuple[int, ...] = ()) -> Path:
    samples = [drawn(number, "" if number in wordless else f"a red thing {number}") for number in range(5)]
    write_shard(folder / "00000.tar", samples)
    return folder


def scores_of(data: Path, model: Path | None, **settings: object) -> tuple[Path, list[dict]]:
    config = FilterConfig(
        data=str(data), model=model and str(model), device="cpu", dtype="fp32", backend="torch", **settings
    )
    summary = filter_shards(config, progress=False)
    return Path(summary["scores"]), pq.read_table(Path(summary["scores"]) / "00000.parquet").to_pylist()


def test_vectors_of_pictures_and_texts_give_their_itc(tiny_filter: Path, tmp_path: Path, drawn) -> None:
    data = write_pictures(tmp_path, drawn, wordless=(2,))
    _, plain = scores_of(data, tiny_filter)
    _, rows = scores_of(data, tiny_filter, vectors=True, name="v")
    assert "picture_vector" not in plain[0]
    for before, row in zip(plain, rows, strict=True):
        picture = np.frombuffer(row["picture_vector"], DTYPE).astype(np.float32)
        assert np.linalg.norm(picture) == pytest.approx(1, abs=2e-3)  # that of the picture without words too
        if not row["text"]:
            assert row["itc"] is row["text_vector"] is None
            continue
        assert row["itm"] == pytest.approx(before["itm"], abs=1e-5)
        text = np.frombuffer(row["text_vector"], DTYPE).astype(np.float32)
        assert float(picture @ text) == pytest.approx(row["itc"], abs=1e-3)


def add_texts(data: Path, texts: dict[str, str]) -> None:
    """Add captions `new` of some pictures, as `capfilt pack --texts` does."""
    (data / "new.csv").write_text("key,caption\n" + "".join(f"{key},{text}\n" for key, text in texts.items()))
    add = TextsConfig(data=str(data), texts=str(data / "new.csv"), name="new")
    assert texts_stage(add)["shards"]["failed"] == {}


def test_new_texts_are_scored_without_pictures_as_by_the_full_pass(tiny_filter: Path, tmp_path: Path, drawn) -> None:
    data = write_pictures(tmp_path, drawn, wordless=(2,))
    scores_of(data, tiny_filter, vectors=True, name="v")
    keys = list(dict.fromkeys(row["key"] for row in scores_of(data, tiny_filter, name="v2")[1]))
    add_texts(data, {key: f"a green dog {key}" for key in keys})
    _, full = scores_of(data, tiny_filter, sources=["new"], name="full")
    (data / "00000.tar").rename(data / "moved")
    (data / "00000.tar").write_bytes(b"")  # no picture is read
    scored, rows = scores_of(
        data, tiny_filter, sources=["new"], name="stored", from_vectors=True, score="itc", threshold=0.0
    )
    assert scored.name.startswith("blip-itc-") and [row["key"] for row in rows] == keys
    assert all(row["itm"] is None for row in rows)
    for row, expected in zip(rows, full, strict=True):
        assert row["itc"] == pytest.approx(expected["itc"], abs=1e-3) and row["text"] == expected["text"]
    kept = pq.read_table(data / "filtered" / "stored" / "00000.parquet").to_pylist()
    assert [row["keep"] for row in kept] == [row["itc"] >= 0 for row in rows]


def test_stored_vectors_score_no_web_texts_and_nothing_beside_itc(tiny_filter: Path, tmp_path: Path, drawn) -> None:
    data = write_pictures(tmp_path, drawn)
    add_texts(data, {drawn(0).key: "a dog"})
    with pytest.raises(ValueError, match=r"has no vectors of the filter .*--set vectors=true"):
        scores_of(data, tiny_filter, sources=["new"], from_vectors=True)
    scores_of(data, tiny_filter, vectors=True, name="v")
    with pytest.raises(ValueError, match="no web texts; name the others with --sources"):
        scores_of(data, tiny_filter, from_vectors=True)
    with pytest.raises(ValueError, match="reads no picture, so leave out sentences"):
        scores_of(data, tiny_filter, sources=["new"], from_vectors=True, sentences=True)


def test_a_shard_without_words_has_vectors(tiny_filter: Path, tmp_path: Path, drawn) -> None:
    _, rows = scores_of(write_pictures(tmp_path, drawn, wordless=tuple(range(5))), tiny_filter, vectors=True)
    assert len({row["picture_vector"] for row in rows}) == 5 and not any(row["text_vector"] for row in rows)


def test_scores_with_vectors_serve_a_request_without_and_not_the_other_way(
    tiny_filter: Path, tmp_path: Path, drawn
) -> None:
    data = write_pictures(tmp_path, drawn)
    plain, _ = scores_of(data, tiny_filter)
    with pytest.raises(ValueError, match="has no vectors; to store them, score again with --model"):
        scores_of(data, None, vectors=True, scores=plain.name, name="v")
    stored, _ = scores_of(data, tiny_filter, vectors=True, name="v")
    assert stored != plain and stored.name.startswith("blip-vectors-")
    assert (stored / "00000.parquet").stat().st_size > (plain / "00000.parquet").stat().st_size
    with pytest.raises(ValueError, match="is not finished; to finish it, give --set vectors=true as before"):
        (stored / "00000.parquet").unlink()
        scores_of(data, tiny_filter, scores=stored.name, name="w")


def test_the_pictures_of_a_call_do_not_change_the_vectors_of_its_texts(tiny_filter: Path, drawn) -> None:
    scorer = BlipScorer(str(tiny_filter), FilterSettings(vectors=True))
    scorer.load(Runtime())
    samples: list[TarSample] = [drawn(number) for number in range(2)]
    from blipcore.data.transforms import load_image

    inputs = [scorer.prepare(load_image(sample.image)) for sample in samples]
    both = scorer.score(inputs, [["a dog", "a cat on a tree"], []])
    alone = scorer.score(inputs[:1], [["a cat on a tree"]])
    assert [len(cells) for cells in both["text_vector"]] == [2, 0] and len(both["picture_vector"]) == 2
    apart = [np.frombuffer(cell, DTYPE) for cell in (both["text_vector"][0][1], alone["text_vector"][0][0])]
    assert np.allclose(*apart, atol=1e-3)


def test_a_filter_with_many_vectors_per_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="32 vectors per picture"):
        Blip2Scorer("anything", FilterSettings(vectors=True))
