"""From what was measured and what was demanded to whether the test may pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pytest_netpoll import units
from pytest_netpoll.marker import Kind, Limit, Limits
from pytest_netpoll.metrics import LIMITABLE, METRICS, Measurement, median, not_exact, spread


@dataclass(frozen=True)
class Breach:
    """A broken limit. measured, limit: in the metric's canonical unit. detail: what stands behind it.

    metric: one of the table, the rate of one, or any name, whose values then are plain numbers.
    """

    service: str
    metric: str
    kind: Kind
    measured: int | float
    limit: int | float
    detail: str = ""

    def __str__(self) -> str:
        show = LIMITABLE[self.metric].format if self.metric in LIMITABLE else _plain
        measured, limit = units.show_apart(self.measured, self.limit, show)
        detail = f" ({self.detail})" if self.detail else ""
        sign = ">" if self.kind == "max" else "<"
        return f"{self.service}: {self.metric} {measured}{detail} {sign} {self.kind} {limit}"


def _plain(value: int | float | None, digits: int | None = None) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{2 if digits is None else digits}f}"


@dataclass(frozen=True)
class Verdict:
    """outcome: in report mode a broken limit still passes. reason: a line for each cause, None if passed.

    breaches: every broken limit, also those that report mode lets pass.
    """

    outcome: Literal["passed", "failed", "unmeasured"]
    reason: str | None = None
    breaches: tuple[Breach, ...] = ()


def judge(
    measurements: Sequence[Measurement],
    limits: Limits,
    mode: Literal["gate", "report", "off"] = "gate",
    further: Sequence[Breach] = (),
) -> Verdict:
    """Hold every measurement against its limits. What was not measured does not pass.

    A certain breach of one service outweighs that another could not be measured. In report mode
    limits decide nothing, neither by being broken nor by being impossible to check. further: broken
    limits that others have found.
    """
    if mode == "off":
        return Verdict("passed")
    breaches: list[Breach] = []
    unmeasured = _missing_services(measurements, limits)
    undecided: list[str] = []
    if limits.limits and not measurements and not unmeasured:
        undecided.append("no Go service ran during the test; use the go_service fixture")
    for measurement in measurements:
        if not limits.binds(measurement.service):
            continue
        doubt = distrust(measurement)
        if doubt is not None:
            unmeasured.append(f"{measurement.service}: {doubt}")
            continue
        for finding in _check(measurement, limits.for_service(measurement.service)):
            if isinstance(finding, Breach):
                breaches.append(finding)
            else:
                undecided.append(f"{measurement.service}: {finding}")
    broken = (*breaches, *further)
    if mode == "report":
        return _verdict("unmeasured", unmeasured, broken) if unmeasured else Verdict("passed", None, broken)
    reasons = [*map(str, broken), *unmeasured, *undecided]
    if broken:
        return _verdict("failed", reasons, broken)
    return _verdict("unmeasured", reasons, broken) if reasons else Verdict("passed")


def _verdict(
    outcome: Literal["failed", "unmeasured"], reasons: Sequence[str], breaches: tuple[Breach, ...]
) -> Verdict:
    return Verdict(outcome, "\n".join(dict.fromkeys(reasons)), breaches)


def _missing_services(measurements: Sequence[Measurement], limits: Limits) -> list[str]:
    measured = list(dict.fromkeys(measurement.service for measurement in measurements))
    there = f"measured: {', '.join(measured)}" if measured else "no Go service ran during the test"
    return [
        f"no service named {name!r} was measured ({there})"
        for name in limits.services
        if name not in measured
    ]


def distrust(measurement: Measurement) -> str | None:
    """Why no number of this measurement may decide anything."""
    if measurement.unmeasured is not None:
        return measurement.unmeasured
    # A Meter has said so, and what mends it; but no number may pass because somebody forgot.
    lost = measurement.snapshot.counters.get("lost")
    return not_exact(lost) if lost else None


def _check(measurement: Measurement, limits: Sequence[Limit]) -> list[Breach | str]:
    """The broken limits, and in words what keeps the others from being checked."""
    findings: list[Breach | str] = []
    # Of several runs the poorest counts: one that says nothing leaves a median that says little.
    wakeups = min((run.wakeups or 0 for run in measurement.runs), default=measurement.wakeups)
    minimum = next((limit for limit in limits if limit.name == "min_wakeups"), None)
    statistics = [limit.metric for limit in limits if LIMITABLE[limit.metric].needs_wakeups]
    # With statistics limited, too few wakeups is no fault of the service: there is nothing to judge.
    if statistics and minimum is not None and wakeups is not None and not minimum.allows(wakeups):
        show = METRICS["wakeups"].format
        findings.append(
            f"only {show(wakeups)} wakeups; {statistics[0]} needs at least {show(minimum.value)}: "
            "send more traffic, or set min_wakeups="
        )
        limits = [limit for limit in limits if limit is not minimum and limit.metric not in statistics]
    for limit in limits:
        metric, value = LIMITABLE[limit.metric], median(measurement.judged(limit.metric))
        if value is None:
            why = measurement.absent.get(metric.base, metric.absent)
            findings.append(f"{metric.name} was not measured: {why}")
        elif not limit.allows(value):
            detail = _detail(measurement, metric.name)
            findings.append(Breach(measurement.service, metric.name, limit.kind, value, limit.value, detail))
    return findings


_WAKEUPS = {"wakeups": "wakeups", "ready_calls": "ready calls"}


def _detail(measurement: Measurement, metric: str) -> str:
    if measurement.runs:
        return (
            f"median of {len(measurement.runs)} runs, {spread(LIMITABLE[metric], measurement.judged(metric))}"
        )
    show = METRICS["wakeups"].format
    if metric == "wakeups_per_event":
        counters = measurement.snapshot.counters
        made = " and ".join(f"{show(counters[name])} {words}" for name, words in _WAKEUPS.items())
        return f"{made} for {show(counters['events'])} events"
    runtimes = measurement.runtime_ready_calls if LIMITABLE[metric].base == "ready_calls" else None
    besides = f"besides {show(runtimes)} of the runtime's own" if runtimes else ""
    if (base := LIMITABLE[metric].of) is not None:
        [count], seconds = measurement.judged(base), units.show(measurement.window_seconds, "s")
        return f"{METRICS[base].format(count)} in {seconds}" + (f", {besides}" if besides else "")
    if besides:
        return besides
    if metric != "spurious":
        return ""
    spurious = measurement.snapshot.counters["spurious_wakeups"]
    resolved = spurious + measurement.snapshot.counters["productive_wakeups"]
    return f"{show(spurious)} of {show(resolved)} wakeups"
