"""Which goroutines of a process are parked on descriptors, and where: read from its memory, while it runs.

A pollDesc holds the g that it will wake. A parked g holds where it parked (g.sched), and frame pointers lead
from there to the goroutine's outermost frame. The process may have written anything there: numbers from it
are used only as addresses in its memory, and every chain has a bound.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bpf import layouts
from processes import proc
from processes.ranges import Ranges

# runtime.g (runtime2.go), as Go 1.19 to 1.27 have it: the bounds of the stack; sp, pc and g of gobuf; two
# words of which one is gobuf's frame pointer, the second until Go 1.24; two of which one is atomicstatus, the
# second in Go 1.23 and 1.24. goid follows it.
_G = struct.Struct("<2Q 40x 3Q 16x 2Q 32x 3Q")

_WAITING, _SCANNED = 4, 0x1000  # _Gwaiting, _Gscan
_PARKED = 2  # a larger value in pollDesc.rg and .wg is a *g
_FRAME = struct.Struct("<QQ")
# Plain tuples, because there may be many. Where a goroutine is parked: its id, its pc, the address of its
# innermost frame (0 if unknown), and how many bytes of the stack lie from there on.
_Place = tuple[int, int, int, int]
# Who waits for a descriptor: the registration; the pollDesc's address, and itself; whether to write; the g.
_Waiter = tuple[proc.Registration, int, bytes, bool, int]
_NOWHERE: _Place = (0, 0, 0, 0)
_DEEPEST = 64  # frames
_LARGEST = 32 << 10  # bytes to read of a stack
_MOST = 1 << 20  # goroutines
_MOST_KNOWN = 1 << 16  # addresses to remember
_MOST_SHAPES, _MOST_SIZES = 16, 1024  # to remember: of stacks of one size, and all sizes
_TOGETHER = 256  # descriptors whose goroutines are read together: each may have two


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

    def __init__(self, places: Sequence[int], stack: tuple[int, ...]) -> None:
        gaps = [places[i] - places[i - 1] - _FRAME.size for i in range(1, len(places))]
        self._frames = struct.Struct("<" + "".join(f"QQ{gap}x" for gap in gaps) + "QQ")
        self._places = tuple(places[1:])
        self._callers = stack[1:]
        self.stack = stack

    def fits(self, data: bytes, bp: int) -> bool:
        """Whether the stack, from the frame at bp on, has this shape."""
        if len(data) < self._frames.size:
            return False
        words = self._frames.unpack_from(data)
        if words[1::2] != self._callers or words[-2]:
            return False
        return words[:-2:2] == tuple(map(bp.__add__, self._places))


class Unreadable(Exception):
    """The process's memory cannot be read; the message says why."""


class Code:
    """The addresses at which a process has code. shapes: those of stacks seen before, by their innermost
    frame and how many bytes they take: so those with the same calls are found at once.
    """

    def __init__(self, mappings: Sequence[proc.Mapping]) -> None:
        self.shapes: dict[tuple[int, int], list[_Shape]] = {}
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

    def remember(self, size: int, shape: _Shape) -> None:
        if len(self.shapes) >= _MOST_SIZES:
            self.shapes.clear()
        self.shapes.setdefault((shape.stack[0], size), []).append(shape)


def parked_at(memory: proc.Memory, g: int, code: Code) -> tuple[int, ...] | None:
    """The stack of a parked g, as addresses, innermost first; None if it isn't parked any more."""
    found = _goroutine(memory, g, code)
    return None if found is None else found[1]


def parked(
    pid: int,
    registrations: Sequence[proc.Registration],
    layout: layouts.Layout,
    signed: bool,
    mappings: Sequence[proc.Mapping],
) -> list[Parked]:
    """The goroutines that are parked on descriptors now. Raises Unreadable.

    registrations: with the runtime's epoll instance. layout: from calibration. mappings: the process's code.
    """
    code = Code(mappings)
    found: list[Parked] = []
    own = [r for r in registrations[:_MOST] if r.events == layouts.GO_EVENTS]
    try:
        memory = proc.Memory(pid)
    except OSError as error:
        raise Unreadable(f"its memory cannot be read: {error.strerror or error}") from error
    with memory:
        for first in range(0, len(own), _TOGETHER):
            some = own[first : first + _TOGETHER]
            descriptors = [(r, layouts.address(layout, r.data, signed)) for r in some]
            found += _together(pid, memory, layout, descriptors, code)
    return found


def _together(
    pid: int,
    memory: proc.Memory,
    layout: layouts.Layout,
    descriptors: Sequence[tuple[proc.Registration, int]],
    code: Code,
) -> Iterator[Parked]:
    """The goroutines parked on these descriptors, read with few calls: a call for each takes most of the
    time. descriptors: [(registration, address of the pollDesc)].

    First it finds out where everything is. Then it reads a goroutine's pollDesc, g and stack right after each
    other, which belong together if the first two are unchanged.
    """
    waiters: list[_Waiter] = []
    raws = _each(pid, memory, [address for _, address in descriptors], layouts.POLLDESC.size)
    for (registration, address), raw in zip(descriptors, raws):  # noqa: B905 - 3.9 has no strict
        reader, writer = _waiting(layout, registration, raw)
        if reader > _PARKED:
            waiters.append((registration, address, raw, False, reader))
        if writer > _PARKED:
            waiters.append((registration, address, raw, True, writer))
    gs = _each(pid, memory, [waiter[-1] for waiter in waiters], _G.size)
    places: list[_Place] = []
    ranges: list[int] = []
    for (_, address, raw, _, g), raw_g in zip(waiters, gs):  # noqa: B905
        place = _place(g, raw_g, code) or _NOWHERE
        places.append(place)
        ranges += address, len(raw), g, len(raw_g), place[2], place[3]
    data = bytes(Ranges(pid, ranges).read_mapped(memory))
    end = 0
    for waiter, raw_g, place in zip(waiters, gs, places):  # noqa: B905
        registration, _, raw, write, g = waiter
        goid, pc, bp, size = place
        begin = end
        stack = begin + len(raw) + len(raw_g)
        end = stack + size
        if pc and data[begin:stack] == raw + raw_g:
            yield Parked(g, goid, registration.fd, write, _stack(data[stack:end], pc, bp, code))
        else:
            yield from _alone(memory, layout, waiter, code)


def _each(pid: int, memory: proc.Memory, addresses: Sequence[int], size: int) -> list[bytes]:
    """What is at these addresses; zeros where nothing is mapped."""
    data = bytes(Ranges(pid, [word for address in addresses for word in (address, size)]).read_mapped(memory))
    return [data[at : at + size] for at in range(0, len(data), size)]


def _alone(memory: proc.Memory, layout: layouts.Layout, waiter: _Waiter, code: Code) -> Iterator[Parked]:
    """The goroutine that waits there, read again because it was woken meanwhile, or doesn't look parked."""
    registration, address, before, write, g = waiter

    def waits() -> bool:
        raw = memory.read(address, len(before))
        return raw is not None and _waiting(layout, registration, raw)[write] == g

    found = _goroutine(memory, g, code) if waits() else None
    if found is None:
        if not waits():
            return
        found = _goroutine(memory, g, code) or (None, ())
    yield Parked(g, found[0], registration.fd, write, found[1])


def _waiting(layout: layouts.Layout, registration: proc.Registration, raw: bytes) -> tuple[int, int]:
    """The pollDesc's words for its reader and writer; (0, 0) if it isn't this descriptor's."""
    words = layouts.POLLDESC.unpack(raw)
    if not layouts.holds(layout, registration.data, registration.fd, words):
        return (0, 0)
    return words[layout.waiters], words[layout.waiters + 1]


def _goroutine(memory: proc.Memory, g: int, code: Code) -> tuple[int | None, tuple[int, ...]] | None:
    """(goid, stack) of a parked g; None if it isn't one."""
    raw = memory.read(g, _G.size)
    place = None if raw is None else _place(g, raw, code)
    if place is None:
        return None
    goid, pc, bp, size = place
    data = memory.read(bp, size) if size else None
    return goid, _stack(data or b"", pc, bp, code)


def _place(g: int, raw: bytes, code: Code) -> _Place | None:
    """None if it isn't a parked g."""
    low, high, sp, pc, itself, bp, later_bp, status, later_status, later_goid = _G.unpack(raw)
    if status & ~_SCANNED == _WAITING:
        goid = later_status
    elif later_status & ~_SCANNED == _WAITING:
        goid = later_goid
    else:
        return None
    if itself != g or not low < sp < high or not code.has(pc):
        return None
    if not low < bp < high:
        bp = later_bp
        if not low < bp < high:
            return goid, pc, 0, 0
    return goid, pc, bp, min(high - bp, _LARGEST)


def _stack(data: bytes, pc: int, bp: int, code: Code) -> tuple[int, ...]:
    """The pc and the return addresses, following the frame pointers. data: the stack from bp on, if it is
    known.
    """
    known = code.shapes.get((pc, len(data)), [])
    for shape in known:
        if shape.fits(data, bp):
            return shape.stack
    found = [pc]
    places, outer = [0], 0
    while 0 <= places[-1] <= len(data) - _FRAME.size and len(found) <= _DEEPEST:
        outer, address = _FRAME.unpack_from(data, places[-1])
        if not code.has(address):
            break
        found.append(address)
        if outer - bp < places[-1] + _FRAME.size:  # a caller's frame lies above its callee's
            break
        places.append(outer - bp)
    stack = tuple(found)
    if len(found) > 1 and not outer and len(known) < _MOST_SHAPES:
        code.remember(len(data), _Shape(places[: len(found) - 1], stack))
    return stack
