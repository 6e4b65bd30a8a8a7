"""Decides which tests are measured, with which limits and toolchains."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import pytest

from pytest_netpoll.errors import UsageError
from pytest_netpoll.model import limits as marker
from pytest_netpoll.model.limits import Limits
from pytest_netpoll.options import Config

MARKER = "netpoll"
TOOLCHAIN = "netpoll_toolchain"  # the fixture

# Set for every test with the marker.
LIMITS = pytest.StashKey[Limits]()
# In a pytest-xdist worker's output: what is wrong with a marker, for the controller to raise.
_COMPLAINT = "netpoll_usage_error"


def fixtures_of(item: pytest.Item) -> list[str]:
    """All fixtures that the test depends on."""
    return getattr(item, "fixturenames", [])


def is_measured(item: pytest.Item) -> bool:
    """Whether the test has the marker, or uses the fixture to measure parts of itself."""
    return LIMITS in item.stash or "netpoll" in fixtures_of(item)


def limited(items: Iterable[pytest.Item]) -> set[str]:
    """The metrics limited by any of the tests."""
    return {limit.base for item in items if LIMITS in item.stash for limit in item.stash[LIMITS].limits}


def resolve_limits(config: pytest.Config, items: list[pytest.Item], options: Config) -> None:
    """Stores each test's limits; pytest.UsageError if a marker is wrong."""
    try:
        for item in items:
            resolve(item, options)
    except UsageError as error:
        output = getattr(config, "workeroutput", None)
        if output is None:
            raise pytest.UsageError(str(error)) from None
        # In a pytest-xdist worker it would be an internal error, so the controller raises it.
        output[_COMPLAINT] = str(error)
        items.clear()


def resolve(item: pytest.Item, options: Config) -> Limits | None:
    """Stores and returns a test's limits; None without a marker. UsageError if one is wrong."""
    found = list(item.iter_markers_with_node(MARKER))
    if not found:
        return None
    # Those of pytest.param(…, marks=…) are closer than the function's, though pytest has them after these.
    callspec = getattr(item, "callspec", None)
    of_parameters = {id(mark) for mark in getattr(callspec, "marks", ())}
    levels = [callspec if id(mark) in of_parameters else node for node, mark in found]
    order = sorted(range(len(found)), key=lambda at: levels[at] is not callspec)
    marks = [(found[at][1].args, found[at][1].kwargs) for at in order]
    item.stash[LIMITS] = marker.resolve(marks, item.nodeid, options.defaults, [levels[at] for at in order])
    return item.stash[LIMITS]


def raise_complaint(node: object) -> None:
    """Raises the complaint of a pytest-xdist worker that has ended; a crashed one left no output."""
    complaint = getattr(node, "workeroutput", {}).get(_COMPLAINT)
    if complaint is not None:
        raise pytest.UsageError(complaint)


def run_with_each(metafunc: pytest.Metafunc, toolchains: Collection[str]) -> None:
    """Parametrizes measured tests with the toolchains, if there are several."""
    marked = any(metafunc.definition.iter_markers(MARKER))
    if len(toolchains) > 1 and (marked or "netpoll" in metafunc.fixturenames):
        if TOOLCHAIN not in metafunc.fixturenames:
            # It may still request go_service, by request.getfixturevalue.
            metafunc.fixturenames.append(TOOLCHAIN)
        labels: Sequence[str] = list(toolchains)
        metafunc.parametrize(TOOLCHAIN, labels, indirect=True, scope="session", ids=labels)


def toolchain_of(item: pytest.Item) -> str | None:
    """The toolchain that the test runs with, if --netpoll-go names several."""
    callspec = getattr(item, "callspec", None)
    return callspec.params.get(TOOLCHAIN) if callspec is not None else None
