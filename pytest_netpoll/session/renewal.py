"""Function-scoped fixtures anew, within a test's call.

pytest has no public way to do that: its hooks set a test up once, and its own way to run a test again, which
pytest-rerunfailures uses, too, begins outside of the test. What is private is used here only, and looked for
first. It is the same from pytest 7.4 to 9.2.
"""

from __future__ import annotations

from typing import Any

import pytest

from pytest_netpoll.errors import Reason

_OF_STATE = ("stack", "setup", "teardown_exact")


def missing(item: pytest.Item) -> Reason | None:
    """Why this pytest cannot do it; None where it can."""
    state = getattr(item.session, "_setupstate", None)
    needed = {f"Session._setupstate.{name}": hasattr(state, name) for name in _OF_STATE}
    if hasattr(item, "funcargs"):  # as all tests that have fixtures
        needed[f"{type(item).__name__}._initrequest"] = hasattr(item, "_initrequest")
    gone = [name for name, is_there in needed.items() if not is_there]
    if not gone:
        return None
    return Reason(
        f"pytest {pytest.__version__} can't set up a test's fixtures again",
        why=f"it has no {', '.join(gone)}, for which there is no public way",
        fix="pip install 'pytest<9.3', and report this",
    )


def tear_down(item: pytest.Item) -> None:
    """Of the test alone: what its module, class and session have stays."""
    state: Any = item.session._setupstate
    if item in state.stack:
        state.teardown_exact(item.parent)


def set_up(item: pytest.Item) -> None:
    """After `tear_down`, or another set-up that failed."""
    tear_down(item)
    begin_anew = getattr(item, "_initrequest", None)
    if begin_anew is not None:
        begin_anew()
    state: Any = item.session._setupstate
    state.setup(item)
