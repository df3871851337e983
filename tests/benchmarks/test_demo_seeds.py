"""The merged tables of several demo runs."""

from typing import Any

from demo_seeds import merge


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.02, "high": value + 0.02}


def summary(seed: int, exact: float) -> dict[str, Any]:
    """Return the summary of a demo with one row, and the same exact share in all other figures."""
    share = estimate(exact)
    grades = {name: share for name in ("exact_match", "object_f1", "cider", "mean_recall")}
    grades["retrieval"] = {"i2t_r@1": 70.0, "t2i_r@1": 60.0}
    group = {name: share for name in ("right_before", "kept", "right", "recall")} | {"auc": {"itm": share}}
    stratum = {name: share for name in ("share_before", "share_kept", "right_before", "right")} | {"auc": {"itm": None}}
    synthetic = group | {"strata": {"two_objects": stratum}, "auc_within_picture": {"itm": None}}
    gauges = {"kept_share_captions": 0.5, "distinct_captions": 0.5, "distinct_bigrams": 9, "rare_word_recall": None}
    return {
        "config": {"seed": seed},
        "seconds": 700 + seed,
        "rows": {"noisy": {"finetuned": grades}},
        "differences": {"bootstrapped - noisy": {name: share for name in ("exact_match", "cider", "mean_recall")}},
        "filter": {"web": group, "synthetic": synthetic},
        "web_texts": {"right_title": {"texts": 5, "kept": share}},
        "rounds": [{"held_out": 200.0}, {"held_out": 210.0, "gauges": gauges, "filter": {"synthetic": group}}],
    }


def test_a_cell_is_the_mean_and_the_range_over_seeds() -> None:
    lines = list(merge([summary(21, 0.7), summary(22, 0.8)]))
    row = next(line for line in lines if line.startswith("| noisy web + human |"))
    assert row.startswith("| noisy web + human | 75.0 (70.0 to 80.0) |") and row.endswith("| 2.0 |")
    assert "| bootstrapped - noisy | +75.0 (+68.0 to +72.0, +78.0 to +82.0) |" in "\n".join(lines)
    assert "| synthetic strata two objects auc itm | – | – |" in lines
    assert lines[-1] == "Seeds 21, 22; seconds 721.5 (721.0 to 722.0)"


def test_undefined_figures_and_missing_tables_are_left_out() -> None:
    one = summary(21, 0.7)
    del one["rounds"]
    text = "\n".join(merge([one]))
    assert "zero_shot" in text and "Rounds" not in text and "oracle" not in text
    assert "| noisy web + human | 70.0 | 70.0 | 0.7 |" in text
