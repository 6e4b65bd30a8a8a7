"""What the services did in the course of a window, interval by interval."""

import operator
from collections import namedtuple

PERIOD = 0.1  # s
MOST_POINTS = 600

# The kernel's counters that are in it, in this order.
COUNTERS = (
    "wakeups",
    "productive_wakeups",
    "spurious_wakeups",
    "polls",
    "blocking_polls",
    "timed_polls",
    "nonblocking_polls",
    "empty_polls",
    "timeout_polls",
    "break_polls",
)

# Of one service at one moment. What only grows comes first, run_delay in ns; threads are those alive,
# running those of them on a CPU or waiting for one.
State = namedtuple("State", (*COUNTERS, "run_delay", "threads", "running"))
NOTHING = State(*[0] * len(State._fields))
_GROWING = len(COUNTERS) + 1


def total(counters, run_delay, threads, running):
    """The State of several processes together. counters: a row of each; the others are sums already."""
    sums = [sum(row[i] for row in counters) for i in range(len(COUNTERS))]
    return State(*sums, run_delay, threads, running)


class Point:
    """One interval, up to `t` ns after the window opened: {root: State}, its counts those of the interval.

    samples: how many intervals were put together in it.
    """

    def __init__(self, t, services):
        self.t = t
        self.services = services
        self.samples = 1

    def extend(self, later):
        for root, new in later.services.items():
            old = self.services.get(root, NOTHING)
            counts = map(operator.add, old[:_GROWING], new[:_GROWING])
            # running is a sum, in the end divided by the samples.
            self.services[root] = State(*counts, max(old.threads, new.threads), old.running + new.running)
        self.t = later.t
        self.samples += later.samples


class Timeline:
    """Of one window. Its memory is bounded: once there are too many points, each is made of two."""

    def __init__(self, states):
        self._last = states
        self._points = []
        self._stride = 1  # samples in a point

    def add(self, t, states):
        """t: ns since the window opened. states: {root: State}."""
        services = {}
        for root, state in states.items():
            before = self._last.get(root, NOTHING)
            counts = map(operator.sub, state[:_GROWING], before[:_GROWING])
            services[root] = State(*counts, state.threads, state.running)
        self._last = states
        point = Point(t, services)
        if self._points and self._points[-1].samples < self._stride:
            self._points[-1].extend(point)
            return
        self._points.append(point)
        if len(self._points) > MOST_POINTS:
            self._coarsen()

    def _coarsen(self):
        for i in range(0, len(self._points) - 1, 2):
            self._points[i].extend(self._points[i + 1])
        self._points = self._points[::2]
        self._stride *= 2

    def of(self, root):
        """JSON: [[t ms, *COUNTERS, run delay ns, threads, running]]."""
        rows = []
        for point in self._points:
            state = point.services.get(root)
            if state is not None:
                running = round(state.running / point.samples, 2)
                rows.append([round(point.t / 1e6, 1), *state[:-1], running])
        return rows
