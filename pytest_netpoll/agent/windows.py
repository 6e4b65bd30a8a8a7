"""Windows over the kernel's counters: cut by epochs, read from banks.

Every cut (a window opens or closes) starts a new epoch, so windows may nest and the sums stay
exact: a window is the sum over the epochs between its two cuts.
"""

import ctypes
import errno
import time
from collections import namedtuple

import endpoint
import machine

BANKS = 8  # bpf/netpoll.h
SLOWEST = 8
OUTCOME_EOF, OUTCOME_DATA = 0, 255

# One of the wakeups that took longest. latency: ns. at: when it was resolved, on the monotonic clock, ns.
# goid: the words of its g that may hold the goroutine's id. stack: its id; negative where it was lost.
# end: an endpoint.Endpoint.
SlowWakeup = namedtuple("SlowWakeup", "latency at goid stack fd syscall direction end")


class Failures:
    """The I/O calls that moved no data. outcomes: {number: calls}. futile: {(index, outcome): calls}."""

    def __init__(self):
        self.outcomes = {}
        self.futile = {}

    def add(self, other):
        for into, what in ((self.outcomes, other.outcomes), (self.futile, other.futile)):
            for key, count in what.items():
                into[key] = into.get(key, 0) + count

    def told(self, io_calls):
        """JSON: {outcome: calls} of all the calls, and [[syscall, outcome, calls]] of the futile ones."""
        moved = max(0, io_calls - sum(self.outcomes.values()))
        outcomes = {"data": moved} if moved else {}
        outcomes.update((outcome(number), count) for number, count in sorted(self.outcomes.items()))
        futile = [
            [machine.IO_CALLS[index], outcome(number), count]
            for (index, number), count in sorted(self.futile.items())
        ]
        return {"io_outcomes": outcomes, "futile": futile}


def outcome(number):
    """How an I/O call ended, in words."""
    named = {OUTCOME_EOF: "end of file", OUTCOME_DATA: "data"}
    return named.get(number) or errno.errorcode.get(number, "errno %d" % number)


class Bank:
    """What one process did in one epoch, or in several."""

    def __init__(self, counters, histogram, slowest=()):
        self.counters = counters  # {name: int}
        self.histogram = histogram  # {bucket: int}
        self.slowest = list(slowest)  # SlowWakeups, the slowest first
        self.failures = Failures()

    def add(self, other):
        for name, value in other.counters.items():
            if name == "latency_max":
                self.counters[name] = max(self.counters.get(name, 0), value)
            else:
                self.counters[name] = self.counters.get(name, 0) + value
        for bucket, count in other.histogram.items():
            self.histogram[bucket] = self.histogram.get(bucket, 0) + count
        self.slowest = sorted(self.slowest + other.slowest, reverse=True)[:SLOWEST]
        self.failures.add(other.failures)

    def forget(self):
        self.counters = dict.fromkeys(self.counters, 0)
        self.histogram = {}
        self.slowest = []
        self.failures = Failures()


def pending(counters):
    """Wakeups not resolved; one on an fd beyond the table never will be."""
    resolved = counters["productive_wakeups"] + counters["spurious_wakeups"] + counters["abandoned_wakeups"]
    return counters["wakeups"] - resolved - counters["lost_fds"]


class Window:
    """Open since the epoch `first`.

    past: what each slot did in those of its epochs that have no bank any more.
    """

    def __init__(self, first):
        self.first = first
        self.opened = time.monotonic_ns()
        self.closed = None
        self.end = None
        self.past = {}  # slot -> Bank


class Windows:
    def __init__(self, kernel):
        self._kernel = kernel
        self._epoch = BANKS
        self._open = {}  # number -> Window
        self._next = 1
        self._names = [field[0] for field in kernel.counts.sLeaf._fields_ if field[0] != "slow_floor"]
        kernel.set_epoch(self._epoch)

    @property
    def any_open(self):
        return bool(self._open)

    def open(self, slots):
        self._cut(slots)
        number = self._next
        self._next += 1
        self._open[number] = Window(self._epoch)
        return number

    def age(self, number):
        """ns since the open window's beginning."""
        return time.monotonic_ns() - self._open[number].opened

    def close(self, number, slots):
        """The Window, ended. KeyError when there is no such window."""
        window = self._open[number]
        # Still among the open ones: this cut may take a bank that it needs.
        self._cut(slots)
        del self._open[number]
        window.closed = time.monotonic_ns()
        window.end = self._epoch
        return window

    def lap(self, number, slots):
        """The Window, ended; another one of that number begins with the same cut."""
        window = self.close(number, slots)
        self._open[number] = Window(self._epoch)
        return window

    def settled(self, epoch, slots, seconds):
        """Waits until the wakeups of the epoch are resolved, at most so many seconds."""
        deadline = time.monotonic() + seconds
        while True:
            if not any(pending(self.counters(slot, epoch)) > 0 for slot in slots):
                return
            if time.monotonic() >= deadline:
                return
            time.sleep(0.001)

    def sum(self, slot, window):
        """What the slot's process did in the closed window."""
        total = Bank({}, {})
        if slot in window.past:
            total.add(window.past[slot])
        for epoch in range(max(window.first, self._epoch - BANKS + 1), window.end):
            total.add(self.read(slot, epoch))
        return total

    def so_far(self, slot, number, names):
        """[int]: these counters of the slot's process, since the open window's beginning."""
        window = self._open[number]
        past = window.past.get(slot)
        totals = [past.counters[name] if past else 0 for name in names]
        for epoch in range(max(window.first, self._epoch - BANKS + 1), self._epoch + 1):
            counters = self.counters(slot, epoch)
            totals = [totals[i] + counters[name] for i, name in enumerate(names)]
        return totals

    def read(self, slot, epoch):
        bank = Bank(self.counters(slot, epoch), {})
        key = self._key(slot, epoch)
        if bank.counters["wakeups"]:
            bank.histogram = {i: n for i, n in enumerate(self._kernel.latencies[key].buckets) if n}
            bank.slowest = self._slowest(key)
        if bank.counters["io_calls"]:
            bank.failures = self._failures(key)
        return bank

    def counters(self, slot, epoch):
        """{name: int}"""
        counters = {}
        cpus = self._kernel.counts[self._key(slot, epoch)]
        for name in self._names:
            values = [getattr(cpu, name) for cpu in cpus]
            counters[name] = max(values) if name == "latency_max" else sum(values)
        return counters

    def _failures(self, key):
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

    def _slowest(self, key):
        kept = [entry for cpu in self._kernel.slowest[key] for entry in cpu.kept if entry.latency]
        return sorted(
            (
                SlowWakeup(
                    e.latency,
                    e.at,
                    tuple(e.goid),
                    e.stack,
                    e.fd,
                    e.syscall,
                    e.direction,
                    endpoint.copy(e.end),
                )
                for e in kept
            ),
            reverse=True,
        )[:SLOWEST]

    @staticmethod
    def _key(slot, epoch):
        return ctypes.c_int(slot * BANKS + epoch % BANKS)

    def wipe(self, slot):
        """The slot has a new process: nothing of the former one may be read as its own."""
        for bank in range(BANKS):
            self._clear(slot, bank)
        for window in self._open.values():
            window.past.pop(slot, None)

    def _cut(self, slots):
        # The kernel has stopped writing to the bank that the next epoch takes over: it drops what
        # was woken BANKS - 1 epochs ago.
        following = self._epoch + 1
        evicted = following - BANKS
        in_need = [window for window in self._open.values() if window.first <= evicted]
        for slot in slots:
            if in_need:
                bank = self.read(slot, evicted)
                for window in in_need:
                    window.past.setdefault(slot, Bank({}, {})).add(bank)
            self._clear(slot, following % BANKS)
        self._epoch = following
        self._kernel.set_epoch(following)

    def _clear(self, slot, bank):
        key = ctypes.c_int(slot * BANKS + bank)
        self._kernel.counts[key] = self._kernel.counts.Leaf()
        self._kernel.latencies[key] = self._kernel.latencies.Leaf()
        self._kernel.slowest[key] = self._kernel.slowest.Leaf()
        self._kernel.io_failures[key] = self._kernel.io_failures.Leaf()
