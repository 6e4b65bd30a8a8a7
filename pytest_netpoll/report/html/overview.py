"""The HTML report's table of all tests: its rows, columns and filters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from pytest_netpoll.model.metrics import LIMITABLE, METRICS, base_of
from pytest_netpoll.model.rules import RULES
from pytest_netpoll.report import verdict_text, wording
from pytest_netpoll.report.record import BreachRecord, RegressionRecord, ServiceRecord, TestRecord

# status -> how the page shows it, worst first; the icon is for people who don't see the colours.
STATUSES: Mapping[str, str] = {
    "failed": "✗",
    "unmeasured": "?",
    "would fail": "!",
    "passed": "✓",
    "xfailed": "~",
}
# How the page shows a number's verdict.
CHANGES: Mapping[str, str] = {"WORSE": "✗", "undecided": "?", "more": "▲", "less": "▼"}
# How a test compares with its baseline -> how the page shows it, worst first.
_BASELINE: Mapping[str, tuple[str, str]] = {
    "regressed": ("✗", "regressed"),
    "unmeasured": ("?", "unmeasured"),
    "new": ("+", "no baseline"),
    "passed": ("✓", "passed"),
    "changed": ("≠", "changed"),
    "same": ("=", "the same"),
    "": ("", "not compared"),
}
# The ones shown below a test's outcome, because they add to it.
_REMARKABLE = ("regressed", "new", "changed")


def toolchain_of(record: TestRecord) -> str:
    """The test's toolchain from --netpoll-go; empty unless there are several."""
    return wording.one_line(record.get("toolchain") or "")


def toolchains_of(tests: Iterable[TestRecord]) -> list[str]:
    """The toolchains from --netpoll-go, oldest first: go1.9 before go1.21."""

    def parts(label: str) -> list[tuple[int, str]]:
        return [
            (int(part or 0), "") if i % 2 else (0, part) for i, part in enumerate(re.split(r"(\d+)", label))
        ]

    return sorted(set(map(toolchain_of, tests)) - {""}, key=parts)


class Choice(NamedTuple):
    """A checkbox that shows or hides tests. value: of the row's data attribute."""

    value: str
    icon: str
    text: str


class Filter(NamedTuple):
    """A group of checkboxes. name: the rows' data attribute that decides whether they are shown."""

    name: str
    legend: str
    choices: list[Choice]


def filters(tests: Sequence[TestRecord], toolchains: Sequence[str], against: str | None) -> list[Filter]:
    """The filters that offer a choice; the outcomes always."""
    statuses = [wording.status_of(test) for test in tests]
    compared = [_compared_with_baseline(test) for test in tests]
    labels = [toolchain_of(test) for test in tests]
    found = [
        Filter(
            "outcome",
            "Show",
            [
                Choice(status, icon, f"{statuses.count(status):,} {status}")
                for status, icon in STATUSES.items()
                if status in statuses
            ],
        ),
        Filter(
            "baseline",
            f"Against {against}",
            [
                Choice(outcome, icon, f"{compared.count(outcome):,} {text}")
                for outcome, (icon, text) in _BASELINE.items()
                if outcome in compared
            ],
        ),
        Filter(
            "toolchain",
            "Built with",
            [Choice(label, "", label or "another Go") for label in [*toolchains, ""] if label in labels],
        ),
    ]
    return [choice for choice in found if choice.name == "outcome" or len(choice.choices) > 1]


def _compared_with_baseline(test: TestRecord) -> str:
    comparison = test.get("comparison")
    if comparison is None or (comparison["outcome"] == "new" and comparison.get("commit")):
        return ""  # the base doesn't lack the test, whose file is the head's
    if comparison["outcome"] == "passed" and not comparison.get("judged", True):
        return "changed" if comparison.get("changes") else "same"
    return comparison["outcome"]


class Cell(NamedTuple):
    """text: for people. value: to sort by, or empty. worse: what it regressed against. broken: the limits
    that it breaks.
    """

    text: str
    value: str
    worse: str = ""
    broken: str = ""


class Row(NamedTuple):
    """A test in the table. columns: for each column, a cell for each service. baseline, against: how it
    compares with its baseline, and notes on that. folder, name: of the nodeid, without the toolchain.
    services: each with its outcome. why: the first reason why it did not pass. more: how many other reasons
    there are.
    """

    nodeid: str
    number: int
    status: str
    toolchain: str
    baseline: str
    against: str
    folder: str
    name: str
    services: list[tuple[str, str]]
    columns: list[list[Cell]]
    why: str
    more: int


def row(number: int, record: TestRecord, own: Sequence[str], others_broke: bool) -> Row:
    """own: columns that hooks added. others_broke: whether there is a column for `other_limits`."""
    rows = [row for row in wording.rows([record]) if row.service]
    services = [(_alone(row), row.service) for row in rows if row.service]
    baseline = _compared_with_baseline(record)
    compares = record.get("comparison") is not None
    return Row(
        record["nodeid"],
        number,
        wording.status_of(record),
        toolchain_of(record),
        baseline,
        _BASELINE[baseline][1] if baseline in _REMARKABLE or (not baseline and compares) else "",
        *split(wording.without_toolchain(record)),
        [(_service(row), _status(row)) for row in rows],
        [
            *([_cell(one, service, metric) for one, service in services] for metric in wording.COLUMNS),
            *([added(service, heading) for _, service in services] for heading in own),
            *([[other_limits(one, service) for one, service in services]] if others_broke else []),
        ],
        *_why(record),
    )


def _why(record: TestRecord) -> tuple[str, int]:
    """(the first reason why it did not pass, how many others there are)."""
    error = [wording.one_line(record.get("error") or "")] if record.get("error") else []
    said = [*error, *(reason.headline for reason in verdict_text.reasons(record))]
    return (said[0], len(said) - 1) if said else ("", 0)


def _alone(row: wording.Row) -> TestRecord:
    """The record with the row's limits: a window has its own."""
    return row.record if row.window is None else wording.of_window(row.record, row.window)


def others_broke(tests: Iterable[TestRecord]) -> bool:
    """Whether any test broke a limit on a metric that has no column."""
    rows = [row for row in wording.rows(tests) if row.service]
    return any(other_limits(_alone(row), row.service).text for row in rows if row.service)


def other_limits(record: TestRecord, service: ServiceRecord) -> Cell:
    """ "polls 2,508": what broke of the metrics that have no column."""
    faults = [
        fault
        for fault in wording.broken(record, service)
        if base_of(fault["metric"]) not in wording.COLUMNS and fault["metric"] not in RULES
    ]
    texts = [f"{fault['metric'].replace('_', ' ')} {_measured(fault)}" for fault in faults]
    return Cell(", ".join(texts), "", broken="; ".join(map(verdict_text.breach_text, faults)))


def _measured(fault: BreachRecord | RegressionRecord) -> str:
    if fault["metric"] in LIMITABLE:
        return LIMITABLE[fault["metric"]].format(fault["measured"])
    return f"{fault['measured']:,}"


def _status(row: wording.Row) -> str:
    """A service's status; empty if its test has only one service, whose status is the test's."""
    if row.window is not None or len(row.record["services"]) < 2:
        return ""
    return wording.status_of(row.record, row.service)


def _service(row: wording.Row) -> str:
    """ "server", "server, medians of 5 runs", "server, window 2"."""
    assert row.service is not None
    runs = wording.runs_of(row.service)
    window = "" if row.window is None else f", {wording.name_of(row.window)}"
    return row.service["name"] + (f", medians of {runs} runs" if runs > 1 else "") + window


def split(nodeid: str) -> tuple[str, str]:
    """("tests/test_echo.py::", "TestEcho::test_echo")."""
    folder, separator, name = nodeid.partition("::")
    return (folder + separator, name) if name else ("", folder)


def _cell(record: TestRecord, service: ServiceRecord, metric: str) -> Cell:
    value = service["metrics"].get(metric) if wording.trusted(service) else None
    worse = [
        r for r in wording.regressions(record) if (r["service"], r["metric"]) == (service["name"], metric)
    ]
    then = f"worse than {METRICS[metric].format(worse[0]['baseline'])}" if worse else ""
    breaches = [b for b in record["breaches"] if b["service"] == service["name"]]
    broken = [verdict_text.breach_text(b) for b in breaches if base_of(b["metric"]) == metric]
    return Cell(wording.show(service, metric), "" if value is None else repr(value), then, "; ".join(broken))


def added(service: ServiceRecord, heading: str) -> Cell:
    value = service.get("columns", {}).get(heading)
    return Cell(wording.show_own(service, heading), repr(value) if isinstance(value, (int, float)) else "")
