"""Which services a window is about: those that ran in it, and of them those that the test uses."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

import pytest

from pytest_netpoll.marker import Limits
from pytest_netpoll.service import Service, ServiceFactory
from pytest_netpoll.window import Meter

# A service in a client in a tuple is found; deeper lie other libraries' insides.
_DEPTH = 3


class Roster:
    """The services of the session. running: spawned and not stopped, crashed ones included."""

    def __init__(self) -> None:
        self.running: list[Service] = []
        self.spawned: list[Service] = []  # each process of each, in order

    def enter(self, service: Service) -> None:
        self.spawned.append(service)
        self.running.append(service)

    def leave(self, service: Service) -> None:
        self.running.remove(service)


class Presence:
    """Those that run since this was made, stopped meanwhile or not. dead: those that had crashed before."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._before = list(roster.running)
        self.dead = [service for service in self._before if not service.running]
        self._spawned = len(roster.spawned)

    @property
    def new(self) -> list[Service]:
        """Those that did not run before."""
        spawned = dict.fromkeys(self._roster.spawned[self._spawned :])
        return [service for service in spawned if service not in self._before]

    @property
    def all(self) -> list[Service]:
        return self._before + self.new

    def own(self, item: pytest.Item) -> list[Service]:
        """Those that the test's fixtures hold, and those it made."""
        used, new = used_by(item), self.new
        return [service for service in self.all if service in used or service in new]

    def concerned(self, item: pytest.Item, limits: Limits) -> list[Service]:
        """Those that the test's fixtures hold, those it made, those its marker names; else all."""
        used, new = used_by(item), self.new
        chosen = [s for s in self.all if s in used or s in new or s.name in limits.services]
        return chosen or self.all


def used_by(item: pytest.Item) -> list[Service]:
    """Those that the test's fixtures hold, also those of its fixtures' fixtures, each once."""
    values = list((getattr(item, "funcargs", None) or {}).values())
    instance = getattr(item, "instance", None)
    if instance is not None:
        # unittest.TestCase takes no arguments: there fixtures and setUpClass leave services as attributes.
        values += [instance, *vars(type(instance)).values()]
    return list(dict.fromkeys(_services_in(values, _DEPTH)))


def _services_in(values: Iterable[object], depth: int) -> Iterator[Service]:
    for value in values:
        # Not isinstance: it asks a proxy for its __class__, which may do or raise anything.
        if issubclass(type(value), Service):
            assert isinstance(value, Service)
            yield value
        elif depth > 0:
            yield from _services_in(_inside(value), depth - 1)


def _inside(value: object) -> Iterable[object]:
    kind = type(value)
    # Who can make services, measures them, or asks pytest for fixtures, has not thereby used all of them.
    if issubclass(kind, (type, ServiceFactory, Roster, Meter, pytest.FixtureRequest)):
        return ()
    if issubclass(kind, (list, tuple, set, frozenset)):
        assert isinstance(value, Iterable)
        return list(value)
    if issubclass(kind, dict):
        assert isinstance(value, Mapping)
        return list(value.values())
    if dataclasses.is_dataclass(kind):
        # They may have slots.
        return [getattr(value, field.name, None) for field in dataclasses.fields(kind)]
    try:
        return list(object.__getattribute__(value, "__dict__").values())
    except AttributeError:
        return ()
