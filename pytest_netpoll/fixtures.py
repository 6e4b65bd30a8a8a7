"""What the fixtures `go_service` and `netpoll` give to a test."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from pytest_netpoll.attribution import Roster, doubted
from pytest_netpoll.metrics import Measurement
from pytest_netpoll.options import Config
from pytest_netpoll.outcome import enforce, plain_failures
from pytest_netpoll.service import Service, ServiceFactory
from pytest_netpoll.verdict import Verdict
from pytest_netpoll.window import Meter


class GoService:
    """Builds and launches services: a ServiceFactory whose errors pytest shows without a traceback.

    adopt: called with each new service.
    """

    def __init__(self, factory: ServiceFactory, adopt: Callable[[Service], None]) -> None:
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

    def __init__(self, item: pytest.Item, options: Config, meter: Meter, roster: Roster) -> None:
        self._item = item
        self._options = options
        self._meter = meter
        self._roster = roster

    @contextlib.contextmanager
    def measure(self) -> Iterator[MeasuredWindow]:
        """Opens a window over all services that run and closes it with the block. Windows may nest."""
        measured = MeasuredWindow(self._item, self._options)
        if self._options.mode == "off":
            yield measured
            return
        presence = self._roster.watch()
        window = self._meter.open()
        try:
            yield measured
        finally:
            services = presence.all
            measured.close(services, self._meter.close(window, services))


class MeasuredWindow:
    """window[service] is the service's Measurement, once the block has ended.

    Asking for a service that could not be measured fails (or skips) the test: numbers nobody
    vouches for must not reach an assertion. A single metric that was not is None. With --netpoll=off
    it skips the test.
    """

    def __init__(self, item: pytest.Item, options: Config) -> None:
        self._item = item
        self._options = options
        self._measurements: dict[Service, Measurement] | None = None

    def close(self, services: Sequence[Service], measurements: Sequence[Measurement]) -> None:
        pairs = zip(services, measurements, strict=True)
        self._measurements = {service: doubted(made, service) for service, made in pairs}

    def __getitem__(self, service: Service | str) -> Measurement:
        """service: or its name."""
        __tracebackhide__ = True
        if self._options.mode == "off":
            pytest.skip("nothing is measured with --netpoll=off")
        if self._measurements is None:
            pytest.fail("the window is still open: read it after the with block", pytrace=False)
        # A name means one service in all that is measured of a test.
        by_name = {known.name: known for known in self._measurements}
        name, asked = (service, by_name.get(service)) if isinstance(service, str) else (service.name, service)
        if asked not in self._measurements:
            there = f"in it ran: {', '.join(by_name)}" if by_name else "none ran in it"
            pytest.fail(f"no service {name!r} was measured in this window ({there})", pytrace=False)
        measurement = self._measurements[asked]
        distrust = measurement.unmeasured
        if distrust is not None:
            enforce(self._item, Verdict("unmeasured", (distrust.about(name),)), self._options)
        return measurement
