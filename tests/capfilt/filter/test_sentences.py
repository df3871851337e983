"""Sentences of long captions: their places in the text, and the scores of texts that the filter cannot read whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from filter_runs import rows, run, scores
from tiny_filters import save_tiny_albef, save_tiny_blip2

from capfilt.filter.albef import AlbefScorer
from capfilt.filter.blip import BlipScorer
from capfilt.filter.blip2 import Blip2Scorer
from capfilt.filter.scorer import FilterSettings, Runtime
from capfilt.filter.sentences import SentenceScorer, split_clauses, split_sentences
from capfilt.shards.format import write_shard

TEXTS = {
    "A red dog. Two cats!": ["A red dog.", "Two cats!"],
    "Dr. Smith stands at 5 p.m. in the U.S. Army hall. It is 3.5 m tall.": [
        "Dr. Smith stands at 5 p.m. in the U.S. Army hall.",
        "It is 3.5 m tall.",
    ],
    "一只红色的狗在草地上。天空是蓝色的！": ["一只红色的狗在草地上。", "天空是蓝色的！"],
    "यह एक लाल कुत्ता है। आकाश नीला है।": ["यह एक लाल कुत्ता है।", "आकाश नीला है।"],
    "هذا كلب أحمر. هل السماء زرقاء؟": ["هذا كلب أحمر.", "هل السماء زرقاء؟"],
    "  😀 A dog! \n\n 1. Two cats. 2. A tree. 😀 ": ["😀 A dog!", "1. Two cats.", "2. A tree. 😀"],
    "one text without a stop": ["one text without a stop"],
    "1234 !": ["1234 !"],
    "Two\u3000dogs.\u2028A.\u2028cat": ["Two\u3000dogs.", "A.\u2028cat"],
    "half \ud800 a pair. Two cats.": ["half \ud800 a pair.", "Two cats."],
}


@pytest.mark.parametrize("text", TEXTS)
def test_sentences_are_places_in_the_text(text: str) -> None:
    assert [text[start:end] for start, end in split_sentences(text)] == TEXTS[text]


def test_a_long_sentence_is_split_at_its_clauses_into_parts_that_fit() -> None:
    sentence = "a red dog at 5:30 with 1,000 spots, two cats, and a tree, which is green"
    assert split_clauses(sentence, lambda part: len(part) < 48) == [
        "a red dog at 5:30 with 1,000 spots, two cats,",
        "and a tree, which is green",
    ]
    assert split_clauses("no clause ends here", lambda part: False) == ["no clause ends here"]
    assert split_clauses("两只狗、三只猫，一棵树", lambda part: len(part) < 5) == ["两只狗、", "三只猫，", "一棵树"]


@pytest.mark.parametrize("kind", ["blip", "albef", "blip2"])
def test_a_filter_knows_which_texts_it_reads_whole(kind: str, tiny_filter: Path, tmp_path: Path) -> None:
    if kind == "blip":
        scorer = BlipScorer(str(tiny_filter))
    elif kind == "albef":
        path, vocab = save_tiny_albef(tmp_path)
        scorer = AlbefScorer(str(path), FilterSettings(tokenizer=str(vocab)))
    else:
        scorer = Blip2Scorer(str(save_tiny_blip2(tmp_path)))
    scorer.load(Runtime())
    words = {"blip": 30, "albef": 28, "blip2": 30}[kind]
    texts = ["dog " * words, "dog " * (words + 1), "dogs " * 20, "dog. " * words]
    # "dogs" has two word pieces
    assert scorer.truncated(texts) == [False, True, True, False]
    assert scorer.truncated([]) == []


@pytest.fixture
def long_texts(tmp_path: Path, drawn: Callable) -> Path:
    """Write a shard of five pictures with texts of one, two and three sentences, and long ones."""
    texts = [
        "a red dog",
        "a red dog. two green cats on the left.",
        "two cats. a round tree. a blue dog.",
        ", ".join(["a red dog on the left"] * 8) + ". two cats.",
        "dog " * 50,
    ]
    write_shard(tmp_path / "data" / "00000.tar", [drawn(number, text) for number, text in enumerate(texts)])
    return tmp_path / "data"


def test_each_sentence_has_the_score_that_it_has_alone(long_texts: Path, tiny_filter: Path, drawn: Callable) -> None:
    plain = rows(run(long_texts, tiny_filter))
    summary = run(long_texts, tiny_filter, name="s", sentences=True)
    table = rows(summary)
    assert [row["itm"] for row in table] == pytest.approx([row["itm"] for row in plain], abs=1e-6)
    assert table[0]["itm"] == table[0]["itm_min"] == table[0]["itm_mean"]
    for row in table[1:3]:
        values = [sentence["itm"] for sentence in row["sentences"]]
        assert row["itm_min"] == min(values) and row["itm_mean"] == pytest.approx(sum(values) / len(values))
    alone = [drawn(2, text) for text in ("two cats.", "a round tree.", "a blue dog.")]
    for number, sample in enumerate(alone):
        folder = long_texts.parent / f"alone{number}"
        write_shard(folder / "00000.tar", [sample])
        assert rows(run(folder, tiny_filter))[0]["itm"] == pytest.approx(table[2]["sentences"][number]["itm"], abs=1e-5)


def test_truncated_texts_and_sentences_are_counted_and_said(long_texts: Path, tiny_filter: Path) -> None:
    plain = run(long_texts, tiny_filter)
    assert plain["counts"]["texts_truncated"] == 2
    assert plain["truncated"] == (
        "2 of 5 texts are longer than the filter reads: itm is of their start; --sentences also scores each "
        "of their sentences."
    )
    summary = run(long_texts, tiny_filter, name="s", sentences=True)
    assert summary["counts"]["sentences"] == 9 and summary["counts"]["sentences_truncated"] == 1
    assert summary["truncated"].endswith("; 1 of 9 sentences are too long even by clause.")
    assert [[item["truncated"] for item in row["sentences"]] for row in rows(summary)[3:]] == [[False, False], [True]]


def test_a_whole_page_is_scored_in_bounded_parts(tiny_filter: Path, draw: Callable) -> None:
    scorer = SentenceScorer(BlipScorer(str(tiny_filter)))
    scorer.load(Runtime())
    page, list_ = "A dog. Two cats. " * 500, ", ".join(["a red dog on the left of a cat"] * 500)
    asked: list[int] = []
    score = scorer.filter.score
    scorer.filter.score = lambda inputs, texts: asked.append(len(texts[0])) or score(inputs, texts)
    result = scorer.score([scorer.prepare(draw(0))], [[page, list_]])
    of_page, of_list = result["sentences"][0]
    assert len(of_page) == 40 and [item["truncated"] for item in of_page] == [False] * 39 + [True]
    assert of_page[-1]["end"] == len(page.strip()) and of_list[0]["truncated"] and asked[0] <= 2 + 2 + 2 * 8


def test_sentences_have_scores_of_their_own_and_serve_later_runs_without(
    long_texts: Path, tiny_filter: Path, no_pictures: Callable[[], None]
) -> None:
    summary = run(long_texts, tiny_filter, sentences=True)
    manifest = json.loads((Path(summary["scores"]) / "manifest.json").read_text())
    assert manifest["config"]["sentences"] == "sentencex" and "sentencex" in manifest["versions"]
    no_pictures()
    assert run(long_texts, tiny_filter, name="plain")["scores"] == summary["scores"]
    best = run(long_texts, tiny_filter, name="best", sentences=True, best_of="itm_mean", min_scores={"itm_min": 0.99})
    assert all(row["keep"] == (row["itm_min"] >= 0.99) for row in rows(best) if row["itm"] >= 0.5)


def test_a_limit_on_sentences_without_their_scores_names_the_option(long_texts: Path, tiny_filter: Path) -> None:
    run(long_texts, tiny_filter)
    with pytest.raises(ValueError, match=r"min_scores needs the score 'itm_min', but .*; add --sentences"):
        run(long_texts, tiny_filter, name="b", min_scores={"itm_min": 0.5})


def test_scores_of_sentences_depend_neither_on_batches_nor_on_workers(long_texts: Path, tiny_filter: Path) -> None:
    first, second = (
        scores(run(long_texts, tiny_filter, name=name, scores=name, batch_size=size, sentences=True))
        for name, size in (("a", 2), ("b", 32))
    )
    for row, other in zip(first, second, strict=True):
        assert row["itm_mean"] == pytest.approx(other["itm_mean"], abs=1e-5)
        assert [s["start"] for s in row["sentences"]] == [s["start"] for s in other["sentences"]]


def test_the_other_columns_of_a_filter_are_kept(tiny_filter: Path, draw: Callable) -> None:
    scorer = SentenceScorer(BlipScorer(str(tiny_filter)))
    scorer.load(Runtime())
    result = scorer.score([scorer.prepare(draw(0)), scorer.prepare(draw(1))], [["a dog. a cat."], ["a dog", "a cat"]])
    plain = scorer.filter.score(
        [scorer.prepare(draw(0)), scorer.prepare(draw(1))], [["a dog. a cat."], ["a dog", "a cat"]]
    )
    assert [len(of_picture) for of_picture in result["itc"]] == [1, 2]
    for values, expected in zip(result["itc"], plain["itc"], strict=True):
        assert values == pytest.approx(expected, abs=1e-5)
