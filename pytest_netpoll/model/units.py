"""Quantities as users write and read them: "5ms", "5%", 15,000.

The canonical value of a quantity depends on its unit: "ns" nanoseconds, "s" seconds, "share" a
fraction in 0..1, "ratio" any number >= 0, "count" an integer >= 0.

A bare number that could mean two things is refused: a time has a unit, and a share of 1 is written
"1%" or "100%".
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from fractions import Fraction
from typing import Literal

Unit = Literal["count", "ratio", "share", "ns", "s"]

NOT_MEASURED = "–"  # noqa: RUF001 - an en dash, so that it cannot be read as a minus sign

_NANOSECONDS = {
    "ns": 1,
    "us": 10**3,
    "\u00b5s": 10**3,  # the micro sign of keyboards
    "\u03bcs": 10**3,  # the Greek letter, which Go accepts, too
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
}
_NUMBER = r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+"
_TIME = re.compile(rf"({_NUMBER})\s*({'|'.join(_NANOSECONDS)})")
_PLAIN = re.compile(_NUMBER)
_PERCENT = re.compile(rf"({_NUMBER})\s*%")
_INTEGER = re.compile(r"[0-9]+")
_EXAMPLE = '"5ms", "250us", "1.5s" or a timedelta'


def positive(text: str) -> int:
    """Parses a positive integer, digits only. Raises ValueError."""
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise ValueError(f"{text!r} is not an integer > 0")
    return int(text)


def parse(value: object, unit: Unit) -> int | float:
    """The canonical value of `value`; ValueError says what is wrong with it and what to write.

    Numbers may also be text, because an ini file has nothing else.
    """
    if isinstance(value, bool):
        raise ValueError(f"{value} is not a number")
    if isinstance(value, str):
        value = value.strip()
    try:
        if unit == "count":
            return _parse_count(value)
        if unit == "ns":
            return parse_time(value)
        if unit == "s":
            return _parse_seconds(value)
        if unit == "share":
            return _parse_share(value)
        return _parse_number(value, "a number >= 0, such as 1.5")
    except OverflowError:
        raise ValueError(f"{value!r:.60} is too large") from None


def parse_time(value: object) -> float:
    """Nanoseconds of "5ms", "250us", "1.5s", "1m" or a timedelta; a bare number has no unit: ValueError."""
    if isinstance(value, timedelta):
        if value < timedelta(0):
            raise ValueError(f"{value} is negative")
        return float(value // timedelta(microseconds=1) * 1000)
    if isinstance(value, str):
        match = _TIME.fullmatch(value.strip())
        if match:
            # Fraction, so that "1.1ms" is 1100000 and not 1100000.0000000002.
            return float(Fraction(match[1]) * _NANOSECONDS[match[2]])
    meant = _with_unit(number_in(value))
    if meant is not None:
        raise ValueError(f"{value!r} has no unit: write {meant}")
    raise ValueError(f"{value!r:.60} is not a time: write {_EXAMPLE}")


def number_in(value: object) -> float | None:
    """The finite number >= 0, given as such or as text; None for anything else, such as "5ms"."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    if isinstance(value, str) and not _PLAIN.fullmatch(value.strip()):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if 0 <= number < math.inf else None


def _with_unit(number: float | None) -> str | None:
    """The time that a bare number most likely means, and its unit; None if it is hardly a time."""
    if number is None or not (number == 0 or 1e-9 <= number < 1e15):
        return None
    # Small fractions are likely seconds, as elsewhere in Python; large numbers ns, as in reports.
    unit, name = ("s", "seconds") if 0 < number < 1 else ("ms", "milliseconds")
    if number >= 10**5:
        unit, name = "ns", "nanoseconds"
    # From its digits: 0.005 is 5/1000, not the float's exact value.
    ns = Fraction(repr(number)) * _NANOSECONDS[unit]
    fitting = "ms" if unit == "ms" else next((u for u in ("s", "ms", "us") if ns >= _NANOSECONDS[u]), "ns")
    return f'"{float(ns / _NANOSECONDS[fitting]):.12g}{fitting}" if it is in {name}'


def _parse_seconds(value: object) -> float:
    if isinstance(value, (int, float)) or (isinstance(value, str) and _PLAIN.fullmatch(value)):
        return _parse_number(value, "seconds")
    return parse_time(value) / 1e9


def _parse_count(value: object) -> int:
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        value = int(value)
    if not isinstance(value, int):
        raise ValueError(f"{value!r} is not a count: write an integer >= 0")
    if value < 0:
        raise ValueError(f"{value} is negative")
    float(value)  # OverflowError: more than a float can hold
    return value


def _parse_share(value: object) -> float:
    wanted = 'a number in 0..1 or a percentage such as "5%"'
    percent = _PERCENT.fullmatch(value) if isinstance(value, str) else None
    share = float(Fraction(percent[1]) / 100) if percent else _parse_number(value, wanted)
    if share == 1 and not percent:
        raise ValueError(f'{value!r} may mean 1 % or all: write "1%" or "100%"')
    if share > 1:
        meant = f'"{share:g}%"' if not percent and share <= 100 else wanted
        raise ValueError(f"{value!r:.60} is out of range: write {meant}")
    return share


def _parse_number(value: object, wanted: str) -> float:
    if isinstance(value, str) and not _PLAIN.fullmatch(value):
        raise ValueError(f"{value!r} is not {wanted}")
    if not isinstance(value, (str, int, float)):
        raise ValueError(f"{value!r} is not {wanted}")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not finite")
    if number < 0:
        raise ValueError(f"{value!r} is negative")
    return number


def show(value: int | float | None, unit: Unit, digits: int | None = None) -> str:
    """`value` for people: 15,000 · 4.8 % · 1.03 · 1.2 ms · 0.34 s; an en dash for None.

    digits: after the decimal point, if the unit's usual number hides what matters.
    """
    if value is None:
        return NOT_MEASURED
    if unit == "count":
        return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits or 0}f}"
    if unit == "share":
        return f"{value * 100:.{1 if digits is None else digits}f} %"
    if unit == "ratio":
        return f"{value:,.{2 if digits is None else digits}f}"
    if unit == "s":
        return f"{value:,.{2 if digits is None else digits}f} s"
    return _show_nanoseconds(value, digits)


def show_changed(one: int | float, other: int | float, unit: Unit) -> tuple[str, str]:
    """Both values, told apart; seconds in milliseconds if both are below 0.1 s."""
    if unit == "s" and max(one, other) < 0.1:
        one, other, unit = one * 1e9, other * 1e9, "ns"
    return show_apart(one, other, lambda value, digits: show(value, unit, digits))


def show_apart(
    one: int | float, other: int | float, show: Callable[[int | float, int | None], str]
) -> tuple[str, str]:
    """Both values, with enough digits to tell them apart: not "5.0 % > max 5.0 %"."""
    for digits in (None, *range(2, 10)):
        shown = show(one, digits), show(other, digits)
        if shown[0] != shown[1]:
            return shown
    return repr(one), repr(other)


def _show_nanoseconds(value: int | float, digits: int | None) -> str:
    text = f"{value:.{digits or 0}f}"
    if float(text) < 1000:
        return f"{text} ns"
    digits = 1 if digits is None else digits
    for scale, name in ((1e3, "µs"), (1e6, "ms")):
        text = f"{value / scale:.{digits}f}"
        # Compare after rounding: 999.96 µs is "1.0 ms", not "1000.0 µs".
        if float(text) < 1000:
            return f"{text} {name}"
    return f"{value / 1e9:,.{digits}f} s"


def show_sum(total: float, parts: Mapping[str, float]) -> str:
    """ "88.1 ms = 9.7 poll delay + 78.4 wake-to-run", of times in ns; the parts add up as shown. The largest
    part absorbs the rounding; parts that round to 0 are left out.
    """
    text = _show_nanoseconds(total, 1)
    whole, _, unit = text.partition(" ")
    # In tenths of the unit.
    left = round(float(whole.replace(",", "")) * 10)
    shown = {name: round(ns / _NANOSECONDS[unit] * 10) for name, ns in parts.items()}
    if shown:
        largest = max(shown, key=lambda name: shown[name])
        shown[largest] += left - sum(shown.values())
    texts = [f"{tenths / 10:,.1f} {name}" for name, tenths in shown.items() if tenths]
    return f"{text} = {' + '.join(texts)}" if texts else text
