"""Makes the calls of one test, each in a window of its own; pytest makes the first. If there is only one
side, only the call is repeated: all fixtures stay as the first call left them. If two sides take turns, each
call has new function-scoped fixtures, set up while services point to its side.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import pytest

from pytest_netpoll.clean import one_line
from pytest_netpoll.meter.meter import Meter
from pytest_netpoll.model.limits import Limits
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.median import median_of
from pytest_netpoll.service.sides import Sides, TwoSided
from pytest_netpoll.session.attribution import Roster, doubted
from pytest_netpoll.session.outcome import ENFORCED, plain_failures
from pytest_netpoll.session.renewal import set_up, tear_down

_REPEATED = pytest.StashKey[bool]()
# The property in record_property("requests", n).
REQUESTS = "requests"


def is_repeated(item: pytest.Item) -> bool:
    """Whether the current call is one of ours, which is measured already."""
    return item.stash.get(_REPEATED, False)


class Traffic(NamedTuple):
    """A service's wakeups over all rounds: those of each side in its own calls, and in the other side's."""

    service: str
    head: int
    base: int
    head_astray: int
    base_astray: int


def has_failed(item: pytest.Item) -> bool:
    """Whether the test has failed. A unittest.TestCase raises nothing: pytest stores its failures here."""
    return bool(getattr(item, "_excinfo", None))


def forget_skip(item: pytest.Item) -> None:
    """If a unittest.TestCase has skipped itself, what is raised counts instead."""
    stored = getattr(item, "_excinfo", None)
    if stored and all(isinstance(info.value, pytest.skip.Exception) for info in stored):
        stored.clear()


@contextlib.contextmanager
def repeating(item: pytest.Item) -> Iterator[None]:
    """Marks the call in the block as one of ours."""
    item.stash[_REPEATED] = True
    try:
        yield
    finally:
        item.stash[_REPEATED] = False


class Trial:
    """One test, measured once or repeatedly. windows: the closed ones, each with a measurement for each
    service. requests: what the test reported in each window, or None. base_windows: the other side's, under
    the names of the head's services. base_failure: how the test failed there. two_sided: whether a service of
    the test has another side. head_round: the number of the call in progress, or of the last one; 0 unless it
    is the head's.
    """

    def __init__(self, item: pytest.Item, limits: Limits, meter: Meter, roster: Roster, sides: Sides) -> None:
        self.windows: list[list[Measurement]] = []
        self.requests: list[float | None] = []
        self.base_windows: list[list[Measurement]] = []
        self.base_failure: str | None = None
        self.two_sided = False
        self.head_round = 1
        self._astray: list[tuple[bool, dict[str, int]]] = []  # for each call, the other side's measurements
        self._item = item
        self._limits = limits
        self._meter = meter
        self._roster = roster
        self._sides = sides
        self._fixtures_at_base = False

    @contextlib.contextmanager
    def window(self) -> Iterator[None]:
        """Measures the block, even if it fails: its numbers may show why."""
        presence = self._roster.watch()
        reported = len(self._item.user_properties)
        limited = {limit.base for limit in self._limits.limits}
        window = self._meter.open(limited, self._limits.offences)
        at_base = self._sides.at_base
        self.head_round = 0 if at_base else len(self.windows) + 1
        try:
            yield
        finally:
            with self._sides.point_to(base=False):
                own = [*self._roster.own(self._item), *presence.new]
                services = presence.concerned(own, self._limits)
                paired = [s for s in services if isinstance(s, TwoSided) and s.base is not None]
                others = [s.base for s in paired if s.base is not None]
                self.two_sided = self.two_sided or bool(paired)
                measurements = self._meter.close(window, [*services, *others])
                heads, bases = measurements[: len(services)], measurements[len(services) :]
                bases = [
                    replace(doubted(made, other), service=service.name)
                    for made, other, service in zip(bases, others, paired, strict=True)
                ]
                self._astray.append((at_base, _wakeups([heads if at_base else bases])))
                if at_base:
                    self.base_windows.append(bases)
                else:
                    pairs = zip(heads, services, strict=True)
                    self.windows.append([doubted(*pair, own, self._limits) for pair in pairs])
                    self.requests.append(_requests(self._item.user_properties[reported:]))

    def again(self, times: int) -> list[Measurement]:
        """Repeats the call that many times; returns the median of the windows. Stops if the test fails.
        Services that a call made end before the next one.
        """
        __tracebackhide__ = True
        before = len(self.windows)
        for _ in range(times):
            if self.failed:
                break
            with plain_failures():
                for error in self._roster.end_made_by(self._item):
                    raise error
            self._call()
        return median_of(self.windows[before:]) if len(self.windows) > before else []

    def alternate(self, rounds: int) -> None:
        """Makes rounds on both sides until there are that many: head base, base head, head base, and so on.
        Stops if the test fails; a failure at the base sets base_failure.
        """
        __tracebackhide__ = True
        while len(self.base_windows) < rounds:
            order = (True, False) if len(self.base_windows) % 2 else (False, True)
            for at_base in order:
                made = self.base_windows if at_base else self.windows
                if len(made) <= len(self.base_windows) or at_base:
                    self._measure_anew(at_base)
                if self.failed or self.base_failure is not None:
                    return

    def traffic(self) -> list[Traffic]:
        """The traffic of each service that was measured on both sides."""
        rounds = len(self.base_windows)
        own = [_wakeups(self.windows[:rounds]), _wakeups(self.base_windows)]

        def astray(name: str, at_base: bool) -> int:
            return sum(counts.get(name, 0) for during_base, counts in self._astray if during_base is at_base)

        return [
            Traffic(name, own[0].get(name, 0), base, astray(name, True), astray(name, False))
            for name, base in own[1].items()
        ]

    def _measure_anew(self, at_base: bool) -> None:
        """Makes one call with new function-scoped fixtures, which only see one side."""
        __tracebackhide__ = True
        self.head_round = 0
        with self._sides.point_to(self._fixtures_at_base), plain_failures():
            self._fixtures_at_base = False
            tear_down(self._item)
            for error in self._roster.end_made_by(self._item):
                raise error
        self._roster.begin_test()  # a new service has the name of the one that it replaces
        if not at_base:
            self.head_round = len(self.windows) + 1
            with self._sides.point_to(base=False, reported=len(self.windows) < self._limits.runs):
                set_up(self._item)
                self._call()
            return
        reported = len(self._item.user_properties)
        windows = len(self.base_windows)
        self._fixtures_at_base = True
        try:
            with self._sides.point_to(base=True, reported=False), plain_failures():
                for service in self._sides.services:
                    if service.base is not None and not service.running and not service.stopped:
                        service.restart()  # a death that this test hasn't reported
                set_up(self._item)
                self._call()
            if self.failed:
                self.base_failure = _first_line(str(self._item._excinfo[0].value))  # type: ignore[attr-defined]
        except pytest.exit.Exception:
            raise
        except (Exception, pytest.fail.Exception, pytest.skip.Exception) as error:
            self.base_failure = _first_line(f"{type(error).__name__}: {error}")
        finally:
            del self._item.user_properties[reported:]
        if self.base_failure is not None:
            self.base_failure += self._deaths_at_base()
            del self.base_windows[windows:]
            self._item.stash[ENFORCED] = None
            if self.failed:
                self._item._excinfo = None  # type: ignore[attr-defined]
            self._measure_nothing()

    def _measure_nothing(self) -> None:
        """Tears down what was set up for the base, so that the test ends as it began."""
        with self._sides.point_to(base=True):
            tear_down(self._item)
        self._fixtures_at_base = False
        set_up(self._item)

    def _deaths_at_base(self) -> str:
        ended = [
            f"{service.name} ended: {service.base.ending}"
            for service in self._sides.services
            if service.base is not None and not service.base.stopped and not service.base.running
        ]
        return f" ({', '.join(ended)})" if ended else ""

    def _call(self) -> None:
        __tracebackhide__ = True
        with repeating(self._item), self.window():
            # Through the hook, so that capturing, logging and timeouts of other plugins apply again.
            self._item.ihook.pytest_runtest_call(item=self._item)

    @property
    def failed(self) -> bool:
        return has_failed(self._item)

    def requests_per_second(self, windows: int) -> float | None:
        """Requests per second over the first few windows; None unless the test reported all of them."""
        requests = self.requests[:windows]
        known = [count for count in requests if count is not None]
        seconds = sum(
            max((m.window_seconds for m in window), default=0.0) for window in self.windows[:windows]
        )
        return sum(known) / seconds if known and len(known) == len(requests) and seconds else None


def _wakeups(windows: Sequence[Sequence[Measurement]]) -> dict[str, int]:
    """{service: wakeups} over all of the measurements."""
    found: dict[str, int] = {}
    for window in windows:
        for measurement in window:
            count = measurement.snapshot.counters.get("wakeups", 0)
            found[measurement.service] = found.get(measurement.service, 0) + count
    return found


def _first_line(text: str) -> str:
    return one_line(next((line for line in text.splitlines() if line.strip()), ""))


def _requests(properties: Sequence[tuple[str, object]]) -> float | None:
    counts = [value for name, value in properties if name == REQUESTS]
    numbers = [value for value in counts if isinstance(value, (int, float)) and not isinstance(value, bool)]
    return float(sum(numbers)) if numbers else None
