"""What the reports share: the order of tests, their outcomes, the columns, limits and numbers as text."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pytest_netpoll.clean import lines as clean_lines  # noqa: F401 - for the templates
from pytest_netpoll.clean import one_line as one_line
from pytest_netpoll.errors import Reason
from pytest_netpoll.model import units
from pytest_netpoll.model.measurement import spread
from pytest_netpoll.model.metrics import LIMITABLE, METRICS, Metric, base_of, in_report
from pytest_netpoll.model.verdict import Outcome
from pytest_netpoll.report.record import (
    BreachRecord,
    ReasonRecord,
    RegressionRecord,
    ServiceRecord,
    TestRecord,
    WindowRecord,
)

# The columns of a table of tests: metric -> heading.
COLUMNS: Mapping[str, str] = {metric.name: metric.column for metric in in_report("summary")}
# Columns of one test under several toolchains: metric -> digits. With two digits, seconds hide what a test
# costs.
SIDE_BY_SIDE: Mapping[str, int | None] = {
    metric.name: 3 if metric.unit == "s" else None for metric in in_report("toolchains")
}
_HEADINGS = {
    metric.name: metric.column
    for report in ("summary", "baseline", "toolchains", "runs")
    for metric in in_report(report)
}
_LIMITS = {f"{kind}_{metric}": (kind, metric) for kind in ("max", "min") for metric in LIMITABLE}
_RANK: Mapping[Outcome, int] = {"failed": 0, "unmeasured": 1, "passed": 2}
# As reports show them, worst first.
STATUSES = ("failed", "unmeasured", "would fail", "passed", "xfailed")
# How many of a test's `netpoll.measure()` blocks have a row in a table of tests.
MOST_WINDOWS = 10


def count_statuses(records: Iterable[TestRecord]) -> dict[str, int]:
    """Status -> number of tests, for the statuses that occur, worst first."""
    statuses = [status_of(record) for record in records]
    return {status: statuses.count(status) for status in STATUSES if status in statuses}


def expected(record: TestRecord) -> bool:
    """Whether it failed as pytest.mark.xfail expected."""
    return record.get("xfail") is not None and "failed" in (record["outcome"], record.get("gate"))


def worst_first(records: Iterable[TestRecord]) -> list[TestRecord]:
    """Sorts tests: failed, unmeasured, let pass by report mode, others; else in run order."""
    return sorted(
        records, key=lambda record: (expected(record), _RANK[record["outcome"]], not _faults(record))
    )


def select(
    records: Iterable[TestRecord], most_bad: int, most_good: int
) -> tuple[list[TestRecord], list[str]]:
    """The tests to list, worst first, and a line for each kind of omitted tests."""
    ordered = worst_first(records)
    shown: list[TestRecord] = []
    notes: list[str] = []
    for outcomes, most, what in (
        (("failed", "unmeasured"), most_bad, "failed or were not measured"),
        (("passed",), most_good, "passed"),
    ):
        group = [record for record in ordered if record["outcome"] in outcomes]
        shown += group[:most]
        if len(group) > most:
            notes.append(f"… and {len(group) - most:,} more that {what}")
    return shown, notes


class Row(NamedTuple):
    """A row of a table of tests. service: None for a test without one. window: None for the test's own
    numbers.
    """

    record: TestRecord
    service: ServiceRecord | None
    window: WindowRecord | None = None

    @property
    def name(self) -> str:
        return self.record["nodeid"] if self.window is None else f"↳ {name_of(self.window)}"


def rows(records: Iterable[TestRecord]) -> list[Row]:
    """A row for each test and service, or for a test without services; below it those of its windows."""
    found: list[Row] = []
    for record in records:
        found += [Row(record, service) for service in record["services"]] or [Row(record, None)]
        for window in record.get("windows", [])[-MOST_WINDOWS:]:
            found += [Row(record, service, window) for service in window["services"]]
    return found


def window_name(number: int, name: str | None) -> str:
    """ "window 2", "window 2, login"."""
    return f"window {number}" + (f", {one_line(name)}" if name else "")


def name_of(window: WindowRecord) -> str:
    return window_name(window["number"], window["name"])


def all_services(records: Iterable[TestRecord]) -> list[ServiceRecord]:
    """The services of the tests and of their windows."""
    return [
        service
        for record in records
        for services in (record["services"], *(window["services"] for window in record.get("windows", [])))
        for service in services
    ]


def trusted(service: ServiceRecord) -> bool:
    """Whether its numbers are exact."""
    return service.get("unmeasured") is None and not service["metrics"].get("lost")


def estimates(service: ServiceRecord) -> list[str]:
    """The metrics that are only the runtime's rough estimate."""
    return service.get("estimates", ["mutex_wait_seconds"])  # which it was in older files


def outcome_of(record: TestRecord, service: ServiceRecord | None) -> Outcome:
    """The outcome of one row: a service doesn't fail for what another one did."""
    bad = "failed" in (record["outcome"], record.get("gate"))
    if not bad or service is None or record.get("error") is not None:
        return record["outcome"]
    if _faults(record, service) or any(d["service"] == service["name"] for d in record.get("deaths", [])):
        return record["outcome"]
    return "passed" if trusted(service) else "unmeasured"


def status_of(record: TestRecord, service: ServiceRecord | None = None) -> str:
    """The outcome of a test, or of its row for one service, as reports show it.

    "xfailed" if the failure was expected, "would fail" if report mode lets a broken limit pass.
    """
    if expected(record):
        return "xfailed"
    outcome = outcome_of(record, service)
    # In gate mode a broken limit outweighs what could not be measured.
    would = outcome == "passed" or record.get("gate") == "failed"
    return "would fail" if outcome != "failed" and would and _faults(record, service) else outcome


def alarming(record: TestRecord) -> bool:
    """Whether it needs attention, including what report mode lets pass."""
    return status_of(record) in ("failed", "unmeasured", "would fail")


def show(service: ServiceRecord | None, metric: str, digits: int | None = None) -> str:
    """A number for people; an en dash if it is unknown or not exact."""
    if service is None or not trusted(service):
        return units.NOT_MEASURED
    return METRICS[metric].format(service["metrics"].get(metric), digits)


def heading(metric: str) -> str:
    """The heading of the metric's column: "polls/ev"; else its name."""
    return _HEADINGS.get(metric, metric)


def kept_longer(columns: Iterable[Metric]) -> list[str]:
    """The headings in the order in which a narrow terminal drops them; it keeps the last one."""
    return [metric.column for metric in sorted(columns, key=lambda metric: metric.keep)]


def own_columns(records: Iterable[TestRecord]) -> list[str]:
    """The headings of the columns that users' hooks added, in the order in which they first came."""
    headings = (heading for service in all_services(records) for heading in service.get("columns", {}))
    return list(dict.fromkeys(headings))


def show_own(service: ServiceRecord | None, heading: str) -> str:
    """The value in a column that users' hooks added."""
    value = None if service is None else service.get("columns", {}).get(heading)
    if value is None:
        return units.NOT_MEASURED
    if isinstance(value, str):
        return one_line(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"


def runs_of(service: ServiceRecord) -> int:
    """How many windows its numbers are the medians of."""
    return max(map(len, service.get("runs", {}).values()), default=1)


def spread_of(service: ServiceRecord, metric: str) -> str:
    """ "5.1 µs to 6.3 µs", the least and the most over the runs."""
    return spread(METRICS[metric], service.get("runs", {}).get(metric, []))


def limits_of(record: TestRecord, service: ServiceRecord) -> dict[tuple[str, str], int | float]:
    """("max", "spurious") -> 0.05, of the limits that bind the service."""
    # The service's own limits override the general ones.
    return {
        _LIMITS[name]: value
        for prefix in ("", f"{service['name']}:")
        for key, value in record["limits"].items()
        if (name := key.removeprefix(prefix)) in _LIMITS
    }


def judged(record: TestRecord, service: ServiceRecord) -> list[str]:
    """The metrics that the service's limits are about, without the least number of wakeups: it only says
    whether there is anything to judge, and most limits imply it.
    """
    limits = limits_of(record, service).keys() - {("min", "wakeups")}
    about = {base_of(metric) for _, metric in limits}
    return [metric for metric in METRICS if metric in about]


def measured(record: TestRecord, service: ServiceRecord, metric: str) -> int | float | None:
    """The value of the metric or rate; None if unknown."""
    if metric in METRICS:
        return service["metrics"].get(metric)
    for fault in record["breaches"]:
        if (fault["service"], fault["metric"]) == (service["name"], metric):
            return fault["measured"]
    count, seconds = service["metrics"].get(base_of(metric)), record["window_seconds"]
    # With several runs it is the median of their rates, but the record doesn't have each run's length.
    return count / seconds if count is not None and seconds and runs_of(service) == 1 else None


def without_toolchain(record: TestRecord) -> str:
    """The nodeid without the toolchain of --netpoll-go."""
    label = re.escape(record.get("toolchain") or "")
    return re.sub(rf"(?<=\[){label}-|-{label}(?=[-\]])|\[{label}\]$", "", record["nodeid"], count=1)


def environment_line(records: Iterable[TestRecord], environment: Mapping[str, Any]) -> str:
    """ "kernel 6.8.0, bcc 0.29.1, go1.26.6", as far as known."""
    known = [f"{name} {environment[name]}" for name in ("kernel", "bcc") if environment.get(name)]
    versions = {service["go_version"] for service in all_services(records)}
    return one_line(", ".join([*known, *sorted(version for version in versions if version)]))


def regressions(record: TestRecord) -> list[RegressionRecord]:
    comparison = record.get("comparison")
    return comparison["regressions"] if comparison is not None else []


def broken(record: TestRecord, service: ServiceRecord | None = None) -> list[BreachRecord | RegressionRecord]:
    """The broken limits and the regressions; only those of `service` if given."""
    found: list[BreachRecord | RegressionRecord] = [*record["breaches"], *regressions(record)]
    return [fault for fault in found if service is None or fault["service"] == service["name"]]


def of_window(record: TestRecord, window: WindowRecord) -> TestRecord:
    """The record of the window alone, as if it were a test's."""
    return {
        "nodeid": record["nodeid"],
        "outcome": "failed" if window.get("breaches") else "passed",
        "reason": None,
        "window_seconds": window["window_seconds"],
        "limits": window.get("limits", {}),
        "breaches": window.get("breaches", []),
        "services": window["services"],
    }


def broken_windows(record: TestRecord) -> list[WindowRecord]:
    """The windows with limits of their own that are broken."""
    return [window for window in record.get("windows", []) if window.get("breaches")]


def _faults(
    record: TestRecord, service: ServiceRecord | None = None
) -> list[BreachRecord | RegressionRecord]:
    """As broken, including the windows' own."""
    windows = (of_window(record, window) for window in broken_windows(record))
    return [fault for one in (record, *windows) for fault in broken(one, service)]


def reason_of(parts: ReasonRecord) -> Reason:
    return Reason(parts["what"], why=parts["why"], fix=parts["fix"])


def clean(reason: str) -> Reason:
    """The reason with each part on one line."""
    parts = Reason.of(reason)
    why, fix = (one_line(part) if part else None for part in (parts.why, parts.fix))
    return Reason(one_line(parts.what), why=why, fix=fix)


def windows_behind(record: TestRecord) -> list[WindowRecord]:
    """The windows of a test whose own assertion failed; first those whose numbers it asked for last."""
    if record.get("error") is None:
        return []
    windows = record.get("windows", [])[::-1]
    return [window for window in windows if window["read"]] + [w for w in windows if not w["read"]]


def enumerated(names: Sequence[str]) -> str:
    """ "a, b and c"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def size(count: int) -> str:
    """A file's size: "512 B", "1.2 kB"."""
    if count < 1000:
        return f"{count} B"
    return f"{count / 1000:,.1f} kB" if count < 999_950 else f"{count / 1e6:,.1f} MB"


def cd_to(directory: str) -> str:
    """The command that changes to the directory."""
    return f"cd {shlex.quote(one_line(directory))}"


def artifact_notes(record: TestRecord) -> list[Reason]:
    """Why artifacts of the test are missing."""
    kept = record.get("artifacts")
    return [] if kept is None else [clean(reason_of(note)) for note in kept["notes"]]
