"""The rules that make a window unmeasured: each finds its fault, and is silent without it."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_netpoll.errors import ServiceError, UnmeasuredError
from pytest_netpoll.meter import doubts
from pytest_netpoll.meter.doubts import RULES, Seen, why_not_exact
from tests.agents import MEASURED, SERVICE


def seen(service: Any = SERVICE, *, refused: UnmeasuredError | None = None, **changes: Any) -> Seen:
    """One process, healthy except for the changes; those of its calibration are merged."""
    process: Any = copy.deepcopy(MEASURED)
    for name, value in changes.items():
        holder = next(part for part in (process, process["calibration"], process["counters"]) if name in part)
        holder[name] = value
    return Seen(service, [process], refused, follows_children=True)


def no_process(**changes: Any) -> Seen:
    return Seen(SimpleNamespace(**{**vars(SERVICE), **changes}), [], None, follows_children=True)


def dies(when: str) -> None:
    raise ServiceError(f"service 'server' ended {when}")


FAULTS = [
    ("not_watched", seen(refused=UnmeasuredError("no room")), "no room"),
    ("died", no_process(check_alive=dies), "service 'server' ended during the test"),
    ("absent_from_the_start", no_process(stopped=True), "service 'server' was stopped before *"),
    ("absent_from_the_start", no_process(), "service 'server' was not watched when the window opened"),
    ("another_users", seen(foreign=True), "process 4242 of the service now runs as another user*"),
    ("undecoded_descriptors", seen(unproven=1), "1 of 4 descriptors of process 4242 *"),
    ("more_than_one_runtime", seen(more_pollers=1), "more than one Go runtime *"),
    ("unknown_poller", seen(executable=None, why_not="odd"), "the poller of process 4242 *: odd*"),
    ("children_not_watched", seen(unwatched=2), "2 not watched: child processes beyond the table*"),
    ("not_go", seen(layout=None), "/bin/true is not a Go program"),
    ("losses", seen(lost_fds=3), "*descriptors beyond the table*"),
]


@pytest.mark.parametrize(("rule", "found", "words"), FAULTS, ids=[rule for rule, _, _ in FAULTS])
def test_each_fault_is_found_by_its_rule_and_by_no_earlier_one(rule: str, found: Seen, words: str) -> None:
    speaking = [each.__name__ for each in RULES if each.__name__ != "no_poller" and each(found) is not None]
    assert speaking[0] == rule
    reason = why_not_exact(found)
    assert reason == getattr(doubts, rule)(found)
    pytest.LineMatcher([reason or ""]).fnmatch_lines([words.split("\n")[0] + "*"])


def test_a_go_program_that_never_polled_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_netpoll.meter.processes.go_version_of_program", lambda _: "go1.26.6")
    found = seen(layout=None)
    assert doubts.not_go(found) is None
    assert "it never waited for the network" in (why_not_exact(found) or "")
    assert "1 descriptors are registered with epoll" in (why_not_exact(seen(layout=None, others=1)) or "")


def test_without_a_fault_no_rule_speaks() -> None:
    assert [rule.__name__ for rule in RULES if rule(seen()) is not None] == []
