"""Finds services that ended without being stopped: that is a failure, whatever was measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pytest_netpoll.errors import Reason
from pytest_netpoll.model.verdict import Death
from pytest_netpoll.service.service import Service

_STOP = "if that is intended, call {}.stop() in the test"


class Deaths:
    """The deaths of a session's services."""

    def __init__(self) -> None:
        self._reported: set[tuple[Service, int]] = set()
        self._stopped: list[Death] = []

    def stopped(self, service: Service) -> None:
        """Call when a service was stopped: it may have died before that."""
        if service.crash is not None and (service, service.pid) not in self._reported:
            self._reported.add((service, service.pid))
            how = Reason(f"service {service.name!r} ended before it was stopped", why=service.crash)
            self._stopped.append(_death(service, how))

    def take_stopped(self) -> list[Death]:
        """The services that had died before they were stopped, since the last call."""
        found, self._stopped = self._stopped, []
        return found

    def unreported(self, services: Iterable[Service]) -> list[Service]:
        """The dead services whose death no test has reported."""
        return [service for service in services if (service, service.pid) not in self._reported]

    def report(self, services: Sequence[Service], when: str) -> list[Death]:
        """The dead services that were not stopped; marks them as reported. when: "during the test"."""
        found = list(found_dead(services, when).values())
        self._reported |= {(service, service.pid) for service in services if is_dead(service)}
        return found


def is_dead(service: Service) -> bool:
    return not service.stopped and not service.running


def found_dead(services: Iterable[Service], when: str) -> dict[Service, Death]:
    """The dead services that were not stopped; doesn't mark them as reported."""
    found = {}
    for service in filter(is_dead, services):
        # A panic is never on purpose.
        fix = None if service.last_words() else _STOP.format(service.name)
        how = Reason(f"service {service.name!r} ended {when}", why=service.ending, fix=fix)
        found[service] = _death(service, how)
    return found


def _death(service: Service, how: Reason) -> Death:
    return Death(service.name, how, service.last_words() or service.tail())
