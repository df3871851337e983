"""The choice among rounds: the best one, and when the loop stops."""

import json
from pathlib import Path

import pytest

from capfilt.bootstrap.rounds import best_round, describe_rounds, has_stopped_rising, link_models, read_scores


def scores(mean: float, noise: float = 0.0) -> dict[str, float]:
    """Return scores of 100 pictures around a mean."""
    return {str(picture): mean + noise * (-1) ** picture for picture in range(100)}


def test_the_best_round_need_not_be_the_last() -> None:
    assert best_round([scores(50), scores(70), scores(60)]) == 1
    assert best_round([scores(50), scores(70), scores(70)]) == 1


@pytest.mark.parametrize(
    ("rounds", "stops"),
    [
        ([scores(50)], False),
        ([scores(50), scores(40)], False),  # round 1 is the paper's
        ([scores(50), scores(60), scores(70)], False),
        ([scores(50), scores(60), scores(60)], True),
        ([scores(50), scores(60), scores(60.1, noise=10)], True),  # a rise within its interval
        ([scores(50), scores(70), scores(60), scores(65)], True),  # above the round before, not above the best
    ],
)
def test_the_loop_stops_after_a_round_without_a_rise_beyond_its_interval(rounds: list, stops: bool) -> None:
    assert has_stopped_rising(rounds) == stops


def test_the_rise_of_a_round_is_paired_by_picture() -> None:
    first = {"a": 0.0, "b": 100.0, "c": 50.0}
    second = {name: score + 1 for name, score in reversed(first.items())}
    rise = describe_rounds([first, second])[1]["rise"]
    assert rise == pytest.approx({"value": 1, "low": 1, "high": 1})  # every picture rises by 1, however they differ


def test_scores_are_the_cider_or_the_mean_recall_of_each_picture(tmp_path: Path) -> None:
    for row, score in (({"cider": 120.0}, 120.0), ({"text_rank": 0, "image_ranks": [0, None]}, 75.0)):
        (tmp_path / "scores.json").write_text(json.dumps([{"image_id": 7} | row]))
        assert read_scores(tmp_path / "scores.json") == {"7": score}


def test_links_to_the_best_models_are_replaced_and_survive_a_move(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / "out" / name).mkdir(parents=True)
        link_models(tmp_path / "out" / "best", {"model": str(tmp_path / "out" / name)})
    (tmp_path / "out").rename(tmp_path / "moved")
    assert (tmp_path / "moved" / "best" / "model").resolve() == tmp_path / "moved" / "two"
