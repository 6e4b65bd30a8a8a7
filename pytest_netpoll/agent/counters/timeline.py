"""What the services did during a window, interval by interval."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

PERIOD = 0.1  # s
MOST_POINTS = 600


class Runtime(NamedTuple):
    """What the Go scheduler and CPU quotas did; None for unknown fields. throttled_ns only grows.

    runq_max: most goroutines in run queues. ps_running: Ps that run Go code. spinning: threads that look for
    work. The last two are means.
    """

    throttled_ns: int | None = None
    runq_max: int | None = None
    ps_running: float | None = None
    spinning: float | None = None

    def since(self, before: Runtime) -> Runtime:
        if self.throttled_ns is None or before.throttled_ns is None:
            return self._replace(throttled_ns=None)
        return self._replace(throttled_ns=self.throttled_ns - before.throttled_ns)

    def with_later(self, later: Runtime, samples: int, more: int) -> Runtime:
        """The combination of two intervals of so many samples each."""
        known = None not in (self.throttled_ns, later.throttled_ns)
        queues = [queue for queue in (self.runq_max, later.runq_max) if queue is not None]
        return Runtime(
            (self.throttled_ns or 0) + (later.throttled_ns or 0) if known else None,
            max(queues, default=None),
            _mean(self.ps_running, samples, later.ps_running, more),
            _mean(self.spinning, samples, later.spinning, more),
        )


UNKNOWN = Runtime()


class State(NamedTuple):
    """A service at one moment. Fields that only grow come first: the kernel's counters, and run_delay in ns.

    threads: those alive. running: those of them on a CPU or waiting for one.
    """

    wakeups: int
    productive_wakeups: int
    spurious_wakeups: int
    polls: int
    blocking_polls: int
    timed_polls: int
    nonblocking_polls: int
    empty_polls: int
    timeout_polls: int
    break_polls: int
    reads: int
    answers: int
    queue_delay_ns: int
    poll_delay_ns: int
    wake_to_run_ns: int
    handling_ns: int
    run_delay: int
    threads: int
    running: int
    runtime: Runtime = UNKNOWN


# The columns' names in reports; each row begins with the interval's end in ms.
_REPORTED = {
    "productive_wakeups": "productive",
    "spurious_wakeups": "spurious",
    "run_delay": "run_delay_ns",
    "running": "threads_running",
}
COLUMNS = (*(_REPORTED.get(field, field) for field in State._fields[:-1]), *Runtime._fields)

NOTHING = State._make([0] * (len(State._fields) - 1) + [Runtime(throttled_ns=0)])
COUNTERS = State._fields[: State._fields.index("run_delay")]
_GROWING = len(COUNTERS) + 1


def total(
    counters: Sequence[Sequence[int]],
    run_delay: int,
    threads: int,
    running: int,
    runtime: Runtime = UNKNOWN,
) -> State:
    """The State of several processes together. counters: a row for each process; the other arguments are sums
    already.
    """
    sums = [sum(row[i] for row in counters) for i in range(len(COUNTERS))]
    return State._make([*sums, run_delay, threads, running, runtime])


def _mean(a: float | None, samples: int, b: float | None, more: int) -> float | None:
    if a is None or b is None:
        return a if b is None else b
    return (a * samples + b * more) / (samples + more)


class Point:
    """One interval, up to `t` ns after the window opened: {root: State}, with the interval's counts. samples:
    how many intervals were merged into it.
    """

    def __init__(self, t: int, services: dict[int, State]) -> None:
        self.t = t
        self.services = services
        self.samples = 1

    def extend(self, later: Point) -> None:
        for root, new in later.services.items():
            old = self.services.get(root, NOTHING)
            counts = map(operator.add, old[:_GROWING], new[:_GROWING])
            # running is a sum, divided by the samples at the end.
            threads, running = max(old.threads, new.threads), old.running + new.running
            runtime = old.runtime.with_later(new.runtime, self.samples, later.samples)
            self.services[root] = State._make([*counts, threads, running, runtime])
        self.t = later.t
        self.samples += later.samples


class Timeline:
    """The timeline of one window. Its memory is bounded: too many points are merged in pairs."""

    def __init__(self, states: Mapping[int, State]) -> None:
        self._last = states
        self._points: list[Point] = []
        self._stride = 1  # samples in a point

    def add(self, t: int, states: Mapping[int, State]) -> None:
        """Adds a sample. t: ns since the window opened. states: {root: State}."""
        services: dict[int, State] = {}
        for root, state in states.items():
            before = self._last.get(root, NOTHING)
            counts = map(operator.sub, state[:_GROWING], before[:_GROWING])
            runtime = state.runtime.since(before.runtime)
            services[root] = State._make([*counts, state.threads, state.running, runtime])
        self._last = states
        point = Point(t, services)
        if self._points and self._points[-1].samples < self._stride:
            self._points[-1].extend(point)
            return
        self._points.append(point)
        if len(self._points) > MOST_POINTS:
            self._coarsen()

    def _coarsen(self) -> None:
        for i in range(0, len(self._points) - 1, 2):
            self._points[i].extend(self._points[i + 1])
        self._points = self._points[::2]
        self._stride *= 2

    def of(self, root: int) -> list[list[float | None]]:
        """The root's timeline as JSON: [[t ms, *COLUMNS]]."""
        rows: list[list[float | None]] = []
        for point in self._points:
            state = point.services.get(root)
            if state is not None:
                running = round(state.running / point.samples, 2)
                throttled, queue, *means = state.runtime
                rounded = (None if mean is None else round(mean, 2) for mean in means)
                row: tuple[Any, ...] = state[: State._fields.index("running")]
                rows.append([round(point.t / 1e6, 1), *row, running, throttled, queue, *rounded])
        return rows
