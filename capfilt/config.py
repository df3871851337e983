"""Builds the config of a command from a YAML file, `--set a.b=c` and explicit options.

Each command has a dataclass beside its code. `resolve` fills it from defaults, the YAML file, `--set` and options;
later ones override earlier ones. Only the command line reads YAML or options.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def resolve(
    cls: type[T],
    yaml_path: str | Path | None = None,
    sets: Iterable[str] = (),
    overrides: Mapping[str, Any] | None = None,
) -> T:
    """Build `cls` from its defaults < the YAML file < `--set a.b=c` < `overrides`.

    `overrides` maps field names to values, with dots for nested fields (`"train.lr"`). A value of None is ignored.
    Raises ValueError with one sentence for a wrong setting, FileNotFoundError for a missing file.
    """
    merged = _defaults(cls)
    if yaml_path is not None:
        _merge(merged, _read_yaml(Path(yaml_path)), cls, source=str(yaml_path))
    for item in sets:
        _merge(merged, _parse_set(item), cls, source=f"--set {item}")
    for name, value in (overrides or {}).items():
        if value is not None:
            _merge(merged, _nest(name, value), cls, source=f"option '{name}'")
    return _validate(cls, merged)


def to_dict(instance: Any, without: Iterable[str] = (), unless_default: Sequence[str] = ()) -> dict[str, Any]:
    """Return a config as plain dicts, lists, strings and numbers, without the top-level fields `without`.

    Fields in `unless_default` are left out too if they have their default.
    """
    excluded = set(without)
    values = {
        field.name: _to_plain(getattr(instance, field.name))
        for field in dataclasses.fields(instance)
        if field.name not in excluded
    }
    defaults = _defaults(type(instance)) if unless_default else {}
    return {name: value for name, value in values.items() if name not in unless_default or value != defaults[name]}


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    if not path.is_file():
        raise FileNotFoundError(f"No config file at {path}.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold `name: value` lines, not a {type(content).__name__}.")
    return content


def _parse_set(item: str) -> dict[str, Any]:
    import yaml

    name, equals, value = item.partition("=")
    if not equals or not name.strip():
        raise ValueError(f"--set takes name=value, such as --set train.lr=1e-4, not {item!r}.")
    try:
        return _nest(name.strip(), yaml.safe_load(value) if value.strip() else "")
    except yaml.YAMLError:
        return _nest(name.strip(), value)


def _nest(name: str, value: Any) -> dict[str, Any]:
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


def _defaults(cls: type) -> dict[str, Any]:
    """Return the defaults as plain data, so that a nested setting keeps the defaults of its siblings."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        if field.default is not dataclasses.MISSING:
            values[field.name] = _to_plain(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            values[field.name] = _to_plain(field.default_factory())
    return values


def _merge(target: dict[str, Any], new: Mapping[Any, Any], cls: type, source: str, prefix: str = "") -> None:
    """Merge settings into `target`, the values of the dataclass `cls`. `source` is for error messages."""
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls) if field.init]
    for name, value in new.items():
        if name not in names:
            raise ValueError(_unknown_setting(prefix + str(name), [prefix + known for known in names], source))
        nested = _nested_dataclass(hints[name])
        if nested is not None and isinstance(value, Mapping):
            if not isinstance(target.get(name), dict):
                target[name] = _defaults(nested)
            _merge(target[name], value, nested, source, prefix=f"{prefix}{name}.")
        elif isinstance(value, Mapping) and isinstance(target.get(name), dict):
            target[name] = _merge_dicts(target[name], value)
        elif isinstance(value, str) and hints[name] == list[str]:
            target[name] = [value]  # a list of one
        else:
            target[name] = _to_plain(value)


def _merge_dicts(old: dict[str, Any], new: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a copy of a free-form dict with another one merged in at every level."""
    result = dict(old)
    for name, value in new.items():
        previous = result.get(str(name))
        if isinstance(previous, dict) and isinstance(value, Mapping):
            result[str(name)] = _merge_dicts(previous, value)
        else:
            result[str(name)] = _to_plain(value)
    return result


def _unknown_setting(name: str, known: list[str], source: str) -> str:
    """Return the error for a setting that does not exist, with the nearest one that does."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}."
    return f"Unknown setting '{name}' ({source}); {hint}"


def _nested_dataclass(hint: Any) -> type | None:
    """Return the dataclass of a field's type, also of `X | None`, or None."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    candidates = typing.get_args(hint) if is_union else (hint,)
    classes = [item for item in candidates if isinstance(item, type) and dataclasses.is_dataclass(item)]
    return classes[0] if len(classes) == 1 else None


def _validate(cls: type[T], values: dict[str, Any]) -> T:
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(cls).validate_python(values)
    except ValidationError as error:
        by_setting: dict[str, list[Mapping[str, Any]]] = {}
        for item in error.errors(include_url=False):
            by_setting.setdefault(_setting_name(item), []).append(item)
        raise ValueError("; ".join(_sentence(name, errors) for name, errors in by_setting.items())) from None


def _setting_name(error: Mapping[str, Any]) -> str:
    # For a union, pydantic adds the type that did not match, such as `float` or `list[str]`, after the field's name.
    parts = [str(part) for part in error["loc"] if str(part).isdecimal() or str(part).isidentifier()]
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] in ("float", "int", "bool", "str") else parts)


def _sentence(name: str, errors: list[Mapping[str, Any]]) -> str:
    """Return one sentence for the errors of a setting. A union has one error per type."""
    error = errors[0]
    if error["type"] == "missing":
        return f"Setting '{name}' is required; give it as an option, with --set {name}=VALUE or in the YAML file."
    if error["type"] == "value_error":  # raised by __post_init__
        return error["msg"].removeprefix("Value error, ")
    expected = [item["msg"].removeprefix("Input should be ").partition(", unable to parse")[0] for item in errors]
    start = "input should be " if error["msg"].startswith("Input should be ") else ""
    return f"Setting '{name}': {start}{' or '.join(expected)}, but got {error['input']!r}."


def _to_plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {str(name): _to_plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(_to_plain(item) for item in value)
    if isinstance(value, enum.Enum):
        return _to_plain(value.value)
    if isinstance(value, Path):
        return str(value)
    return value
