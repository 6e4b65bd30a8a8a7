"""Checks JSON by types: a TypedDict is the schema of a file, or of a message from the agent."""

from __future__ import annotations

import functools
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict


def wrong(value: object, wanted: Any, where: str = "") -> str | None:
    """Why the JSON value isn't of the type, with the place inside it; None if it is.

    wanted: a TypedDict, list[…], dict[str, …], Literal[…], Any, str, int, float, bool, or a union of those
    and None. Keys that a TypedDict does not have are ignored.
    """
    if wanted is Any or type(value) is wanted:  # most are of a plain type, and every window is checked
        return None
    origin, arguments = _taken_apart(wanted)
    if origin in (Union, types.UnionType):
        complaints = [wrong(value, option, where) for option in arguments]
        return None if None in complaints else complaints[0]
    if origin is Literal:
        return None if value in arguments else _complaint(where, " or ".join(map(repr, arguments)), value)
    kind = dict if is_typeddict(wanted) else origin or wanted
    # In Python True is an int; in JSON it isn't. And 1 is a float, too.
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        return _complaint(where, _KINDS.get(kind, "null"), value)
    if isinstance(value, list):
        if arguments[0] is Any:  # there may be 10,000 rows of them
            return None
        for index, item in enumerate(value):
            if wrong(item, arguments[0]) is not None:  # to name the place of each takes most of the time
                return wrong(item, arguments[0], f"{where}[{index}]")
        return None
    if is_typeddict(wanted):
        assert isinstance(value, dict)
        hints = _fields(wanted)
        missing = sorted(wanted.__required_keys__ - value.keys())
        if missing:
            return f"{where or 'it'} has no {missing[0]!r}"
        parts = [(value[key], hints[key], f"{where}.{key}".lstrip(".")) for key in hints if key in value]
    elif isinstance(value, dict):
        parts = [(item, arguments[1], f"{where}.{key}") for key, item in value.items()]
    else:
        return None
    found = (wrong(*part) for part in parts)
    return next((complaint for complaint in found if complaint is not None), None)


@functools.cache  # these two are slow, but called for every frame of every stack
def _fields(wanted: Any) -> dict[str, Any]:
    return get_type_hints(wanted)


@functools.cache
def _taken_apart(wanted: Any) -> tuple[Any, tuple[Any, ...]]:
    return get_origin(wanted), get_args(wanted)


_KINDS = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "an integer",
    float: "a number",
    bool: "true or false",
}


def _complaint(where: str, expected: str, value: object) -> str:
    return f"{where or 'it'}: expected {expected}, got {value!r:.60}"
