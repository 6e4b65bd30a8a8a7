"""Hooks that this plugin calls, for conftest.py files and other plugins to implement.

Each is called for every measured test, once a service, in this order. One that raises fails the test, after
the others have been called and the test has been judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from pytest_netpoll.model.limits import Limits
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.verdict import Breach


@pytest.hookspec
def pytest_netpoll_measured(item: pytest.Item, measurement: Measurement) -> None:
    """Called with all that was measured, before the verdict on its limits.

    measurement.unmeasured says why the numbers cannot be trusted; it is None where they can.
    """


@pytest.hookspec
def pytest_netpoll_breaches(
    item: pytest.Item, measurement: Measurement, limits: Limits
) -> Breach | Sequence[Breach] | None:
    """Limits of your own that the measurement breaks; they count as the marker's do.

    Called before the verdict, and only with numbers that can be trusted. limits: those of the marker.
    """


@pytest.hookspec
def pytest_netpoll_columns(
    item: pytest.Item, measurement: Measurement
) -> Mapping[str, int | float | str | None] | None:
    """Columns of your own for the reports: heading -> value, None where there is none.

    Called only with numbers that can be trusted. They are in the terminal's table and in the JSON
    report, as "columns" of the service.
    """
