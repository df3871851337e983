"""Tests of `resolve`: the order of defaults, YAML, --set and options, and one sentence per mistake."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from blipcore.io.config_diff import diff_configs
from capfilt.config import resolve, to_dict


@dataclass
class Inner:
    lr: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["cosine", "constant"] = "cosine"


@dataclass
class Outer:
    data: str
    name: str = "r1"
    threshold: float = 0.5
    out: Path | None = None
    train: Inner = field(default_factory=lambda: Inner(lr=1e-3))
    extra: Inner | None = None
    tags: list[str] = field(default_factory=list)
    free: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must lie in 0..1, but is {self.threshold}.")


def test_each_source_overrides_the_one_before(tmp_path: Path) -> None:
    yaml = tmp_path / "run.yaml"
    yaml.write_text("name: from_yaml\nthreshold: 0.1\ntags: [a]\ntrain: {lr: 1e-5, schedule: constant}\n")
    config = resolve(Outer, yaml, ["threshold=0.2", "train.lr=2e-5"], {"data": "D", "threshold": 0.3, "out": None})
    assert config == Outer("D", "from_yaml", 0.3, None, Inner(2e-5, (0.9, 0.999), "constant"), None, ["a"])


def test_a_single_value_is_a_list_of_one(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("tags: a\n")
    assert resolve(Outer, tmp_path / "run.yaml", [], {"data": "d"}).tags == ["a"]
    assert resolve(Outer, None, ["tags=b"], {"data": "d"}).tags == ["b"]


def test_a_partial_nested_setting_keeps_the_outer_default() -> None:
    assert resolve(Outer, sets=["train.schedule=constant"], overrides={"data": "D"}).train.lr == 1e-3
    assert resolve(Outer, sets=["extra.lr=2"], overrides={"data": "D"}).extra == Inner(lr=2.0)
    assert resolve(Outer, overrides={"data": "D", "train.lr": 5}).train == Inner(lr=5.0)


def test_free_form_settings_are_merged_level_by_level() -> None:
    config = resolve(Outer, None, ["free.a.b=1", "free.a.c=[2, 3]", "free.d=x"], {"data": "D"})
    assert config.free == {"a": {"b": 1, "c": [2, 3]}, "d": "x"}


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["treshold=0.2"], ["'treshold'", "did you mean 'threshold'"]),
        (["train.lrr=1"], ["'train.lrr'", "did you mean 'train.lr'"]),
        (["zzzzzz=1"], ["'zzzzzz'", "known: data, name, threshold"]),
        (["threshold"], ["name=value"]),
        (["threshold=abc"], ["'threshold'", "valid number", "'abc'"]),
        (["train.schedule=linear"], ["'train.schedule'", "'cosine'", "'linear'"]),
        (["threshold=2"], ["threshold must lie in 0..1, but is 2.0."]),
        (["train=3"], ["train"]),
    ],
)
def test_a_mistake_is_one_sentence(sets: list[str], words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        resolve(Outer, None, sets, {"data": "D"})
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No config file"):
        resolve(Outer, tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(ValueError, match="not a list"):
        resolve(Outer, tmp_path / "list.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1\n")
    with pytest.raises(ValueError, match="not valid YAML"):
        resolve(Outer, tmp_path / "bad.yaml")
    with pytest.raises(ValueError, match="'data' is required"):
        resolve(Outer)


def test_to_dict_is_plain_and_diff_is_readable() -> None:
    first = resolve(Outer, overrides={"data": "D", "out": "x"})
    assert to_dict(first)["train"] == {"lr": 1e-3, "betas": [0.9, 0.999], "schedule": "cosine"}
    assert to_dict(first)["out"] == "x"
    assert "out" not in to_dict(first, without=("out",))
    second = resolve(Outer, sets=["train.lr=5"], overrides={"data": "E", "out": "x"})
    assert diff_configs(to_dict(first), to_dict(second)) == ["data: 'D' -> 'E'", "train.lr: 0.001 -> 5.0"]
