"""The tables below the summary: now against a baseline, toolchains side by side, the spread over runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from pytest_netpoll.model import units
from pytest_netpoll.model.metrics import METRICS, Report, in_report
from pytest_netpoll.report import wording
from pytest_netpoll.report.cells import layout, shorten
from pytest_netpoll.report.record import ComparisonRecord, ServiceRecord, TestRecord
from pytest_netpoll.report.terminal import MOST_OTHERS

_COMPARED = [metric.name for metric in in_report("baseline")]
_SPREAD = [metric.name for metric in in_report("runs")]
_TABLES: tuple[Report, ...] = ("baseline", "toolchains", "runs")
_HEADINGS = wording.kept_longer({m.name: m for report in _TABLES for m in in_report(report)}.values())
# CPU time is what says least of one test.
*_DROPPED_FIRST, _LAST = sorted(_HEADINGS, key=lambda heading: heading != "CPU")
_OUTCOMES = {"passed": "passed", "regressed": "WORSE", "unmeasured": "unmeasured", "new": "no baseline"}
_MOST_CHANGES = 40  # lines below the table

Row = tuple[TestRecord, ServiceRecord]


def further_tables(records: Sequence[TestRecord], width: int) -> list[tuple[str, str]]:
    """(title, table) for what there is to show; tables are not wider than `width`."""
    found: list[tuple[str, str]] = []
    compared = [record for record in records if record.get("comparison") is not None]
    if compared:
        name = _comparison(compared[0])["baseline"]
        found.append((f"netpoll: baseline {wording.one_line(name)} → now", comparison_table(compared, width)))
    if len({record["toolchain"] for record in records if record.get("toolchain")}) > 1:
        found.append(("netpoll: toolchains", toolchain_table(records, width)))
    repeated = [row for row in _rows(records) if wording.runs_of(row[1]) > 1]
    if repeated:
        found.append(("netpoll: least and most over the runs", _spread_table(repeated, width)))
    return found


def comparison_table(records: Sequence[TestRecord], width: int) -> str:
    """ "0.0 % → 49.6 %" for each test and service, those that got worse first; what else changed; notes."""
    rank = list(_OUTCOMES)
    ordered = sorted(records, key=lambda record: -(rank.index(_comparison(record)["outcome"]) in (1, 2)))[
        :MOST_OTHERS
    ]
    rows = _rows(ordered)
    worse = {found["metric"] for record in ordered for found in _comparison(record)["regressions"]}
    columns = {
        wording.heading(metric): [_then_and_now(row, metric) for row in rows]
        for metric in METRICS
        if metric in _COMPARED or metric in worse
    }
    columns["verdict"] = [_outcome(row) for row in rows]
    # What got worse stays, however narrow the terminal.
    needed = set(map(wording.heading, worse))
    dropped_first = [heading for heading in _DROPPED_FIRST if heading not in needed]
    lines = [_table(rows, columns, width, dropped_first)] if rows else []
    changed = list(_changed(ordered))
    lines += changed[:_MOST_CHANGES]
    if len(changed) > _MOST_CHANGES:
        lines.append(f"… and {len(changed) - _MOST_CHANGES:,} more that changed")
    notes: dict[str, list[str]] = {}
    for record in ordered:
        for note in _comparison(record)["notes"]:
            notes.setdefault(note, []).append(record["nodeid"])
    for note, nodeids in notes.items():
        # The same for many tests: said once.
        where = nodeids[0] if len(nodeids) == 1 else f"{len(nodeids):,} tests"
        lines.append(wording.one_line(f"{where}: {note}"))
    return "\n".join(lines)


def _changed(records: Iterable[TestRecord]) -> Iterator[str]:
    """ "test_echo: server: stale_retries 0 → 150, polls 200 → 400", for each service."""
    for record in records:
        changes: dict[str, list[str]] = {}
        for change in _comparison(record).get("changes", []):
            changes.setdefault(change["service"], []).append(change["text"])
        for service, texts in changes.items():
            yield wording.one_line(f"{record['nodeid']}: {service}: {', '.join(texts)}")


def toolchain_table(records: Sequence[TestRecord], width: int) -> str:
    """The tests, and below each of them a row for every toolchain (and service)."""
    groups: dict[str, list[Row]] = {}
    for row in _rows(records):
        if row[0].get("toolchain"):
            groups.setdefault(wording.without_toolchain(row[0]), []).append(row)
    # Of one test together, though pytest runs all tests of one toolchain before the next.
    rows = [row for group in groups.values() for row in group]
    columns = {
        wording.heading(metric): [wording.show(service, metric, digits) for _, service in rows]
        for metric, digits in wording.SIDE_BY_SIDE.items()
    }
    rates = [record.get("requests_per_second") for record, _ in rows]
    if any(rate is not None for rate in rates):
        columns["req/s"] = [units.show(rate, "count") for rate in rates]
    services = [wording.one_line(service["name"]) for _, service in rows]
    if any(len({service["name"] for _, service in group}) > 1 for group in groups.values()):
        columns = {"service": services, **columns}
    labels = [wording.one_line(record.get("toolchain") or "") for record, _ in rows]
    table = layout(labels, columns, width - 2, _DROPPED_FIRST, "go")
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
    # What no limit is about goes first.
    judged = {wording.heading(metric) for row in rows for metric in wording.judged(*row)}
    dropped_first = sorted((*_DROPPED_FIRST, _LAST), key=judged.__contains__)
    return _table(rows, columns, width, [*dropped_first[:-1], "other limits", dropped_first[-1]])


def _other_limits(row: Row) -> Iterator[str]:
    """ "stale_retries 3 to 5" of what limits are about and has no column."""
    for metric in wording.judged(*row):
        if metric not in _SPREAD:
            yield f"{metric} {wording.spread_of(row[1], metric)}"


def _table(
    rows: Sequence[Row],
    columns: Mapping[str, Sequence[str]],
    width: int,
    dropped_first: Sequence[str] = _DROPPED_FIRST,
) -> str:
    services = [wording.one_line(service["name"]) for _, service in rows]
    if len(set(services)) > 1:
        columns = {"service": services, **columns}
    return layout([record["nodeid"] for record, _ in rows], columns, width, dropped_first)


def _rows(records: Iterable[TestRecord]) -> list[Row]:
    return [(record, service) for record in records for service in record["services"]]


def _comparison(record: TestRecord) -> ComparisonRecord:
    comparison = record.get("comparison")
    assert comparison is not None
    return comparison


def _then_and_now(row: Row, metric: str) -> str:
    record, service = row
    now = wording.show(service, metric)
    for before in _comparison(record)["services"]:
        if before["name"] == service["name"]:
            return f"{METRICS[metric].format(before['metrics'].get(metric))} → {now}"
    return now


def _outcome(row: Row) -> str:
    record, service = row
    comparison = _comparison(record)
    regressed = any(found["service"] == service["name"] for found in comparison["regressions"])
    if comparison["outcome"] == "regressed" and not regressed:
        return "passed"
    if comparison["outcome"] == "passed" and not comparison.get("judged", True):
        changed = any(change["service"] == service["name"] for change in comparison.get("changes", []))
        return "changed" if changed else "the same"
    return _OUTCOMES[comparison["outcome"]]
