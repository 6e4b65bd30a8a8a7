"""The objects behind the fixtures `go_service` and `netpoll`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest

from pytest_netpoll.errors import Reason, UnmeasuredError, UsageError
from pytest_netpoll.meter.meter import Meter
from pytest_netpoll.model import ends
from pytest_netpoll.model.evidence import ParkedGoroutine
from pytest_netpoll.model.limits import NO_LIMITS, Limits, resolve
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.verdict import Breach, Death, Verdict, distrust, judge
from pytest_netpoll.options import Config
from pytest_netpoll.report import record, recording
from pytest_netpoll.report.wording import window_name
from pytest_netpoll.service.factory import ServiceFactory
from pytest_netpoll.service.service import Service
from pytest_netpoll.service.sides import Pairs, Sides, sided
from pytest_netpoll.session.attribution import Roster, doubted
from pytest_netpoll.session.deaths import found_dead
from pytest_netpoll.session.outcome import enforce, located, plain_failures, refuse

# How many of a test's windows its record keeps: each has its charts.
MOST_WINDOWS = 100


class Windows:
    """The closed windows of one test; if there are very many, only the last ones. left_out: how many are not
    kept. earlier: how many are in the test's record already.
    """

    def __init__(self, earlier: int = 0) -> None:
        self.left_out = 0
        self._earlier = earlier
        self._kept: list[MeasuredWindow] = []

    def add(self, window: MeasuredWindow) -> int:
        """Returns the window's number."""
        self._kept.append(window)
        if len(self._kept) > MOST_WINDOWS:
            del self._kept[0]
            self.left_out += 1
        return self.closed

    @property
    def closed(self) -> int:
        """How many windows the test has closed so far."""
        return self._earlier + self.left_out + len(self._kept)

    def unmeasured(self) -> list[Reason]:
        """Why limits of windows could not be judged."""
        return [reason for window in self._kept for reason in window.unmeasured]

    def records(self) -> list[record.WindowRecord]:
        first = self.closed - len(self._kept) + 1
        return [window.record(number) for number, window in enumerate(self._kept, first)]


WINDOWS = pytest.StashKey[Windows]()


def _limits(given: Mapping[str, object]) -> Limits:
    """The limits of a window; the test fails if they are wrong."""
    __tracebackhide__ = True
    with plain_failures():
        if "runs" in given:
            raise UsageError("netpoll.measure() takes no runs=", fix="write runs= in @pytest.mark.netpoll")
        return resolve([((), given)], "netpoll.measure()")


class GoService:
    """Builds and launches services: a ServiceFactory whose errors pytest shows without a traceback.

    adopt: called with each new service.
    """

    def __init__(self, factory: ServiceFactory | Pairs, adopt: Callable[[Service], None]) -> None:
        self._factory = factory
        self._adopt = adopt

    def __call__(self, package: Any = None, **options: Any) -> Service:
        __tracebackhide__ = True
        with plain_failures():
            service = self._factory(package, **options)
            self._adopt(service)
            return service


class Netpoll:
    """Measures parts of a test, marked or not."""

    def __init__(
        self, item: pytest.Item, options: Config, meter: Meter, roster: Roster, sides: Sides
    ) -> None:
        self._item = item
        self._options = options
        self._meter = meter
        self._roster = roster
        self._sides = sides

    def parked(self, service: Service | str) -> list[ParkedGoroutine]:
        """The goroutines of a service that are parked on descriptors now.

        service: a Service or its name. If they can't be read, the test fails or is skipped as unmeasured.
        """
        __tracebackhide__ = True
        if self._options.mode == "off":
            pytest.skip("nothing is measured with --netpoll=off")
        known = {running.name: running for running in self._roster.running}
        asked = known.get(service) if isinstance(service, str) else service
        if asked not in self._roster.running:
            pytest.fail(
                f"no service {service!r} is running (running: {', '.join(known) or 'none'})", pytrace=False
            )
        try:
            return self._meter.parked(asked)
        except UnmeasuredError as error:
            refuse(self._item, Verdict("unmeasured", (error.reason.about(asked.name),)), self._options)
            return []

    @contextlib.contextmanager
    def measure(self, name: str | None = None, **limits: object) -> Iterator[MeasuredWindow]:
        """Opens a window over all running services and closes it at the end of the block. Windows may nest.
        name: for the reports; windows without one are numbered. limits: limits and rules as the marker takes
        them (max_polls=50, forbid="NP1", service="server"); if one is broken, the test fails at the end of
        the block.
        """
        __tracebackhide__ = True
        measured = MeasuredWindow(self._item, self._options, name, _limits(limits))
        if self._options.mode == "off":
            yield measured
            return
        presence = self._roster.watch()
        window = self._meter.open({limit.base for limit in measured.limits.limits}, measured.limits.offences)
        number = 0
        raised = True
        try:
            yield measured
            raised = False
        finally:
            services = presence.all
            measurements = self._meter.close(window, [sided(service) for service in services])
            own = {*presence.new, *self._roster.own(self._item)}
            measured.close(services, measurements, own, found_dead(services, "during the window"))
            if self._sides.reported:
                number = self._item.stash.setdefault(WINDOWS, Windows()).add(measured)
            if not self._sides.at_base:  # as with the marker's limits, which are the head's
                # If the test expects what the block raised, it still fails: the exception is in its stash.
                ignored = (pytest.fail.Exception, pytest.skip.Exception) if raised else ()
                with contextlib.suppress(*ignored):
                    measured.enforce(presence.concerned(list(own), measured.limits), number)


class MeasuredWindow:
    """window[service] is the service's Measurement, once the block has ended.

    Asking for an unmeasured service fails (or skips) the test, so that assertions never see wrong numbers. A
    single unmeasured metric is None. With --netpoll=off it skips the test.
    """

    def __init__(
        self, item: pytest.Item, options: Config, name: str | None, limits: Limits = NO_LIMITS
    ) -> None:
        self.limits = limits
        self._item = item
        self._options = options
        self._name = name
        self.unmeasured: Sequence[Reason] = ()
        self._breaches: Sequence[Breach] = ()
        self._measurements: dict[Service, Measurement] | None = None
        self._own: set[Service] = set()
        self._dead: dict[Service, Death] = {}
        self._read: dict[Service, None] = {}

    def close(
        self,
        services: Sequence[Service],
        measurements: Sequence[Measurement],
        own: set[Service],
        dead: Mapping[Service, Death],
    ) -> None:
        """Closes the window. services: those that ran in it, with their measurements. own: the test's own."""
        pairs = zip(services, ends.with_names(measurements), strict=True)
        self._measurements = {
            service: doubted(made, service, tuple(own), self.limits) for service, made in pairs
        }
        self._own = own
        self._dead = dict(dead)

    def enforce(self, services: Sequence[Service], number: int) -> None:
        """Ends the test if a limit or a forbidden rule is broken. services: to judge. number: as in the
        reports; 0 for a window that isn't in them unless it breaks something.
        """
        __tracebackhide__ = True
        if not self.limits.judges or self._measurements is None:
            return
        made = [self._measurements[service] for service in services if service in self._measurements]
        deaths = [self._dead[service] for service in services if service in self._dead]
        running = [service.name for service in self._measurements]
        verdict = judge(ends.dialers_first(made), self.limits, self._options.mode, (), running, deaths)
        self._breaches = verdict.breaches
        self._own.update(services)
        if verdict.breaches and not number:
            number = self._item.stash.setdefault(WINDOWS, Windows()).add(self)
        where = window_name(number, self._name) if number else self._name or ""
        if verdict.outcome == "unmeasured":
            self.unmeasured = located(verdict.reasons, where)
        enforce(self._item, verdict, self._options, where)

    def record(self, number: int) -> record.WindowRecord:
        """The record of the test's own services and of those that it asked for; if there are none, of all
        services."""
        measured = self._measurements or {}
        concerned = [
            made for service, made in measured.items() if service in self._own or service in self._read
        ]
        read = [service.name for service in self._read]
        made = ends.dialers_first(concerned or measured.values())
        return recording.window(number, self._name, made, read, self.limits, self._breaches)

    def __getitem__(self, service: Service | str) -> Measurement:
        """The measurement. service: a Service or its name."""
        __tracebackhide__ = True
        if self._options.mode == "off":
            pytest.skip("nothing is measured with --netpoll=off")
        if self._measurements is None:
            pytest.fail("the window is still open: read it after the with block", pytrace=False)
        # A name means one service in all measurements of a test.
        by_name = {known.name: known for known in self._measurements}
        name, asked = (service, by_name.get(service)) if isinstance(service, str) else (service.name, service)
        if asked not in self._measurements:
            there = f"in it ran: {', '.join(by_name)}" if by_name else "none ran in it"
            pytest.fail(f"no service {name!r} was measured in this window ({there})", pytrace=False)
        self._read.pop(asked, None)
        self._read[asked] = None
        if asked in self._dead:
            death = self._dead[asked]
            refuse(self._item, Verdict("failed", (death.reason,), deaths=(death,)), self._options)
        measurement = self._measurements[asked]
        doubt = distrust(measurement)
        if doubt is not None:
            refuse(self._item, Verdict("unmeasured", (doubt.about(name),)), self._options)
        return measurement
