"""How long a service lives: as long as the fixture, or the test, that asked for it.

A service of a fixture ends after the fixture's own teardown, one of a test before the test's fixtures.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from typing import Any

import pytest

from pytest_netpoll.service.service import Service
from pytest_netpoll.session.attribution import Owner, Roster
from pytest_netpoll.session.outcome import plain_failures


class Lifetimes:
    """Knows who asks for a service at the moment; a plugin of pytest's, for the hooks that tell it."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._item: pytest.Item | None = None
        # The fixtures being set up, each asked for by the one before it. Not by thread: a fixture may
        # start its services in several.
        self._setups: list[tuple[Any, pytest.FixtureRequest]] = []

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(
        self, fixturedef: Any, request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        setup = (fixturedef, request)
        self._setups.append(setup)
        try:
            return (yield)
        finally:
            self._setups.remove(setup)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, object, object]:
        self._item = item
        self._roster.begin_test()
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, object, object]:
        __tracebackhide__ = True
        errors = self._roster.end_made_by(item)
        try:
            return (yield)
        finally:
            errors += self._roster.end_made_by(item)  # in the teardown of a fixture
            self._item = None
            with plain_failures():
                if errors:
                    raise errors[0]

    def adopt(self, service: Service) -> None:
        """Called with a new service: it ends with whoever asks for it, or else with the session."""
        if self._setups:
            definition, request = self._setups[-1]
            self._roster.owners[service] = Owner(request.node, definition)
            request.addfinalizer(partial(self._end, service))
        elif self._item is not None:
            self._roster.owners[service] = Owner(self._item)

    def _end(self, service: Service) -> None:
        __tracebackhide__ = True
        with plain_failures():
            self._roster.end(service)
