"""The lines of a failure's section, of which there is only room for so many."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_netpoll.report import wording


class Screen:
    """Collects lines that fit before those at the end; counts those that did not fit. lines: of all.
    report: the path of the file that has them all, if it was asked for.
    """

    def __init__(self, end: list[str], lines: int, report: object = None) -> None:
        self.left_out = 0
        self._most = lines
        self._report = report
        self._reserved = 0
        self.explains_cut_stacks = False
        self._lines: list[str] = []
        self._end = end

    @property
    def room(self) -> int:
        """Lines."""
        return self._most - 1 - len(self._end) - len(self._lines) - self._reserved

    def reserve(self, own: int, others: Sequence[int]) -> None:
        """Keeps lines free for the services that come later, whose first lines are worth more than this
        one's last. own: what this one needs. others: what each of those does.
        """
        self._reserved = 0
        for lines in others:
            if own + self._reserved + lines > self.room + self._reserved:
                break
            self._reserved += lines

    def add(self, block: list[str], at_least: int | None = None, reserved: int = 0) -> bool:
        """Adds a block; returns whether it fit. at_least: this many lines of it are better than none.
        reserved: lines that have to stay free.
        """
        room = max(self.room - reserved, 0)
        if len(block) <= room or (at_least is not None and at_least <= room):
            self._lines += block[:room]
            self.left_out += len(block[room:])
            return True
        self.left_out += len(block)
        return False

    def text(self) -> str:
        where = wording.one_line(f"{self._report or '--netpoll-html=FILE'}")
        lines = "line" if self.left_out == 1 else "lines"
        more = [f"… {self.left_out:,} more {lines}; {where} shows all"] if self.left_out else []
        return "\n".join([*self._lines, *more, *self._end])
