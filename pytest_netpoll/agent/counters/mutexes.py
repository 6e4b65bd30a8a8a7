"""How long goroutines wait for a sync.Mutex or sync.RWMutex, and where, if a limit asks for it.

The runtime's own total is a sample that may miss all of them (docs/runtime-numbers.md). So the agent looks at
all goroutines about every 10 ms: those that wait at a look stand for the time since the look before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from counters import offenders
from processes import goroutines, proc
from processes.waiters import Waiters

if TYPE_CHECKING:
    from counters.scheduler_memory import Layout
    from processes.watched import Process

# Seconds between two looks, on average. Not evenly, because services do things every 10 ms, too.
PERIOD = 0.01
MOST_TIME = 0.1  # the share of a CPU that looks take at most
_MOST_STACKS = 1024


class Waits:
    """Waits in one process and window. waited: ns, over all goroutines. most: at one look. gap: the longest
    time between two looks, ns. stacks: [goroutines found there, ns] by stack, estimated.
    """

    def __init__(self, since: int) -> None:
        self.since = since  # of the last look
        self.looks = self.waited = self.most = self.gap = 0
        self.stacks: dict[tuple[int, ...], list[float]] = {}

    def add(self, now: int, waiting: int, stacks: list[tuple[int, ...]]) -> None:
        passed = max(0, now - self.since)
        self.since = now
        self.looks += 1
        self.waited += waiting * passed
        self.most = max(self.most, waiting)
        self.gap = max(self.gap, passed)
        for stack in stacks:
            kept = stack in self.stacks or len(self.stacks) < _MOST_STACKS
            known = self.stacks.setdefault(stack if kept else (), [0, 0])
            known[0] += waiting / len(stacks)
            known[1] += waiting * passed / len(stacks)


class Mutexes:
    """is_current: Kernel's. place: Schedulers'."""

    def __init__(
        self,
        is_current: Callable[[Process], bool],
        place: Callable[[Process], tuple[Layout, int] | None],
    ) -> None:
        self._is_current = is_current
        self._place = place
        self._windows: dict[int, dict[int, Waits]] = {}  # window -> {owner: Waits}
        self._opened: dict[int, int] = {}  # window -> monotonic ns
        # By owner, which is a process while it runs one program.
        self._known: dict[int, tuple[Waiters, goroutines.Code]] = {}

    @property
    def any_open(self) -> bool:
        return bool(self._windows)

    def prepare(self, processes: Iterable[Process]) -> None:
        """Before a window opens: the first look at a process takes longer than others."""
        self._known = self._of(processes := list(processes))
        for process in processes:
            self._look(process)

    def open(self, window: int) -> None:
        self._windows[window] = {}
        self._opened[window] = time.monotonic_ns()

    def close(self, window: int) -> None:
        self._windows.pop(window, None)
        self._opened.pop(window, None)

    def look(self, processes: Iterable[Process]) -> None:
        """Looks at the processes, for all windows."""
        for process in processes:
            found = self._look(process)
            for window, waits in self._windows.items():
                known = waits.get(process.owner)
                if known is None:
                    known = waits[process.owner] = Waits(max(self._opened[window], process.since))
                if found is not None:
                    known.add(*found)

    def lap(self, window: int, processes: Iterable[Process]) -> dict[int, dict[str, Any]]:
        """{owner: JSON} of the window, which begins again. Empty if the window didn't ask for it."""
        if window not in self._windows:
            return {}
        processes = list(processes)
        self.look(processes)
        waits = self._windows[window]
        found = {process.owner: self._as_json(process, waits) for process in processes}
        self._known = self._of(processes)
        self.open(window)
        return found

    def _of(self, processes: Iterable[Process]) -> dict[int, tuple[Waiters, goroutines.Code]]:
        """What is known of these processes."""
        owners = {process.owner for process in processes}
        return {owner: known for owner, known in self._known.items() if owner in owners}

    def _as_json(self, process: Process, waits: dict[int, Waits]) -> dict[str, Any]:
        lives = [(owner, waits[owner]) for owner in process.lives if owner in waits]
        known = bool(lives) and not process.exited and all(found.looks for _, found in lives)
        return {
            "waited_ns": sum(found.waited for _, found in lives) if known else None,
            "looks": sum(found.looks for _, found in lives),
            "most": max((found.most for _, found in lives), default=0),
            "gap_ns": max((found.gap for _, found in lives), default=0),
            "stacks": [
                [round(seen), round(ns), offenders.frames(process.lives[owner], stack)]
                for owner, found in lives
                for stack, (seen, ns) in found.stacks.items()
            ],
        }

    def _look(self, process: Process) -> tuple[int, int, list[tuple[int, ...]]] | None:
        """(when, how many wait, where some of them do); None if that can't be known."""
        if process.exited or process.foreign:
            return None
        if process.owner not in self._known:
            place = self._place(process)
            if place is None or not place[0].allglen:
                return None
            code = goroutines.Code(process.mappings)
            self._known[process.owner] = Waiters(process.pid, *place), code
        waiters, code = self._known[process.owner]
        try:
            with proc.Memory(process.pid) as memory:
                now = time.monotonic_ns()
                waiting = waiters.look(memory)
                if waiting is None:
                    return None
                stacks = [(goroutines.parked_at(memory, g, code), g) for g in waiting.sample]
                # One that was woken meanwhile may be parked elsewhere.
                found = [stack for stack, g in stacks if stack is not None and waiters.waits(memory, g)]
        except OSError:
            return None
        return (now, waiting.goroutines, found) if self._is_current(process) else None
