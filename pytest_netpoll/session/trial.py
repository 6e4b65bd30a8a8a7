"""The calls of one test, each in a window of its own: pytest makes the first, the others are made here.

Only the call is repeated: fixtures, those of function scope too, stay as the first call left them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import pytest

from pytest_netpoll.meter.meter import Meter
from pytest_netpoll.model.limits import Limits
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.median import median_of
from pytest_netpoll.session.attribution import Roster, doubted
from pytest_netpoll.session.outcome import plain_failures

_REPEATED = pytest.StashKey[bool]()
# What a test reports with record_property("requests", n).
REQUESTS = "requests"


def is_repeated(item: pytest.Item) -> bool:
    """Whether the call that runs now is one of ours, which is measured already."""
    return item.stash.get(_REPEATED, False)


def has_failed(item: pytest.Item) -> bool:
    """A unittest.TestCase raises nothing: pytest keeps its failures here until it reports."""
    return bool(getattr(item, "_excinfo", None))


@contextlib.contextmanager
def repeating(item: pytest.Item) -> Iterator[None]:
    """The call in the block is one of ours."""
    item.stash[_REPEATED] = True
    try:
        yield
    finally:
        item.stash[_REPEATED] = False


class Trial:
    """One test, measured once or again. windows: the closed ones, of each a measurement a service.

    requests: in each window, what the test reported; None where it reported nothing.
    """

    def __init__(self, item: pytest.Item, limits: Limits, meter: Meter, roster: Roster) -> None:
        self.windows: list[list[Measurement]] = []
        self.requests: list[float | None] = []
        self._item = item
        self._limits = limits
        self._meter = meter
        self._roster = roster

    @contextlib.contextmanager
    def window(self) -> Iterator[None]:
        """Measures the block, also one that fails: its numbers may tell why."""
        presence = self._roster.watch()
        reported = len(self._item.user_properties)
        window = self._meter.open(limited={limit.base for limit in self._limits.limits})
        try:
            yield
        finally:
            own = [*self._roster.own(self._item), *presence.new]
            services = presence.concerned(own, self._limits)
            measurements = self._meter.close(window, services)
            pairs = zip(measurements, services, strict=True)
            self.windows.append([doubted(*pair, own, self._limits) for pair in pairs])
            self.requests.append(_requests(self._item.user_properties[reported:]))

    def again(self, times: int) -> list[Measurement]:
        """Calls the test so often again; the median of these windows. A test that fails stops.

        What a call made itself ends before the next one.
        """
        __tracebackhide__ = True
        before = len(self.windows)
        for _ in range(times):
            if self.failed:
                break
            with plain_failures():
                for error in self._roster.end_made_by(self._item):
                    raise error
            with repeating(self._item), self.window():
                # Through the hook: capturing, logging and timeouts of other plugins apply again.
                self._item.ihook.pytest_runtest_call(item=self._item)
        return median_of(self.windows[before:]) if len(self.windows) > before else []

    @property
    def failed(self) -> bool:
        return has_failed(self._item)

    def requests_per_second(self, windows: int) -> float | None:
        """Over the first so many windows; None where the test did not report all of them."""
        requests = self.requests[:windows]
        known = [count for count in requests if count is not None]
        seconds = sum(
            max((m.window_seconds for m in window), default=0.0) for window in self.windows[:windows]
        )
        return sum(known) / seconds if known and len(known) == len(requests) and seconds else None


def _requests(properties: Sequence[tuple[str, object]]) -> float | None:
    counts = [value for name, value in properties if name == REQUESTS]
    numbers = [value for value in counts if isinstance(value, (int, float)) and not isinstance(value, bool)]
    return float(sum(numbers)) if numbers else None
