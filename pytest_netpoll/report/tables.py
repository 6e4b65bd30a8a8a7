"""The tables below the summary: comparison with a baseline, toolchains side by side, spread over runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from pytest_netpoll.model import units
from pytest_netpoll.model.metrics import METRICS, Report, base_of, in_report
from pytest_netpoll.model.sample import Sample, Samples
from pytest_netpoll.report import wording
from pytest_netpoll.report.baseline_file import sample
from pytest_netpoll.report.cells import fits, fitting, layout, shorten, wrap
from pytest_netpoll.report.delta import Delta, delta, further_lines, grouped, terminal_rows
from pytest_netpoll.report.record import ComparisonRecord, ServiceRecord, TestRecord
from pytest_netpoll.report.terminal import MOST_OTHERS

_COMPARED = [metric.name for metric in in_report("baseline")]
_SPREAD = [metric.name for metric in in_report("runs")]
_TABLES: tuple[Report, ...] = ("baseline", "toolchains", "runs")
_HEADINGS = wording.kept_longer({m.name: m for report in _TABLES for m in in_report(report)}.values())
# CPU time says least about a single test.
*_DROPPED_FIRST, _LAST = sorted(_HEADINGS, key=lambda heading: heading != "CPU")
_OUTCOMES = {"passed": "passed", "regressed": "WORSE", "unmeasured": "unmeasured", "new": "no baseline"}
_MOST_CHANGES = 40  # below the table
_MOST_OF_SERVICE = 5  # in a line of it
_NOTHING = set(f"{units.NOT_MEASURED}→ ")  # what the cells of an empty column consist of
_FEW = 2
_RATE = "req/s"

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
    lines = [part for line in further_lines(changes) for part in _wrapped(line, width)]
    if changes.rows:
        columns = terminal_rows(changes)
        if len(set(columns["service"])) == 1:
            del columns["service"]
        names = [row.nodeid for row in changes.rows[: len(columns["metric"])]]
        lines.insert(0, layout(names, columns, width, ["95 % interval", "service", changes.sides[0]]))
    return "\n".join(lines)


def _wrapped(line: str, width: int) -> list[str]:
    text = line.lstrip()
    return wrap(text, width, line[: len(line) - len(text)])


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
    columns = {heading: cells for heading, cells in columns.items() if set("".join(cells)) - _NOTHING}
    columns["verdict"] = [_outcome(*row) for row in rows]
    # What got worse is dropped last, and then has lines of its own. Columns that matter to one test each, if
    # there are many of them, go first: the lines of what changed have them.
    needed = set(map(wording.heading, {*worse, *limited}))
    own = {wording.heading(metric) for metric in limited - worse - set(_COMPARED)}
    ranks = {
        **dict.fromkeys(needed, 2),
        **dict.fromkeys(own, 1 if len(own) <= _FEW else -1),
        **dict.fromkeys(map(wording.heading, worse), 3),
    }
    *dropped_first, _ = sorted(
        dict.fromkeys([*_DROPPED_FIRST, _LAST, *(columns.keys() - {"verdict"})]),
        key=lambda heading: ranks.get(heading, 0),
    )
    places = [(test.nodeid, name) for test, name in rows]
    lines = [_table(places, columns, width, dropped_first)] if rows else []
    kept = _fitting(places, columns, width, dropped_first) if rows else {}
    missing = [metric for metric in METRICS if metric in worse and wording.heading(metric) not in kept]
    changed = [*_worse_in_lines(rows, missing), *_changed(ordered)]
    for line in changed[:_MOST_CHANGES]:
        lines += wrap(line, width)
    if len(changed) > _MOST_CHANGES:
        lines.append(f"… and {len(changed) - _MOST_CHANGES:,} more that changed")
    for where, note in grouped((test.nodeid, note) for test in ordered for note in test.comparison["notes"]):
        lines += wrap(wording.one_line(f"{where}: {note}"), width)
    return "\n".join(lines)


def _worse_in_lines(rows: Sequence[tuple[Compared, str]], missing: Sequence[str]) -> Iterator[str]:
    """ "test_echo: server: io_calls 3 → 40 (WORSE)", for each service, of the metrics without a column."""
    for test, service in rows:
        worse = {r["metric"] for r in test.comparison["regressions"] if r["service"] == service}
        texts = [
            f"{metric} {_then_and_now(test, service, metric)} (WORSE)"
            for metric in missing
            if metric in worse
        ]
        if texts:
            yield wording.one_line(f"{test.nodeid}: {service}: {', '.join(texts)}")


def _judged(records: Iterable[TestRecord]) -> set[str]:
    """The metrics that are limited, or that broke a limit."""
    broken = {base_of(fault["metric"]) for record in records for fault in record["breaches"]}
    limited = {metric for record, service in _rows(records) for metric in wording.judged(record, service)}
    return limited | (broken & METRICS.keys())


def _changed(tests: Iterable[Compared]) -> Iterator[str]:
    """ "test_echo: server: stale_retries 0 → 150, polls 200 → 400", for each service."""
    for test in tests:
        changes: dict[str, list[str]] = {}
        for change in test.comparison.get("changes", []):
            changes.setdefault(change["service"], []).append(change["text"])
        for service, texts in changes.items():
            left_out = len(texts) - _MOST_OF_SERVICE
            more = f", and {left_out:,} more" if left_out > 0 else ""
            shown = ", ".join(texts[:_MOST_OF_SERVICE])
            yield wording.one_line(f"{test.nodeid}: {service}: {shown}{more}")


def toolchain_table(records: Sequence[TestRecord], width: int) -> str:
    """The tests, and below each of them a row for every toolchain (and service); if that doesn't fit, a row
    for each of the test's metrics, and a column for each toolchain.
    """
    groups: dict[str, list[Row]] = {}
    for row in _rows(records):
        if row[0].get("toolchain"):
            groups.setdefault(wording.without_toolchain(row[0]), []).append(row)
    # Group the rows of a test, although pytest runs all tests of one toolchain before the next.
    rows = [row for group in groups.values() for row in group]
    limited = _judged(records)
    columns = {
        wording.heading(metric): [_side_by_side(service, metric) for _, service in rows]
        for metric in METRICS
        if metric in wording.SIDE_BY_SIDE or metric in limited
    }
    needed = set(map(wording.heading, limited))
    dropped_first = [heading for heading in _DROPPED_FIRST if heading not in needed]
    if needed and _LAST not in needed:
        dropped_first.append(_LAST)
    columns = {
        heading: cells
        for heading, cells in columns.items()
        if heading in needed or set("".join(cells)) - _NOTHING
    }
    rates = [record.get("requests_per_second") for record, _ in rows]
    if any(rate is not None for rate in rates):
        columns[_RATE] = [units.show(rate, "count") for rate in rates]
    services = [wording.one_line(service["name"]) for _, service in rows]
    if any(len({service["name"] for _, service in group}) > 1 for group in groups.values()):
        columns = {"service": services, **columns}
    labels = [_label(row) for row in rows]
    if not fits(labels, fitting(labels, columns, width - 2, dropped_first), width - 2):
        return "\n".join(line for name, group in groups.items() for line in _transposed(name, group, width))
    table = layout(labels, columns, width - 2, dropped_first, "go")
    head, rule, *lines = [f"  {line}" for line in table.splitlines()]
    shown = [head, rule]
    for name, group in groups.items():
        shown += [shorten(name, width), *lines[: len(group)]]
        lines = lines[len(group) :]
    return "\n".join(shown)


def _transposed(name: str, group: Sequence[Row], width: int) -> Iterator[str]:
    """The lines of one test: its own metrics, or the usual ones if it has no limit; a column for each
    toolchain, and as many blocks as it takes.
    """
    limited = _judged([record for record, _ in group])
    metrics = [metric for metric in METRICS if metric in (limited or wording.SIDE_BY_SIDE)]
    services: dict[str, dict[str, Row]] = {}
    for row in group:
        services.setdefault(row[1]["name"], {})[_label(row)] = row
    yield shorten(name, width)
    for service, found in services.items():
        if len(services) > 1:
            yield f" {shorten(service, width - 1)}"
        names = [wording.heading(metric) for metric in metrics]
        columns = {
            label: [_side_by_side(row[1], metric) for metric in metrics] for label, row in found.items()
        }
        if any(row[0].get("requests_per_second") is not None for row in found.values()):
            names.append(_RATE)
            for label, (record, _) in found.items():
                columns[label].append(units.show(record.get("requests_per_second"), "count"))
        labels = list(columns)
        while labels:
            count = len(labels)
            while count > 1 and not fits(
                names, {label: columns[label] for label in labels[:count]}, width - 2
            ):
                count -= 1
            block = {label: columns[label] for label in labels[:count]}
            head, _, *lines = layout(names, block, width - 2, [], "").splitlines()
            yield from (f"  {line}" for line in (head, *lines))
            labels = labels[count:]


def _side_by_side(service: ServiceRecord, metric: str) -> str:
    return wording.show(service, metric, wording.SIDE_BY_SIDE.get(metric))


def _label(row: Row) -> str:
    return wording.one_line(row[0].get("toolchain") or "")


def _spread_table(rows: Sequence[Row], width: int) -> str:
    columns = {"runs": [str(wording.runs_of(service)) for _, service in rows]}
    for metric in _SPREAD:
        cells = [wording.spread_of(service, metric) for _, service in rows]
        if set("".join(cells)) - _NOTHING:
            columns[wording.heading(metric)] = cells
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
    nodeids = [nodeid for nodeid, _ in places]
    return layout(nodeids, _fitting(places, columns, width, dropped_first), width, [])


def _fitting(
    places: Sequence[tuple[str, str]],
    columns: Mapping[str, Sequence[str]],
    width: int,
    dropped_first: Sequence[str],
) -> dict[str, Sequence[str]]:
    services = [wording.one_line(name) for _, name in places]
    if len(set(services)) > 1:
        columns = {"service": services, **columns}
    return fitting([nodeid for nodeid, _ in places], columns, width, dropped_first)


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
    if comparison["outcome"] == "passed" and all(then["name"] != service for then in comparison["services"]):
        return _OUTCOMES["new"]
    if comparison["outcome"] == "passed" and not comparison.get("judged", True):
        changed = any(change["service"] == service for change in comparison.get("changes", []))
        return "changed" if changed else "the same"
    return _OUTCOMES[comparison["outcome"]]
