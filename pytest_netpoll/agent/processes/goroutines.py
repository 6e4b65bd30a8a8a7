"""Which goroutines of a process are parked on descriptors, and where: read from its memory, while it runs.

A pollDesc holds the g that it will wake. A parked g holds where it parked (g.sched), and frame pointers lead
from there to the goroutine's outermost frame. The process may have written anything there: numbers from it
are used only as addresses in its memory, and every chain has a bound.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from bpf import layouts
from processes import proc

# runtime.g, in words of 8 bytes. Go 1.19 to 1.27 have the first five in common (runtime2.go).
_LOW, _HIGH = 0, 1  # the bounds of its stack
_SP, _PC, _SELF = 7, 8, 9  # gobuf; its last word is the g itself
# The frame pointer follows gobuf.lr, which is 0; until Go 1.24 it is in the second of these words.
_BP = (12, 13)
# atomicstatus, by its place; then goid, and waitreason. Go 1.23 and 1.24 have one word more.
_STATUS = (18, 19)
_GOID, _REASON = 1, 4
_G = struct.Struct("<24Q")

_WAITING, _SCANNED = 4, 0x1000  # _Gwaiting, _Gscan
_PARKED = 2  # a larger value in pollDesc.rg and .wg is a *g
_FRAME = struct.Struct("<QQ")
_DEEPEST = 64  # frames
_LARGEST = 32 << 10  # bytes to read of a stack
_MOST = 1 << 20  # goroutines
_MOST_KNOWN = 1 << 16  # addresses to remember
_MOST_SHAPES = 16


class Parked(NamedTuple):
    """A parked goroutine. goid: None if unknown. write: whether it waits to write. stack: addresses,
    innermost first, empty if the goroutine's memory isn't as expected.
    """

    g: int
    goid: int | None
    fd: int
    write: bool
    stack: tuple[int, ...]


class _Shape:
    """Where on a stack its frames are, up to the outermost: the same for goroutines with the same calls."""

    def __init__(self, places: Sequence[int], callers: tuple[int, ...]) -> None:
        gaps = [places[i] - places[i - 1] - _FRAME.size for i in range(1, len(places))]
        self._frames = struct.Struct("<" + "".join(f"QQ{gap}x" for gap in gaps) + "QQ")
        self._places = tuple(places[1:])
        self.callers = callers

    def fits(self, data: bytes, bp: int) -> bool:
        """Whether the stack, from the frame at bp on, has this shape."""
        if len(data) < self._frames.size:
            return False
        words = self._frames.unpack_from(data)
        frames = tuple([word - bp for word in words[:-2:2]])
        return words[1::2] == self.callers and frames == self._places and not words[-2]


class Unreadable(Exception):
    """The process's memory cannot be read; the message says why."""


class Code:
    """The addresses at which a process has code. shapes: those of stacks seen before, by their innermost
    frame.
    """

    def __init__(self, mappings: Sequence[proc.Mapping]) -> None:
        self.shapes: dict[int, list[_Shape]] = {}
        ordered = sorted((m.start, m.end) for m in mappings)
        self._starts = [start for start, _ in ordered]
        self._ends = [end for _, end in ordered]
        self._known: dict[int, bool] = {}

    def has(self, address: int) -> bool:
        known = self._known.get(address)
        if known is None:
            if len(self._known) >= _MOST_KNOWN:  # a process may invent addresses
                self._known.clear()
                self.shapes.clear()
            at = bisect_right(self._starts, address) - 1
            known = self._known[address] = at >= 0 and address < self._ends[at]
        return known


def parked_at(memory: proc.Memory, g: int, code: Code) -> tuple[int, ...] | None:
    """The stack of a parked g, as addresses, innermost first; None if it isn't parked any more."""
    found = _goroutine(memory, g, code)
    return None if found is None else found[1]


def parked(
    pid: int, epfd: int, layout: layouts.Layout, signed: bool, mappings: Sequence[proc.Mapping]
) -> list[Parked]:
    """The goroutines that are parked on descriptors now. Raises Unreadable.

    epfd, layout: from calibration. mappings: the process's code.
    """
    code = Code(mappings)
    found: list[Parked] = []
    try:
        memory = proc.Memory(pid)
    except OSError as error:
        raise Unreadable(f"its memory cannot be read: {error.strerror or error}") from error
    with memory:
        for registration in proc.registrations(pid, epfd)[:_MOST]:
            if registration.events != layouts.GO_EVENTS:
                continue
            address = layouts.address(layout, registration.data, signed)
            for write, g in enumerate(_waiters(memory, layout, address, registration)):
                if g > _PARKED:
                    goroutine = _goroutine(memory, g, code)
                    # A goroutine that was woken meanwhile isn't parked there any more.
                    if goroutine is None:
                        now = _waiters(memory, layout, address, registration)
                        if now[write] != g:
                            continue
                        goroutine = _goroutine(memory, g, code) or (None, ())
                    found.append(Parked(g, goroutine[0], registration.fd, bool(write), goroutine[1]))
    return found


def _waiters(
    memory: proc.Memory, layout: layouts.Layout, address: int, registration: proc.Registration
) -> tuple[int, int]:
    """The words for the pollDesc's reader and writer; (0, 0) if it isn't this descriptor's."""
    raw = memory.read(address, layouts.POLLDESC.size)
    if raw is None:
        return 0, 0
    words = layouts.POLLDESC.unpack(raw)
    if not layouts.holds(layout, registration.data, registration.fd, words):
        return 0, 0
    return words[layout.waiters], words[layout.waiters + 1]


def _goroutine(memory: proc.Memory, g: int, code: Code) -> tuple[int | None, tuple[int, ...]] | None:
    """(goid, stack) of a parked g; None if it isn't one."""
    raw = memory.read(g, _G.size)
    if raw is None:
        return None
    words = _G.unpack(raw)
    status = next((at for at in _STATUS if words[at] & ~_SCANNED == _WAITING), None)
    low, high, sp, pc = words[_LOW], words[_HIGH], words[_SP], words[_PC]
    if status is None or words[_SELF] != g or not low < sp < high or not code.has(pc):
        return None
    bp = next((words[at] for at in _BP if low < words[at] < high), 0)
    return words[status + _GOID], (pc, *_callers(memory, pc, bp, high, code))


def _callers(memory: proc.Memory, pc: int, bp: int, high: int, code: Code) -> tuple[int, ...]:
    """The return addresses, following the frame pointers from bp on. high: the end of the stack."""
    size = min(high - bp, _LARGEST)
    data = memory.read(bp, size) if bp else None
    if data is None:
        return ()
    known = code.shapes.setdefault(pc, [])
    for shape in known:
        if shape.fits(data, bp):
            return shape.callers
    found: list[int] = []
    places, outer = [0], 0
    while 0 <= places[-1] <= size - _FRAME.size and len(found) < _DEEPEST:
        outer, address = _FRAME.unpack_from(data, places[-1])
        if not code.has(address):
            break
        found.append(address)
        if outer - bp < places[-1] + _FRAME.size:  # a caller's frame lies above its callee's
            break
        places.append(outer - bp)
    if found and not outer and len(known) < _MOST_SHAPES:
        known.append(_Shape(places[: len(found)], tuple(found)))
    return tuple(found)
