"""The score `mix`: planted signals are found, cross-fitted, recorded and computed again."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from capfilt.filter.intervals import MIN_LABELS
from capfilt.filter.labelled import LabelledTexts, read_labelled
from capfilt.filter.logistic import FOLDS, cross_fit
from capfilt.filter.mix import Mix, learn_mix, sum_scores


def score_table(number: int, seed: int = 0, signal: float = 2.0) -> tuple[pa.Table, np.ndarray]:
    """Return scores of web texts, which ITM tells apart, and of captions, which only confidence does; and the truth."""
    rng = np.random.default_rng(seed)
    match, is_caption = rng.random(number) < 0.5, np.arange(number) % 2 == 1
    logit = np.where(is_caption, 0, signal * (match - 0.5)) + rng.normal(size=number)
    confidence = np.where(is_caption, -4 + signal * (match - 0.5) + rng.normal(size=number), np.nan)
    table = pa.table(
        {
            "key": [f"{row // 2:05d}" for row in range(number)],
            "source": np.where(is_caption, "blip", "web"),
            "index": pa.array([0] * number, pa.int32()),
            "text": [" ".join(["word"] * (1 + row % 7)) for row in range(number)],
            "itm": pa.array(1 / (1 + np.exp(-logit)), pa.float32()),
            "confidence": pa.array(confidence, pa.float32(), from_pandas=True),
            "error": pa.nulls(number, pa.string()),
        }
    )
    return table, match


def label(table: pa.Table, match: np.ndarray) -> LabelledTexts:
    labels = table.select(["key", "source", "index"]).append_column("match", pa.array(match.astype(np.int8)))
    nulls = {"shard": pa.string(), "drawn": pa.string(), "itm": pa.float64(), "itm_of": pa.string()}
    for name, data_type in nulls.items():
        labels = labels.append_column(name, pa.nulls(len(labels), data_type))
    return read_labelled([("00000", table)], labels)


def test_mix_weighs_the_score_that_tells_texts_of_each_source_apart() -> None:
    table, match = score_table(600)
    mix, held_out = learn_mix(label(table, match), ["itm", "confidence"], ["web", "blip"])
    fresh, truth = score_table(4000, seed=1)
    restored = Mix(**json.loads(json.dumps(mix.settings)))
    values = restored.compute("00000", fresh)
    assert (values == mix.compute("00000", fresh)).all()
    labelled = label(fresh, truth)
    aucs = {name: auc.value for name, auc in labelled.auc(values, ["web", "blip"], draws=0).items()}
    # The best possible AUC of two normal populations 2 apart is 0.921.
    assert min(aucs["web"], aucs["blip"]) > 0.9
    # calibrated: of texts with a probability of about p, about p match
    for low in (0.1, 0.4, 0.7):
        rows = (values >= low) & (values < low + 0.2)
        assert truth[rows].mean() == pytest.approx(values[rows].mean(), abs=0.08)
    # cross-fitted values judge as well as fresh texts do
    own = label(table, match).auc(held_out, ["web", "blip"], draws=0)["all"].value
    assert own == pytest.approx(labelled.auc(values, ["web", "blip"], draws=0)["all"].value, abs=0.04)
    recorded = mix.settings["measured"]
    assert recorded["labels"] == 600 and recorded["auc"]["all"][1] < own < recorded["auc"]["all"][2]


def test_random_labels_give_no_signal_on_held_out_pictures() -> None:
    table, _ = score_table(300)
    match = np.random.default_rng(5).random(300) < 0.5
    labelled = label(table, match)
    _, held_out = learn_mix(labelled, ["itm", "confidence"], ["web", "blip"])
    auc = labelled.auc(held_out, ["web", "blip"])["all"]
    assert not auc.has_signal
    assert ("no signal" if auc.high >= 0.5 else "below chance") in str(auc)


def test_without_labels_mix_is_the_sum_of_itm_and_confidence() -> None:
    table, match = score_table(4000)
    mix = sum_scores([("00000", table.slice(0, 2000)), ("00001", table.slice(2000))])
    values, itm = mix.compute("00000", table), table["itm"].to_numpy()
    is_web = np.array(table["source"].to_pylist()) == "web"
    assert values[is_web] == pytest.approx(itm[is_web], abs=1e-6)  # they have no confidence
    assert np.median(values[~is_web]) == pytest.approx(np.median(itm[~is_web]), abs=0.05)
    aucs = label(table, match).auc(values, ["web", "blip"], draws=0)
    assert aucs["blip"].value > 0.8 > label(table, match).auc(itm, ["web", "blip"], draws=0)["blip"].value
    with pytest.raises(ValueError, match="needs captions with a confidence"):
        sum_scores([("00000", table.filter(pa.array(is_web)))])


def test_a_text_without_itm_has_no_mix() -> None:
    table, match = score_table(200)
    mix, _ = learn_mix(label(table, match), ["itm", "confidence"], ["web", "blip"])
    missing = table.set_column(4, "itm", pa.nulls(200, pa.float32()))
    assert np.isnan(mix.compute("00000", missing)).all()


def test_texts_of_a_picture_are_in_one_fold() -> None:
    labelled = label(*score_table(200))
    keys = np.array(labelled.rows["key"].to_pylist())
    assert all(len(set(labelled.fold[keys == key])) == 1 for key in set(keys))
    assert set(labelled.fold) == set(range(FOLDS))


def test_learning_needs_labels_of_both_kinds() -> None:
    table, _ = score_table(40)
    match = np.arange(40) < MIN_LABELS - 1
    with pytest.raises(ValueError, match=r"are 9 right and 31 wrong; learning needs at least 10 of each"):
        learn_mix(label(table, match), ["itm"], ["web", "blip"])
    only_web, match = score_table(100)
    of_web = pa.array(np.array(only_web["source"].to_pylist()) == "web")
    with pytest.raises(ValueError, match=r"at least 10 labels of each source, and blip has 0; .* with --sources"):
        learn_mix(label(only_web.filter(of_web), match[::2]), ["itm"], ["web", "blip"])


def test_a_fold_with_labels_of_one_kind_is_fitted_by_their_share() -> None:
    features, match = np.random.default_rng(0).normal(size=(40, 2)), np.arange(40) < 20
    fit = cross_fit(features, match, np.where(match, 0, 1))  # each fold holds one kind
    assert (fit.held_out[match] < 0).all() and (fit.held_out[~match] > 0).all()
