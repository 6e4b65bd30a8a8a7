"""What the reports share: the order of the tests, the columns, and how a record is put in words."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pytest_netpoll.clean import lines as clean_lines  # noqa: F401 - for the templates
from pytest_netpoll.clean import one_line as one_line
from pytest_netpoll.errors import Reason
from pytest_netpoll.model import units
from pytest_netpoll.model.evidence import Offence
from pytest_netpoll.model.measurement import spread
from pytest_netpoll.model.metrics import LIMITABLE, METRICS, Metric, in_report
from pytest_netpoll.report.record import (
    BreachRecord,
    FrameRecord,
    OffenderRecord,
    Outcome,
    ReasonRecord,
    RegressionRecord,
    ServiceRecord,
    SlowWakeupRecord,
    TestRecord,
    WindowRecord,
)

# The columns of a table of tests: metric -> heading.
COLUMNS: Mapping[str, str] = {metric.name: metric.column for metric in in_report("summary")}
# Of one test under several toolchains: metric -> digits. Two of a second hide what one test costs.
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
# The same of those that are recorded as a sample, so that their shares are shown and not their counts.
_SAMPLED = {
    "ready": ("ready_calls", "ready calls", "made"),
    "futile": ("futile_calls", "futile I/O calls", "made"),
    "io": ("io_calls", "I/O calls", "made"),
}
_LIMITS = {f"{kind}_{metric}": (kind, metric) for kind in ("max", "min") for metric in LIMITABLE}
_RANK: Mapping[Outcome, int] = {"failed": 0, "unmeasured": 1, "passed": 2}
# As reports show them, worst first.
STATUSES = ("failed", "unmeasured", "would fail", "passed", "xfailed")
# Of one test's `netpoll.measure()` blocks, those that have a row in a table of tests.
MOST_WINDOWS = 10


def count_statuses(records: Iterable[TestRecord]) -> dict[str, int]:
    """Status -> how many, of those that there are, worst first."""
    statuses = [status_of(record) for record in records]
    return {status: statuses.count(status) for status in STATUSES if status in statuses}


def expected(record: TestRecord) -> bool:
    """Whether it is bad, and xfail says that it would be: nothing to alarm anybody about."""
    return record.get("xfail") is not None and "failed" in (record["outcome"], record.get("gate"))


def worst_first(records: Iterable[TestRecord]) -> list[TestRecord]:
    """Failed, unmeasured, those whose broken limits report mode let pass, the others; else in run order."""
    return sorted(
        records, key=lambda record: (expected(record), _RANK[record["outcome"]], not broken(record))
    )


def select(
    records: Iterable[TestRecord], most_bad: int, most_good: int
) -> tuple[list[TestRecord], list[str]]:
    """The tests to list, worst first, and a line for each kind of those left out."""
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
    """Of a table of tests. service: None for a test without. window: None for the test's own numbers."""

    record: TestRecord
    service: ServiceRecord | None
    window: WindowRecord | None = None

    @property
    def name(self) -> str:
        return self.record["nodeid"] if self.window is None else f"↳ {window_name(self.window)}"


def rows(records: Iterable[TestRecord]) -> list[Row]:
    """A row for each test and service, or for a test without services; below it those of its windows."""
    found: list[Row] = []
    for record in records:
        found += [Row(record, service) for service in record["services"]] or [Row(record, None)]
        for window in record.get("windows", [])[-MOST_WINDOWS:]:
            found += [Row(record, service, window) for service in window["services"]]
    return found


def window_name(window: WindowRecord) -> str:
    """ "window 2", "window 2, login"."""
    name = one_line(window["name"] or "")
    return f"window {window['number']}" + (f", {name}" if name else "")


def all_services(records: Iterable[TestRecord]) -> list[ServiceRecord]:
    """Of the tests and of their windows."""
    return [
        service
        for record in records
        for services in (record["services"], *(window["services"] for window in record.get("windows", [])))
        for service in services
    ]


def trusted(service: ServiceRecord) -> bool:
    """Whether its numbers are exact."""
    return service.get("unmeasured") is None and not service["metrics"].get("lost")


def outcome_of(record: TestRecord, service: ServiceRecord | None) -> Outcome:
    """Of one row: a service does not fail for what another one did."""
    bad = "failed" in (record["outcome"], record.get("gate"))
    if not bad or service is None or record.get("error") is not None:
        return record["outcome"]
    if broken(record, service) or any(d["service"] == service["name"] for d in record.get("deaths", [])):
        return record["outcome"]
    return "passed" if trusted(service) else "unmeasured"


def status_of(record: TestRecord, service: ServiceRecord | None = None) -> str:
    """The outcome of a test, or of its row for one service, as reports show it.

    "xfailed" where that was expected, "would fail" where report mode lets a broken limit pass.
    """
    if expected(record):
        return "xfailed"
    outcome = outcome_of(record, service)
    return "would fail" if outcome == "passed" and broken(record, service) else outcome


def alarming(record: TestRecord) -> bool:
    """Whether somebody should look: also at what report mode lets pass."""
    return status_of(record) in ("failed", "unmeasured", "would fail")


def show(service: ServiceRecord | None, metric: str, digits: int | None = None) -> str:
    """A number for people; an en dash where it is unknown or not to be trusted."""
    if service is None or not trusted(service):
        return units.NOT_MEASURED
    return METRICS[metric].format(service["metrics"].get(metric), digits)


def heading(metric: str) -> str:
    """What its column is called: "polls/ev"; the name of what is a column only now and then."""
    return _HEADINGS.get(metric, metric)


def kept_longer(columns: Iterable[Metric]) -> list[str]:
    """The headings in the order in which a narrow terminal leaves them out; the last one it keeps."""
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
    # The service's own limits come over the general ones.
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
    """The metric of the table, of a rate too; what is of neither stays as it is."""
    return LIMITABLE[metric].base if metric in LIMITABLE else metric


def measured(record: TestRecord, service: ServiceRecord, metric: str) -> int | float | None:
    """The metric's value, or the rate's; None where it is not known."""
    if metric in METRICS:
        return service["metrics"].get(metric)
    for fault in record["breaches"]:
        if (fault["service"], fault["metric"]) == (service["name"], metric):
            return fault["measured"]
    count, seconds = service["metrics"].get(base_of(metric)), record["window_seconds"]
    # Of several runs it is the median of their rates, and how long each was is not in the record.
    return count / seconds if count is not None and seconds and runs_of(service) == 1 else None


def without_toolchain(record: TestRecord) -> str:
    """The nodeid as it is without --netpoll-go."""
    label = re.escape(record.get("toolchain") or "")
    return re.sub(rf"(?<=\[){label}-|-{label}(?=[-\]])|\[{label}\]$", "", record["nodeid"], count=1)


def environment_line(records: Iterable[TestRecord], environment: Mapping[str, Any]) -> str:
    """ "kernel 6.8.0, bcc 0.29.1, go1.26.6", of what is known."""
    known = [f"{name} {environment[name]}" for name in ("kernel", "bcc") if environment.get(name)]
    versions = {service["go_version"] for service in all_services(records)}
    return one_line(", ".join([*known, *sorted(version for version in versions if version)]))


def regressions(record: TestRecord) -> list[RegressionRecord]:
    comparison = record.get("comparison")
    return comparison["regressions"] if comparison is not None else []


def broken(record: TestRecord, service: ServiceRecord | None = None) -> list[BreachRecord | RegressionRecord]:
    """The broken limits, and what got worse than its baseline; only those of `service` where it is given."""
    found: list[BreachRecord | RegressionRecord] = [*record["breaches"], *regressions(record)]
    return [fault for fault in found if service is None or fault["service"] == service["name"]]


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
    found = [*dead, *(Reason(breach_text(fault)) for fault in broken(record)), *given]
    return [clean(reason) for reason in dict.fromkeys(found)]


def unmeasured_reason(service: ServiceRecord) -> Reason | None:
    """Why none of its numbers can be trusted, None where they can as far as that goes."""
    parts, text = service.get("why_unmeasured"), service.get("unmeasured")
    if parts is not None:
        return _reason(parts)
    return None if text is None else Reason(text)


def _given(record: TestRecord) -> list[Reason]:
    if "reasons" in record:
        return list(map(_reason, record["reasons"]))
    # A file from before they were kept apart.
    return list(map(Reason, (record["reason"] or "").splitlines()))


def _reason(parts: ReasonRecord) -> Reason:
    return Reason(parts["what"], why=parts["why"], fix=parts["fix"])


def clean(reason: str) -> Reason:
    """Each part on one line."""
    parts = Reason.of(reason)
    why, fix = (one_line(part) if part else None for part in (parts.why, parts.fix))
    return Reason(one_line(parts.what), why=why, fix=fix)


def offenders_of(record: TestRecord, service: ServiceRecord) -> list[OffenderRecord]:
    """The offenders that explain its broken limits, worst first."""
    wanted = _wanted(record, service)
    return [
        offender
        for offender in service["offenders"]
        # A limit is about the program's own calls.
        if offender.get("offence", "spurious") in wanted and not offender.get("runtime")
    ]


def _wanted(record: TestRecord, service: ServiceRecord) -> set[Offence]:
    """What explains its broken limits; nothing is known of metrics that are not of the table."""
    metrics = [METRICS.get(base_of(fault["metric"])) for fault in broken(record, service)]
    return {offence for metric in metrics if metric is not None for offence in metric.explained_by}


def wakers_of(record: TestRecord, service: ServiceRecord) -> list[OffenderRecord]:
    """Who made ready calls, worst first, where that was asked for but explains no broken limit."""
    explaining = offenders_of(record, service)
    return [o for o in service["offenders"] if o.get("offence") == "ready" and o not in explaining]


def not_kept(service: ServiceRecord) -> list[str]:
    """A line for each kind of offender of which the list of them is not complete."""
    lines = []
    for offence, (_, name, _) in _OFFENCES.items():
        shares = [o["share"] or 0 for o in service["offenders"] if o.get("offence", "spurious") == offence]
        missing = 1 - sum(shares)
        if any(shares) and missing >= 0.0005:  # which is shown as 0.1 %
            share = units.show(missing, "share")
            # Of an event for a descriptor that was closed meanwhile nobody knows whose it was.
            or_closed = " or it was closed" if offence == "unclaimed" else ""
            lines.append(f"{share} of the {name} not listed: the kernel's table had no more room{or_closed}")
    return lines


def slowest_of(record: TestRecord, service: ServiceRecord) -> list[SlowWakeupRecord]:
    """The latest wakeups, where a latency limit of the service is broken."""
    late = any(fault["metric"].startswith("latency_") for fault in broken(record, service))
    return service["slowest"] if late else []


def offender_text(service: ServiceRecord, offender: OffenderRecord) -> str:
    """ "499 of 500 (99.8 %) spurious wakeups (read on tcp a ← b), parked"; the place follows."""
    offence = offender.get("offence", "spurious")
    if offence == "cpu":
        return _cpu_text(offender)
    if offence in _SAMPLED:
        return _sampled_text(service, offender)
    metric, name, happened = _OFFENCES[offence]
    count, total, where = offender["count"], service["metrics"].get(metric), ""
    if runs_of(service) > 1:
        # The metric is a median over the runs, of one of which the offenders are.
        total = round(count / offender["share"]) if offender["share"] else None
        where = " in one run"
    amount = units.show(count, "count")
    if total and count <= total:
        amount += f" of {units.show(total, 'count')} ({units.show(count / total, 'share')})"
    at = _parked(offender) if offence == "spurious" else f", {happened}"
    return f"{amount} {name}{where} ({_where(offender)}){at}"


def _parked(entry: OffenderRecord | SlowWakeupRecord) -> str:
    return ", parked" if entry["stack"] else ""


def lead_in(entry: OffenderRecord | SlowWakeupRecord) -> str:
    """What joins its text and its stack: " at", or that there is none where there should be one."""
    if entry["stack"]:
        return " at"
    return "" if entry.get("offence") == "unclaimed" else ", no stack"


def _sampled_text(service: ServiceRecord, offender: OffenderRecord) -> str:
    """ "99.8 % of 50,123 ready calls, made". Without its count, which is estimated from a sample."""
    metric, name, happened = _SAMPLED[offender["offence"]]
    total = units.show(service["metrics"].get(metric), "count")
    outcome = offender.get("outcome")
    where = f" ({_where(offender)}, {outcome})" if outcome else ""
    return f"{units.show(offender['share'], 'share')} of {total} {name}{where}, {happened}"


def _cpu_text(offender: OffenderRecord) -> str:
    """ "97.8 % of 495 CPU samples, running"."""
    share = offender["share"] or 0
    samples = units.show(round(offender["count"] / share), "count") if share else units.NOT_MEASURED
    return f"{units.show(share, 'share')} of {samples} CPU samples, running"


def unexplained(record: TestRecord, service: ServiceRecord) -> list[Reason]:
    """For each kind of evidence that a broken limit asks for, and that could not be had."""
    wanted = _wanted(record, service)
    names = {"cpu": "CPU samples"}
    return [
        clean(_reason(why).about(f"no {names.get(offence, offence)}"))
        for offence, why in service.get("unexplained", {}).items()
        if offence in wanted
    ]


def most_futile(service: ServiceRecord) -> str:
    """ "splice, EAGAIN": what most of the futile I/O calls were; empty where there were none."""
    worst = max(service.get("futile", []), key=lambda entry: entry["count"], default=None)
    return f"{worst['syscall']}, {worst['outcome']}" if worst else ""


def slow_text(service: ServiceRecord, wakeup: SlowWakeupRecord) -> str:
    """ "12.3 ms to run (read on tcp a ← b, goroutine 18; 1 of 5 running), parked"; the place follows."""
    goroutine = wakeup.get("goroutine")
    who = "" if goroutine is None else f", goroutine {goroutine}"
    threads = _threads_at(service, wakeup.get("at_ms"))
    took = units.show(wakeup["latency_ns"], "ns")
    return f"{took} to run ({_where(wakeup)}{who}{threads}){_parked(wakeup)}"


def _threads_at(service: ServiceRecord, at_ms: float | None) -> str:
    """What the service's threads were doing in the interval in which a late wakeup ran at last."""
    if at_ms is None:
        return ""
    begin = 0.0
    for point in service.get("timeline", []):
        if point["t_ms"] >= at_ms:
            running = f"{point['threads_running']:g} of {point['threads']} threads running"
            if service["metrics"].get("run_delay_seconds") is None:
                return f"; {running}"
            waited, passed = point["run_delay_ns"], (point["t_ms"] - begin) * 1e6
            return f"; {running}, {units.show(waited, 'ns')} of {units.show(passed, 'ns')} waiting for a CPU"
        begin = point["t_ms"]
    return ""


def _where(wakeup: OffenderRecord | SlowWakeupRecord) -> str:
    arrow = "→" if wakeup["direction"] == "write" else "←"
    ends = f" {arrow} ".join(end for end in (wakeup.get("local"), wakeup.get("peer")) if end)
    what = f"{wakeup.get('syscall') or wakeup['direction']} on {wakeup['fd_type'] or 'a descriptor'}"
    return one_line(f"{what} {ends}")


def frame_location(frame: FrameRecord) -> str:
    """ "server/fault_dup.go:33"."""
    file = one_line(frame["file"] or "?")
    return f"{file}:{frame['line']}" if frame["line"] else file


class Evidence(NamedTuple):
    """Where in Go what is wrong happens. text: what, on one line. stack: innermost first, may be empty."""

    text: str
    stack: list[FrameRecord]

    def __str__(self) -> str:
        return self.text + place(self.stack)


def worst_place(record: TestRecord) -> Evidence | None:
    """Of what explains the failure the worst; None where no panic, no offender and no late wakeup does."""
    for death in record.get("deaths", []):
        stack = _panicked_at(death["last_words"])
        if stack:
            text = one_line(f"{death['service']}: {death['last_words'].partition(chr(10))[0]}")
            return Evidence(text, stack)
    for service in record["services"]:
        for offender in offenders_of(record, service)[:1]:
            return Evidence(offender_text(service, offender), offender["stack"])
    for service in record["services"]:
        for wakeup in slowest_of(record, service)[:1]:
            return Evidence(slow_text(service, wakeup), wakeup["stack"])
    for window in windows_behind(record):
        for service in window["services"]:
            for entry_text, entry in evidence_in(service)[:1]:
                text = f"{window_name(window)}, {one_line(service['name'])}: {entry_text}"
                return Evidence(text, entry["stack"])
    return None


# "main.explode(0x1)", and below it "\t/src/main.go:17 +0x3f"; not "created by main.run in goroutine 1".
_CALL = re.compile(r"^(?P<function>[^\s(].*)\(.*\)\n\s+(?P<file>\S.*\.go):(?P<line>\d+)", re.MULTILINE)


def _panicked_at(last_words: str) -> list[FrameRecord]:
    """The stack of a Go panic, from where it was; without the runtime's own frames."""
    frames: list[FrameRecord] = [
        {"function": call["function"], "file": call["file"], "line": int(call["line"])}
        for call in _CALL.finditer(last_words)
    ]
    return [f for f in frames if not re.match(r"panic$|runtime[./]|internal/", f["function"] or "")]


def windows_behind(record: TestRecord) -> list[WindowRecord]:
    """Of a test that failed by itself its windows, those first whose numbers it asked for last."""
    if record.get("error") is None:
        return []
    windows = record.get("windows", [])[::-1]
    return [window for window in windows if window["read"]] + [w for w in windows if not w["read"]]


def evidence_in(service: ServiceRecord) -> list[tuple[str, OffenderRecord | SlowWakeupRecord]]:
    """Of a window, on which there are no limits: its offenders, or else who was woken latest."""
    if not trusted(service):
        return []
    offenders = [o for o in service["offenders"] if o.get("offence") != "ready"]
    if offenders:
        return [(offender_text(service, offender), offender) for offender in offenders]
    return [(slow_text(service, wakeup), wakeup) for wakeup in service["slowest"][:1]]


def diagnosis_of(record: TestRecord) -> list[str]:
    """What explains the failure in words, without the troubles of services that kept their limits."""
    faulty = {fault["service"] for fault in broken(record)}
    found = [
        text
        for text in record.get("diagnosis", [])
        if not faulty or text.startswith(tuple(f"{name}: " for name in faulty))
    ]
    for window in windows_behind(record)[:1]:
        found += [f"{window_name(window)}, {text}" for text in window["diagnosis"]]
    return [one_line(text) for text in found]


def size(count: int) -> str:
    """ "512 B", "1.2 kB", of a file."""
    if count < 1000:
        return f"{count} B"
    return f"{count / 1000:,.1f} kB" if count < 999_950 else f"{count / 1e6:,.1f} MB"


def cd_to(directory: str) -> str:
    """The command that goes there."""
    return f"cd {shlex.quote(one_line(directory))}"


def artifact_notes(record: TestRecord) -> list[Reason]:
    """Why files that --netpoll-artifacts would have kept of the test are not there."""
    kept = record.get("artifacts")
    return [] if kept is None else [clean(_reason(note)) for note in kept["notes"]]


def place(stack: Sequence[FrameRecord]) -> str:
    """ " at server/fault_dup.go:33 main.(*watcher).run"; empty without a stack."""
    if not stack:
        return ""
    return f" at {frame_location(stack[0])} {one_line(stack[0]['function'] or '')}".rstrip()
