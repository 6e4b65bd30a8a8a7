"""Sets up a test's function-scoped fixtures again, during the test's call.

pytest has no public API for that: its hooks set up a test once, and rerunning a test, as pytest-rerunfailures
does, begins outside of the test. Private API is used in this module only, after checking that it exists. It
is the same from pytest 7.4 to 9.2.
"""

from __future__ import annotations

from typing import Any

import pytest

from pytest_netpoll.errors import Reason

_OF_STATE = ("stack", "setup", "teardown_exact")


def missing(item: pytest.Item) -> Reason | None:
    """Why this pytest can't do that; None if it can."""
    state = getattr(item.session, "_setupstate", None)
    needed = {f"Session._setupstate.{name}": hasattr(state, name) for name in _OF_STATE}
    if hasattr(item, "funcargs"):  # true for all tests that have fixtures
        needed[f"{type(item).__name__}._initrequest"] = hasattr(item, "_initrequest")
    gone = [name for name, is_there in needed.items() if not is_there]
    if not gone:
        return None
    return Reason(
        f"pytest {pytest.__version__} can't set up a test's fixtures again",
        why=f"it has no {', '.join(gone)}, and there is no public API for that",
        fix="pip install 'pytest<9.3', and report this",
    )


def tear_down(item: pytest.Item) -> None:
    """Tears down the test's own fixtures; those of its class, module and session stay."""
    state: Any = item.session._setupstate
    if item in state.stack:
        state.teardown_exact(item.parent)


def set_up(item: pytest.Item) -> None:
    """Sets them up again, after `tear_down` or a set-up that failed."""
    tear_down(item)
    begin_anew = getattr(item, "_initrequest", None)
    if begin_anew is not None:
        begin_anew()
    state: Any = item.session._setupstate
    state.setup(item)
