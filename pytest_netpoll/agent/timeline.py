"""What the services did in the course of a window, interval by interval."""

import operator
from collections import namedtuple

PERIOD = 0.1  # s
MOST_POINTS = 600

# Of one service at one moment. The counts only grow; threads are those alive, running those of them on
# a CPU or waiting for one.
State = namedtuple("State", "wakeups productive spurious polls run_delay threads running")
NOTHING = State(0, 0, 0, 0, 0, 0, 0)


def total(states):
    """The State of all of them together."""
    return State(*[sum(state[i] for state in states) for i in range(len(State._fields))])


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
            counts = map(operator.add, old[:5], new[:5])
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
            counts = map(operator.sub, state[:5], before[:5])
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
        """JSON: [[t ms, wakeups, productive, spurious, polls, threads, running, run delay ns]]."""
        rows = []
        for point in self._points:
            state = point.services.get(root)
            if state is not None:
                running = round(state.running / point.samples, 2)
                rows.append([round(point.t / 1e6, 1), *state[:4], state.threads, running, state.run_delay])
        return rows
