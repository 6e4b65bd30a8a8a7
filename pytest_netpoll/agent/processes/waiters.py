"""Which goroutines of a process wait for a sync.Mutex or sync.RWMutex: read from its memory, while it runs.

The runtime keeps every goroutine in an array that only grows, and notes in g.waitreason why one is parked.
The process may have written anything there: numbers from it are used only as addresses in its memory.
"""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING, NamedTuple

from processes.ranges import Ranges

if TYPE_CHECKING:
    from counters.scheduler_memory import Layout
    from processes import proc

_SELF = 72  # g.sched.g, in Go 1.19 to 1.27: the address of the g itself
_WAITING = 4  # the low byte of g.atomicstatus; another one says whether the GC scans its stack
_MOST = 1 << 18  # goroutines
_MOST_G = 1 << 10  # bytes into a g; Go's members are below 512
_MOST_BYTES = 1 << 27  # of all of them; _MOST real ones take 118 MB
_NEAR = 1024  # bytes between two goroutines that are read together
_SAMPLE = 8  # waiting goroutines to name in each look
_MOST_GROUPS = 16  # of goroutines, before all are arranged anew
_LOWEST, _HIGHEST = 1 << 12, 1 << 48  # addresses


class Waiting(NamedTuple):
    """goroutines: how many wait. sample: the addresses of the g of some of them."""

    goroutines: int
    sample: list[int]


class _Group(NamedTuple):
    """Goroutines that are read together. gs: their addresses, in order. places: of each in what is read, also
    as (first, behind the last, step).
    """

    gs: list[int]
    ranges: Ranges
    places: list[int]
    strides: list[tuple[int, int, int]]

    def column(self, data: bytes | bytearray, offset: int) -> bytes:
        """The byte at this offset of each goroutine."""
        return b"".join([data[first + offset : end + offset : step] for first, end, step in self.strides])


class Waiters:
    """Looks at one process again and again. bias: what to add to link-time addresses."""

    def __init__(self, pid: int, layout: Layout, bias: int) -> None:
        self._pid = pid
        self._layout = layout
        self._bias = bias
        self._first = min(_SELF, layout.gstatus)
        self._size = max(_SELF + 8, layout.gstatus + 4, layout.waitreason + 1) - self._first
        reasons = (layout.mutex_reason, layout.rlock_reason, layout.lock_reason)
        self._is_reason = bytes(byte in reasons for byte in range(256))
        self._is_waiting = bytes(byte == _WAITING for byte in range(256))
        self._seen = 0  # goroutines in the runtime's array
        self._groups: list[_Group] = []

    def look(self, memory: proc.Memory) -> Waiting | None:
        """Who waits now; None if the memory isn't plausible."""
        if not self._follow(memory):
            return None
        waiting: list[int] = []
        for group in self._groups:
            data = group.ranges.read(memory)
            if data is None:
                return None
            reasons = group.column(data, self._layout.waitreason - self._first).translate(self._is_reason)
            if 1 in reasons:
                statuses = group.column(data, self._layout.gstatus - self._first).translate(self._is_waiting)
                # A byte for each goroutine: 1 if both are.
                both = int.from_bytes(reasons, "little") & int.from_bytes(statuses, "little")
                found = re.finditer(b"\1", both.to_bytes(len(group.gs), "little"))
                waiting += [group.gs[match.start()] for match in found]
        return Waiting(len(waiting), random.sample(waiting, min(_SAMPLE, len(waiting))))

    def waits(self, memory: proc.Memory, g: int) -> bool:
        """Whether it still waits, and is a g at all."""
        data = memory.read(g + self._first, self._size)
        if data is None:
            return False
        reason, status = (data[at - self._first] for at in (self._layout.waitreason, self._layout.gstatus))
        itself = int.from_bytes(data[_SELF - self._first :][:8], "little") == g
        return bool(itself and self._is_reason[reason] and self._is_waiting[status])

    def _follow(self, memory: proc.Memory) -> bool:
        """Notices new goroutines. Returns whether the array is plausible."""
        # In this order: the runtime moves the array before it counts what is new.
        count = _word(memory, self._bias + self._layout.allglen)
        start = _word(memory, self._bias + self._layout.allgptr)
        if count is None or start is None or not self._seen <= count <= _MOST or self._size > _MOST_G:
            return False
        if count == self._seen:
            return True
        if len(self._groups) == _MOST_GROUPS:
            self._groups, self._seen = [], 0
        raw = memory.read(start + 8 * self._seen, 8 * (count - self._seen))
        gs = sorted(set(memoryview(raw).cast("Q"))) if raw is not None else []
        if len(gs) != count - self._seen or gs[0] < _LOWEST or gs[-1] > _HIGHEST or any(g % 8 for g in gs):
            return False
        group = self._group(gs)
        if group is None:
            return False
        self._groups.append(group)
        self._seen = count
        return True

    def _group(self, gs: list[int]) -> _Group | None:
        """None if it takes too much memory."""
        ranges: list[int] = []
        places: list[int] = []
        start = end = read = 0  # the current range, and the bytes of those before it
        for g in gs:
            first = g + self._first
            if first > end + _NEAR:
                ranges += start, end - start
                read += end - start
                start = first
            end = max(end, first + self._size)
            places.append(read + first - start)
        ranges += start, end - start
        if read + end - start + sum(map(len, (g.ranges for g in self._groups))) > _MOST_BYTES:
            return None
        # The first range is empty.
        return _Group(gs, Ranges(self._pid, ranges[2:]), places, _strides(places))


def _strides(places: list[int]) -> list[tuple[int, int, int]]:
    """Increasing numbers as (first, behind the last, step)."""
    found: list[tuple[int, int, int]] = []
    first = last = places[0]
    step = 0
    for place in places[1:]:
        if step in (0, place - last):
            step = place - last
        else:
            found.append((first, last + 1, step))
            first, step = place, 0
        last = place
    return [*found, (first, last + 1, step or 1)]


def _word(memory: proc.Memory, address: int) -> int | None:
    data = memory.read(address, 8)
    return None if data is None else int.from_bytes(data, "little")
