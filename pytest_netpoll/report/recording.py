"""Makes the records of measured tests, windows and services."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict
from typing import cast

from pytest_netpoll.errors import Reason
from pytest_netpoll.model.breakdown import budgets
from pytest_netpoll.model.comparison import Comparison
from pytest_netpoll.model.correlation import wasted_and_answered
from pytest_netpoll.model.diagnosis import diagnose, findings, unchecked
from pytest_netpoll.model.difference import Difference, Regression
from pytest_netpoll.model.evidence import Offender
from pytest_netpoll.model.limits import NO_LIMITS, Limits
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.median import middle
from pytest_netpoll.model.metrics import METRICS
from pytest_netpoll.model.snapshot import Snapshot
from pytest_netpoll.model.verdict import Breach, Death, Outcome, Verdict
from pytest_netpoll.report.record import (
    BreachRecord,
    BudgetRecord,
    ComparisonRecord,
    CorrelationRecord,
    CpuQuotaRecord,
    DeathRecord,
    NumberRecord,
    OffenderRecord,
    ParkedRecord,
    ReasonRecord,
    RegressionRecord,
    ServiceRecord,
    SlowAnswerRecord,
    SlowWakeupRecord,
    TestRecord,
    TimelineRecord,
    WindowRecord,
    plain,
)


def build(
    nodeid: str,
    location: tuple[str, int],
    verdict: Verdict | None,
    limits: Limits,
    measurements: Sequence[Measurement],
    window_seconds: float,
    error: str | None = None,
    xfail: str | None = None,
    columns: Sequence[Mapping[str, int | float | str | None]] = (),
    comparison: Comparison | None = None,
    toolchain: str | None = None,
    requests_per_second: float | None = None,
    windows: Sequence[WindowRecord] = (),
    windows_left_out: int = 0,
) -> TestRecord:
    """The record of one test.

    location: (file relative to the root directory, line from 1). error: how the test itself failed; only its
    first line is kept. Broken limits are then listed, but are not the reason. Without error and verdict
    nothing is known, so the test is unmeasured. columns: of each measurement, or of none.
    """
    own_error = None if error is None else _first_line(error)
    if own_error is not None:
        ended = Verdict("failed", (Reason(own_error),))
    else:
        ended = verdict or Verdict("unmeasured", (Reason("the measurement was not completed"),))
    record: TestRecord = {
        "nodeid": nodeid,
        "file": location[0],
        "line": location[1],
        "outcome": ended.outcome,
        "reason": ended.reason,
        "reasons": [reason_record(reason) for reason in ended.reasons],
        "error": own_error,
        "xfail": xfail,
        "window_seconds": window_seconds,
        "limits": limits.as_json(),
        "breaches": [_breach(breach) for breach in (verdict.breaches if verdict else ())],
        "diagnosis": [text for measurement in measurements for text in diagnose(measurement)],
        "comparison": None if comparison is None else comparison_record(comparison),
        "toolchain": toolchain,
        "requests_per_second": requests_per_second,
        "gate": _gate(ended, windows),
        "deaths": [_death(death) for death in (verdict.deaths if verdict else ())],
        "windows": list(windows),
        "windows_left_out": windows_left_out,
        "forbidden": list(limits.forbidden(None)),
        "artifacts": None,
        "services": [
            _service(measurement, own, limits)
            for measurement, own in zip(measurements, columns or [{}] * len(measurements), strict=True)
        ],
    }
    return cast("TestRecord", plain(record))


def _gate(ended: Verdict, windows: Sequence[WindowRecord]) -> Outcome:
    outcome = ended.gate or ended.outcome
    broken = any(window.get("breaches") for window in windows)
    return "failed" if broken else outcome


def window(
    number: int,
    name: str | None,
    measurements: Sequence[Measurement],
    read: Sequence[str],
    limits: Limits = NO_LIMITS,
    breaches: Sequence[Breach] = (),
) -> WindowRecord:
    """The record of one window, as in the JSON report."""
    made: WindowRecord = {
        "number": number,
        "name": name,
        "window_seconds": max((m.window_seconds for m in measurements), default=0.0),
        "read": list(read),
        "diagnosis": [text for measurement in measurements for text in diagnose(measurement)],
        "services": [_service(measurement, {}, limits) for measurement in measurements],
        "limits": limits.as_json(),
        "breaches": [_breach(breach) for breach in breaches],
    }
    return cast("WindowRecord", plain(made))


def _death(death: Death) -> DeathRecord:
    how = reason_record(death.how)
    return {
        "service": death.service,
        "how": death.how.headline,
        "fix": how["fix"],
        "last_words": death.last_words,
    }


def service(measurement: Measurement) -> ServiceRecord:
    """The record of one service alone, as in the JSON report."""
    return cast("ServiceRecord", plain(_service(measurement, {}, NO_LIMITS)))


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "the test failed")


def reason_record(reason: str) -> ReasonRecord:
    """The reason with its parts; any other text is what happened."""
    parts = Reason.of(reason)
    return {"what": parts.what, "why": parts.why, "fix": parts.fix}


def _breach(breach: Breach) -> BreachRecord:
    return {
        "service": breach.service,
        "metric": breach.metric,
        "kind": breach.kind,
        "measured": breach.measured,
        "limit": breach.limit,
        "text": str(breach),
        "fix": breach.reason.fix,
    }


def comparison_record(comparison: Comparison) -> ComparisonRecord:
    return {
        "baseline": comparison.baseline,
        "outcome": comparison.outcome,
        "regressions": [_regression(regression) for regression in comparison.regressions],
        "notes": list(comparison.notes),
        "measured": comparison.measured,
        "judged": comparison.judged,
        "changes": [
            {
                "service": change.service,
                "metric": change.metric,
                "measured": change.measured,
                "baseline": change.baseline,
                "text": str(change),
            }
            for change in comparison.changes
        ],
        "commit": comparison.commit,
        "numbers": [_number(difference) for difference in comparison.numbers],
        "undecided": [
            {
                "service": rule.difference.service,
                "metric": rule.difference.metric,
                "tolerance": rule.tolerance.text,
                "enough": rule.enough,
                "text": str(rule),
            }
            for rule in comparison.undecided
        ],
        "services": [
            {"name": name, "metrics": dict(sample.metrics)} for name, sample in comparison.then.items()
        ],
    }


def _number(difference: Difference) -> NumberRecord:
    low, middle, high = difference.change
    known = difference.change.known
    return {
        "service": difference.service,
        "metric": difference.metric,
        "base": difference.base,
        "head": difference.head,
        "change": middle,
        "low": low if known else None,
        "high": high if known else None,
        "relative": difference.relative,
        "exact": difference.exact,
        "text": difference.text,
        "rounds": difference.rounds,
        "base_rounds": difference.base_rounds,
    }


def _regression(regression: Regression) -> RegressionRecord:
    return {
        "service": regression.service,
        "metric": regression.metric,
        "measured": regression.measured,
        "baseline": regression.baseline,
        "tolerance": regression.tolerance.text,
        "again": list(regression.again),
        "text": str(regression),
    }


def _service(
    measurement: Measurement, columns: Mapping[str, int | float | str | None], limits: Limits
) -> ServiceRecord:
    one = middle(measurement.runs).snapshot if measurement.runs else measurement.snapshot
    forbidden = limits.forbidden(measurement.service)
    broken = findings(measurement)
    evidence = {found.rule.code: set(map(id, found.proof.evidence)) for found in broken}
    return {
        "name": measurement.service,
        "pid": measurement.pid,
        "executable": measurement.executable,
        "go_version": measurement.go_version,
        "unmeasured": measurement.unmeasured,
        "why_unmeasured": None if measurement.unmeasured is None else reason_record(measurement.unmeasured),
        "gomaxprocs": measurement.gomaxprocs,
        "metrics": measurement.metrics,
        "offenders": [_offender(offender, evidence) for offender in measurement.offenders],
        "slowest": [cast("SlowWakeupRecord", asdict(wakeup)) for wakeup in measurement.slowest],
        "slow_answers": [cast("SlowAnswerRecord", asdict(answer)) for answer in measurement.slow_answers],
        "runs": {name: measurement.each(name) for name in METRICS} if measurement.runs else {},
        "histogram": _buckets(measurement.snapshot.histogram),
        "unexplained": {offence: reason_record(why) for offence, why in measurement.unexplained.items()},
        "io_outcomes": dict(one.io_outcomes),
        "futile": [
            {"syscall": syscall, "outcome": outcome, "count": count}
            for (syscall, outcome), count in one.futile.items()
        ],
        "parked": _parked(one, measurement),
        "delays": {name: _buckets(delay.histogram) for name, delay in measurement.snapshot.delays.items()},
        "budgets": [cast("BudgetRecord", asdict(budget)) for budget in budgets(one)],
        "absent": {name: reason_record(why) for name, why in measurement.absent.items()},
        "estimates": list(measurement.estimates),
        "timeline": [cast("TimelineRecord", asdict(point)) for point in measurement.timeline],
        "correlation": _correlation(measurement),
        "cgroups": [cast("CpuQuotaRecord", asdict(cgroup)) for cgroup in measurement.cgroups],
        "columns": dict(columns),
        "rules": [
            {
                "code": found.rule.code,
                "name": found.rule.name,
                "text": found.proof.text,
                "line": found.line,
                "fix": found.fix,
                "forbidden": found.rule.code in forbidden,
            }
            for found in broken
        ],
        "unchecked": [
            {"code": missing.rule.code, "name": missing.rule.name, **reason_record(missing.why)}
            for missing in (unchecked(measurement) if forbidden and measurement.unmeasured is None else [])
            if missing.rule.code in forbidden
        ],
    }


def _buckets(histogram: Mapping[int, int]) -> dict[str, int]:
    return {str(bucket): count for bucket, count in sorted(histogram.items()) if count}


def _correlation(measurement: Measurement) -> CorrelationRecord:
    found = wasted_and_answered(measurement.timeline)
    return {
        "metric": "spurious_wakeups",
        "other": found.other,
        "coefficient": found.coefficient,
        "intervals": found.intervals,
    }


def _offender(offender: Offender, evidence: Mapping[str, Set[int]]) -> OffenderRecord:
    """evidence: code -> the ids of the offenders that are evidence of that rule."""
    made = asdict(offender)
    made["rules"] = [code for code, offenders in evidence.items() if id(offender) in offenders]
    if offender.offence != "ready":
        del made["woken_stack"]
    if offender.offence not in ("ready", "woken"):
        del made["locked"]
    if offender.offence != "cpu":
        del made["collects"]
    if offender.offence != "io":
        del made["filled"]
    if offender.offence != "held":
        del made["held_ns"]
    if offender.offence != "ready":
        del made["unlocks"]
    if offender.offence != "mutex":
        del made["lock"], made["waited_ns"]
    if offender.offence != "parked":
        for name in ("growth", "abandoned", "stuck", "closed", "peers", "peer_service"):
            del made[name]
    return cast("OffenderRecord", made)


def _parked(one: Snapshot, measurement: Measurement) -> list[ParkedRecord] | None:
    if "parked_goroutines" not in one.counters:
        return None
    groups = [asdict(offender) for offender in measurement.offenders if offender.offence == "parked"]
    fields = ParkedRecord.__annotations__
    return [cast("ParkedRecord", {name: group[name] for name in fields}) for group in groups]
