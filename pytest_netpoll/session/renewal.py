"""Sets up function-scoped fixtures again, within a test's call. pytest has no public way to do that."""

from __future__ import annotations

from typing import Any

import pytest


def tear_down(item: pytest.Item) -> None:
    """Of the test alone: what its module, class and session have stays."""
    state: Any = item.session._setupstate
    if item in state.stack:
        state.teardown_exact(item.parent)


def set_up(item: pytest.Item) -> None:
    """After `tear_down`, or another set-up that failed."""
    tear_down(item)
    begin_anew = getattr(item, "_initrequest", None)
    if begin_anew is not None:  # of all tests that have fixtures
        begin_anew()
    state: Any = item.session._setupstate
    state.setup(item)
