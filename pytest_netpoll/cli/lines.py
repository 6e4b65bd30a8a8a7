"""Prints lists and texts of commands: wrapped on a terminal; a line for each entry if programs read them."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from collections.abc import Sequence

from pytest_netpoll.report.cells import tabulated, width_of, wrap

DOCS = "https://github.com/pytest-netpoll/pytest-netpoll/blob/main/docs"
_GAP = 2  # between columns
_LEAST_TEXT = 20  # columns; a narrower terminal wraps lines itself


class Help(argparse.HelpFormatter):
    """Keeps names with hyphens on one line, so that they can be copied."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


def terminal_width() -> int | None:
    """The columns of the terminal; None without one."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def paragraph(text: str) -> list[str]:
    """The text's lines."""
    width = terminal_width()
    return [text] if width is None else wrap(text, width, hang="")


def say(text: str) -> None:
    """Prints each line of the text as a paragraph; indented ones are commands, and stay whole."""
    for line in text.splitlines():
        print("\n".join([line] if line.startswith(" ") else paragraph(line)))


def print_rows(rows: Sequence[Sequence[str]]) -> None:
    """Prints a table; the last column is text, wrapped into the terminal's width."""
    width = terminal_width()
    columns = list(zip(*rows, strict=True))[:-1]
    before = sum(max(map(width_of, column)) + _GAP for column in columns)
    if width is not None and width - before >= _LEAST_TEXT:
        rows = [line for row in rows for line in _wrapped(row, width - before)]
    print(tabulated(rows, ["left"] * len(rows[0])))


def _wrapped(row: Sequence[str], width: int) -> list[list[str]]:
    *cells, text = row
    first, *others = wrap(text, width, hang="") or [""]
    return [[*cells, first], *([""] * len(cells) + [line] for line in others)]
