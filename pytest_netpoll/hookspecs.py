"""Hooks that this plugin calls, for conftest.py files and other plugins to implement."""

from __future__ import annotations

import pytest

from pytest_netpoll.metrics import Measurement


@pytest.hookspec
def pytest_netpoll_measured(item: pytest.Item, measurement: Measurement) -> None:
    """Called after each measured test, once a service, before the verdict on its limits.

    measurement.unmeasured says why the numbers cannot be trusted; it is None where they can.
    """
