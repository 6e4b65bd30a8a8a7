"""How pytest is told: failures and skips that are the plugin's, with a message and no traceback."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from pytest_netpoll.errors import NetpollError, UsageError
from pytest_netpoll.options import Config
from pytest_netpoll.verdict import Verdict


class Enforced(NamedTuple):
    """What ended a test by our doing. exception: as raised; it tells our failure from the test's own."""

    exception: BaseException
    verdict: Verdict


ENFORCED = pytest.StashKey["Enforced | None"]()


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """The user's mistakes in options and markers end in exit code 4."""
    try:
        yield
    except UsageError as error:
        raise pytest.UsageError(str(error)) from None


@contextlib.contextmanager
def plain_failures() -> Iterator[None]:
    """Errors of services and of measuring fail the test, or the fixture, in their own words."""
    __tracebackhide__ = True
    try:
        yield
    except NetpollError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None


def enforce(node: pytest.Item, verdict: Verdict, options: Config) -> None:
    """Ends the test as the verdict demands: what was not measured has not passed."""
    if verdict.outcome == "passed":
        return
    reason = verdict.reason or verdict.outcome
    exception: BaseException
    if verdict.outcome == "failed":
        exception = pytest.fail.Exception(reason, pytrace=False)
    elif options.unmeasured == "skip":
        exception = pytest.skip.Exception(f"unmeasured: {reason}")
    else:
        exception = pytest.fail.Exception(f"unmeasured: {reason}", pytrace=False)
    node.stash[ENFORCED] = Enforced(exception, verdict)
    raise exception
