"""Differences between the configuration of an existing output and that of the current run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

# Metadata of dataclass fields. Without it, a run with another value of the field is refused.
#     workers: int = field(default=0, metadata=INCIDENTAL)
# INCIDENTAL: never changes the output, so a run may resume with another value.
INCIDENTAL: Mapping[str, Any] = {"incidental": True}
# PER_PROCESS: may change with the number of processes if the total batch size stays the same.
PER_PROCESS: Mapping[str, Any] = {"per_process": True}
# CHANGEABLE: concerns later steps alone, so a run may be continued with another value on request.
CHANGEABLE: Mapping[str, Any] = {"changeable": True}


def incidental_fields(config: Any) -> list[str]:
    """Return the names of the `INCIDENTAL` fields of a dataclass or instance."""
    return _marked_fields(config, INCIDENTAL)


def per_process_fields(config: Any) -> list[str]:
    """Return the names of the `PER_PROCESS` fields of a dataclass or instance."""
    return _marked_fields(config, PER_PROCESS)


def changeable_fields(config: Any) -> list[str]:
    """Return the names of the `CHANGEABLE` fields of a dataclass or instance."""
    return _marked_fields(config, CHANGEABLE)


def _marked_fields(config: Any, mark: Mapping[str, Any]) -> list[str]:
    return [field.name for field in fields(config) if mark.items() <= field.metadata.items()]


def diff_configs(old: Mapping[str, Any], new: Mapping[str, Any], ignored: Collection[str] = ()) -> list[str]:
    """Return one line per setting that differs, such as `generate.top_p: 0.9 -> 0.8`.

    `ignored` holds setting names without sections.
    """
    before, after = _flatten(old), _flatten(new)
    lines = []
    for name in dict.fromkeys([*before, *after]):
        if name.rpartition(".")[2] in ignored:
            continue
        old_value, new_value = _format(before, name), _format(after, name)
        # Both tests: 1 equals 1.0, and NaN does not equal itself.
        if old_value != new_value and not (name in before and name in after and before[name] == after[name]):
            lines.append(f"{name}: {old_value} -> {new_value}")
    return lines


def _format(flat: Mapping[str, Any], name: str) -> str:
    return repr(flat[name]) if name in flat else "(not set)"


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
