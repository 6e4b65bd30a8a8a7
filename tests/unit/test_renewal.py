"""The private parts of pytest that are needed to measure a test in turns: checked, and named if they are
gone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pytest_netpoll.session import renewal


def item(state: Any, **more: object) -> Any:
    return SimpleNamespace(session=SimpleNamespace(_setupstate=state), **more)


STATE = SimpleNamespace(stack={}, setup=None, teardown_exact=None)


def test_this_pytest_has_the_private_api(request: pytest.FixtureRequest) -> None:
    assert renewal.missing(request.node) is None
    assert renewal.missing(item(STATE)) is None, "a test without fixtures needs no request"


@pytest.mark.parametrize(
    ("changed", "gone"),
    [
        (item(SimpleNamespace(stack={}, setup=None)), "Session._setupstate.teardown_exact"),
        (item(None), "Session._setupstate.stack, Session._setupstate.setup, Session._setupstate.teardown_ex"),
        (item(STATE, funcargs={}), "SimpleNamespace._initrequest"),
    ],
)
def test_a_pytest_that_has_changed_is_named_with_what_is_gone(changed: Any, gone: str) -> None:
    reason = renewal.missing(changed)
    assert reason is not None
    assert f"pytest {pytest.__version__} can't set up a test's fixtures again: it has no {gone}" in reason
    assert reason.fix is not None


def test_fixtures_are_set_up_again_except_those_of_the_module(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        from pytest_netpoll.session import renewal

        made = []

        @pytest.fixture(scope="module")
        def outer():
            made.append("outer"); yield; made.append("outer ends")

        @pytest.fixture(params=[1, 2])
        def inner(outer, request):
            made.append(f"inner {request.param}"); yield len(made); made.append("inner ends")

        def test_it(inner, request):
            renewal.tear_down(request.node)
            renewal.set_up(request.node)
            assert request.node.funcargs["inner"] != inner

        def test_order():
            assert made == ["outer", *(
                step for n in (1, 2) for step in (f"inner {n}", "inner ends") * 2
            ), "outer ends"][:-1]
        """
    )
    pytester.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(passed=3)
