"""Existing scores are reused if they cover a request; otherwise a new folder is named, or an error says what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filtered_set import write_set

from capfilt.filter.config import ScoreConfig
from capfilt.filter.find_scores import locate_scores
from capfilt.shards.manifest import Manifest
from capfilt.shards.shard_set import ShardSet


@pytest.fixture
def data(tmp_path: Path, drawn: Callable) -> Path:
    return write_set(tmp_path / "data", drawn, pictures=8, captioners=2)


def locate(data: Path, required_columns: dict[str, str] | None = None, **options: Any) -> Any:
    config = ScoreConfig(data=str(data), **({"scores": "s"} | options))
    return locate_scores(config, ShardSet.open(data), required_columns or {})


def test_finished_scores_are_found_without_a_model(data: Path) -> None:
    scores = locate(data)
    assert scores.path == data / "scores" / "s" and scores.is_complete
    assert list(scores.captions) == ["web", "c", "second"]
    assert scores.captions["web"] is None and scores.captions["c"] == data / "captions" / "c"
    assert scores.columns == ["itm", "itc", "clip"]


def test_scores_of_more_sources_cover_fewer(data: Path) -> None:
    assert list(locate(data, sources=["c"]).captions) == ["c"]


def test_scores_of_another_model_are_not_reused(data: Path, tiny_filter: Path) -> None:
    scores = locate(data, model=str(tiny_filter), scores=None, dtype="fp32", device="cpu")
    assert scores.path.parent == data / "scores" and scores.path.name.startswith("blip-")
    assert scores.path.name.endswith(".web+c+second") and not scores.is_complete
    assert not scores.path.exists()
    assert scores.settings["dtype"] == "fp32" and scores.columns == ["itm", "itc"]


@pytest.mark.parametrize("setting", [{"merge_tokens": 2}, {"numerics": "transformers"}])
def test_scores_with_a_further_setting_do_not_cover_a_request_without_it(
    data: Path, tiny_filter: Path, setting: dict[str, Any]
) -> None:
    def locate_blip(**options: Any) -> Any:
        return locate(data, model=str(tiny_filter), scores=None, dtype="fp32", device="cpu", backend="torch", **options)

    scores = locate_blip(**setting)
    Manifest.begin(scores.path, "score", scores.settings, images=data).finish({"texts": 1})
    assert setting.items() <= locate_blip(**setting).settings.items()
    assert not setting.keys() & locate_blip().settings.keys()


def test_a_missing_score_column_names_the_setting_that_needs_it(data: Path) -> None:
    with pytest.raises(ValueError, match="best_of needs the score 'clip2', but the scores are itm, itc, clip"):
        locate(data, {"clip2": "best_of"})


def test_errors_about_captions(data: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"No captions named 'third' in .*; the sources are web, c, second"):
        locate(data, sources=["third"])
    (data / "captions" / "c" / "00001.parquet").unlink()
    with pytest.raises(ValueError, match="lacks 1 of 2 shards, 00001 first"):
        locate(data)
    assert list(locate(data, sources=["web", "second"]).captions) == ["web", "second"]


def test_captions_with_other_settings_need_other_scores(data: Path, tiny_filter: Path) -> None:
    manifest = data / "scores" / "s" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["config"]["sources"]["c"] = "0123456789abcdef"
    manifest.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="has no scores of web, c; give a --model"):
        locate(data, sources=["web", "c"])
    with pytest.raises(ValueError, match=r"The settings of the captions 'c' have changed .* --scores NAME"):
        locate(data, sources=["web", "c"], model=str(tiny_filter), device="cpu")
