"""Reads the Go scheduler's own counters from a process's memory, which doesn't slow the process down."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from counters import scheduler_memory
from counters.scheduler_memory import Layout, State, Totals
from processes import proc

if TYPE_CHECKING:
    from processes.watched import Process


class Scheduled(NamedTuple):
    """One process's scheduler in one window; None for unknown fields.

    p_looks: Ps, over all looks at them; p_running: those that ran Go code. sched_latency: [[least ns, first
    ns beyond, count]]. Waits are in ns.
    """

    dispatches: int | None
    runq_max: int | None
    p_looks: int | None
    p_running: int | None
    sched_latency: list[list[int]] | None
    mutex_wait: int | None
    lock_wait: int | None


class Looks:
    """Looks at a process's run queues and Ps: sums over the looks, and the most goroutines at once."""

    def __init__(self) -> None:
        self.looks = self.longest = self.ps = self.running = self.spinning = 0

    def add(self, state: State) -> None:
        self.looks += 1
        self.longest = max(self.longest, state.runnable)
        self.ps += state.ps
        self.running += state.running
        self.spinning += state.spinning


class Mean(NamedTuple):
    """A service's processes in one interval: the most goroutines in run queues, and the running Ps and
    spinning threads on average.
    """

    runq_max: int
    running: float
    spinning: float


# Seconds between two looks at the run queues while a window is open.
PERIOD = 0.01

_LONGEST = 1 << 62  # ns; the process's memory may hold anything

_NOTHING = Totals(None, None, None)
_UNKNOWN = (None, _NOTHING)


class Schedulers:
    """Knows each program's counters and their last values. is_current: Kernel's. seen: called with each
    process and State that is seen during a window.
    """

    def __init__(
        self, is_current: Callable[[Process], bool], seen: Callable[[Process, State], None] = lambda *_: None
    ) -> None:
        self._is_current = is_current
        self._seen = seen
        self._layouts: dict[tuple[int, int] | None, Layout] = {}  # by Process.program
        self._biases: dict[int, int] = {}  # by owner
        # By owner, which is a process while it runs one program: an exec resets the counters, and pids are
        # reused.
        self._at_open: dict[int, dict[int, tuple[State | None, Totals]]] = {}  # window -> {owner: …}
        self._looks: dict[int, dict[int, Looks]] = {}  # window -> {owner: Looks}
        self._latest: dict[int, dict[int, Looks]] = {}  # the same, since the window's last interval

    def learn(self, process: Process, layout: Layout) -> bool:
        """Reads the program's counters from now on. Returns whether the process's memory is plausible."""
        if not layout.plausible:
            return False
        self._layouts[process.program] = layout
        known, totals = self._read(process)
        if known is None if layout.allp else totals.latencies is None:
            del self._layouts[process.program]
            return False
        return True

    def knows(self, process: Process) -> bool:
        return process.program in self._layouts

    def place(self, process: Process) -> tuple[Layout, int] | None:
        """(the program's layout, what to add to its addresses); None if unknown."""
        layout = self._layouts.get(process.program)
        if layout is None or process.exited:
            return None
        if process.owner not in self._biases:
            found = scheduler_memory.bias(process)
            if found is None:
                return None
            self._biases[process.owner] = found
        return layout, self._biases[process.owner]

    def _read(self, process: Process, totals: bool = True) -> tuple[State | None, Totals]:
        """The State and Totals; None if the memory isn't plausible. totals: whether to read those."""
        place = self.place(process)
        if place is None or not (place[0].allp or totals):
            return _UNKNOWN
        layout, bias = place
        state, grown = None, _NOTHING
        try:
            with proc.Memory(process.pid) as memory:
                if layout.allp:
                    state = scheduler_memory.read_state(memory, layout, bias)
                if totals:
                    grown = scheduler_memory.read_totals(memory, layout, bias)
        except (OSError, struct.error):
            return _UNKNOWN
        return (state, grown) if self._is_current(process) else _UNKNOWN

    def open(self, window: int, processes: Iterable[Process]) -> None:
        processes = list(processes)
        owners = {process.owner for process in processes}
        self._biases = {owner: bias for owner, bias in self._biases.items() if owner in owners}
        self._begin(window, {process.owner: self._read(process) for process in processes})

    def sample(self, processes: Iterable[Process]) -> None:
        for process in processes:
            self._note(process, self._read(process, totals=False)[0])

    def interval(self, window: int, processes: Iterable[Process]) -> Mean | None:
        """The processes' mean since the last call, in the open window; None if nothing was seen."""
        found = [looks for p in processes if (looks := self._latest[window].pop(p.owner, None))]
        if not found:
            return None
        return Mean(
            max(looks.longest for looks in found),
            sum(looks.running / looks.looks for looks in found),
            sum(looks.spinning / looks.looks for looks in found),
        )

    def read(self, processes: Iterable[Process]) -> dict[int, tuple[State | None, Totals]]:
        """{owner: current state}; counts as a look in every open window."""
        now = {}
        for process in processes:
            now[process.owner] = self._read(process)
            self._note(process, now[process.owner][0])
        return now

    def lap(
        self, window: int, processes: Iterable[Process], now: dict[int, tuple[State | None, Totals]]
    ) -> dict[int, Scheduled]:
        """{owner: Scheduled} of the window, which begins again with what was read."""
        seen = self._looks[window]
        scheduled: dict[int, Scheduled] = {}
        for process in processes:
            before, after = self._before(window, process), now.get(process.owner, _UNKNOWN)
            looks = [seen[owner] for owner in process.lives if owner in seen]
            scheduled[process.owner] = Scheduled(
                _dispatches(before and before[0], after[0]),
                max((look.longest for look in looks), default=None),
                sum(look.ps for look in looks) if looks else None,
                sum(look.running for look in looks) if looks else None,
                *(_grown(before[1], after[1]) if before is not None else _NOTHING),
            )
        self._begin(window, now)
        return scheduled

    def _before(self, window: int, process: Process) -> tuple[State | None, Totals] | None:
        at_open = self._at_open[window]
        if process.owner in at_open:
            return at_open[process.owner]
        if any(at_open.get(owner, _UNKNOWN) != _UNKNOWN for owner in process.lives):
            return None  # the counts of the program that it ran before are lost
        # A process or p that is new since then began with 0.
        return State({}, 0, 0, 0, 0), Totals((), 0, 0)

    def close(self, window: int) -> None:
        del self._at_open[window], self._looks[window], self._latest[window]

    def _begin(self, window: int, states: dict[int, tuple[State | None, Totals]]) -> None:
        self._at_open[window] = states
        self._looks[window], self._latest[window] = {}, {}
        for owner, (state, _) in states.items():
            if state is not None:
                self._looks[window].setdefault(owner, Looks()).add(state)

    def _note(self, process: Process, state: State | None) -> None:
        if state is not None:
            self._seen(process, state)
            for looks in (*self._looks.values(), *self._latest.values()):
                looks.setdefault(process.owner, Looks()).add(state)


def _dispatches(before: State | None, after: State | None) -> int | None:
    if before is None or after is None:
        return None
    # The counters are 32 bits wide.
    return sum((tick - before.ticks.get(p, 0)) & 0xFFFFFFFF for p, tick in after.ticks.items())


def _grown(before: Totals, after: Totals) -> tuple[list[list[int]] | None, int | None, int | None]:
    """The last fields of Scheduled: growth between two reads."""
    latencies = None
    if before.latencies is not None and after.latencies is not None:
        old = before.latencies or (0,) * len(after.latencies)
        latencies = scheduler_memory.latencies_between(old, after.latencies)
    return latencies, _waited(before.mutex_wait, after.mutex_wait), _waited(before.lock_wait, after.lock_wait)


def _waited(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else min(max(0, after - before), _LONGEST)
