"""Ends services together with the fixture or test that asked for them.

A fixture's service ends after the fixture's own teardown; a test's service ends before the test's fixtures.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from functools import partial
from typing import Any

import pytest

from pytest_netpoll.clean import lines as cleaned
from pytest_netpoll.model.verdict import Death
from pytest_netpoll.service.service import Service
from pytest_netpoll.session.attribution import Owner, Roster
from pytest_netpoll.session.deaths import Deaths
from pytest_netpoll.session.outcome import plain_failures


class Lifetimes:
    """Knows which fixture or test asks for a service; a pytest plugin, because that takes hooks."""

    def __init__(self, roster: Roster, deaths: Deaths) -> None:
        self._roster = roster
        self._deaths = deaths
        self._item: pytest.Item | None = None
        self._began = 0.0
        # The fixtures being set up, each requested by the one before it. Not per thread: a fixture may start
        # its services in several threads.
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
        self._began = time.monotonic()
        self._roster.begin_test()
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, object, object]:
        __tracebackhide__ = True
        used = self._roster.own(item)
        # Before any of them is stopped: stopping isn't the test's doing then, and must not hide a kill.
        late = self._deaths.report(self._deaths.unreported(used), "after the test")
        errors = self._roster.end_made_by(item)
        try:
            result = yield
        except BaseException:
            # The teardown itself fails. Add what was found already, because it is reported only once.
            if late:
                item.add_report_section("teardown", "netpoll", _said(late))
            raise
        finally:
            errors += self._roster.end_made_by(item)  # in the teardown of a fixture
            self._item = None
            with plain_failures():
                if errors:
                    raise errors[0]
        # A panic takes a while, and the service may be stopped before the panic ends it.
        late += [
            *self._deaths.take_stopped(),
            *self._deaths.report(self._deaths.unreported(used), "after the test"),
        ]
        if late:
            raise pytest.fail.Exception(_said(late), pytrace=False)
        return result

    @property
    def elapsed(self) -> float:
        """Seconds since the set-up of the test began."""
        return time.monotonic() - self._began

    def adopt(self, service: Service) -> None:
        """Call with a new service, which will end with the fixture or test that asks for it, or with the
        session.
        """
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


def _said(deaths: Sequence[Death]) -> str:
    return cleaned("\n".join(text for death in deaths for text in (death.reason, death.last_words) if text))
