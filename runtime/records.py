"""Dataclasses from JSON objects, strictly."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def record(cls: type[T], data: Any, where: str, **convert: Callable[[Any], Any]) -> T:
    """A dataclass from a JSON object.

    Args:
        where: names the object in errors.
        convert: by field, what makes its value from the JSON value.

    Raises:
        TypeError: it is no object.
        ValueError: fields are unknown or missing.
    """
    data = mapping(data, where)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := set(data) - set(fields):
        raise ValueError(f"{where}: unknown fields {sorted(unknown)}")
    required = {n for n, f in fields.items() if f.default is dataclasses.MISSING}
    if missing := required - set(data):
        raise ValueError(f"{where}: missing fields {sorted(missing)}")
    return cls(**{n: convert[n](v) if n in convert else v for n, v in data.items()})


def mapping(data: Any, where: str) -> Mapping[str, Any]:
    """The same value, if it is a JSON object; else raises TypeError."""
    if not isinstance(data, Mapping):
        raise TypeError(f"{where}: expected an object, got {type(data).__name__}")
    return data
