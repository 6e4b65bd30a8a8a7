"""Snapshot: what was counted in one window, for one process or a sum of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Snapshot:
    """What the kernel counted in one window, for one process or for a sum of them.

    counters: by metric name; an absent one was not measured.
    histogram: wake-to-run latencies, bucket index -> count.
    io_outcomes: how the I/O calls ended ("data", "end of file", "EAGAIN", …) -> calls, which add up to
    io_calls. futile: (syscall, outcome) -> futile calls.
    dropped_datagrams: that the network namespace dropped for their checksum.
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

    def __add__(self, other: Snapshot) -> Snapshot:
        """The sum over two processes; what either did not measure, the sum does not know."""
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
        )


def _sum(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a + b


def _longest(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else max(a, b)
