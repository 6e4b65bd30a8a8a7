"""Fits text into a terminal's width: tables, paragraphs and names."""

from __future__ import annotations

import re
import textwrap
import unicodedata
from collections.abc import Mapping, Sequence

from tabulate import tabulate

from pytest_netpoll.report import wording

_JOINER = "\u2060"
_UNBROKEN = "\u00a0"
# A command in a fix, up to the punctuation behind it.
_COMMAND = re.compile(r"(?<!\S)(?:sudo|pip|docker|python3?|apt-get|dnf|/\S+)(?: [^\s,;…]+)+")
_TEST_CELLS = 20  # columns that a test's name gets before less important columns get any
_LEAST_TEST_CELLS = 12  # columns that it gets in any case


def layout(
    names: Sequence[str],
    columns: Mapping[str, Sequence[str]],
    width: int,
    dropped_first: Sequence[str],
    first: str = "test",
) -> str:
    """A table of tests, not wider than `width` if possible: heading -> cells, the names shortened.

    dropped_first: headings of columns that are left out, in this order, before names become too short.
    first: the heading of the names.
    """
    columns = fitting(names, columns, width, dropped_first)
    # A table that is too wide is better than names that look the same.
    room = max(_room(columns, width), min(max(map(width_of, names)), _LEAST_TEST_CELLS))
    table = {first: [shorten(name, room) for name in names], **columns}
    left = (first, "service", "verdict")
    # The headings as a row: tabulate's own are two columns wider than needed.
    cells = [[heading, "-" * _width(heading, column), *column] for heading, column in table.items()]
    return tabulated(
        list(zip(*cells, strict=True)), ["left" if heading in left else "right" for heading in table]
    )


def fitting(
    names: Sequence[str], columns: Mapping[str, Sequence[str]], width: int, dropped_first: Sequence[str]
) -> dict[str, Sequence[str]]:
    """The columns that `layout` shows."""
    kept = dict(columns)
    for heading in dropped_first:
        if not fits(names, kept, width):
            kept.pop(heading, None)
    return kept


def fits(
    names: Sequence[str], columns: Mapping[str, Sequence[str]], width: int, shortest: int = _TEST_CELLS
) -> bool:
    """Whether there is room for all columns beside the names. shortest: they may be cut to so many cells."""
    return _room(columns, width) >= min(max(map(width_of, names)), shortest)


def tabulated(rows: Sequence[Sequence[str]], align: Sequence[str]) -> str:
    # tabulate knows wide characters only if wcwidth is installed. With a word joiner, which has no width,
    # after each of them, the padding is the same either way.
    padded = [
        ["".join(char + _JOINER * (width_of(char) - 1) for char in cell) for cell in row] for row in rows
    ]
    table = tabulate(padded, tablefmt="plain", disable_numparse=True, colalign=align)
    return "\n".join(line.rstrip() for line in table.replace(_JOINER, "").splitlines())


def _room(columns: Mapping[str, Sequence[str]], width: int) -> int:
    """The width left for the test's name, with two blanks before each other column."""
    return width - sum(_width(heading, cells) + 2 for heading, cells in columns.items())


def _width(heading: str, cells: Sequence[str]) -> int:
    return max(map(width_of, [heading, *cells]))


def wrap(text: str, width: int, indent: str = "", hang: str = "  ") -> list[str]:
    """Wraps text. hang: prefix of all lines but the first, after the indent."""
    # Don't break long words: paths and commands can be copied if they are whole.
    return textwrap.wrap(
        text,
        max(width, 20),
        initial_indent=indent,
        subsequent_indent=f"{indent}{hang}",
        break_long_words=False,
        break_on_hyphens=False,
    )


def wrap_fix(text: str, width: int, indent: str = "", hang: str = "  ") -> list[str]:
    """ "fix: …", wrapped, but not within a command: one that is pasted with line breaks doesn't run."""
    whole = _COMMAND.sub(lambda command: command[0].replace(" ", _UNBROKEN), f"fix: {text}")
    return [line.replace(_UNBROKEN, " ") for line in wrap(whole, width, indent, hang)]


def shorten(nodeid: str, cells: int) -> str:
    """Shortens a nodeid to `cells` columns; keeps the test's name as long as possible, and both ends of a
    long name.
    """
    nodeid = wording.one_line(nodeid)
    if width_of(nodeid) <= cells:
        return nodeid
    # Parameters may hold "::" themselves: [::1].
    test, bracket, parameters = nodeid.partition("::")[2].partition("[")
    name = (test.rpartition("::")[2] + bracket + parameters) or nodeid
    if width_of(name) < cells:
        return cut(nodeid, cells)
    if bracket and cells >= 8:
        # The start identifies the test, the end its parameters.
        end = cut(name, cells - cells // 2)
        return _head(name, cells - width_of(end)) + end
    return cut(name, cells)


def cut(text: str, cells: int) -> str:
    """`text`, or "…" and its end, at most `cells` wide."""
    if width_of(text) <= cells:
        return text
    return "…" + _head(text[::-1], cells - 1)[::-1]


def _head(text: str, cells: int) -> str:
    while width_of(text) > cells:
        text = text[: min(cells, len(text) - 1)]
    return text


def width_of(text: str) -> int:
    """The columns that `text` takes in a terminal: Chinese and Japanese characters take two each."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)
