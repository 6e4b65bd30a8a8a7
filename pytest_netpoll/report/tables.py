"""The tables below the summary: comparison with a baseline, toolchains side by side, spread over runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from pytest_netpoll.model import units
from pytest_netpoll.model.metrics import METRICS, Report, in_report
from pytest_netpoll.model.sample import Sample, Samples
from pytest_netpoll.report import wording
from pytest_netpoll.report.baseline_file import sample
from pytest_netpoll.report.cells import layout, shorten
from pytest_netpoll.report.delta import Delta, delta, further_lines, terminal_rows
from pytest_netpoll.report.record import ComparisonRecord, ServiceRecord, TestRecord
from pytest_netpoll.report.terminal import MOST_OTHERS

_COMPARED = [metric.name for metric in in_report("baseline")]
_SPREAD = [metric.name for metric in in_report("runs")]
_TABLES: tuple[Report, ...] = ("baseline", "toolchains", "runs")
_HEADINGS = wording.kept_longer({m.name: m for report in _TABLES for m in in_report(report)}.values())
# CPU time says least about a single test.
*_DROPPED_FIRST, _LAST = sorted(_HEADINGS, key=lambda heading: heading != "CPU")
_OUTCOMES = {"passed": "passed", "regressed": "WORSE", "unmeasured": "unmeasured", "new": "no baseline"}
_MOST_CHANGES = 40  # lines below the table

Row = tuple[TestRecord, ServiceRecord]


class Compared(NamedTuple):
    """A test against its baseline. now: its services as measured now."""

    nodeid: str
    comparison: ComparisonRecord
    now: Samples


def compared(records: Iterable[TestRecord]) -> list[Compared]:
    """The tests that were compared."""
    return [
        Compared(record["nodeid"], comparison, {s["name"]: sample(s) for s in record["services"]})
        for record in records
        if (comparison := record.get("comparison")) is not None
    ]


def further_tables(records: Sequence[TestRecord], width: int) -> list[tuple[str, str]]:
    """(title, table) for each table with content, not wider than `width`."""
    found: list[tuple[str, str]] = []
    tests = compared(records)
    if has_intervals(tests):
        changes = delta(records)
        assert changes is not None
        base = f"base {changes.base}" if changes.sides[0] == "base" else changes.base
        found.append((f"netpoll: {base} → {changes.sides[1]}", delta_table(changes, width)))
    elif tests:
        name = tests[0].comparison["baseline"]
        found.append(
            (f"netpoll: baseline {wording.one_line(name)} → now", comparison_table(tests, width, records))
        )
    if len({record["toolchain"] for record in records if record.get("toolchain")}) > 1:
        found.append(("netpoll: toolchains", toolchain_table(records, width)))
    repeated = [row for row in _rows(records) if wording.runs_of(row[1]) > 1]
    if repeated:
        found.append(("netpoll: minimum and maximum over the runs", _spread_table(repeated, width)))
    return found


def has_intervals(tests: Sequence[Compared]) -> bool:
    """Whether any test was measured in enough rounds, or in turns with a base."""
    return any(test.comparison.get("commit") or test.comparison.get("numbers") for test in tests)


def delta_table(changes: Delta, width: int) -> str:
    """Changes with intervals, worst first; a line for all that did not change; notes."""
    lines = list(further_lines(changes))
    if changes.rows:
        columns = terminal_rows(changes)
        if len(set(columns["service"])) == 1:
            del columns["service"]
        names = [row.nodeid for row in changes.rows[: len(columns["metric"])]]
        lines.insert(0, layout(names, columns, width, ["95 % interval", "service", changes.sides[0]]))
    return "\n".join(lines)


def comparison_table(tests: Sequence[Compared], width: int, judged: Sequence[TestRecord] = ()) -> str:
    """ "0.0 % → 49.6 %" for each test and service, regressions first; then other changes and notes.

    judged: the tests as they are now, whose limited metrics are shown, too.
    """
    rank = list(_OUTCOMES)
    ordered = sorted(tests, key=lambda test: -(rank.index(test.comparison["outcome"]) in (1, 2)))[
        :MOST_OTHERS
    ]
    rows = [(test, name) for test in ordered for name in test.now]
    worse = {found["metric"] for test in ordered for found in test.comparison["regressions"]}
    limited = _judged(judged)
    columns = {
        wording.heading(metric): [_then_and_now(*row, metric) for row in rows]
        for metric in METRICS
        if metric in _COMPARED or metric in worse or metric in limited
    }
    columns["verdict"] = [_outcome(*row) for row in rows]
    # Regressions are shown however narrow the terminal is, limited metrics longer than others.
    needed, judged_too = set(map(wording.heading, worse)), set(map(wording.heading, limited))
    dropped_first = [heading for heading in [*_DROPPED_FIRST, _LAST] if heading not in needed | judged_too]
    dropped_first += [heading for heading in columns if heading in judged_too - needed][::-1]
    places = [(test.nodeid, name) for test, name in rows]
    lines = [_table(places, columns, width, dropped_first)] if rows else []
    changed = list(_changed(ordered))
    lines += changed[:_MOST_CHANGES]
    if len(changed) > _MOST_CHANGES:
        lines.append(f"… and {len(changed) - _MOST_CHANGES:,} more that changed")
    notes: dict[str, list[str]] = {}
    for test in ordered:
        for note in test.comparison["notes"]:
            notes.setdefault(note, []).append(test.nodeid)
    for note, nodeids in notes.items():
        # The same note on many tests is printed once.
        where = nodeids[0] if len(nodeids) == 1 else f"{len(nodeids):,} tests"
        lines.append(wording.one_line(f"{where}: {note}"))
    return "\n".join(lines)


def _judged(records: Iterable[TestRecord]) -> set[str]:
    """The metrics that are limited, or that broke a limit."""
    broken = {wording.base_of(fault["metric"]) for record in records for fault in record["breaches"]}
    limited = {metric for record, service in _rows(records) for metric in wording.judged(record, service)}
    return limited | (broken & METRICS.keys())


def _changed(tests: Iterable[Compared]) -> Iterator[str]:
    """ "test_echo: server: stale_retries 0 → 150, polls 200 → 400", for each service."""
    for test in tests:
        changes: dict[str, list[str]] = {}
        for change in test.comparison.get("changes", []):
            changes.setdefault(change["service"], []).append(change["text"])
        for service, texts in changes.items():
            yield wording.one_line(f"{test.nodeid}: {service}: {', '.join(texts)}")


def toolchain_table(records: Sequence[TestRecord], width: int) -> str:
    """The tests, and below each of them a row for every toolchain (and service)."""
    groups: dict[str, list[Row]] = {}
    for row in _rows(records):
        if row[0].get("toolchain"):
            groups.setdefault(wording.without_toolchain(row[0]), []).append(row)
    # Group the rows of a test, although pytest runs all tests of one toolchain before the next.
    rows = [row for group in groups.values() for row in group]
    limited = _judged(records)
    columns = {
        wording.heading(metric): [
            wording.show(service, metric, wording.SIDE_BY_SIDE.get(metric)) for _, service in rows
        ]
        for metric in METRICS
        if metric in wording.SIDE_BY_SIDE or metric in limited
    }
    needed = set(map(wording.heading, limited))
    dropped_first = sorted(_DROPPED_FIRST, key=needed.__contains__)
    rates = [record.get("requests_per_second") for record, _ in rows]
    if any(rate is not None for rate in rates):
        columns["req/s"] = [units.show(rate, "count") for rate in rates]
    services = [wording.one_line(service["name"]) for _, service in rows]
    if any(len({service["name"] for _, service in group}) > 1 for group in groups.values()):
        columns = {"service": services, **columns}
    labels = [wording.one_line(record.get("toolchain") or "") for record, _ in rows]
    table = layout(labels, columns, width - 2, dropped_first, "go")
    head, rule, *lines = [f"  {line}" for line in table.splitlines()]
    shown = [head, rule]
    for name, group in groups.items():
        shown += [shorten(name, width), *lines[: len(group)]]
        lines = lines[len(group) :]
    return "\n".join(shown)


def _spread_table(rows: Sequence[Row], width: int) -> str:
    columns = {"runs": [str(wording.runs_of(service)) for _, service in rows]}
    for metric in _SPREAD:
        columns[wording.heading(metric)] = [wording.spread_of(service, metric) for _, service in rows]
    others = [", ".join(_other_limits(row)) for row in rows]
    if any(others):
        columns["other limits"] = others
    # Unlimited metrics are dropped first.
    judged = {wording.heading(metric) for row in rows for metric in wording.judged(*row)}
    dropped_first = sorted((*_DROPPED_FIRST, _LAST), key=judged.__contains__)
    places = [(record["nodeid"], service["name"]) for record, service in rows]
    return _table(places, columns, width, [*dropped_first[:-1], "other limits", dropped_first[-1]])


def _other_limits(row: Row) -> Iterator[str]:
    """ "stale_retries 3 to 5", for limited metrics that have no column."""
    for metric in wording.judged(*row):
        if metric not in _SPREAD:
            yield f"{metric} {wording.spread_of(row[1], metric)}"


def _table(
    places: Sequence[tuple[str, str]],
    columns: Mapping[str, Sequence[str]],
    width: int,
    dropped_first: Sequence[str],
) -> str:
    """places: the test and service of each row."""
    services = [wording.one_line(name) for _, name in places]
    if len(set(services)) > 1:
        columns = {"service": services, **columns}
    return layout([nodeid for nodeid, _ in places], columns, width, dropped_first)


def _rows(records: Iterable[TestRecord]) -> list[Row]:
    return [(record, service) for record in records for service in record["services"]]


def _then_and_now(test: Compared, service: str, metric: str) -> str:
    now = _show(test.now[service], metric)
    for before in test.comparison["services"]:
        if before["name"] == service:
            return f"{METRICS[metric].format(before['metrics'].get(metric))} → {now}"
    return now


def _show(now: Sample, metric: str) -> str:
    return (
        units.NOT_MEASURED if now.unmeasured is not None else METRICS[metric].format(now.metrics.get(metric))
    )


def _outcome(test: Compared, service: str) -> str:
    comparison = test.comparison
    regressed = any(found["service"] == service for found in comparison["regressions"])
    if comparison["outcome"] == "regressed" and not regressed:
        return "passed"
    if comparison["outcome"] == "passed" and not comparison.get("judged", True):
        changed = any(change["service"] == service for change in comparison.get("changes", []))
        return "changed" if changed else "the same"
    return _OUTCOMES[comparison["outcome"]]
