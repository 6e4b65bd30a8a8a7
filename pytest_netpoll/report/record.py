"""The one representation of a measured test: plain JSON, from which every report is rendered.

Records are plain because under pytest-xdist they travel from the workers to the controller, and
because saved files are rendered and compared without the test run. Times are in ns unless the name
says otherwise, metrics in their canonical units (see units.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypedDict, cast

from pytest_netpoll.diagnosis import diagnose
from pytest_netpoll.marker import Limits
from pytest_netpoll.metrics import Measurement
from pytest_netpoll.verdict import Breach, Verdict

Outcome: TypeAlias = Literal["passed", "failed", "unmeasured"]

# A TypedDict in two halves: keys of the "Extra" half may be absent from a file, as in one written
# before they were invented. `build` sets all of them.


class Frame(TypedDict):
    """One line of Go; innermost first in a stack. None where the binary does not tell."""

    function: str | None
    file: str | None
    line: int | None


class _OffenderExtra(TypedDict, total=False):
    offence: Literal["spurious", "stale", "unclaimed"]
    local: str | None
    peer: str | None


class Offender(_OffenderExtra):
    """A place that was woken in vain (spurious), tried again for nothing (stale), or a descriptor whose
    events found nobody waiting (unclaimed: it has neither syscall nor stack).

    share: 0-1, of all such of the service. stack: starts at the user's own code.
    """

    count: int
    share: float | None
    direction: str
    syscall: str | None
    fd_type: str | None
    stack: list[Frame]


class _SlowWakeupExtra(TypedDict, total=False):
    goroutine: int | None
    syscall: str | None
    local: str | None
    peer: str | None
    at_ms: float | None


class SlowWakeup(_SlowWakeupExtra):
    """One of the wakeups that took longest to run.

    goroutine: its id, as in a traceback; None where the version of Go is unknown. at_ms: when it ran at
    last, since the window opened. stack: of the reader, starts at the user's own code.
    """

    latency_ns: int | float
    direction: str
    fd_type: str | None
    stack: list[Frame]


class TimelinePoint(TypedDict):
    """What the service's processes did in one interval, which ends with the sample.

    t_ms: its end, since the window opened; it begins where the one before ends, the first with the
    window. Intervals are 100 ms, longer in windows of over a minute; the last ends with the window. The
    counts add up to the metrics of that name. threads: alive at the sample; threads_running: of them on
    a CPU or waiting for one, a mean where intervals were put together. run_delay_ns: waited for a CPU,
    over all threads.
    """

    t_ms: float
    wakeups: int
    productive: int
    spurious: int
    polls: int
    threads: int
    threads_running: float
    run_delay_ns: int


class _BreachExtra(TypedDict, total=False):
    kind: Literal["max", "min"]
    text: str


class BreachRecord(_BreachExtra):
    """A broken limit; `text` says it in one line for people."""

    service: str
    metric: str
    measured: int | float
    limit: int | float


class _ServiceExtra(TypedDict, total=False):
    unmeasured: str | None
    histogram: dict[str, int]
    timeline: list[TimelinePoint]
    columns: dict[str, int | float | str | None]


class ServiceRecord(_ServiceExtra):
    """One service in the window.

    metrics: every metric of the table, None where it was not measured. unmeasured: why none of them
    can be trusted, or None. histogram: bucket (see metrics.bucket_bounds) -> latencies in it. timeline:
    in order of time. columns: heading -> value, what the hook pytest_netpoll_columns adds to the tables.
    """

    name: str
    pid: int | None
    executable: str | None
    go_version: str | None
    metrics: dict[str, int | float | None]
    offenders: list[Offender]
    slowest: list[SlowWakeup]


class _TestExtra(TypedDict, total=False):
    file: str
    line: int
    error: str | None
    xfail: str | None
    diagnosis: list[str]


class TestRecord(_TestExtra):
    """One test, an element of "tests" in the JSON report.

    reason: a line for each cause, None if passed. breaches: also those that report mode let pass.
    file: relative to the root directory. line: of the test, from 1. error: the one line of a failure
    that is the test's own; it is then the reason, too. xfail: why pytest expected the failure, None
    where it did not. diagnosis: a sentence or two for each pathology recognised in a service: what was
    seen, what causes it, what mends it.
    """

    nodeid: str
    outcome: Outcome
    reason: str | None
    window_seconds: float
    limits: dict[str, int | float]
    breaches: list[BreachRecord]
    services: list[ServiceRecord]


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
) -> TestRecord:
    """The record of one test.

    location: (file relative to the root directory, line from 1). error: how the test failed by
    itself, its first line counts; broken limits are then listed, but are not the reason. Without
    error and verdict nothing is known, which is not passed: unmeasured. columns: of each measurement,
    or of none.
    """
    outcome: Outcome
    reason: str | None
    own_error = None if error is None else _first_line(error)
    if own_error is not None:
        outcome, reason = "failed", own_error
    elif verdict is not None:
        outcome, reason = verdict.outcome, verdict.reason
    else:
        outcome, reason = "unmeasured", "the measurement was not completed"
    record: TestRecord = {
        "nodeid": nodeid,
        "file": location[0],
        "line": location[1],
        "outcome": outcome,
        "reason": reason,
        "error": own_error,
        "xfail": xfail,
        "window_seconds": window_seconds,
        "limits": limits.as_json(),
        "breaches": [_breach(breach) for breach in (verdict.breaches if verdict else ())],
        "diagnosis": [text for measurement in measurements for text in diagnose(measurement)],
        "services": [
            _service(measurement, own)
            for measurement, own in zip(measurements, columns or [{}] * len(measurements), strict=True)
        ],
    }
    return cast("TestRecord", plain(record))


def service(measurement: Measurement) -> ServiceRecord:
    """The record of one service alone, as in the JSON report."""
    return cast("ServiceRecord", plain(_service(measurement, {})))


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "the test failed")


def _breach(breach: Breach) -> BreachRecord:
    return {
        "service": breach.service,
        "metric": breach.metric,
        "kind": breach.kind,
        "measured": breach.measured,
        "limit": breach.limit,
        "text": str(breach),
    }


def _service(measurement: Measurement, columns: Mapping[str, int | float | str | None]) -> ServiceRecord:
    return {
        "name": measurement.service,
        "pid": measurement.pid,
        "executable": measurement.executable,
        "go_version": measurement.go_version,
        "unmeasured": measurement.unmeasured,
        "metrics": measurement.metrics,
        "offenders": list(measurement.offenders),
        "slowest": list(measurement.slowest),
        "histogram": {
            str(bucket): count for bucket, count in sorted(measurement.snapshot.histogram.items()) if count
        },
        "timeline": list(measurement.timeline),
        "columns": dict(columns),
    }


def plain(value: object) -> Any:
    """A copy of `value` that JSON and execnet can carry: no tuples, no NaN, no lone surrogates.

    Surrogates come from file names that are not UTF-8. What is of no JSON type becomes its text.
    """
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if value is None or isinstance(value, int):  # bool is an int
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return plain(str(value))
