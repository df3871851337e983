"""Tests of the corpus on disk: complete, labelled and reproducible."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image, UnidentifiedImageError

from capfilt.demo import art
from capfilt.demo.corpus import FATES, REGIONS, CorpusConfig, labelled_pictures, read_truth, url_table, write_corpus
from capfilt.demo.language import exact_match
from capfilt.demo.noise import MATCHING_KINDS
from capfilt.demo.scenes import Scene

CONFIG = CorpusConfig(
    web=200, human=20, human_captions=2, validation=10, test=60, px=48, dead=0.1, corrupt=0.1, slow=0.05, opted_out=0.05
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("corpus")
    assert write_corpus(CONFIG, out) == {"web": 200, "human": 20, "validation": 10, "test": 60}
    return out


def digests(out: Path) -> dict[str, str]:
    files = (path for path in sorted(out.rglob("*")) if path.is_file())
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_config_gives_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    write_corpus(CONFIG, tmp_path)
    assert digests(tmp_path) == digests(corpus)


def test_another_seed_gives_another_corpus(corpus: Path, tmp_path: Path) -> None:
    write_corpus(CorpusConfig(seed=1, web=20, human=2, validation=2, test=2, px=48), tmp_path)
    first, second = digests(corpus), digests(tmp_path)
    assert all(first[name] != second[name] for name in ("human/images/test-000000.jpg", "human/train.json"))


def test_a_finished_corpus_is_kept_and_another_config_is_refused(corpus: Path) -> None:
    before = digests(corpus)
    assert write_corpus(CONFIG, corpus)["web"] == 200
    assert digests(corpus) == before
    with pytest.raises(ValueError, match=r"holds another corpus \(seed: 0 -> 5.*\)"):
        write_corpus(CorpusConfig(seed=5), corpus)


def test_the_truth_of_the_web_pairs_describes_the_served_files(corpus: Path) -> None:
    urls = pq.read_table(corpus / "web" / "urls.parquet")
    truth = pq.read_table(corpus / "truth" / "web.parquet")
    assert urls.column_names == ["url", "caption"] and urls.num_rows == 200  # no column of the truth
    assert urls["url"].to_pylist() == truth["url"].to_pylist()
    behaviour = json.loads((corpus / "www" / "behaviour.json").read_text())
    fates = set()
    for row in truth.to_pylist():
        fates.add(row["fate"])
        assert row["matches"] == (row["kind"] in MATCHING_KINDS) and Scene.from_dict(json.loads(row["scene"]))
        path = corpus / "www" / row["url"]
        assert path.exists() == (row["fate"] != "dead")
        rule = {"slow": {"delay": 2.0}, "opted_out": {"headers": {"X-Robots-Tag": "noai"}}}
        assert behaviour.get(row["url"]) == rule.get(row["fate"])
        if row["fate"] == "corrupt":
            with pytest.raises((UnidentifiedImageError, OSError)):
                Image.open(io.BytesIO(path.read_bytes())).load()
        elif row["fate"] != "dead":
            assert Image.open(path).size == (48, 48)
    assert fates == {*FATES, "ok"}


def test_urls_become_absolute(corpus: Path) -> None:
    table = url_table(corpus, "http://127.0.0.1:8000/")
    assert table["url"][3].as_py() == "http://127.0.0.1:8000/000/0000003.jpg"
    assert table.column_names == ["url", "caption"]


def test_annotations_are_exact(corpus: Path) -> None:
    train = json.loads((corpus / "human" / "train.json").read_text())
    assert len(train) == 40 and len({row["image"] for row in train}) == 20
    for part, n in (("validation", 10), ("test", 60)):
        truth = read_truth(corpus, part)
        rows = json.loads((corpus / "human" / f"{part}.json").read_text())
        assert len(rows) == len(truth) == n
        for row in rows:
            assert set(row) == {"image", "caption", "image_id"}
            assert len(row["caption"]) == 5 and all(exact_match(text, truth[row["image"]]) for text in row["caption"])
    assert all((corpus / "human" / row["image"]).exists() for row in train)


def test_each_retrieval_caption_matches_one_picture(corpus: Path) -> None:
    truth = read_truth(corpus, "test")
    rows = json.loads((corpus / "human" / "retrieval_test.json").read_text())
    assert 30 <= len(rows) <= 60
    for row in rows:
        for text in row["caption"]:
            matches = [other["image"] for other in rows if exact_match(text, truth[other["image"]])]
            assert matches == [row["image"]], text


def test_chinese_corpus(tmp_path: Path) -> None:
    write_corpus(CorpusConfig(web=10, human=5, validation=2, test=2, px=32, lang="zh"), tmp_path)
    truth = read_truth(tmp_path, "test")
    for row in json.loads((tmp_path / "human" / "test.json").read_text()):
        assert all(
            "\u4e00" <= text[0] <= "\u9fff" and exact_match(text, truth[row["image"]]) for text in row["caption"]
        )


def test_labelled_pictures_have_a_label_per_quarter() -> None:
    pictures = list(labelled_pictures(0, 300, 32, nouns=8))
    assert pictures[0][0].size == (32, 32)
    labels = [quarter for _, rows in pictures for row in rows for quarter in row]
    assert {noun for noun, _, _ in labels} == set(range(8)) and {number for _, number, _ in labels} == {0, 1, 2}
    for _, ((a, b), (c, d)) in pictures:
        sides = [REGIONS[place] for _, _, place in (a, b, c, d)]
        assert sides in (
            [None] * 4,
            ["left of", "right of", "left of", "right of"],
            ["above", "above", "below", "below"],
        )
        assert (a == b and c == d) or (a == c and b == d)
        assert (a[0] == d[0]) == (sides[0] is None)
    again = list(labelled_pictures(0, 3, 32, nouns=8))
    assert [(p.tobytes(), label) for p, label in again] == [(p.tobytes(), label) for p, label in pictures[:3]]


def test_impossible_configs_are_refused() -> None:
    with pytest.raises(ValueError, match="lang must be 'en' or 'zh', not 'fr'"):
        CorpusConfig(lang="fr")
    with pytest.raises(ValueError, match="the reviewed list"):
        CorpusConfig(nouns=len(art.vocabulary()) + 1)
    with pytest.raises(ValueError, match="add up to more than 1"):
        CorpusConfig(dead=0.7, corrupt=0.5)
