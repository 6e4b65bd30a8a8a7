"""Services with two builds side by side: the checkout's and the base revision's. Tests and fixtures have one
Service, which points to the build that is being measured.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pytest_netpoll.errors import NetpollError, ServiceError
from pytest_netpoll.service.factory import ServiceFactory
from pytest_netpoll.service.service import TAKEN, Service
from pytest_netpoll.service.spec import Spec

# The attributes of a service that differ between the sides. Port and url come from the address.
_OF_A_SIDE = """
    pid address ports log executable go_version gomaxprocs cpus running stopped returncode ending
    check_alive last_words tail output_of_this_run restart stop
"""


class Sides:
    """The side that all services point to: by default the head, which is the checkout. reported: whether the
    test's own windows go into the reports; only those of the first rounds do.
    """

    def __init__(self) -> None:
        self.at_base = False
        self.reported = True
        self.services: list[TwoSided] = []

    @contextlib.contextmanager
    def point_to(self, base: bool, reported: bool | None = None) -> Iterator[None]:
        before = self.at_base, self.reported
        self.at_base, self.reported = base, self.reported if reported is None else reported
        try:
            yield
        finally:
            self.at_base, self.reported = before

    def new(self, name: str, spec: Spec, factory: ServiceFactory, asked_name: str | None = None) -> TwoSided:
        return TwoSided(name, spec, factory, asked_name, self)


class TwoSided(Service):
    """The head's service. base: its other build; None if it isn't built, or not yet."""

    def __init__(
        self, name: str, spec: Spec, factory: ServiceFactory, asked_name: str | None, sides: Sides
    ) -> None:
        super().__init__(name, spec, factory, asked_name)
        self.base: Service | None = None
        self._sides = sides

    @property
    def side(self) -> Service:
        return self.base if self._sides.at_base and self.base is not None else self

    def retire(self) -> None:
        with contextlib.suppress(ValueError):
            self._sides.services.remove(self)
        with self._sides.point_to(base=False):
            try:
                if self.base is not None:
                    self.base.retire()
            finally:
                super().retire()


def sided(service: Service) -> Service:
    """The service that it points to."""
    return service.side if isinstance(service, TwoSided) else service


def _pointing(name: str) -> Any:
    own = getattr(Service, name)
    if isinstance(own, property):
        read: Any = own.fget
        return property(lambda self: read(self.side), doc=own.__doc__)
    return lambda self, *args, **options: own(self.side, *args, **options)


for _name in _OF_A_SIDE.split():
    setattr(TwoSided, _name, _pointing(_name))


def _fix(error: ServiceError, own_port: bool) -> str | None:
    """What to do if the base's program, which runs beside the head's, couldn't start."""
    if not own_port:
        return "both builds run at once: put {port} into its arguments"
    if TAKEN not in f"{error.why}{error.detail}".lower():
        return None
    return (
        "both builds run at once, with the same arguments: for each further port, put {port:http} or another "
        "name there, which becomes a free port of each build"
    )


class Pairs:
    """Makes both builds of a service. Called like a ServiceFactory; only packages have two sides."""

    def __init__(self, head: ServiceFactory, base: ServiceFactory, sides: Sides, label: str) -> None:
        self._head = head
        self._base = base
        self._sides = sides
        self._label = label

    def __call__(self, package: Any = None, **options: Any) -> Service:
        with self._sides.point_to(base=False):
            service = self._head(package, **self._addressed(options, to_base=False))
            if package is None or not isinstance(service, TwoSided):
                return service
            try:
                service.base = self._base(package, **self._addressed(options, to_base=True))
            except BaseException as error:
                with contextlib.suppress(NetpollError):
                    service.retire()
                if isinstance(error, ServiceError) and not error.what.startswith(self._label):
                    fix = _fix(error, "{port" in f"{options.get('args')}{options.get('env')}")
                    raise ServiceError(
                        f"{self._label}: {error.what}",
                        why=error.why,
                        fix=error.fix or fix,
                        detail=error.detail,
                    ) from None
                raise
            self._sides.services.append(service)
        return service

    def _addressed(self, options: Mapping[str, Any], to_base: bool) -> dict[str, Any]:
        """The arguments, with other services' ports replaced by those of their builds on that side."""
        ports = dict(self._ports() if to_base else ((base, head) for head, base in self._ports()))
        if not ports:
            return dict(options)
        pattern = re.compile(rf"(?<!\d)({'|'.join(map(str, ports))})(?!\d)")

        def exchanged(value: object) -> str:
            return pattern.sub(lambda match: str(ports[int(match[1])]), str(value))

        mapped = dict(options)
        args, env = options.get("args"), options.get("env")
        if isinstance(args, str):
            mapped["args"] = exchanged(args)
        elif isinstance(args, Sequence):
            mapped["args"] = [exchanged(word) for word in args]
        if isinstance(env, Mapping):
            mapped["env"] = {name: exchanged(value) for name, value in env.items()}
        return mapped

    def _ports(self) -> Iterator[tuple[int, int]]:
        for service in self._sides.services:
            with contextlib.suppress(NetpollError):
                if service.base is not None:
                    yield service.port, service.base.port
                    head, base = service.ports, service.base.ports
                    yield from ((port, base[name]) for name, port in head.items() if name in base)

    def stop_all(self) -> None:
        """As ServiceFactory.stop_all, for both sides."""
        try:
            self._base.stop_all()
        finally:
            self._head.stop_all()
