"""Hooks that this plugin calls, for conftest.py files and other plugins to implement.

Each is called for every measured test, once per service, in this order. One that raises fails the test, after
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
    """Called with every measurement, before the verdict on its limits.

    measurement.unmeasured says why the service could not be measured; None if it was.
    """


@pytest.hookspec
def pytest_netpoll_breaches(
    item: pytest.Item, measurement: Measurement, limits: Limits
) -> Breach | Sequence[Breach] | None:
    """Limits of your own that the measurement breaks. They count as the marker's do.

    Called before the verdict, and only for measured services. limits: those of the marker.
    """


@pytest.hookspec
def pytest_netpoll_columns(
    item: pytest.Item, measurement: Measurement
) -> Mapping[str, int | float | str | None] | None:
    """Columns of your own for the reports: heading -> value, None if there is none.

    Called only for measured services. They are in the terminal's table, and in the JSON report as
    "columns" of the service.
    """
