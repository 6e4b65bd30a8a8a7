"""What the reports share: the order of tests, the columns, and the wording of records."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

from pytest_netpoll.clean import lines as clean_lines  # noqa: F401 - for the templates
from pytest_netpoll.clean import one_line as one_line
from pytest_netpoll.errors import Reason
from pytest_netpoll.gobinary import symbols
from pytest_netpoll.gobinary.symbols import PLUMBING, STANDARD, package_root
from pytest_netpoll.model import units
from pytest_netpoll.model.evidence import Offence
from pytest_netpoll.model.measurement import spread
from pytest_netpoll.model.metrics import LIMITABLE, METRICS, Metric, in_report
from pytest_netpoll.model.rules import RULES
from pytest_netpoll.report.record import (
    BreachRecord,
    CpuQuotaRecord,
    FrameRecord,
    OffenderRecord,
    Outcome,
    ReasonRecord,
    RegressionRecord,
    RuleRecord,
    ServiceRecord,
    SlowAnswerRecord,
    SlowWakeupRecord,
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

# offence -> (the metric that is its total, what to call it, what happened there)
_OFFENCES = {
    "spurious": ("spurious_wakeups", "spurious wakeups", "parked"),
    "stale": ("stale_retries", "stale retries", "tried again for nothing"),
    "unclaimed": ("unclaimed_events", "unclaimed events", "nobody waiting"),
}
# The same for sampled offences, of which shares are shown instead of counts.
_SAMPLED = {
    "ready": ("ready_calls", "ready calls", "made"),
    "futile": ("futile_calls", "futile I/O calls", "made"),
    "io": ("io_calls", "I/O calls", "made"),
    "woken": ("wakeups", "wakeups", "parked"),
}
# Limit -> the field of a "parked" entry that it is about.
_PARKED = {
    "parked_goroutines": "count",
    "parked_growth": "growth",
    "abandoned_descriptors": "abandoned",
    "stuck_goroutines": "stuck",
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
    return "would fail" if outcome == "passed" and _faults(record, service) else outcome


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


def base_of(metric: str) -> str:
    """The metric of the table, also for a rate; other names stay as they are."""
    return LIMITABLE[metric].base if metric in LIMITABLE else metric


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


def breach_text(breach: BreachRecord | RegressionRecord) -> str:
    """ "server: spurious 50.0 % (1,999 of 3,998 wakeups) > max 5.0 %"."""
    if "baseline" in breach:
        return breach["text"]
    return breach.get("text") or (
        f"{breach['service']}: {breach['metric']} {breach['measured']}, limit {breach['limit']}"
    )


def reasons(record: TestRecord) -> list[Reason]:
    """For each death, each broken limit and each thing not measured; not the test's own error."""
    given = [] if record.get("error") is not None else _given(record)
    dead = [
        Reason(f"{death['service']}: {death['how']}", fix=death.get("fix"))
        for death in record.get("deaths", [])
    ]
    found = [*dead, *map(_breach_reason, broken(record)), *_of_windows(record), *given]
    return [clean(reason) for reason in dict.fromkeys(found)]


def broken_rules(record: TestRecord) -> list[Reason]:
    """The reasons that are forbidden rules: pytest's message has these without their evidence."""
    faults = [fault for fault in broken(record) if fault["metric"] in RULES]
    found = [*map(_breach_reason, faults), *_of_windows(record, only_rules=True)]
    return [clean(reason) for reason in dict.fromkeys(found)]


def _of_windows(record: TestRecord, only_rules: bool = False) -> list[Reason]:
    return [
        Reason(f"{name_of(window)}, {reason.what}", fix=reason.fix)
        for window in broken_windows(record)
        for breach in window["breaches"]
        if not only_rules or breach["metric"] in RULES
        for reason in [_breach_reason(breach)]
    ]


def _breach_reason(fault: BreachRecord | RegressionRecord) -> Reason:
    fix = None if "baseline" in fault else fault.get("fix")
    return Reason(breach_text(fault), fix=fix)


def unmeasured_reason(service: ServiceRecord) -> Reason | None:
    """Why none of its numbers is exact; None if they are."""
    parts, text = service.get("why_unmeasured"), service.get("unmeasured")
    if parts is not None:
        return _reason(parts)
    return None if text is None else Reason(text)


def _given(record: TestRecord) -> list[Reason]:
    if "reasons" in record:
        return list(map(_reason, record["reasons"]))
    # An older file has only the text.
    return list(map(Reason, (record["reason"] or "").splitlines()))


def _reason(parts: ReasonRecord) -> Reason:
    return Reason(parts["what"], why=parts["why"], fix=parts["fix"])


def clean(reason: str) -> Reason:
    """The reason with each part on one line."""
    parts = Reason.of(reason)
    why, fix = (one_line(part) if part else None for part in (parts.why, parts.fix))
    return Reason(one_line(parts.what), why=why, fix=fix)


class Entry(NamedTuple):
    """Recorded evidence, merged by kind and place. text: on one line, followed by the stack and the wakee, if
    known. kind: what it is evidence of.
    """

    text: str
    stack: list[FrameRecord]
    lead_in: str
    share: float | None = None
    woken: str = ""
    kind: Offence | Literal["late"] = "late"


def explaining(record: TestRecord, service: ServiceRecord) -> list[Entry]:
    """The entries that explain the service's broken limits and rules, in that order, worst first."""
    behind = _offenders_behind(record, service)
    found: dict[str, list[Entry]] = {}
    for fault in broken(record, service):
        name = base_of(fault["metric"])
        if name == "mutex_wait_seconds":
            found.setdefault("mutex", mutex_entries(service))
            continue
        late = name.startswith(_LATE)
        if late and "cpu" in behind:
            found.setdefault("cpu", offender_entries(service, behind["cpu"]))
        if late:
            found.setdefault("late", slow_entries(service, service["slowest"]))
        if name in METRICS and METRICS[name].family in TIMED:
            found.setdefault("answers", slow_entries(service, slow_answers(record, service)))
        for offence in _evidence_in_order(service, name):
            found.setdefault(offence, offender_entries(service, behind.get(offence, ())))
    return [entry for entries in found.values() for entry in entries]


_LATE = ("latency_", "sched_latency_")


def _offenders_behind(record: TestRecord, service: ServiceRecord) -> dict[Offence, list[OffenderRecord]]:
    """The offenders that explain the service's broken limits and rules."""
    found: dict[Offence, list[OffenderRecord]] = {}
    for fault in broken(record, service):
        name = base_of(fault["metric"])
        groups = [(offence, _behind(service, name, offence)) for offence in _evidence_for(name)]
        if name.startswith(_LATE):
            groups.append(("cpu", _cpu_causes(service)))
        for offence, offenders in groups:
            if offenders:
                known = found.setdefault(offence, [])
                known_ids = set(map(id, known))
                known += [o for o in offenders if id(o) not in known_ids]
    return found


def _behind(service: ServiceRecord, name: str, offence: Offence) -> list[OffenderRecord]:
    """The offenders of an offence that explain one broken limit or rule."""
    own = _own(service, offence)
    if name in RULES:
        return [o for o in own if name in o.get("rules", [name])]  # older files have no "rules"
    if name in _PARKED:
        return [o for o in own if cast("dict[str, int]", o).get(_PARKED[name])]
    if name == "mutex_wait_seconds" and offence == "ready":
        return [o for o in own if o.get("unlocks")]
    return own


def _evidence_in_order(service: ServiceRecord, name: str) -> Sequence[Offence]:
    """The evidence for a metric or rule; goroutines woken by the network last where few are."""
    return sorted(_evidence_for(name), key=lambda o: o == "woken" and _timers_lead(service))


def _own(service: ServiceRecord, offence: Offence) -> list[OffenderRecord]:
    """The program's own calls, which limits judge."""
    return [o for o in service["offenders"] if _offence(o) == offence and not o.get("runtime")]


def _cpu_causes(service: ServiceRecord) -> list[OffenderRecord]:
    """The code that used the CPU while woken goroutines waited, where a rule names it."""
    codes = [rule["code"] for rule in service.get("rules", []) if rule["line"] is not None]
    codes = [code for code in codes if "cpu" in _evidence_for(code)]
    return [o for o in _own(service, "cpu") if set(codes) & set(o.get("rules", codes))]


def _timers_lead(service: ServiceRecord) -> bool:
    """Whether goroutines were woken more often by timers and other goroutines than by the network."""
    metrics = service["metrics"]
    return (metrics.get("ready_calls") or 0) > (metrics.get("wakeups") or 0)


def _evidence_for(metric: str) -> Sequence[Offence]:
    """The evidence for a metric; none for metrics that aren't in the table."""
    if metric in METRICS:
        return METRICS[metric].explained_by
    return RULES[metric].offences if metric in RULES else ()


def _wanted(record: TestRecord, service: ServiceRecord) -> set[Offence]:
    """The offences that explain the service's broken limits and rules."""
    return {o for fault in broken(record, service) for o in _evidence_for(base_of(fault["metric"]))}


def _offence(offender: OffenderRecord) -> Offence:
    return offender.get("offence", "spurious")


# Offences shown only if a limit on them is broken, with their names.
_ORDINARY: Mapping[Offence, str] = {
    "ready": "Callers",
    "io": "I/O calls",
    "cpu": "CPU time",
    "woken": "Woken goroutines",
    "parked": "Parked goroutines",
    "mutex": "Waits for mutexes",
}


def besides(record: TestRecord, service: ServiceRecord) -> list[tuple[str, list[Entry]]]:
    """(heading, entries) for evidence that explains nothing broken."""
    explained = {id(o) for offenders in _offenders_behind(record, service).values() for o in offenders}
    rest = [o for o in service["offenders"] if id(o) not in explained]
    wasteful = [o for o in rest if _offence(o) not in _ORDINARY]
    groups = [("Offenders", wasteful)]
    groups += [(heading, [o for o in rest if _offence(o) == kind]) for kind, heading in _ORDINARY.items()]
    return [(heading, offender_entries(service, found)) for heading, found in groups if found]


def callers(record: TestRecord, service: ServiceRecord) -> list[Entry]:
    """The callers of ready calls, worst first, if they were recorded but explain no broken limit."""
    return [
        entry for heading, entries in besides(record, service) if heading == "Callers" for entry in entries
    ]


def offender_entries(service: ServiceRecord, offenders: Iterable[OffenderRecord]) -> list[Entry]:
    """One for each kind of offence and stack, the worst first."""
    places: dict[tuple[Any, ...], list[OffenderRecord]] = {}
    for offender in offenders:
        stack, woken = _key(offender["stack"]), _key(offender.get("woken_stack", []))
        # Without a stack, the descriptor identifies an entry.
        place = stack or (offender["fd_type"], offender.get("local"), offender.get("peer"))
        places.setdefault((_offence(offender), offender.get("runtime"), place, woken), []).append(offender)
    merged = sorted(map(_together, places.values()), key=_rank)
    return [
        Entry(
            offender_text(service, offender),
            shown_stack(offender),
            lead_in(offender),
            offender["share"],
            woken_text(offender),
            _offence(offender),
        )
        for offender in merged
    ]


def mutex_entries(service: ServiceRecord) -> list[Entry]:
    """Where goroutines waited for mutexes, and where these were unlocked; the worst of both come first."""
    waits, holders = offender_entries(service, _own(service, "mutex")), _holders(service)
    return [*waits[:1], *holders[:1], *waits[1:], *holders[1:]]


def _holders(service: ServiceRecord) -> list[Entry]:
    """The callers of ready calls that unlocked a mutex and thereby woke a waiter."""
    holders = [offender for offender in _own(service, "ready") if offender.get("unlocks")]
    total = sum(offender["share"] or 0 for offender in holders)
    of_all = [{**offender, "share": (offender["share"] or 0) / (total or 1)} for offender in holders]
    return [
        entry._replace(text=f"{units.show(entry.share, 'share')} of the Unlocks that woke a waiter, made")
        for entry in offender_entries(service, cast("list[OffenderRecord]", of_all))
    ]


def _rank(offender: OffenderRecord) -> tuple[int, ...]:
    """Leaked goroutines lead, however many others are parked."""
    fields = ("waited_ns", "stuck", "abandoned", "growth", "count")
    return tuple(-(cast("dict[str, int | None]", offender).get(name) or 0) for name in fields)


def _key(stack: Iterable[FrameRecord]) -> tuple[Any, ...]:
    return tuple((frame["file"], frame["line"], frame["function"]) for frame in stack)


def _together(same: Sequence[OffenderRecord]) -> OffenderRecord:
    """Merges the offenders of one place: the worst one, with the numbers of all."""
    worst = max(same, key=lambda offender: offender["count"])
    shares = [offender["share"] for offender in same]
    outcomes = dict.fromkeys(o["outcome"] for o in same if o.get("outcome"))
    together: OffenderRecord = {
        **worst,
        "count": sum(offender["count"] for offender in same),
        "share": None if None in shares else sum(share or 0 for share in shares),
    }
    for name in (*_PARKED.values(), "waited_ns"):
        if name in worst:
            together[name] = sum(offender.get(name) or 0 for offender in same)  # type: ignore[literal-required]
    if outcomes:
        together["outcome"] = " or ".join(filter(None, outcomes))
    return together


def slow_entries(service: ServiceRecord, slow: Iterable[SlowWakeupRecord | SlowAnswerRecord]) -> list[Entry]:
    """Entries for the slowest wakeups and answers, one for each place and kind, the longest first."""
    places: dict[tuple[Any, ...], list[SlowWakeupRecord | SlowAnswerRecord]] = {}
    for one in slow:
        place = (one.get("what"), one["direction"], one["fd_type"], _key(one["stack"]))
        places.setdefault(place, []).append(one)
    return [
        Entry(slow_text(service, same[0], same[1:]), same[0]["stack"], lead_in(same[0]))
        for same in places.values()
    ]


def not_kept(service: ServiceRecord) -> list[str]:
    """A line for each kind of offender whose list is incomplete."""
    lines = []
    for offence, (_, name, _) in _OFFENCES.items():
        shares = [o["share"] or 0 for o in service["offenders"] if o.get("offence", "spurious") == offence]
        missing = 1 - sum(shares)
        if any(shares) and missing >= 0.0005:  # which is shown as 0.1 %
            share = units.show(missing, "share")
            # An event for a descriptor that was closed meanwhile has no known owner.
            or_closed = " or it was closed" if offence == "unclaimed" else ""
            lines.append(f"{share} of the {name} not listed: the kernel's table had no more room{or_closed}")
    return lines


# Metric with a broken limit -> the slow answers that explain it.
TIMED = {
    "queue_delay": "queue_delay",
    "poll_delay": "queue_delay",
    "handling": "response",
    "response": "response",
}


def slow_answers(record: TestRecord, service: ServiceRecord) -> list[SlowAnswerRecord]:
    """The slowest reads or answers, if a limit of the service on such times is broken."""
    faults = [METRICS.get(base_of(fault["metric"])) for fault in broken(record, service)]
    wanted = {TIMED.get(metric.family) for metric in faults if metric is not None}
    return [answer for answer in service.get("slow_answers", []) if answer["what"] in wanted]


def offender_text(service: ServiceRecord, offender: OffenderRecord) -> str:
    """ "499 of 500 (99.8 %) spurious wakeups (read on tcp a ← b), parked"; the place follows."""
    offence = _offence(offender)
    if offence == "cpu":
        return _cpu_text(offender)
    if offence == "parked":
        return _parked_text(offender)
    if offence == "held":
        return _held_text(offender)
    if offence == "mutex":
        return _mutex_text(offender)
    if offence in _SAMPLED:
        return _sampled_text(service, offender)
    metric, name, happened = _OFFENCES[offence]
    count, total, where = offender["count"], service["metrics"].get(metric), ""
    if runs_of(service) > 1:
        # The metric is a median over the runs, but the offenders are one run's.
        total = round(count / offender["share"]) if offender["share"] else None
        where = " in one run"
    amount = units.show(count, "count")
    if total and count <= total:
        amount += f" of {units.show(total, 'count')} ({units.show(count / total, 'share')})"
    at = _parked(offender) if offence == "spurious" else f", {happened}"
    return f"{amount} {name}{where} ({_where(offender)}){at}"


def _parked(entry: OffenderRecord | SlowWakeupRecord | SlowAnswerRecord) -> str:
    return ", parked" if entry["stack"] else ""


def shown_stack(entry: OffenderRecord | SlowWakeupRecord | SlowAnswerRecord) -> list[FrameRecord]:
    """The stack to show: if the runtime made the ready call, as for a timer, the woken goroutine's."""
    woken = cast("OffenderRecord", entry).get("woken_stack") or []
    return woken if woken and not any(map(_is_users, entry["stack"])) else entry["stack"]


def _is_users(frame: FrameRecord) -> bool:
    return package_root(frame["function"] or "runtime") not in STANDARD | PLUMBING


# Below a stack that `is_cut_short`.
CUT_SHORT = "The stack ends in C or assembly code, which keeps no frame pointers."


def is_cut_short(stack: Sequence[FrameRecord]) -> bool:
    return symbols.is_cut_short([(frame["function"] or "?", frame["file"] or "") for frame in stack])


def lead_in(entry: OffenderRecord | SlowWakeupRecord | SlowAnswerRecord) -> str:
    """The words between an entry's text and its stack: " at", or ", no stack" if one is missing."""
    if shown_stack(entry):
        return " at"
    stackless = entry.get("offence") == "unclaimed" or entry.get("count") == 0
    return "" if stackless else ", no stack"


def _sampled_text(service: ServiceRecord, offender: OffenderRecord) -> str:
    """ "99.8 % of 50,123 ready calls, made". Without its count, which is estimated from a sample."""
    metric, name, happened = _SAMPLED[offender["offence"]]
    counted = service["metrics"].get(metric)
    total = f"{units.show(counted, 'count')} " if counted is not None else ""
    outcome = offender.get("outcome")
    where = f" ({_where(offender)}, {outcome})" if outcome else ""
    if offender["offence"] == "woken":
        locked = ", of goroutines locked to a thread" if offender.get("locked") else ""
        where = f" ({_where(offender)}){locked}"
    woken = offender.get("woken_stack") or []
    if woken and shown_stack(offender) is woken:
        by = f" by {one_line(offender['stack'][0]['function'] or '?')}" if offender["stack"] else ""
        happened = f"made{by}, woke the goroutine parked"
    return f"{units.show(offender['share'], 'share')} of {total}{name}{where}, {happened}"


def woken_text(entry: OffenderRecord | SlowWakeupRecord) -> str:
    """ "which woke the goroutine parked at pool.go:31 main.worker", of a ready call.

    Empty if that isn't known, or is what shown_stack returns.
    """
    woken = cast("OffenderRecord", entry).get("woken_stack") or []
    known = bool(woken) and shown_stack(entry) is not woken
    locked = f", {_LOCKED}" if entry.get("locked") else ""
    return f"which woke the goroutine parked{place(woken)}{locked}" if known else ""


_LOCKED = "which is locked to a thread"


def _cpu_text(offender: OffenderRecord) -> str:
    """ "97.8 % of 495 CPU samples, running"."""
    share = offender["share"] or 0
    samples = units.show(round(offender["count"] / share), "count") if share else units.NOT_MEASURED
    return f"{units.show(share, 'share')} of {samples} CPU samples, running"


def _held_text(offender: OffenderRecord) -> str:
    """ "20 writes (write on tcp a → b), held back for 41.2 ms each, made"; the place follows."""
    each = units.show((offender.get("held_ns") or 0) / offender["count"], "ns")
    count = units.show(offender["count"], "count")
    return f"{count} writes ({_where(offender)}), held back for {each} each, made"


def _mutex_text(offender: OffenderRecord) -> str:
    """ "99.5 % of 2.54 s that goroutines waited for mutexes, in sync.Mutex.Lock,"; the place follows."""
    waited, share = offender.get("waited_ns") or 0, offender["share"] or 0
    total = f"{units.show(waited / share / 1e9, 's')} " if share else ""
    called = f", in {one_line(offender.get('lock') or '')}," if offender.get("lock") else ","
    return f"{units.show(share, 'share')} of {total}that goroutines waited for mutexes{called}"


def _parked_text(offender: OffenderRecord) -> str:
    """ "30 goroutines (read on tcp a, peers b, c): 20 more than at the start, parked"; the place follows."""
    gone, growth = offender.get("abandoned", 0), offender.get("growth", 0)
    peers = offender.get("peers") or []
    known_as = f"{'peers' if len(peers) > 1 else 'peer'} {', '.join(peers)}" if peers else ""
    if not offender["count"]:
        ends = ", ".join(filter(None, (offender.get("local"), known_as)))
        what = f"{units.show(gone, 'count')} {offender['fd_type']} descriptor"
        what += " whose peer has closed" if gone == 1 else "s whose peers have closed"
        them = "it" if gone == 1 else "them"
        reader = f"; who read from {them} was parked" if offender["stack"] else ""
        return one_line(f"{what}, and nobody is parked on {them} ({ends}){reader}")
    found = [
        f"{units.show(number, 'count')} {what}"
        for number, what in (
            (offender.get("stuck", 0), "with data to read"),
            (gone, "whose peers have closed"),
            (growth, "more than at the start"),
        )
        if number
    ]
    on = f"{offender['direction']} on {offender['fd_type'] or 'descriptors'} {offender.get('local') or ''}"
    where = ", ".join(filter(None, (on.rstrip(), known_as)))
    more = f": {', '.join(found)}" if found else ""
    who = f"goroutine{'s' * (offender['count'] != 1)}"
    return one_line(f"{units.show(offender['count'], 'count')} {who} ({where}){more}, parked")


def unexplained(record: TestRecord, service: ServiceRecord) -> list[Reason]:
    """A reason for each kind of evidence that a broken limit asks for and that is missing."""
    wanted = _wanted(record, service)
    names = {"cpu": "CPU samples", "spurious": "cause of spurious wakeups", "parked": "proof that they stay"}
    return [
        clean(_reason(why).about(f"no {names.get(offence, offence)}"))
        for offence, why in service.get("unexplained", {}).items()
        if offence in wanted
    ]


def most_futile(service: ServiceRecord) -> str:
    """ "splice, EAGAIN": what most of the futile I/O calls were; empty where there were none."""
    worst = max(service.get("futile", []), key=lambda entry: entry["count"], default=None)
    return f"{worst['syscall']}, {worst['outcome']}" if worst else ""


def slow_text(
    service: ServiceRecord,
    wakeup: SlowWakeupRecord | SlowAnswerRecord,
    more: Sequence[SlowWakeupRecord | SlowAnswerRecord] = (),
) -> str:
    """ "12.3 ms to run (read on tcp a ← b, goroutine 18; 1 of 5 running), parked"; the place follows.

    For an answer "response 88.1 ms = 9.7 poll delay + 78.4 wake-to-run (write on tcp a → b, …)".
    more: shorter ones at that place.
    """
    goroutine = wakeup.get("goroutine")
    who = "" if goroutine is None else f", goroutine {goroutine}"
    threads = _threads_at(service, wakeup.get("at_ms"))
    answer: Mapping[str, Any] = wakeup
    last: Mapping[str, Any] = more[-1] if more else {}
    shortest = units.show(last.get("ns", last.get("latency_ns")), "ns")
    others = f", and {len(more):,} more from {shortest}" if more else ""
    if "what" in answer:
        parts = {name: answer[key] for key, name in _PARTS.items() if answer.get(key)}
        took = f"{answer['what'].replace('_', ' ')} {units.show_sum(answer['ns'], parts)}"
        return f"{took} ({_where(wakeup)}{who}{threads}){others}"
    took = units.show(answer["latency_ns"], "ns")
    return f"{took} to run ({_where(wakeup)}{who}{threads}){others}{_parked(wakeup)}"


# Part of an answer's time -> its name.
_PARTS = {
    "poll_delay_ns": "poll delay",
    "wake_to_run_ns": "wake-to-run",
    "unparked_ns": "before the read",
    "handling_ns": "handling",
}


def budget_text(budget: Mapping[str, Any]) -> str:
    """ "response p99 88.1 ms = 9.7 poll delay + 78.0 wake-to-run + 0.4 handling".

    The parts are rounded so that they add up as shown; parts shown as 0 are left out.
    """
    family, _, which = budget["metric"].rpartition("_")
    parts = {name: budget[key] for key, name in _PARTS.items() if budget.get(key)}
    return f"{family.replace('_', ' ')} {which} {units.show_sum(budget['ns'], parts)}"


def budgets_of(service: ServiceRecord) -> list[str]:
    """A line for each percentile with known parts."""
    return [budget_text(budget) for budget in service.get("budgets", ())] if trusted(service) else []


def _threads_at(service: ServiceRecord, at_ms: float | None) -> str:
    """What the service's threads were doing in the interval in which a late wakeup finally ran."""
    if at_ms is None:
        return ""
    begin = 0.0
    for point in service.get("timeline", []):
        if point["t_ms"] >= at_ms:
            count = f"{point['threads_running']:g}" if point["threads_running"] else "none"
            running = f"{count} of {point['threads']} threads running"
            if service["metrics"].get("run_delay_seconds") is None:
                return f"; {running}"
            waited, passed = point["run_delay_ns"], (point["t_ms"] - begin) * 1e6
            return (
                f"; {running}, and threads waited {units.show(waited, 'ns')} for a CPU "
                f"in that {units.show(passed, 'ns')} sample"
            )
        begin = point["t_ms"]
    return ""


def quotas_of(record: TestRecord, service: ServiceRecord) -> list[str]:
    """A line for each cgroup whose quota stopped the service, if a limit on that is broken:

    "the cgroup /x allows 0.2 CPUs (20 ms every 100 ms) and stopped the service in 30 of 31 periods".
    """
    if not any(base_of(fault["metric"]).startswith("throttled_") for fault in broken(record, service)):
        return []
    return [
        one_line(quota_text(cgroup)) for cgroup in service.get("cgroups", []) if cgroup["throttled_periods"]
    ]


def quota_text(cgroup: CpuQuotaRecord) -> str:
    quota, period = cgroup["quota_us"], cgroup["period_us"]
    allows = ""
    if quota is not None and period:
        cpus = f"{quota / period:.3g} {'CPU' if quota == period else 'CPUs'}"
        allows = f"allows {cpus} ({quota / 1000:g} ms every {period / 1000:g} ms) and "
    stopped = f"{cgroup['throttled_periods']:,} of {cgroup['periods']:,} periods"
    return f"the cgroup {cgroup['name']} {allows}stopped the service in {stopped}"


def _where(wakeup: OffenderRecord | SlowWakeupRecord | SlowAnswerRecord) -> str:
    arrow = "→" if wakeup["direction"] == "write" else "←"
    ends = f" {arrow} ".join(end for end in (wakeup.get("local"), wakeup.get("peer")) if end)
    what = f"{wakeup.get('syscall') or wakeup['direction']} on {wakeup['fd_type'] or 'a descriptor'}"
    return one_line(f"{what} {ends}")


def frame_location(frame: FrameRecord) -> str:
    """ "server/fault_dup.go:33"."""
    file = one_line(frame["file"] or "?")
    return f"{file}:{frame['line']}" if frame["line"] else file


class Evidence(NamedTuple):
    """A place in Go where something is wrong. text: one line. stack: innermost first, may be empty."""

    text: str
    stack: list[FrameRecord]

    def __str__(self) -> str:
        return self.text + place(self.stack)


def worst_place(record: TestRecord) -> Evidence | None:
    """The worst place that explains the failure; None if no panic, offender or late wakeup does."""
    for death in record.get("deaths", []):
        stack = _panicked_at(death["last_words"])
        if stack:
            text = one_line(f"{death['service']}: {death['last_words'].partition(chr(10))[0]}")
            return Evidence(text, stack)
    for service in record["services"]:
        for entry in explaining(record, service)[:1]:
            return Evidence(entry.text, entry.stack)
    for service in record["services"]:
        for text in quotas_of(record, service)[:1]:
            return Evidence(text, [])
    for window in broken_windows(record):
        for service in window["services"]:
            for entry in explaining(of_window(record, window), service)[:1]:
                return Evidence(f"{name_of(window)}, {one_line(service['name'])}: {entry.text}", entry.stack)
    for window in windows_behind(record):
        for service in window["services"]:
            for entry in evidence_in(service)[:1]:
                text = f"{name_of(window)}, {one_line(service['name'])}: {entry.text}"
                return Evidence(text, entry.stack)
    return None


# "main.explode(0x1)", and below it "\t/src/main.go:17 +0x3f"; not "created by main.run in goroutine 1".
_CALL = re.compile(r"^(?P<function>[^\s(].*)\(.*\)\n\s+(?P<file>\S.*\.go):(?P<line>\d+)", re.MULTILINE)


def _panicked_at(last_words: str) -> list[FrameRecord]:
    """The stack of a Go panic, from its origin on; without the runtime's own frames."""
    frames: list[FrameRecord] = [
        {"function": call["function"], "file": call["file"], "line": int(call["line"])}
        for call in _CALL.finditer(last_words)
    ]
    return [f for f in frames if not re.match(r"panic$|runtime[./]|internal/", f["function"] or "")]


def windows_behind(record: TestRecord) -> list[WindowRecord]:
    """The windows of a test whose own assertion failed; first those whose numbers it asked for last."""
    if record.get("error") is None:
        return []
    windows = record.get("windows", [])[::-1]
    return [window for window in windows if window["read"]] + [w for w in windows if not w["read"]]


def evidence_in(service: ServiceRecord) -> list[Entry]:
    """Evidence in a window, which has no limits: its offenders, else the latest wakeups."""
    if not trusted(service):
        return []
    offenders = [o for o in service["offenders"] if _offence(o) not in _ORDINARY]
    return offender_entries(service, offenders) or slow_entries(service, service["slowest"])[:1]


def diagnosis_of(record: TestRecord) -> list[Reason]:
    """The diagnosis of the failure, without services that kept their limits."""
    faulty = {fault["service"] for fault in broken(record)}
    windows = broken_windows(record)
    own = record["services"] if faulty or not windows else []
    found = [rule for s in own if not faulty or s["name"] in faulty for rule in rule_reasons(s)]
    for window in windows or windows_behind(record)[:1]:
        for rule in (rule for service in window["services"] for rule in rule_reasons(service)):
            found.append(Reason(f"{name_of(window)}, {rule.what}", why=rule.why, fix=rule.fix))
    return found


def in_a_line(rule: Reason) -> str:
    """A rule's reason as part of a text."""
    return f"{rule.headline} Fix: {rule.fix}"


def all_rule_texts(record: TestRecord) -> list[str]:
    """The diagnosis of all services of a test, without what is among its reasons already; an older file,
    without rules' codes, has only the text.
    """
    if not any("rules" in service for service in record["services"]):
        return record.get("diagnosis", [])
    return [in_a_line(rule) for service in record["services"] for rule in rule_reasons(service)]


def rule_reasons(service: ServiceRecord) -> list[Reason]:
    """A reason for each rule that the service breaks, without those that are among the test's reasons
    already.
    """
    return [
        clean(Reason(f"{service['name']}: {_rule_at(rule)}", why=rule["text"], fix=rule["fix"]))
        for rule in service.get("rules", [])
        if not rule["forbidden"]
    ]


def _rule_at(rule: RuleRecord) -> str:
    """ "NP101 second-reader at server/fault_dup.go:33"."""
    return f"{rule['code']} {rule['name']}" + (f" at {rule['line']}" if rule["line"] else "")


def unchecked_rules(records: Iterable[TestRecord]) -> list[Reason]:
    """ "NP302 deadline-churn was not checked in 3 tests: ready calls were not counted": one for all rules and
    tests for which the same was missing, of whichever process.
    """
    first: dict[tuple[str, str], Reason] = {}
    tests: dict[tuple[str, str], dict[str, None]] = {}
    for record in records:
        for service in all_services([record]):
            for rule in service.get("unchecked", []):
                why = clean(_reason(rule))
                missing = (one_line(f"{rule['code']} {rule['name']}"), _WHOSE.sub("", why))
                first.setdefault(missing, why)
                tests.setdefault(missing, {})[record["nodeid"]] = None
    together: dict[tuple[str, tuple[str, ...]], list[tuple[str, str]]] = {}
    for missing, nodeids in tests.items():
        together.setdefault((missing[1], tuple(nodeids)), []).append(missing)
    found = []
    for (_, affected), rules in together.items():
        where = one_line(affected[0]) if len(affected) == 1 else f"{len(affected):,} tests"
        names = [name for name, _ in rules]
        were = "was" if len(names) == 1 else "were"
        found.append(first[rules[0]].about(f"{enumerated(names)} {were} not checked in {where}"))
    return found


# What differs between processes of which the same is missing.
_WHOSE = re.compile(r"\bprocess \d+|(?<= )/\S+")


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
    return [] if kept is None else [clean(_reason(note)) for note in kept["notes"]]


def place(stack: Sequence[FrameRecord]) -> str:
    """ " at server/fault_dup.go:33 main.(*watcher).run"; empty without a stack."""
    if not stack:
        return ""
    return f" at {frame_location(stack[0])} {one_line(stack[0]['function'] or '')}".rstrip()
