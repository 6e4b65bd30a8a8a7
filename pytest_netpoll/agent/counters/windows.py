"""Windows over the kernel's counters: cut by epochs, read from banks.

Every cut (a window opens or closes) starts a new epoch, so windows may nest and the sums stay
exact: a window is the sum over the epochs between its two cuts.

There are few banks, and a wakeup may be resolved many cuts later. So epochs that no open window tells apart
are joined into a stretch, from the cut with which a window opened to the next such cut. A stretch keeps its
first epoch's bank for wakeups that are resolved late. Its other banks are added up and reused when a new
epoch needs one.
"""

from __future__ import annotations

import ctypes
import errno
import time
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from bpf import machine
from constants import BANKS, OUTCOME_DATA, OUTCOME_EOF, SLOWEST
from counters import delays, endpoint

if TYPE_CHECKING:
    from bpf import structs
    from bpf.program import Kernel

_Key = TypeVar("_Key")

_MAXIMA = {"latency_max", *delays.MAXIMA}  # the counters that aren't sums

# Windows that opened with different cuts need a bank each, the current epoch another one, and the next epoch
# has to find a free one.
MOST_OPEN = BANKS - 2


class SlowWakeup(NamedTuple):
    """One of the slowest wakeups, or of the slowest queue delays or responses with their parts.

    latency: ns. at: when it was resolved, on the monotonic clock, ns.
    goid: the words of its g that may hold the goroutine's id. stack: its id; negative if it was lost.
    """

    latency: int
    at: int
    goid: tuple[int, ...]
    stack: int
    fd: int
    syscall: int
    direction: int
    end: endpoint.Endpoint
    parts: tuple[int, ...] = ()


class Failures:
    """The I/O calls that moved no data. outcomes: {number: calls}. futile: {(index, outcome): calls}."""

    def __init__(self) -> None:
        self.outcomes: dict[int, int] = {}
        self.futile: dict[tuple[int, int], int] = {}

    def add(self, other: Failures) -> None:
        _add(self.outcomes, other.outcomes)
        _add(self.futile, other.futile)

    def as_json(self, io_calls: int) -> dict[str, Any]:
        """JSON: {outcome: calls} for all calls, and [[syscall, outcome, calls]] for the futile ones."""
        moved = max(0, io_calls - sum(self.outcomes.values()))
        outcomes = {"data": moved} if moved else {}
        outcomes.update((outcome(number), count) for number, count in sorted(self.outcomes.items()))
        futile = [
            [machine.IO_CALLS[index], outcome(number), count]
            for (index, number), count in sorted(self.futile.items())
        ]
        return {"io_outcomes": outcomes, "futile": futile}


def outcome(number: int) -> str:
    """How an I/O call ended, in words."""
    named = {OUTCOME_EOF: "end of file", OUTCOME_DATA: "data"}
    return named.get(number) or errno.errorcode.get(number, f"errno {number}")


def _add(into: dict[_Key, int], counts: Mapping[_Key, int]) -> None:
    for key, count in counts.items():
        into[key] = into.get(key, 0) + count


class Bank:
    """What one process did in one epoch or several."""

    def __init__(
        self, counters: dict[str, int], histogram: dict[int, int], slowest: Iterable[SlowWakeup] = ()
    ) -> None:
        self.counters = counters  # {name: int}
        self.histogram = histogram  # {bucket: int}
        self.slowest = list(slowest)  # SlowWakeups, the slowest first
        self.failures = Failures()
        self.polls_by_events: dict[int, int] = {}  # events -> polls that returned so many
        self.delays = delays.Delays()
        self.slow_answers: dict[str, list[SlowWakeup]] = {name: [] for name in delays.DIVIDED}

    def add(self, other: Bank) -> None:
        for name, value in other.counters.items():
            if name in _MAXIMA:
                self.counters[name] = max(self.counters.get(name, 0), value)
            else:
                self.counters[name] = self.counters.get(name, 0) + value
        _add(self.histogram, other.histogram)
        self.slowest = _slowest(self.slowest + other.slowest)
        for name, slow in other.slow_answers.items():
            self.slow_answers[name] = _slowest(self.slow_answers[name] + slow)
        self.failures.add(other.failures)
        _add(self.polls_by_events, other.polls_by_events)
        self.delays.add(other.delays)

    def add_waiting(self, waiting: delays.Waiting, until: int) -> None:
        """Adds the data that nobody had read when the window closed (monotonic ns)."""
        age = until - waiting.since
        if age > 0:
            self.delays.add_waiting(age, waiting.messages)
            self.counters["queue_delay_max"] = max(self.counters["queue_delay_max"], age)

    def forget(self) -> None:
        self.counters = dict.fromkeys(self.counters, 0)
        self.histogram = {}
        self.slowest = []
        self.failures = Failures()
        self.polls_by_events = {}
        self.delays = delays.Delays()
        self.slow_answers = {name: [] for name in delays.DIVIDED}


def _slowest(found: Iterable[SlowWakeup]) -> list[SlowWakeup]:
    return sorted(found, reverse=True)[:SLOWEST]


def _copy(e: structs.SlowWakeup) -> SlowWakeup:
    return SlowWakeup(
        e.latency, e.at, tuple(e.goid), e.stack, e.fd, e.syscall, e.direction, endpoint.copy(e.end)
    )


def pending(counters: Mapping[str, int]) -> int:
    """Wakeups that aren't resolved yet, without those on an fd beyond the table, which never will be."""
    resolved = counters["productive_wakeups"] + counters["spurious_wakeups"] + counters["abandoned_wakeups"]
    return counters["wakeups"] - resolved - counters["lost_fds"]


def unanswered(counters: Mapping[str, int]) -> int:
    """Requests that were read and may still be answered."""
    return counters["requests"] - counters["answered"] - counters["unanswered"]


def _unsettled(counters: Mapping[str, int]) -> bool:
    return pending(counters) > 0 or unanswered(counters) > 0


class Window:
    """A window over the epochs from `first` to before `end`. opened, closed: monotonic ns."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.opened = time.monotonic_ns()
        self.closed = 0  # the end of an open window
        self.end = 0


class Stretch:
    """The epochs from `first` on that are joined. epochs: those that still have a bank, the first one first.
    past: what the banks of the others held.
    """

    def __init__(self, first: int) -> None:
        self.first = first
        self.epochs = [first]
        self.past: dict[int, Bank] = {}  # slot -> Bank

    def absorb(self, later: Stretch) -> None:
        self.epochs += later.epochs
        for slot, bank in later.past.items():
            self.add(slot, bank)

    def add(self, slot: int, bank: Bank) -> None:
        self.past.setdefault(slot, Bank({}, {})).add(bank)


class TooMany(Exception):
    """Too many windows are open: there are no more banks."""


class Windows:
    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._epoch = BANKS
        self._stretches = [Stretch(BANKS)]  # in order; the last one has only the current epoch
        self._open: dict[int, Window] = {}  # number -> Window
        self._next = 1
        self._names: list[str] = [
            field[0] for field in kernel.counts.sLeaf._fields_ if not field[0].endswith("_floor")
        ]
        self._publish()

    @property
    def any_open(self) -> bool:
        return bool(self._open)

    def open(self, slots: Iterable[int]) -> int:
        """Opens a window and returns its number. Raises TooMany."""
        if len({window.first for window in self._open.values()}) >= MOST_OPEN:
            raise TooMany(f"{MOST_OPEN} windows are open, and no more can be measured at once")
        self._cut(slots)
        number = self._next
        self._next += 1
        self._open[number] = Window(self._epoch)
        return number

    def age(self, number: int) -> int:
        """The open window's age in ns."""
        return time.monotonic_ns() - self._open[number].opened

    def close(self, number: int, slots: Iterable[int]) -> Window:
        """Closes and returns the window. KeyError if there is none."""
        window = self._open[number]
        # It still counts as open: else this cut could take a bank that it needs.
        self._cut(slots)
        del self._open[number]
        window.closed = time.monotonic_ns()
        window.end = self._epoch
        return window

    def lap(self, number: int, slots: Iterable[int]) -> Window:
        """Closes and returns the window; another one with that number begins at the same cut."""
        window = self.close(number, slots)
        self._open[number] = Window(self._epoch)
        return window

    def settled(self, window: Window, slots: Collection[int], seconds: float) -> None:
        """Waits until the closed window's wakeups are resolved and its requests answered, at most so many
        seconds: a client may have its answer before the write that sent it returns.
        """
        deadline = time.monotonic() + seconds
        while any(_unsettled(self.counters(slot, window)) for slot in slots):
            if time.monotonic() >= deadline:
                return
            time.sleep(0.001)

    def sum(self, slot: int, window: Window) -> Bank:
        """What the slot's process did in the closed window."""
        total = Bank({}, {})
        for stretch in self._within(window):
            if slot in stretch.past:
                total.add(stretch.past[slot])
            for epoch in stretch.epochs:
                total.add(self.read(slot, epoch))
        return total

    def counters(self, slot: int, window: Window) -> dict[str, int]:
        """{name: int}: the counters of `sum`."""
        total = Bank({}, {})
        for stretch in self._within(window):
            if slot in stretch.past:
                total.add(Bank(stretch.past[slot].counters, {}))
            for epoch in stretch.epochs:
                total.add(Bank(self._counters(slot, epoch), {}))
        return total.counters

    def so_far(self, slot: int, number: int, names: Iterable[str]) -> list[int]:
        """[int]: these counters of the slot's process since the open window began."""
        counters = self.counters(slot, self._open[number])
        return [counters[name] for name in names]

    def _within(self, window: Window) -> list[Stretch]:
        """The stretches from the window's first epoch on, up to its end if it has one."""
        first, end = window.first, window.end
        return [s for s in self._stretches if first <= s.first and (not end or s.first < end)]

    def read(self, slot: int, epoch: int) -> Bank:
        bank = Bank(self._counters(slot, epoch), {})
        key = self._key(slot, epoch)
        if bank.counters["wakeups"]:
            bank.histogram = {i: n for i, n in enumerate(self._kernel.latencies[key].buckets) if n}
            bank.slowest = self._slowest(key)
        if bank.counters["io_calls"]:
            bank.failures = self._failures(key)
        if bank.counters["events"]:
            for cpu in self._kernel.polls_by_events[key]:
                _add(bank.polls_by_events, {n: polls for n, polls in enumerate(cpu.polls, 1) if polls})
        if bank.counters["queue_delay_max"] or bank.counters["answers"]:
            bank.delays = delays.read(self._kernel, key.value)
            bank.slow_answers = self._slow_answers(key.value)
        return bank

    def _counters(self, slot: int, epoch: int) -> dict[str, int]:
        counters: dict[str, int] = {}
        cpus = self._kernel.counts[self._key(slot, epoch)]
        for name in self._names:
            values = [getattr(cpu, name) for cpu in cpus]
            counters[name] = max(values) if name in _MAXIMA else sum(values)
        return counters

    def _failures(self, key: ctypes.c_int) -> Failures:
        total = Failures()
        for cpu in self._kernel.io_failures[key]:
            if cpu.failed:
                found = Failures()
                found.outcomes = {number: count for number, count in enumerate(cpu.outcomes) if count}
                found.futile = {
                    (index, cpu.why[index]): count for index, count in enumerate(cpu.futile) if count
                }
                total.add(found)
        return total

    def _slowest(self, key: ctypes.c_int) -> list[SlowWakeup]:
        kept = [entry for cpu in self._kernel.slowest[key] for entry in cpu.kept if entry.latency]
        return _slowest(map(_copy, kept))

    def _slow_answers(self, bank: int) -> dict[str, list[SlowWakeup]]:
        found = {}
        for i, name in enumerate(delays.DIVIDED):
            cpus = self._kernel.slow_answers[ctypes.c_int(bank * len(delays.DIVIDED) + i)]
            kept = [entry for cpu in cpus for entry in cpu.kept if entry.wakeup.latency]
            found[name] = _slowest(
                _copy(entry.wakeup)._replace(
                    parts=(entry.parts.poll, entry.parts.run, entry.parts.unparked, entry.parts.handling)
                )
                for entry in kept
            )
        return found

    @staticmethod
    def _key(slot: int, epoch: int) -> ctypes.c_int:
        return ctypes.c_int(slot * BANKS + epoch % BANKS)

    def wipe(self, slot: int) -> None:
        """Clears a slot for a new process, which must not inherit the former one's numbers."""
        for bank in range(BANKS):
            self._clear(slot, bank)
        for stretch in self._stretches:
            stretch.past.pop(slot, None)

    def _cut(self, slots: Iterable[int]) -> None:
        self._join()
        bank = self._free_bank(slots)
        for slot in slots:
            self._clear(slot, bank)
        # The next epoch that belongs to this bank.
        self._epoch += 1 + (bank - self._epoch - 1) % BANKS
        self._stretches.append(Stretch(self._epoch))
        self._publish()

    def _join(self) -> None:
        """Joins the stretches that no open window tells apart, and drops those that none needs."""
        asked_for = {window.first for window in self._open.values()}
        joined: list[Stretch] = []
        for stretch in self._stretches:
            if stretch.first in asked_for:
                joined.append(stretch)
            elif joined:
                joined[-1].absorb(stretch)
        self._stretches = joined

    def _free_bank(self, slots: Iterable[int]) -> int:
        """A bank that no stretch needs, else that of the epoch that ended longest ago."""
        taken = {epoch % BANKS for stretch in self._stretches for epoch in stretch.epochs}
        # In turn, since a program on another CPU may still be writing to the last one.
        for bank in range(self._epoch + 1, self._epoch + BANKS):
            if bank % BANKS not in taken:
                return bank % BANKS
        epoch, stretch = min((epoch, stretch) for stretch in self._stretches for epoch in stretch.epochs[1:])
        for slot in slots:
            stretch.add(slot, self.read(slot, epoch))
        stretch.epochs.remove(epoch)
        return epoch % BANKS

    def _publish(self) -> None:
        """Tells the kernel where wakeups count from now on, and where those that are resolved late."""
        kept = [0] * BANKS
        for stretch in self._stretches:
            kept[stretch.first % BANKS] = stretch.first
        self._kernel.keep_epochs(kept)
        self._kernel.set_epoch(self._epoch)

    def _clear(self, slot: int, bank: int) -> None:
        key = ctypes.c_int(slot * BANKS + bank)
        self._kernel.counts[key] = self._kernel.counts.Leaf()
        self._kernel.latencies[key] = self._kernel.latencies.Leaf()
        delays.clear(self._kernel, key.value)
        self._kernel.slowest[key] = self._kernel.slowest.Leaf()
        for i in range(len(delays.DIVIDED)):
            answers = ctypes.c_int(key.value * len(delays.DIVIDED) + i)
            self._kernel.slow_answers[answers] = self._kernel.slow_answers.Leaf()
        self._kernel.io_failures[key] = self._kernel.io_failures.Leaf()
        self._kernel.polls_by_events[key] = self._kernel.polls_by_events.Leaf()
