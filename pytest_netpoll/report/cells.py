"""Text for a terminal: tables, paragraphs and names that take no more columns than there are."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Mapping, Sequence

from tabulate import tabulate

from pytest_netpoll.report import wording

_JOINER = "\u2060"
_TEST_CELLS = 20  # what a test's name gets before less important columns do


def layout(
    names: Sequence[str],
    columns: Mapping[str, Sequence[str]],
    width: int,
    dropped_first: Sequence[str],
    first: str = "test",
) -> str:
    """A table of tests, not wider than `width`: heading -> cells, the names shortened.

    dropped_first: headings of columns that are left out, in this order, before names become too short.
    first: the heading of the names.
    """
    columns = dict(columns)
    wanted = min(max(map(width_of, names)), _TEST_CELLS)
    for heading in dropped_first:
        if _room(columns, width) < wanted:
            columns.pop(heading, None)
    room = max(_room(columns, width), 1)
    table = {first: [shorten(name, room) for name in names], **columns}
    left = (first, "service", "verdict")
    # The headings as a row: tabulate's own take two columns more than they need.
    cells = [[heading, "-" * _width(heading, column), *column] for heading, column in table.items()]
    return tabulated(
        list(zip(*cells, strict=True)), ["left" if heading in left else "right" for heading in table]
    )


def tabulated(rows: Sequence[Sequence[str]], align: Sequence[str]) -> str:
    # tabulate knows of wide characters only where wcwidth is installed. With a word joiner, which is
    # of no width, after each of them it comes to the same padding either way.
    padded = [
        ["".join(char + _JOINER * (width_of(char) - 1) for char in cell) for cell in row] for row in rows
    ]
    table = tabulate(padded, tablefmt="plain", disable_numparse=True, colalign=align)
    return "\n".join(line.rstrip() for line in table.replace(_JOINER, "").splitlines())


def _room(columns: Mapping[str, Sequence[str]], width: int) -> int:
    """What the other columns leave for the test, with two blanks before each."""
    return width - sum(_width(heading, cells) + 2 for heading, cells in columns.items())


def _width(heading: str, cells: Sequence[str]) -> int:
    return max(map(width_of, [heading, *cells]))


def wrap(text: str, width: int, indent: str = "", hang: str = "  ") -> list[str]:
    """hang: what goes before all lines but the first, behind the indent."""
    # Long words are paths and commands: whole they can be copied.
    return textwrap.wrap(
        text,
        max(width, 20),
        initial_indent=indent,
        subsequent_indent=f"{indent}{hang}",
        break_long_words=False,
        break_on_hyphens=False,
    )


def shorten(nodeid: str, cells: int) -> str:
    """At most `cells` wide; of a test the name survives longest, and of a long name both ends."""
    nodeid = wording.one_line(nodeid)
    if width_of(nodeid) <= cells:
        return nodeid
    # Parameters may hold "::" themselves: [::1].
    test, bracket, parameters = nodeid.partition("::")[2].partition("[")
    name = (test.rpartition("::")[2] + bracket + parameters) or nodeid
    if width_of(name) < cells:
        return cut(nodeid, cells)
    if bracket and cells >= 8:
        # The start says which test it is, the end which of its parameters.
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
    """Columns of a terminal that `text` takes: Chinese and Japanese take two each."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)
