"""Records single polls, events, I/O calls and ready calls of one window, for a trace."""

from __future__ import annotations

import ctypes
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from bpf import machine
from bpf.program import slot_of
from constants import BANKS, NO_FD
from counters import offenders

if TYPE_CHECKING:
    from bpf import structs
    from bpf.program import Kernel
    from counters import windows
    from counters.scheduler_memory import State
    from processes.watched import Process

# bpf/trace.c: enum trace_kind, enum poll_kind.
_POLL, _EVENT, _CALL, _READY = range(4)
_POLLS = ("blocking", "timed", "nonblocking")
# Looks at run queues to keep: 100 s of one process.
MOST_LOOKS = 10_000


class Recorder:
    """Records one window at a time; if several are open, the first."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._window: int | None = None
        self._looks: list[tuple[int, Process, State]] = []
        self._missed: Counter[int] = Counter()  # looks that found no room, by root

    def prepare(self) -> None:
        """Call before a window opens: drops old records, unless a window is being recorded."""
        if not self._kernel.traced or self._window is not None:
            return
        self._looks, self._missed = [], Counter()
        for _ in self._records():
            pass
        for bank in range(BANKS):
            self._kernel.trace_dropped[ctypes.c_int(bank)] = ctypes.c_uint64(0)

    def open(self, window: int) -> None:
        if self._kernel.traced and self._window is None:
            self._window = window

    def look(self, process: Process, state: State) -> None:
        """Records a look at the process's run queues."""
        if self._window is None:
            return
        if len(self._looks) < MOST_LOOKS:
            self._looks.append((time.monotonic_ns(), process, state))
        else:
            self._missed[process.root] += 1

    def take(
        self, number: int, window: windows.Window, roots: Mapping[int, Collection[Process]]
    ) -> dict[int, dict[str, Any]]:
        """{root: JSON} of what was recorded in the closed window; empty if it wasn't recorded.

        roots: the processes of each.
        """
        if number != self._window:
            return {}
        self._window = None
        banks = {epoch % BANKS for epoch in range(window.first, window.end)} - {window.end % BANKS}
        dropped = sum(self._kernel.trace_dropped[ctypes.c_int(bank)].value for bank in banks)
        traces = {root: _Trace(self._kernel, window, processes) for root, processes in roots.items()}
        by_slot = {slot: trace for trace in traces.values() for slot in trace.slots}
        for record in self._records():
            trace = by_slot.get(slot_of(record.owner))
            if trace is not None and window.first <= record.epoch < window.end:
                trace.add(record)
        for at, process, state in self._looks:
            if process.root in traces and not process.foreign:
                traces[process.root].look(at, process, state)
        missed, self._looks, self._missed = self._missed, [], Counter()
        return {
            root: {**trace.as_json(), "dropped": dropped, "missed_looks": missed[root]}
            for root, trace in traces.items()
        }

    def _records(self) -> Iterator[structs.TraceRecord]:
        """Takes the records out of the kernel, in order. Records that arrive meanwhile may be left behind."""
        for _ in range(self._kernel.traced):
            try:
                yield self._kernel.trace_records.pop()
            except KeyError:
                return


class _Trace:
    """The trace of one root's processes, without those that now run as another user."""

    def __init__(self, kernel: Kernel, window: windows.Window, processes: Collection[Process]) -> None:
        # By slot, like the counters, not by owner: a program may have ended before anybody could look at it.
        self.slots = {p.slot: p for p in processes if not p.foreign}
        self._kernel = kernel
        self._opened = window.opened
        self._polls: list[list[Any]] = []
        self._events: list[list[Any]] = []
        self._calls: list[list[Any]] = []
        self._readies: list[list[Any]] = []
        self._looks: list[list[int]] = []
        self._stacks: list[list[list[Any]]] = []
        self._places: dict[tuple[int, int, bool], int | None] = {}
        self._names = machine.names(machine.current())

    def add(self, r: structs.TraceRecord) -> None:
        pid = self.slots[slot_of(r.owner)].pid
        at = r.at - self._opened
        began = r.began - self._opened if r.began else None
        if r.kind == _POLL:
            self._polls.append([at, began, pid, r.tid, _POLLS[r.detail], r.value])
        elif r.kind == _EVENT:
            fd = None if r.fd == NO_FD else r.fd
            bits = r.value & 0xFFFFFFFF
            self._events.append([at, pid, r.tid, fd, bits, r.g or None, r.other or None])
        elif r.kind == _CALL:
            name = self._names.get(r.syscall, str(r.syscall))
            woken_at, stack = r.other - self._opened, self._stack(r.owner, r.stack)
            direction = "write" if r.detail else "read"
            self._calls.append([at, began, pid, r.tid, r.fd, direction, name, r.value, r.g, woken_at, stack])
        elif r.kind == _READY:
            stack, parked = self._stack(r.owner, r.stack), self._stack(r.owner, r.other, parked=True)
            self._readies.append([at, pid, r.tid, r.g, stack, parked])

    def look(self, at: int, process: Process, state: State) -> None:
        self._looks.append([at - self._opened, process.pid, state.runnable, state.running])

    def as_json(self) -> dict[str, Any]:
        return {
            "polls": self._polls,
            "events": self._events,
            "calls": self._calls,
            "readies": self._readies,
            "looks": self._looks,
            "stacks": self._stacks,
        }

    def _stack(self, owner: int, number: int, parked: bool = False) -> int | None:
        """The stack's index; None if it was not kept."""
        key = (owner, number, parked)
        if key not in self._places:
            addresses = self._kernel.parked_stack(number) if parked else self._kernel.stack(number)
            frames = offenders.frames(self.slots[slot_of(owner)].lives.get(owner, ()), addresses)
            self._places[key] = len(self._stacks) if frames else None
            if frames:
                self._stacks.append(frames)
        return self._places[key]
