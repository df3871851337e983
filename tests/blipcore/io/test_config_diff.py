"""Differences between configurations, and fields that may differ between runs into one folder."""

from __future__ import annotations

from dataclasses import dataclass, field

from blipcore.io.config_diff import INCIDENTAL, diff_configs, incidental_fields


def test_a_line_names_each_setting_that_differs() -> None:
    old = {"data": ["a"], "train": {"lr": 1.0, "betas": [0.9, 0.99], "workers": 2}, "old": {"x": 1}}
    new = {"data": ["a", "b"], "train": {"lr": 1.0, "betas": [0.9, 0.99], "workers": 0}, "new": {}}
    lines = ["data: ['a'] -> ['a', 'b']", "old.x: 1 -> (not set)", "new: (not set) -> {}"]
    assert diff_configs(old, new, ignored={"workers"}) == lines
    assert diff_configs(old, new) == [lines[0], "train.workers: 2 -> 0", *lines[1:]]


def test_equal_numbers_are_no_difference() -> None:
    assert diff_configs({"lr": 1, "nan": float("nan")}, {"lr": 1.0, "nan": float("nan")}) == []
    assert diff_configs({"x": None}, {}) == ["x: None -> (not set)"]


def test_incidental_fields_are_marked_where_they_are_declared() -> None:
    @dataclass
    class Config:
        data: str
        workers: int = field(default=0, metadata=INCIDENTAL)

    assert incidental_fields(Config) == incidental_fields(Config("d")) == ["workers"]
