"""Labels of our own texts as a test: every score of the filtered set, and those of further models, blind too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filter_runs import rows, run

from capfilt.judge.stage import JudgeRun, evaluate_judge, format_table


@pytest.fixture
def labelled(shards, tiny_filter, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """Filter two shards of six pictures, and label eight of their texts by a rule."""
    summary = run(shards(2, 6), tiny_filter)
    texts = rows(summary)[2:10]
    lines = [f"{row['key']},web,{int(len(row['text']) % 2)}\n" for row in texts]
    (tmp_path / "labels.csv").write_text("key,source,match\n" + "".join(lines))
    return tmp_path / "labels.csv", summary


def evaluate(path: Path, **options: Any) -> dict[str, Any]:
    options = {"device": "cpu", "dtype": "fp32", "resamples": 20} | options
    return evaluate_judge(JudgeRun(annotations=str(path), **options), progress=False)


def test_the_stored_scores_are_judged_without_a_picture(labelled) -> None:
    path, summary = labelled
    judged = evaluate(path, image_root=summary["out"])
    texts = rows(summary)[2:10]
    right = [row["itm"] for row in texts if len(row["text"]) % 2]
    wrong = [row["itm"] for row in texts if not len(row["text"]) % 2]
    share = np.mean([(a > b) + (a == b) / 2 for a in right for b in wrong])
    (itm,) = [row for row in judged["rows"] if row["score"] == "itm"]
    assert itm["measure"] == "auc" and itm["value"] == pytest.approx(share, abs=1e-4) and itm["blind"] is None
    assert judged["cases"] == 8 and "no picture" in format_table(judged)[1]


def test_a_model_scores_the_labelled_pictures_again_and_blind(labelled, tiny_filter) -> None:
    path, summary = labelled
    stored = evaluate(path, image_root=summary["out"])
    again = evaluate(path, image_root=summary["out"], model=str(tiny_filter), results=str(path.with_suffix(".json")))
    values = [{row["score"]: row["value"] for row in each["rows"]} for each in (stored, again)]
    assert values[0] == values[1] and all(row["blind"] is not None for row in again["rows"])


def test_labels_of_other_texts_are_refused(labelled, tmp_path: Path) -> None:
    path, summary = labelled
    with pytest.raises(ValueError, match="--image-root DATA/filtered/NAME"):
        evaluate(path)
    (tmp_path / "other.csv").write_text(path.read_text() + "nothing,web,1\n")
    with pytest.raises(ValueError, match=r"1 of 9 labels in .* fit no text"):
        evaluate(tmp_path / "other.csv", image_root=summary["out"])
