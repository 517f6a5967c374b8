"""A frozen dataclass from a table of TOML, strictly: every mistake is a ConfigError with its dotted path."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from hardening.errors import ConfigError


def unknown(path: str, key: str, known: Iterable[str]) -> ConfigError:
    """The error for a `key` at `path` that is none of `known`."""
    known = list(known)
    close = difflib.get_close_matches(key, known, 1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return ConfigError(f"{path}.{key}".lstrip("."), f"unknown key; {hint}known: {', '.join(known)}")


def read(value: Any, wanted: Any, path: str) -> Any:
    """`value`, which stands at `path`, as the type `wanted`. Raises ConfigError."""
    origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        inner = tuple(choice for choice in inner if choice is not types.NoneType)  # what is none, TOML leaves out
        if len(inner) == 1:
            return read(value, inner[0], path)
        for choice in inner:
            try:
                return read(value, choice, path)
            except ConfigError:
                continue
        raise ConfigError(path, f"wrong type: {value!r}")
    if origin is typing.Literal:
        if value not in inner:
            raise ConfigError(path, f"must be one of {', '.join(map(repr, inner))}, not {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(path, f"must be a list, not {value!r}")
        return tuple(read(v, inner[0], f"{path}[{i}]") for i, v in enumerate(value))
    if isinstance(wanted, type) and dataclasses.is_dataclass(wanted):
        return build(wanted, table(value, path), path)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if wanted in (str, int, float, bool) and type(value) is wanted:
        return value
    names = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}
    raise ConfigError(path, f"must be {names.get(wanted, str(wanted))}, not {value!r}")


def table(value: Any, path: str) -> dict[str, Any]:
    """`value`, which must be a table. Raises ConfigError."""
    if not isinstance(value, dict):
        raise ConfigError(path, f"must be a table, not {value!r}")
    return value


def build(kind: type[Any], values: dict[str, Any], path: str, given: Mapping[str, Any] | None = None) -> Any:
    """A dataclass from a table of `values`; `given` are fields that were decoded already. Raises ConfigError."""
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    found = dict(given or {})
    for key, value in values.items():
        if key not in fields:
            raise unknown(path, key, fields)
        if key not in found:
            found[key] = read(value, hints[key], f"{path}.{key}")
    for name, f in fields.items():
        needed = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if needed and name not in found:
            raise ConfigError(f"{path}.{name}", "missing")
    try:
        return kind(**found)
    except ConfigError:
        raise
    except ValueError as problem:
        name, _, rest = str(problem).partition(": ")
        raise ConfigError(
            f"{path}.{name}" if name in fields else path, rest if name in fields else str(problem)
        ) from None
