"""Tests that are repeated because a busy machine may disturb them: no failure leaves no trace."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests import waiting


def failing(times: int) -> tuple[list[int], Callable[..., None]]:
    """A repeated test that fails so many times, and its calls."""
    calls: list[int] = []

    @waiting.undisturbed
    def test_it() -> None:
        calls.append(1)
        assert len(calls) > times, f"attempt {len(calls)}"

    return calls, test_it


@pytest.fixture(autouse=True)
def three_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "attempts", lambda: range(3))
    monkeypatch.setattr(waiting, "_failed_each_time", [])


def test_a_test_that_passes_when_repeated_says_so() -> None:
    calls, test = failing(2)
    with pytest.warns(
        waiting.Disturbed, match=r"test_it failed 2 times before it passed; first: .*attempt 1"
    ):
        test()
    assert len(calls) == 3


@pytest.mark.filterwarnings("error")
def test_a_test_that_passes_at_once_says_nothing() -> None:
    calls, test = failing(0)
    test()
    assert len(calls) == 1


def test_none_is_repeated_once_some_have_failed_each_time() -> None:
    for attempts in (3, 3, 3, 1, 1):
        calls, test = failing(9)
        with pytest.raises(AssertionError, match=f"attempt {attempts}"):
            test()
        assert len(calls) == attempts
