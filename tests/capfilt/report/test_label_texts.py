"""The draw of texts to label: equal numbers per source, repeatable, and longer draws start with shorter ones."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from filtered_set import filter_set
from folders import rows_of

from capfilt.filter.filtered_set import FilteredSet
from capfilt.report.label_texts import draw_texts, propose_texts


def test_equal_numbers_are_drawn_per_source_and_only_texts_with_a_score(filtered: Path) -> None:
    rows = {(row["key"], row["source"]): row for row in rows_of(filtered)}
    data = FilteredSet.open(filtered)
    some, every = draw_texts(data, 40, seed=0), draw_texts(data, 1000, seed=0)
    assert Counter(text.source for text in some) == {"web": 20, "c": 20}
    assert len({(text.key, text.source) for text in every}) == len(every)
    drawn = {(text.key, text.source) for text in every}
    assert drawn == {place for place, row in rows.items() if row["itm"] is not None}
    assert all(text.text == rows[text.key, text.source]["text"] for text in every)


def test_a_longer_draw_starts_with_the_shorter_one_and_seeds_differ(filtered: Path) -> None:
    data = FilteredSet.open(filtered)
    draws = {seed: draw_texts(data, 60, seed) for seed in (0, 1)}
    assert draw_texts(data, 25, seed=0) == draws[0][:25]
    assert len({text.identifier for text in draws[0][:20]} & {text.identifier for text in draws[1][:20]}) < 12
    # the order does not reveal the source
    assert [text.source for text in draws[0][:2]] != [text.source for text in draws[0][2:4]] or [
        text.source for text in draws[0][4:6]
    ] != [text.source for text in draws[0][:2]]


def test_proposed_texts_say_how_they_were_drawn(filtered: Path) -> None:
    texts = propose_texts(FilteredSet.open(filtered), 24, seed=0)
    assert len({text.identifier for text in texts}) == 24
    assert Counter(text.drawn for text in texts)["random"] == 6


def test_a_text_has_another_identifier_if_its_words_change(filtered: Path) -> None:
    text = draw_texts(FilteredSet.open(filtered), 1, seed=0)[0]
    other = type(text)(text.shard, text.key, text.source, text.index, text.text + "s")
    assert text.identifier != other.identifier


def test_a_set_without_scores_has_nothing_to_label(filtered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = FilteredSet.open(filter_set(filtered.parents[1], "empty"))
    for shard in (shards := list(data.read_shards())):
        shard.values["itm"][:] = float("nan")
    monkeypatch.setattr(FilteredSet, "read_shards", lambda self: iter(shards))
    with pytest.raises(ValueError, match="has no text with a score, so there is nothing to label"):
        draw_texts(data, 5, seed=0)
