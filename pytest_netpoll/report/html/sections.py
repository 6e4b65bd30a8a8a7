"""The HTML report's details of a test, shown when a row is opened: numbers and charts."""

from __future__ import annotations

import functools
import operator
import statistics
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

from pytest_netpoll.model import units
from pytest_netpoll.model.histogram import bucket_bounds
from pytest_netpoll.model.metrics import LIMITABLE, METRICS, Metric, Value, base_of
from pytest_netpoll.report import evidence_entries, wording
from pytest_netpoll.report.delta import delta, shown
from pytest_netpoll.report.html import flames, overview
from pytest_netpoll.report.next_steps import next_step
from pytest_netpoll.report.record import (
    BreachRecord,
    NumberRecord,
    RegressionRecord,
    ServiceRecord,
    TestRecord,
    WindowRecord,
)

# px: the width of the strip on which a repeated test's runs are drawn.
STRIP = 120
# How many of a test's windows are shown.
MOST_WINDOWS = 20
# Quarters of an octave: in the kernel's narrow buckets, a few hundred wakeups look like noise.
_BUCKETS_A_BAR = 4
# The fields of a timeline's points that the page draws.
_SERIES = (
    "wakeups",
    "productive",
    "spurious",
    "polls",
    "empty_polls",
    "timeout_polls",
    "break_polls",
    "threads_running",
    "run_delay_ns",
    "runq_max",
    "ps_running",
    "spinning",
    "throttled_ns",
    "reads",
    "answers",
    "queue_delay_ns",
    "poll_delay_ns",
    "wake_to_run_ns",
    "handling_ns",
)
# Times besides the latency that have a distribution of their own, if known.
_DELAYS = ("response", "queue_delay", "poll_delay", "handling")


class Details(NamedTuple):
    """A test, for the template. number: its place in the table. services: those with broken limits first.
    siblings: the test under each of several toolchains. notes: the comparison's notes that aren't about one
    service. windows: the services of the `netpoll.measure()` blocks.
    """

    test: TestRecord
    number: int
    services: list[_Service]
    siblings: list[_Sibling]
    notes: list[str]
    windows: list[_Service]


def details_of(tests: Sequence[TestRecord]) -> Iterator[Details]:
    """The details, in the order of the table."""
    siblings = _siblings(tests)
    for number, test in enumerate(tests):
        yield Details(
            test,
            number,
            _services(test),
            siblings.get(wording.without_toolchain(test), []),
            _general_notes(test),
            _windows(test),
        )


def charts_of(test: TestRecord) -> list[dict[str, Any]]:
    """The charts of each service, in the record's order; None for a chart without data. Those of the test's
    windows come after its own.
    """
    windows = [wording.of_window(test, window) for window in shown_windows(test)]
    return [_charts(one, service) for one in (test, *windows) for service in one["services"]]


def _charts(test: TestRecord, service: ServiceRecord) -> dict[str, Any]:
    others = {family: _distribution(test, service, family) for family in _DELAYS}
    return {
        **{family: chart for family, chart in others.items() if chart is not None},
        "latency": _distribution(test, service, "latency"),
        "timeline": _timeline(service),
        "flames": flames.graphs_of(service),
    }


def shown_windows(test: TestRecord) -> list[WindowRecord]:
    """The windows to show; only the last ones of very many, because each has its charts."""
    return test.get("windows", [])[-MOST_WINDOWS:]


def _windows(test: TestRecord) -> list[_Service]:
    found: list[_Service] = []
    for window in shown_windows(test):
        alone = wording.of_window(test, window)
        for number in range(len(window["services"])):
            service = _Service(alone, number)
            service.number += len(test["services"]) + len(found) - number
            service.window = window
            found.append(service)
    return found


def _general_notes(test: TestRecord) -> list[str]:
    """The comparison's notes on the test as a whole."""
    names = tuple(f"{service['name']}: " for service in test["services"])
    comparison = test.get("comparison")
    notes = [] if comparison is None else comparison["notes"]
    return [note for note in notes if not note.startswith(names)]


class _Sibling(NamedTuple):
    """The same test and service under another toolchain. link: to it, in the page."""

    toolchain: str
    number: int
    link: str
    service: str
    status: str
    numbers: list[tuple[str, str]]


def _siblings(tests: Iterable[TestRecord]) -> dict[str, list[_Sibling]]:
    """For each test that ran under several toolchains, a row for each toolchain and service."""
    found: dict[str, list[tuple[int, TestRecord]]] = {}
    for number, test in enumerate(tests):
        if test.get("toolchain"):
            found.setdefault(wording.without_toolchain(test), []).append((number, test))
    return {
        name: [
            _sibling(number, test, service, any(t.get("requests_per_second") for _, t in group))
            for number, test in sorted(group, key=lambda pair: order.index(overview.toolchain_of(pair[1])))
            for service in test["services"]
        ]
        for name, group in found.items()
        if len(order := overview.toolchains_of(test for _, test in group)) > 1
    }


def _sibling(number: int, test: TestRecord, service: ServiceRecord, with_requests: bool) -> _Sibling:
    numbers = [
        (wording.heading(metric), wording.show(service, metric, digits))
        for metric, digits in wording.SIDE_BY_SIDE.items()
    ]
    if with_requests:
        numbers.append(("req/s", units.show(test.get("requests_per_second"), "count")))
    # As the page itself encodes it, with JavaScript's encodeURIComponent.
    link = urllib.parse.quote(wording.one_line(test["nodeid"]), safe="!~*'()")
    status = wording.status_of(test)
    return _Sibling(overview.toolchain_of(test), number, link, service["name"], status, numbers)


class _Limit(NamedTuple):
    """One limit that binds a service. verdict: "broken", "kept", "not reached" or "not measured"."""

    name: str
    limit: str
    measured: str
    verdict: str


class _Number(NamedTuple):
    """A metric, or a column that a hook added. meaning: empty if unknown. then, change, interval: the
    baseline's or base's value, the change, and its interval if there is one. least, most, runs: over the runs
    of a repeated test, and in each of them.
    """

    name: str
    text: str
    meaning: str
    then: str = ""
    change: str = ""
    interval: str = ""
    least: str = ""
    most: str = ""
    runs: Sequence[str] = ()


class _Compared(NamedTuple):
    """A metric then and now. verdict: for a regression, the tolerance and the remeasured values."""

    number: _Number
    verdict: str


class _Repeated(NamedTuple):
    """A metric over the runs. dots, median, limit: their places on the strip, None if not there."""

    number: _Number
    dots: list[float]
    median: float | None
    limit: float | None


class _Service:
    """A service in a test, for the template. number: its place in the record; the windows' services come
    after the test's. window: the window in which it was measured, None for the test's own.
    """

    window: WindowRecord | None = None

    def __init__(self, test: TestRecord, number: int) -> None:
        self.number = number
        self.record = record = test["services"][number]
        self.trusted = wording.trusted(record)
        if not self.trusted:
            # Its numbers must not be shown.
            record = {**record, "metrics": {}, "runs": {}}
        breaches = [breach for breach in test["breaches"] if breach["service"] == record["name"]]
        self.limits = list(_limits(test, record, breaches))
        # Offence -> its graph's title; the page draws a graph when it is opened.
        self.flames = {offence: graph["title"] for offence, graph in flames.graphs_of(record).items()}
        self.broken = {fault["metric"] for fault in wording.broken(test, record)}
        self.explaining = evidence_entries.explaining(test, record)
        self.next_step = next_step(test, record)
        self.besides = evidence_entries.besides(test, record)
        self.late = [] if self._shows_lateness() else evidence_entries.slow_entries(record, record["slowest"])
        explaining = evidence_entries.slow_answers(test, record)
        others = [answer for answer in record.get("slow_answers", []) if answer not in explaining]
        self.slow_answers = evidence_entries.slow_entries(record, others)
        self.runs = wording.runs_of(record)
        comparison = test.get("comparison")
        self.baseline = None if comparison is None else comparison["baseline"]
        then = _then(test, record)
        measured = _with_intervals(test, record)
        of = {name: _number(record, name, then) for name in METRICS}
        self.numbers = [
            *of.values(),
            *(_Number(name, overview.added(record, name).text, "") for name in record.get("columns", {})),
        ]
        limits = wording.limits_of(test, record)
        # The metrics that people look at first; the full list has the others.
        first = {*wording.COLUMNS, *wording.judged(test, record), *map(base_of, self.broken)}
        looked_at = [name for name in METRICS if name in first]
        worse = {r["metric"]: r for r in wording.regressions(test) if r["service"] == record["name"]}
        self.in_turns = comparison is not None and bool(comparison.get("commit"))
        self.has_then = bool(then)
        # With intervals, changes come first, and unchanged metrics are one line.
        self.unchanged = 0
        if measured:
            changed = _changed(test, record)
            numbers = [_with_interval(of[name], measured[name]) for name in changed]
            self.unchanged = len(measured) - len(changed)
        else:
            numbers = [of[name] for name in looked_at if name in then]
        self.compared = [_Compared(number, _worse(worse.get(number.name))) for number in numbers]
        self.repeated = [
            _repeated(record, of[name], limits.get(("max", name))) for name in looked_at if self.runs > 1
        ]
        prefix = f"{record['name']}: "
        notes = [] if comparison is None else comparison["notes"]
        self.notes = [note.removeprefix(prefix) for note in notes if note.startswith(prefix)]

    def _shows_lateness(self) -> bool:
        """Whether the evidence for a broken limit already has the slowest wakeups."""
        return any(metric.startswith(evidence_entries.LATE) for metric in self.broken)


def _then(test: TestRecord, service: ServiceRecord) -> Mapping[str, Value]:
    comparison = test.get("comparison")
    then = [] if comparison is None else comparison["services"]
    return next((before["metrics"] for before in then if before["name"] == service["name"]), {})


def _with_intervals(test: TestRecord, service: ServiceRecord) -> Mapping[str, NumberRecord]:
    """{metric: number} for what was compared in several rounds."""
    comparison = test.get("comparison")
    numbers = [] if comparison is None else comparison.get("numbers", [])
    return {number["metric"]: number for number in numbers if number["service"] == service["name"]}


def _changed(test: TestRecord, service: ServiceRecord) -> list[str]:
    """The service's metrics that changed, worst first."""
    changes = delta([test])
    rows = [] if changes is None else changes.rows
    return [row.metric for row in rows if row.service == service["name"] and row.metric in METRICS]


def _with_interval(number: _Number, measured: NumberRecord) -> _Number:
    """The medians over all rounds; a test's own numbers may be only from the first few."""
    then, now = shown(number.name, measured["base"], measured["head"])
    text, _, span = measured["text"].partition(" (")
    return number._replace(then=then, text=now, change=text, interval=span.removesuffix(")"))


def _number(service: ServiceRecord, name: str, then: Mapping[str, Value]) -> _Number:
    metric = METRICS[name]
    # With two digits, seconds hide how much CPU a test costs.
    show = functools.partial(metric.format, digits=3 if metric.unit == "s" else None)
    now = service["metrics"].get(name)
    number = _Number(name, show(now), metric.meaning)
    if name in then:
        number = number._replace(then=show(then[name]), change=change(metric, then[name], now))
    values = service.get("runs", {}).get(name, [])
    if values:
        known = [value for value in values if value is not None]
        least, most = show(min(known, default=None)), show(max(known, default=None))
        number = number._replace(least=least, most=most, runs=[show(value) for value in values])
    return number


def change(metric: Metric, then: Value, now: Value) -> str:
    """ "+43 %", "\u221212 %", "24 times"; for a share in points, so that 0 % to 5 % isn't infinite."""
    if then is None or now is None:
        return ""
    if metric.unit == "share":
        text = f"{(now - then) * 100:+.1f} points"
    elif then == 0:
        text = f"+{metric.format(now)}" if now else "+0 %"
    elif now / then >= 10:
        return f"{now / then:,.0f} times"
    else:
        text = f"{(now / then - 1) * 100:+.0f} %"
    unchanged = not any(char in text for char in "123456789")
    return "±" + text[1:] if unchanged else text.replace("-", "\u2212")


def _worse(regression: RegressionRecord | None) -> str:
    if regression is None:
        return ""
    show = METRICS[regression["metric"]].format
    again = f", remeasured: {', '.join(map(show, regression['again']))}" if regression["again"] else ""
    return f"{regression['tolerance']} allowed{again}"


def _repeated(service: ServiceRecord, number: _Number, limit: int | float | None) -> _Repeated:
    """The strip begins at 0, so that distances aren't exaggerated, and ends at the limit if that is near."""
    values = service.get("runs", {}).get(number.name, []) if number.runs else []
    known = [value for value in values if value is not None]
    median = service["metrics"].get(number.name) if known else None
    most = max(known, default=0)
    near = limit if limit is not None and limit <= 2 * most else None
    end = max(most, near or 0) or 1

    def place(value: int | float) -> float:
        return round(4 + value / end * (STRIP - 8), 1)

    return _Repeated(
        number,
        [place(value) for value in known],
        None if median is None else place(median),
        None if near is None else place(near),
    )


def _services(test: TestRecord) -> list[_Service]:
    """The services, those with broken limits first."""
    services = [_Service(test, number) for number in range(len(test["services"]))]
    return sorted(services, key=lambda service: not service.broken)


def _limits(test: TestRecord, service: ServiceRecord, breaches: Sequence[BreachRecord]) -> Iterator[_Limit]:
    broken = {(breach.get("kind", "max"), breach["metric"]) for breach in breaches}
    for (kind, metric), value in wording.limits_of(test, service).items():
        measured = wording.measured(test, service, metric) if wording.trusted(service) else None
        show = LIMITABLE[metric].format
        if (kind, metric) in broken:
            verdict = "broken"
        elif measured is None:
            verdict = "not measured"
        else:
            kept = measured <= value if kind == "max" else measured >= value
            # As with too few wakeups: the test is unmeasured because of it.
            verdict = "kept" if kept else "not reached"
        yield _Limit(f"{kind}_{metric}", show(value), show(measured), verdict)


def _distribution(test: TestRecord, service: ServiceRecord, family: str) -> dict[str, Any] | None:
    """The distribution and what to compare it with; None if there is none.

    {"bars": [[low, high, count, "10.0 µs … 12.0 µs"]], "marks": [["p50", ns, "11.0 µs"]], "limits": marks}.
    """
    histogram = service.get("histogram", {})
    if family != "latency":
        # A percentile is missing if it would be misleading.
        known = service["metrics"].get(f"{family}_p50") is not None
        histogram = service.get("delays", {}).get(family, {}) if known else {}
    counts: dict[int, int] = {}
    for bucket, count in histogram.items():
        bar = int(bucket) // _BUCKETS_A_BAR
        counts[bar] = counts.get(bar, 0) + count
    if not counts or not wording.trusted(service):
        return None
    bars = []
    for bar, count in sorted(counts.items()):
        low = max(bucket_bounds(bar * _BUCKETS_A_BAR)[0], 1)  # a logarithmic axis has no 0
        high = bucket_bounds((bar + 1) * _BUCKETS_A_BAR - 1)[1]
        bars.append([low, high, count, f"{units.show(low, 'ns')} … {units.show(high, 'ns')}"])
    marks = [
        [which, value, METRICS[f"{family}_{which}"].format(value)]
        for which in ("p50", "p99", "max")
        if (value := service["metrics"].get(f"{family}_{which}"))
    ]
    limits = [
        [name.rpartition(":")[2], value, units.show(value, "ns")]
        for name, value in test["limits"].items()
        if name.removeprefix(f"{service['name']}:").startswith(f"max_{family}_") and value > 0
    ]
    return {"bars": bars, "marks": marks, "limits": limits}


def _timeline(service: ServiceRecord) -> dict[str, Any] | None:
    """{"step_ms": 100, "ends_ms": [100, 200, …], and for each of the series its values}; None without any."""
    points = cast("list[dict[str, float]]", service.get("timeline", []))
    if not points or not wording.trusted(service):
        return None
    if not any(point.get(name) for point in points for name in _SERIES):
        return None
    ends = [point["t_ms"] for point in points]
    return {
        # The usual step: the last interval ends with the window.
        "step_ms": round(statistics.median(map(operator.sub, ends, [0, *ends[:-1]]))),
        "ends_ms": ends,
        # Older files don't have all of them, and neither do stripped programs.
        **{name: [series.get(name) or 0 for series in points] for name in _SERIES},
    }
