"""Settings: a YAML file, `--set a.b=c` and explicit options in, the dataclass that a command declares out.

Each command owns a plain dataclass beside the code that it configures. This module fills one: defaults, then the
YAML file, then `--set`, then explicit options, each over the one before. Nothing below `cli.py` sees YAML or a flag.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def resolve(
    cls: type[T],
    yaml_path: str | Path | None = None,
    sets: Iterable[str] = (),
    overrides: Mapping[str, Any] | None = None,
) -> T:
    """Build `cls` from its defaults < the YAML file < `--set a.b=c` < `overrides`; every mistake is a ValueError.

    `overrides` holds explicit options by field name, nested ones by dots (`"train.lr"`); None means not given.
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


def to_dict(instance: Any, without: Iterable[str] = ()) -> dict[str, Any]:
    """Plain dicts, lists, strings and numbers of a config, in field order; `without` leaves out top-level fields."""
    left_out = set(without)
    return {
        field.name: _plain(getattr(instance, field.name))
        for field in dataclasses.fields(instance)
        if field.name not in left_out
    }


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
        raise ValueError(f"{path} must hold `name: value` lines at its top, not a {type(content).__name__}.")
    return content


def _parse_set(item: str) -> dict[str, Any]:
    import yaml

    name, equals, value = item.partition("=")
    if not equals or not name.strip():
        raise ValueError(f"--set takes name=value, for example --set train.lr=1e-4, but got {item!r}.")
    try:
        return _nest(name.strip(), yaml.safe_load(value) if value.strip() else "")
    except yaml.YAMLError:
        return _nest(name.strip(), value)


def _nest(name: str, value: Any) -> dict[str, Any]:
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


def _defaults(cls: type) -> dict[str, Any]:
    """The defaults as plain data, so that a partial nested setting keeps its siblings' defaults."""
    values = {}
    for field in dataclasses.fields(cls):
        if field.default is not dataclasses.MISSING:
            values[field.name] = _plain(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            values[field.name] = _plain(field.default_factory())
    return values


def _merge(into: dict[str, Any], new: Mapping[Any, Any], cls: type, source: str, prefix: str = "") -> None:
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls) if field.init]
    for name, value in new.items():
        if name not in names:
            raise ValueError(_unknown(prefix + str(name), [prefix + known for known in names], source))
        inner = _dataclass_of(hints[name])
        if inner is not None and isinstance(value, Mapping):
            if not isinstance(into.get(name), dict):
                into[name] = _defaults(inner)
            _merge(into[name], value, inner, source, prefix=f"{prefix}{name}.")
        elif isinstance(value, Mapping) and isinstance(into.get(name), dict):
            into[name] = _merged(into[name], value)
        else:
            into[name] = _plain(value)


def _merged(old: dict[str, Any], new: Mapping[Any, Any]) -> dict[str, Any]:
    """A free-form dict with another laid over it, level by level."""
    result = dict(old)
    for name, value in new.items():
        before = result.get(str(name))
        both = isinstance(before, dict) and isinstance(value, Mapping)
        result[str(name)] = _merged(before, value) if both else _plain(value)
    return result


def _unknown(name: str, known: list[str], source: str) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}."
    return f"Unknown setting '{name}' ({source}); {hint}"


def _dataclass_of(hint: Any) -> type | None:
    """The dataclass in a field's type, also inside `X | None`."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return hint
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        found = [arg for arg in typing.get_args(hint) if dataclasses.is_dataclass(arg)]
        return found[0] if len(found) == 1 else None
    return None


def _validate(cls: type[T], values: dict[str, Any]) -> T:
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(cls).validate_python(values)
    except ValidationError as error:
        found: dict[str, list[Mapping[str, Any]]] = {}
        for item in error.errors(include_url=False):
            found.setdefault(_name(item), []).append(item)
        raise ValueError("; ".join(_sentence(name, errors) for name, errors in found.items())) from None


def _name(error: Mapping[str, Any]) -> str:
    # pydantic puts the tried type of a union after the field's name, such as `float` or `list[str]`
    parts = [str(part) for part in error["loc"] if str(part).isdecimal() or str(part).isidentifier()]
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] in ("float", "int", "bool", "str") else parts)


def _sentence(name: str, errors: list[Mapping[str, Any]]) -> str:
    """What is wrong with a setting; where it may be of several types, there is an error for each."""
    error = errors[0]
    if error["type"] == "missing":
        return f"Setting '{name}' is required."
    if error["type"] == "value_error":  # a check in __post_init__ has written a whole sentence
        return error["msg"].removeprefix("Value error, ")
    wanted = [item["msg"].removeprefix("Input should be ").partition(", unable to parse")[0] for item in errors]
    start = "input should be " if error["msg"].startswith("Input should be ") else ""
    return f"Setting '{name}': {start}{' or '.join(wanted)}, but got {error['input']!r}."


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(_plain(item) for item in value)
    if isinstance(value, enum.Enum):
        return _plain(value.value)
    if isinstance(value, Path):
        return str(value)
    return value
