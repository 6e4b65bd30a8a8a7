"""The Go scheduler's own counters, read from a process's memory: nothing in the process is slowed down."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from bpf import elf
from processes import proc

if TYPE_CHECKING:
    from processes.watched import Process


class Layout(NamedTuple):
    """Link-time addresses of runtime.allp and of the length of the global run queue; the rest are offsets in
    runtime.p (number: of its id).
    """

    allp: int
    runqsize: int
    number: int
    status: int
    schedtick: int
    runqhead: int


class State(NamedTuple):
    """What runs in a process: {p.id: p.schedtick}, and the goroutines that wait in its run queues."""

    ticks: dict[int, int]
    runnable: int


class Scheduled(NamedTuple):
    """Of one process in one window; None where that is not known."""

    dispatches: int | None
    runq_max: int | None


# Seconds between two looks at the run queues, while a window is open.
PERIOD = 0.01

_SLICE = struct.Struct("<QQQ")
_MOST_PS = 4096
_LAST_STATUS = 4  # _Pdead
_RUNQ = 256  # a p's run queue holds so many


class Schedulers:
    """Knows where the counters are, by program, and what they were. is_current: Kernel's."""

    def __init__(self, is_current: Callable[[Process], bool]) -> None:
        self._is_current = is_current
        self._layouts: dict[tuple[int, int] | None, Layout] = {}  # by Process.program
        # Of each process while it runs one program: an exec begins them anew, and a pid may be used anew.
        self._at_open: dict[int, dict[int, State | None]] = {}  # window -> {owner: State}
        self._longest: dict[int, dict[int, int]] = {}  # window -> {owner: goroutines in the run queues}

    def learn(self, process: Process, layout: Layout) -> bool:
        """Reads the counters of the program from now on. Returns whether the live process bears it out."""
        self._layouts[process.program] = layout
        if self.read(process) is None:
            del self._layouts[process.program]
            return False
        return True

    def knows(self, process: Process) -> bool:
        return process.program in self._layouts

    def read(self, process: Process) -> State | None:
        """State, or None where the memory does not hold what it should."""
        layout = self._layouts.get(process.program)
        if layout is None or process.exited:
            return None
        bias = _bias(process)
        if bias is None:
            return None
        try:
            with proc.Memory(process.pid) as memory:
                state = _read(memory, layout, bias)
        except (OSError, struct.error):
            return None
        return state if self._is_current(process) else None

    def open(self, window: int, processes: Iterable[Process]) -> None:
        self._begin(window, {process.owner: self.read(process) for process in processes})

    def sample(self, processes: Iterable[Process]) -> None:
        for process in processes:
            self._note(process, self.read(process))

    def lap(self, window: int, processes: Iterable[Process]) -> dict[int, Scheduled]:
        """{owner: Scheduled} of the window, which begins anew with what was read."""
        longest = self._longest[window]
        now: dict[int, State | None] = {}
        scheduled: dict[int, Scheduled] = {}
        for process in processes:
            before, after = self._before(window, process), self.read(process)
            self._note(process, after)
            lengths = [longest[owner] for owner in process.lives if owner in longest]
            scheduled[process.owner] = Scheduled(_dispatches(before, after), max(lengths, default=None))
            now[process.owner] = after
        self._begin(window, now)
        return scheduled

    def _before(self, window: int, process: Process) -> State | None:
        at_open = self._at_open[window]
        if process.owner in at_open:
            return at_open[process.owner]
        if any(at_open.get(owner) for owner in process.lives):
            return None  # with the program that it ran then, what that counted in the window is gone
        return State({}, 0)  # a process that has come since, as a p that has, began with 0

    def close(self, window: int) -> None:
        del self._at_open[window], self._longest[window]

    def _begin(self, window: int, states: dict[int, State | None]) -> None:
        self._at_open[window] = states
        self._longest[window] = {owner: state.runnable for owner, state in states.items() if state}

    def _note(self, process: Process, state: State | None) -> None:
        if state is not None:
            for longest in self._longest.values():
                longest[process.owner] = max(longest.get(process.owner, 0), state.runnable)


def _dispatches(before: State | None, after: State | None) -> int | None:
    if before is None or after is None:
        return None
    # The counters are 32 bits wide.
    return sum((tick - before.ticks.get(p, 0)) & 0xFFFFFFFF for p, tick in after.ticks.items())


def _bias(process: Process) -> int | None:
    """How far from its link-time addresses the program is loaded."""
    own = [m for m in process.mappings if m.path == process.executable]
    try:
        with open(f"/proc/{process.pid}/exe", "rb") as f:
            address = elf.address_of(f, own[0].offset)
    except (OSError, ValueError, IndexError):
        return None
    return None if address is None else own[0].start - address


def _read(memory: proc.Memory, layout: Layout, bias: int) -> State | None:
    # A read of what is not there is too short for struct.
    start, length, capacity = _SLICE.unpack(memory.read(bias + layout.allp, _SLICE.size) or b"")
    if not 0 < length <= capacity <= _MOST_PS:
        return None
    (runnable,) = struct.unpack("<i", memory.read(bias + layout.runqsize, 4) or b"")
    if runnable < 0:
        return None
    ticks: dict[int, int] = {}
    for number, p in enumerate(struct.unpack(f"<{length}Q", memory.read(start, 8 * length) or b"")):
        words = memory.read(p, layout.runqhead + 8) or b""
        (identity,) = struct.unpack_from("<i", words, layout.number)
        (status,) = struct.unpack_from("<I", words, layout.status)
        if identity != number or status > _LAST_STATUS:
            return None
        (ticks[number],) = struct.unpack_from("<I", words, layout.schedtick)
        head, tail = struct.unpack_from("<II", words, layout.runqhead)
        waiting = (tail - head) & 0xFFFFFFFF
        if waiting > _RUNQ:
            return None
        runnable += waiting
    return State(ticks, runnable)
