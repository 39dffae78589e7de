"""Checks of what the plans' JSON holds: each takes a value and gives the one to keep, or raises ValueError(what is allowed)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from typing import Any

Triple = tuple[int, int, int]


def number(low: float, high: float = math.inf) -> Callable[[Any], float]:
    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise ValueError(f"a number from {low}" + (f" to {high}" if math.isfinite(high) else " up"))
        return float(value)

    return check


def integer(low: int, high: float = math.inf) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"an integer from {low}" + (f" to {high}" if math.isfinite(high) else " up"))
        return value

    return check


def one_of(*allowed: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in allowed:
            raise ValueError(f"one of {', '.join(allowed)}")
        return value

    return check


def string(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a string")
    return value


def orientation(value: Any) -> str:
    axes = ["RLAPSI".find(letter) // 2 for letter in value] if isinstance(value, str) else []
    if sorted(axes) != [0, 1, 2]:
        raise ValueError("three letters, one of R and L, one of A and P, one of S and I")
    return value


def boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def optional(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else check(value)


def list_of(check: Callable[[Any], Any], length: int | None = None) -> Callable[[Any], tuple]:
    of = f"a list{f' of {length}' if length else ''}, each "

    def check_list(value: Any) -> tuple:
        if isinstance(value, (str, Mapping)) or not isinstance(value, Sequence) or length not in (None, len(value)):
            raise ValueError(of + _allowed(check))
        try:
            return tuple(check(item) for item in value)
        except ValueError as error:
            raise ValueError(of + str(error)) from None

    return check_list


def _allowed(check: Callable[[Any], Any]) -> str:
    try:
        check(object())
    except ValueError as error:
        return str(error)
    return "anything"


def dict_of(check: Callable[[Any], Any]) -> Callable[[Any], dict]:
    def check_dict(value: Any) -> dict:
        if not isinstance(value, Mapping):
            raise ValueError("an object")
        try:
            return {str(key): check(item) for key, item in value.items()}
        except ValueError as error:
            raise ValueError(f"an object whose values are each {error}") from None

    return check_dict


def window(value: Any) -> tuple[float, float]:
    low, high = list_of(number(-math.inf), 2)(value)
    if low >= high:
        raise ValueError("[low, high] with low < high")
    return low, high


def strides(value: Any) -> tuple[Triple, ...]:
    triples = list_of(list_of(integer(1, 2), 3))(value)
    if not triples:
        raise ValueError("at least one triple of 1 and 2")
    return triples


shape = list_of(integer(1), 3)


def record(cls: type, *required: str) -> Callable[[Any], Any]:
    """A dataclass whose fields are made with `spec`; the keys in `required` must be given."""

    def check(value: Any) -> Any:
        checks = {f.name: f.metadata["check"] for f in dataclasses.fields(cls)}
        if isinstance(value, cls):
            value = dataclasses.asdict(value)
        if not isinstance(value, Mapping) or not set(required) <= set(value) <= set(checks):
            raise ValueError(f"an object with {', '.join(checks)}")
        try:
            return cls(**{name: checks[name](item) for name, item in value.items()})
        except ValueError as error:
            raise ValueError(f"an object with {', '.join(checks)}, each {error}") from None

    return check


def spec(default: Any, check: Callable[[Any], Any]) -> Any:
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata={"check": check})
    return field(default=default, metadata={"check": check})
