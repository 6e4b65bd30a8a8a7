"""Snapshot: what was counted in one window, for one process or a sum of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

_Bucket = TypeVar("_Bucket")


@dataclass(frozen=True)
class Parts:
    """The parts of times, each a sum in ns. poll: before the poll that reported the data. run: from there to
    the read. unparked: before a read for which nobody was parked. handling: from the read to the write that
    answered it.
    """

    poll: int = 0
    run: int = 0
    unparked: int = 0
    handling: int = 0

    def __add__(self, other: Parts) -> Parts:
        if not isinstance(other, Parts):
            return NotImplemented
        return Parts(
            self.poll + other.poll,
            self.run + other.run,
            self.unparked + other.unparked,
            self.handling + other.handling,
        )

    @property
    def total(self) -> int:
        return self.poll + self.run + self.unparked + self.handling


@dataclass(frozen=True)
class Delay:
    """One kind of times. histogram: bucket index -> count. budget: bucket index >> BUDGET_SHIFT -> the parts
    of all times in these buckets; empty for times without parts.
    """

    histogram: Mapping[int, int] = field(default_factory=dict)
    max_ns: int = 0
    budget: Mapping[int, Parts] = field(default_factory=dict)

    def __add__(self, other: Delay) -> Delay:
        if not isinstance(other, Delay):
            return NotImplemented
        return Delay(
            dict(Counter(self.histogram) + Counter(other.histogram)),
            max(self.max_ns, other.max_ns),
            {
                bucket: self.budget.get(bucket, Parts()) + other.budget.get(bucket, Parts())
                for bucket in self.budget.keys() | other.budget.keys()
            },
        )


@dataclass(frozen=True)
class Snapshot:
    """What the kernel counted in one window, for one process or for a sum of them.

    counters: by metric name; an absent one was not measured.
    histogram: wake-to-run latencies, bucket index -> count.
    io_outcomes: how the I/O calls ended ("data", "end of file", "EAGAIN", …) -> calls, which add up to
    io_calls. futile: (syscall, outcome) -> futile calls.
    dropped_datagrams: those that the network namespace dropped for their checksum.
    events_per_poll: events -> polls that returned that many. p_looks, p_running: Ps seen, over all looks at
    them, and how many of them ran Go code. sched_latency: (least ns, first ns beyond) -> goroutines that were
    runnable for that long before they ran. delays: "queue_delay", "poll_delay", "handling" and "response" ->
    their times; empty if they were not measured. requests: reads that took data of accepted connections;
    answered: those that were followed by a write of the same goroutine; strangers: those whose goroutine
    could not be recognized. mutex_looked: whether mutex_wait_ns comes from looks at the goroutines; otherwise
    it is the runtime's estimate.
    """

    counters: Mapping[str, int] = field(default_factory=dict)
    histogram: Mapping[int, int] = field(default_factory=dict)
    latency_max_ns: int = 0
    cpu_ns: int | None = None
    run_delay_ns: int | None = None
    runq_max: int | None = None
    io_outcomes: Mapping[str, int] = field(default_factory=dict)
    futile: Mapping[tuple[str, str], int] = field(default_factory=dict)
    dropped_datagrams: int | None = None
    events_per_poll: Mapping[int, int] = field(default_factory=dict)
    p_looks: int | None = None
    p_running: int | None = None
    sched_latency: Mapping[tuple[int, int], int] | None = None
    mutex_wait_ns: int | None = None
    mutex_looked: bool = False
    lock_wait_ns: int | None = None
    throttled_ns: int | None = None
    throttled_periods: int | None = None
    delays: Mapping[str, Delay] = field(default_factory=dict)
    requests: int = 0
    answered: int = 0
    strangers: int = 0

    def __add__(self, other: Snapshot) -> Snapshot:
        """The sum over two processes; a number that either lacks is missing in the sum."""
        if not isinstance(other, Snapshot):
            return NotImplemented
        return Snapshot(
            counters={
                name: count + other.counters[name]
                for name, count in self.counters.items()
                if name in other.counters
            },
            histogram=dict(Counter(self.histogram) + Counter(other.histogram)),
            latency_max_ns=max(self.latency_max_ns, other.latency_max_ns),
            cpu_ns=_sum(self.cpu_ns, other.cpu_ns),
            run_delay_ns=_sum(self.run_delay_ns, other.run_delay_ns),
            runq_max=_longest(self.runq_max, other.runq_max),
            io_outcomes=dict(Counter(self.io_outcomes) + Counter(other.io_outcomes)),
            futile=dict(Counter(self.futile) + Counter(other.futile)),
            dropped_datagrams=_sum(self.dropped_datagrams, other.dropped_datagrams),
            events_per_poll=dict(Counter(self.events_per_poll) + Counter(other.events_per_poll)),
            p_looks=_sum(self.p_looks, other.p_looks),
            p_running=_sum(self.p_running, other.p_running),
            sched_latency=_histogram(self.sched_latency, other.sched_latency),
            mutex_wait_ns=_sum(self.mutex_wait_ns, other.mutex_wait_ns),
            mutex_looked=self.mutex_looked and other.mutex_looked,
            lock_wait_ns=_sum(self.lock_wait_ns, other.lock_wait_ns),
            throttled_ns=_sum(self.throttled_ns, other.throttled_ns),
            throttled_periods=_sum(self.throttled_periods, other.throttled_periods),
            delays={
                name: delay + other.delays[name]
                for name, delay in self.delays.items()
                if name in other.delays
            },
            requests=self.requests + other.requests,
            answered=self.answered + other.answered,
            strangers=self.strangers + other.strangers,
        )


def _sum(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a + b


def _histogram(a: Mapping[_Bucket, int] | None, b: Mapping[_Bucket, int] | None) -> dict[_Bucket, int] | None:
    return None if a is None or b is None else dict(Counter(a) + Counter(b))


def _longest(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else max(a, b)
