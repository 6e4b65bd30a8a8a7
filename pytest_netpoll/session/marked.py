"""Which tests are measured, against which limits, and with which toolchains."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import pytest

from pytest_netpoll.errors import UsageError
from pytest_netpoll.model import limits as marker
from pytest_netpoll.model.limits import Limits
from pytest_netpoll.options import Config

MARKER = "netpoll"
TOOLCHAIN = "netpoll_toolchain"  # the fixture

# Of every test with the marker.
LIMITS = pytest.StashKey[Limits]()
# Of a pytest-xdist worker's output: the controller raises what is wrong with a marker.
_COMPLAINT = "netpoll_usage_error"


def fixtures_of(item: pytest.Item) -> list[str]:
    """All fixtures that the test depends on."""
    return getattr(item, "fixturenames", [])


def is_measured(item: pytest.Item) -> bool:
    """Whether it has the marker, or measures stretches of itself."""
    return LIMITS in item.stash or "netpoll" in fixtures_of(item)


def limited(items: Iterable[pytest.Item]) -> set[str]:
    """The metrics that any of the tests limits."""
    return {limit.base for item in items if LIMITS in item.stash for limit in item.stash[LIMITS].limits}


def resolve_limits(config: pytest.Config, items: list[pytest.Item], options: Config) -> None:
    """Gives each test its limits; pytest.UsageError where a marker is wrong."""
    try:
        for item in items:
            found = list(item.iter_markers_with_node(MARKER))
            if found:
                marks = [(mark.args, mark.kwargs) for _, mark in found]
                levels = [node for node, _ in found]
                item.stash[LIMITS] = marker.resolve(marks, item.nodeid, options.defaults, levels)
    except UsageError as error:
        output = getattr(config, "workeroutput", None)
        if output is None:
            raise pytest.UsageError(str(error)) from None
        # Raised in a pytest-xdist worker it would be an internal error: the controller says it.
        output[_COMPLAINT] = str(error)
        items.clear()


def raise_complaint(node: object) -> None:
    """Of a pytest-xdist worker that has ended; one that crashed left no output."""
    complaint = getattr(node, "workeroutput", {}).get(_COMPLAINT)
    if complaint is not None:
        raise pytest.UsageError(complaint)


def run_with_each(metafunc: pytest.Metafunc, toolchains: Collection[str]) -> None:
    """Runs what is measured once with each toolchain, where there are several."""
    marked = any(metafunc.definition.iter_markers(MARKER))
    if len(toolchains) > 1 and (marked or "netpoll" in metafunc.fixturenames):
        if TOOLCHAIN not in metafunc.fixturenames:
            # It may still ask for go_service, by request.getfixturevalue.
            metafunc.fixturenames.append(TOOLCHAIN)
        labels: Sequence[str] = list(toolchains)
        metafunc.parametrize(TOOLCHAIN, labels, indirect=True, scope="session", ids=labels)


def toolchain_of(item: pytest.Item) -> str | None:
    """Which of several --netpoll-go the test runs with."""
    callspec = getattr(item, "callspec", None)
    return callspec.params.get(TOOLCHAIN) if callspec is not None else None
