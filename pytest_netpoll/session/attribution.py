"""Decides which services a window covers: those that ran in it, and which of them are the test's own."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pytest

from pytest_netpoll.errors import NetpollError, Reason
from pytest_netpoll.meter.meter import Meter
from pytest_netpoll.model.limits import NO_LIMITS, Limits
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.service.factory import ServiceFactory
from pytest_netpoll.service.service import Service
from pytest_netpoll.service.sides import Pairs, Sides

# A service in a client in a tuple is found; anything deeper is likely internal to libraries.
_DEPTH = 3


@dataclasses.dataclass(frozen=True, eq=False)
class Owner:
    """The test or fixture that asked for a service. node: the test, or the node that a fixture was set up
    for. fixture: pytest's definition; None for a test.
    """

    node: pytest.Item | pytest.Collector
    fixture: Any = None

    def serves(self, item: pytest.Item, fixtures: Mapping[str, Any]) -> bool:
        """Whether it is the test, or a fixture that the test uses. fixtures: the test's, by name."""
        if self.fixture is None:
            return self.node is item
        used = fixtures.get(self.fixture.argname)
        # A fixture may use the one with the same name that it overrides: both are the test's.
        wrapped = used is not None and used.argname in used.argnames and self.node in item.listchain()
        return used is self.fixture or wrapped


class Roster:
    """The services of the session. running: spawned and not stopped, including crashed ones. owners: of the
    services whose owner has not ended.
    """

    def __init__(self) -> None:
        self.running: list[Service] = []
        self.owners: dict[Service, Owner] = {}
        self._names_of_test: set[str] = set()
        self._presences: weakref.WeakSet[Presence] = weakref.WeakSet()

    def begin_test(self) -> None:
        self._names_of_test.clear()

    def enter(self, service: Service) -> None:
        self.running.append(service)
        self._names_of_test.add(service.name)
        for presence in self._presences:
            presence.enter(service)

    def leave(self, service: Service) -> None:
        self.running.remove(service)

    def taken(self) -> set[str]:
        """The names that no new service may have.

        A name is free again when the service's owner and its test have ended: within one test's measurements
        a name means one service.
        """
        return {service.name for service in (*self.running, *self.owners)} | self._names_of_test

    def fixtures(self) -> list[str]:
        """The names of the fixtures that made the running services, in the order in which they did."""
        owners = (self.owners.get(service) for service in self.running)
        made = (owner.fixture for owner in owners if owner is not None and owner.fixture is not None)
        return list(dict.fromkeys(fixture.argname for fixture in made))

    def watch(self) -> Presence:
        presence = Presence(self.running)
        self._presences.add(presence)
        return presence

    def end(self, service: Service) -> None:
        """Ends a service whose fixture or test has ended."""
        self.owners.pop(service, None)
        service.retire()

    def made_by(self, item: pytest.Item) -> list[Service]:
        """The services that the test made itself, not its fixtures."""
        return [s for s, owner in self.owners.items() if owner.node is item and owner.fixture is None]

    def end_made_by(self, item: pytest.Item) -> list[NetpollError]:
        """Ends the services that the test made itself, the youngest first; returns the errors."""
        errors = []
        for service, owner in reversed(list(self.owners.items())):
            if owner.node is item and owner.fixture is None:
                try:
                    self.end(service)
                except NetpollError as error:
                    errors.append(error)
        return errors

    def own(self, item: pytest.Item) -> list[Service]:
        """The services that the test or its fixtures hold or made, each once. Includes stopped ones, until
        the fixture or test that asked for them has ended.
        """
        # Including fixtures from request.getfixturevalue, which aren't arguments of the test.
        fixtures = getattr(getattr(item, "_request", None), "_fixture_defs", {})
        made = [service for service, owner in self.owners.items() if owner.serves(item, fixtures)]
        held = [service for service in _held_by(item) if not service.retired]
        return list(dict.fromkeys([*held, *made]))


class Presence:
    """The services that ran since this was made, even if stopped. dead: those that had crashed before."""

    def __init__(self, running: Iterable[Service]) -> None:
        self._before = list(running)
        self.dead = [service for service in self._before if not service.running]
        self._spawned: dict[Service, None] = {}

    def enter(self, service: Service) -> None:
        self._spawned[service] = None

    @property
    def new(self) -> list[Service]:
        """The services that did not run before."""
        return [service for service in self._spawned if service not in self._before]

    @property
    def all(self) -> list[Service]:
        return self._before + self.new

    def concerned(self, own: Sequence[Service], limits: Limits) -> list[Service]:
        """The test's own services, those it started meanwhile, and those its marker names. Its own include
        those stopped before, so that nothing else is judged in their place.
        """
        present = [s for s in self.all if s in own or s in self.new or s.name in limits.services]
        return present + [s for s in own if s not in self.all]


def doubted(
    measurement: Measurement, service: Service, own: Sequence[Service] = (), limits: Limits = NO_LIMITS
) -> Measurement:
    """The measurement; unmeasured if it may belong to another service than the test's."""
    if measurement.unmeasured is not None:
        return measurement
    doubt = service.why_elsewhere() or _why_ambiguous(service, own, limits)
    return measurement if doubt is None else dataclasses.replace(measurement, unmeasured=doubt)


def _why_ambiguous(service: Service, own: Sequence[Service], limits: Limits) -> Reason | None:
    """Why a service= is ambiguous: another service of the test asked for the same name."""
    if service.name not in limits.services:
        return None
    for other in own:
        if other.asked_name == service.name and other.name not in limits.services:
            return Reason(
                f"service={service.name!r} may also mean {other.name}",
                why="it asked for that name when it was taken",
                fix="give each service a name= of its own",
            )
    return None


def _held_by(item: pytest.Item) -> list[Service]:
    """The services that the test's fixtures hold, including fixtures of fixtures."""
    values = list((getattr(item, "funcargs", None) or {}).values())
    instance = getattr(item, "instance", None)
    if instance is not None:
        # unittest.TestCase takes no arguments: its fixtures and setUpClass store services as attributes.
        values += [instance, *vars(type(instance)).values()]
    return list(services_in(values, _DEPTH))


def services_in(values: Iterable[object], depth: int = _DEPTH) -> Iterator[Service]:
    """The services among the values and inside them."""
    for value in values:
        # Not isinstance: it reads __class__, for which a proxy may do or raise anything.
        if issubclass(type(value), Service):
            assert isinstance(value, Service)
            yield value
        elif depth > 0:
            yield from services_in(_inside(value), depth - 1)


def _inside(value: object) -> Iterable[object]:
    kind = type(value)
    # go_service, netpoll and request give access to all services; they don't mean that the test uses them.
    if issubclass(kind, (type, ServiceFactory, Pairs, Sides, Roster, Meter, pytest.FixtureRequest)):
        return ()
    if issubclass(kind, (list, tuple, set, frozenset)):
        assert isinstance(value, Iterable)
        return list(value)
    if issubclass(kind, dict):
        assert isinstance(value, Mapping)
        return list(value.values())
    if dataclasses.is_dataclass(kind):
        # Objects may have slots.
        return [getattr(value, field.name, None) for field in dataclasses.fields(kind)]
    try:
        return list(object.__getattribute__(value, "__dict__").values())
    except AttributeError:
        return ()
