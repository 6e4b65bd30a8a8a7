"""Decides from the measurements and the limits whether the test passes."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from pytest_netpoll.errors import Reason
from pytest_netpoll.model import ends, units
from pytest_netpoll.model.diagnosis import findings, unchecked
from pytest_netpoll.model.limits import Kind, Limit, Limits
from pytest_netpoll.model.measurement import Measurement, median, resolved_wakeups, spread
from pytest_netpoll.model.metrics import LIMITABLE, METRICS, not_exact
from pytest_netpoll.model.rules import RULES


@dataclass(frozen=True)
class Breach:
    """A broken limit. measured, limit: in the metric's canonical unit. detail: the counts behind it. metric:
    one of the table, a rate of one, or any other name with plain numbers as values. fix: None where only a
    diagnosis can tell.
    """

    service: str
    metric: str
    kind: Kind
    measured: int | float
    limit: int | float
    detail: str = ""
    fix: str | None = field(default=None, kw_only=True)

    def __str__(self) -> str:
        show = LIMITABLE[self.metric].format if self.metric in LIMITABLE else _plain
        measured, limit = units.show_apart(self.measured, self.limit, show)
        detail = f" ({self.detail})" if self.detail else ""
        sign = ">" if self.kind == "max" else "<"
        return f"{self.service}: {self.metric} {measured}{detail} {sign} {self.kind} {limit}"

    @property
    def reason(self) -> Reason:
        """The breach in a report's words."""
        return Reason(str(self), fix=self.fix)


@dataclass(frozen=True)
class BrokenRule(Breach):
    """A forbidden rule that is proven. metric: its code. measured: what was counted. why: what was seen, and
    where.
    """

    why: Reason = field(default=Reason(""), compare=False)

    def __str__(self) -> str:
        return self.why.about(self.service).headline

    @property
    def brief(self) -> str:
        """Without the evidence: code, place and fix."""
        return Reason(f"{self.service}: {self.why.what}", fix=self.why.fix)

    @property
    def reason(self) -> Reason:
        return self.why.about(self.service)


def _plain(value: int | float | None, digits: int | None = None) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{2 if digits is None else digits}f}"


@dataclass(frozen=True)
class Death:
    """A service that ended without being stopped. last_words: its panic, or its last output."""

    service: str
    how: Reason
    last_words: str = ""

    @property
    def reason(self) -> Reason:
        return self.how.about(self.service)


Outcome: TypeAlias = Literal["passed", "failed", "unmeasured"]


@dataclass(frozen=True)
class Verdict:
    """The judgement of a test. outcome: in report mode a broken limit still passes. reasons: one for each
    cause, none if passed.

    breaches: every broken limit, also those that report mode lets pass. deaths: they fail the test in every
    mode. gate: the outcome in gate mode, if report mode's differs.
    """

    outcome: Outcome
    reasons: tuple[Reason, ...] = ()
    breaches: tuple[Breach, ...] = ()
    deaths: tuple[Death, ...] = ()
    gate: Outcome | None = field(default=None, compare=False)

    def in_report_mode(self) -> Verdict:
        """The verdict in report mode: broken limits and unmeasured numbers are reported, no more."""
        if self.deaths:
            return replace(self, reasons=tuple(death.reason for death in self.deaths))
        if self.outcome != "failed":
            return self
        return replace(self, outcome="passed", reasons=(), gate="failed")

    def without_deaths_of(self, other: Verdict) -> Verdict:
        """Without the deaths of services that the other verdict has, perhaps in other words."""
        reported = {death.service for death in other.deaths}
        again = {death.reason for death in self.deaths if death.service in reported}
        return replace(
            self,
            reasons=tuple(reason for reason in self.reasons if reason not in again),
            deaths=tuple(death for death in self.deaths if death.service not in reported),
        )

    def joined_to(self, other: Verdict) -> Verdict:
        """Both verdicts on one test, the other's reasons first: the worse outcome counts."""
        outcome = worse(self.outcome, other.outcome)
        gate = worse(self.gate or self.outcome, other.gate or other.outcome)
        return Verdict(
            outcome,
            tuple(dict.fromkeys((*other.reasons, *self.reasons))),
            tuple(dict.fromkeys((*other.breaches, *self.breaches))),
            tuple(dict.fromkeys((*other.deaths, *self.deaths))),
            gate if gate != outcome else None,
        )

    @property
    def reason(self) -> str | None:
        """All reasons as a text; None if passed."""
        return "\n".join(self.reasons) or None

    @property
    def messages(self) -> list[str]:
        """pytest's message by reasons, which leaves the evidence of broken rules to the report's section."""
        brief = {b.reason: b.brief for b in self.breaches if isinstance(b, BrokenRule)}
        return [brief.get(reason, reason) for reason in self.reasons]


_BY_SEVERITY: Sequence[Outcome] = ("passed", "unmeasured", "failed")


def worse(one: Outcome, other: Outcome) -> Outcome:
    """The outcome of a test with both."""
    return max(one, other, key=_BY_SEVERITY.index)


def judge(
    measurements: Sequence[Measurement],
    limits: Limits,
    mode: Literal["gate", "report", "off"] = "gate",
    further: Sequence[Breach] = (),
    running: Sequence[str] = (),
    deaths: Sequence[Death] = (),
    fixtures: Sequence[str] = (),
) -> Verdict:
    """Compares every measurement with its limits. An unmeasured test doesn't pass.

    A proven breach by one service outweighs that another one could not be measured. In report mode limits
    decide nothing, whether broken or impossible to check. further: broken limits found elsewhere. running:
    all services, whether the test's own or not. deaths: of the test's services. fixtures: those that made
    the running services, the best example last.
    """
    if mode == "off":
        return _verdict("failed", [d.reason for d in deaths], (), deaths) if deaths else Verdict("passed")
    breaches: list[Breach] = []
    unmeasured = _missing_services(measurements, limits)
    undecided: list[Reason] = []
    doubts: dict[Reason, list[str]] = {}
    dead = {death.service for death in deaths}
    if limits.judges and not measurements and not unmeasured:
        undecided.append(_no_service(running, fixtures))
    for measurement in measurements:
        if not limits.binds(measurement.service):
            continue
        doubt = distrust(measurement)
        if doubt is not None:
            # A failure of the agent concerns all services and is reported once, like a service's death.
            if measurement.service not in dead:
                doubts.setdefault(doubt, []).append(measurement.service)
            continue
        forbidden = limits.forbidden(measurement.service)
        for finding in [
            *_check(measurement, limits.for_service(measurement.service), measurements),
            *_check_rules(measurement, forbidden),
        ]:
            if isinstance(finding, Breach):
                breaches.append(finding)
            else:
                undecided.append(finding.about(measurement.service))
    unmeasured += [doubt.about(", ".join(services)) for doubt, services in doubts.items()]
    broken = (*breaches, *further)
    reasons = [
        *(death.reason for death in deaths),
        *(breach.reason for breach in broken),
        *unmeasured,
        *undecided,
    ]
    if not reasons:
        return Verdict("passed")
    verdict = _verdict("failed" if broken or deaths else "unmeasured", reasons, broken, deaths)
    return verdict.in_report_mode() if mode == "report" else verdict


def _verdict(
    outcome: Outcome, reasons: Sequence[Reason], breaches: tuple[Breach, ...], deaths: Sequence[Death]
) -> Verdict:
    return Verdict(outcome, tuple(dict.fromkeys(reasons)), breaches, tuple(deaths))


def _no_service(running: Sequence[str], fixtures: Sequence[str]) -> Reason:
    attach = "go_service(port=…), pid=… or process=… attaches to one that is already running"
    if not running:
        return Reason("no Go service ran during the test", fix=f"use the go_service fixture; {attach}")
    ask = "start its service with go_service in a fixture of the test"
    if fixtures:
        ask = f"ask for its service's fixture, such as def test_x({fixtures[-1]})"
    return Reason(
        "the test uses no service of its own, and isn't judged by other tests' services",
        fix=f"{ask}; or name one with service=, of {', '.join(running)}; {attach}",
    )


def _missing_services(measurements: Sequence[Measurement], limits: Limits) -> list[Reason]:
    measured = list(dict.fromkeys(measurement.service for measurement in measurements))
    there = f"measured: {', '.join(measured)}" if measured else "no Go service ran during the test"
    return [
        Reason(f"no service named {name!r} was measured ({there})", fix=_meant(name, measured))
        for name in limits.services
        if name not in measured
    ]


def _meant(name: str, measured: Sequence[str]) -> str | None:
    close = difflib.get_close_matches(name, measured, n=1)
    return f'write service="{close[0]}" if you mean that one' if close else None


def distrust(measurement: Measurement) -> Reason | None:
    """Why this measurement's numbers can't be judged; None if they can."""
    if measurement.unmeasured is not None:
        return Reason.of(measurement.unmeasured)
    # A Meter reports this with a fix; this is a safeguard in case one didn't.
    lost = measurement.snapshot.counters.get("lost")
    return Reason(not_exact(lost)) if lost else None


def _check(
    measurement: Measurement, limits: Sequence[Limit], all_of_them: Sequence[Measurement]
) -> list[Breach | Reason]:
    """The broken limits, and why others could not be checked. all_of_them: the test's measurements."""
    findings: list[Breach | Reason] = []
    # The poorest of several runs counts: a run that proves nothing weakens the median.
    wakeups = min((run.wakeups or 0 for run in measurement.runs), default=measurement.wakeups)
    resolved = min(resolved_wakeups(m.metrics) for m in measurement.runs or (measurement,))
    minimum = next((limit for limit in limits if limit.name == "min_wakeups"), None)
    statistics = [limit.metric for limit in limits if LIMITABLE[limit.metric].needs_wakeups]
    # If statistics are limited, too few wakeups isn't the service's fault: there is nothing to judge.
    if statistics and minimum is not None and wakeups is not None and not minimum.allows(resolved):
        show = METRICS["wakeups"].format
        count, kind = (resolved, "resolved wakeup") if minimum.allows(wakeups) else (wakeups, "wakeup")
        few = f"only {show(count)} {kind}{'s' * (count != 1)}" if count else f"no {kind}s"
        findings.append(
            Reason(
                f"{few}; {statistics[0]} needs at least {show(minimum.value)}",
                fix=_more_traffic(measurement, minimum, all_of_them),
            )
        )
        limits = [limit for limit in limits if limit is not minimum and limit.metric not in statistics]
    for limit in limits:
        metric, value = LIMITABLE[limit.metric], median(measurement.judged(limit.metric))
        if value is None:
            why = measurement.absent.get(metric.base, metric.absent)
            findings.append(Reason.of(why).about(f"{metric.name} was not measured"))
        elif not limit.allows(value):
            detail = _detail(measurement, metric.name)
            fix = _fix(measurement, metric.base) if limit.kind == "max" else None
            findings.append(
                Breach(measurement.service, metric.name, limit.kind, value, limit.value, detail, fix=fix)
            )
    return findings


def _more_traffic(measurement: Measurement, least: Limit, all_of_them: Sequence[Measurement]) -> str:
    """The fix for too few wakeups; names the busiest other service of the test if it has enough."""
    others = [m for m in all_of_them if m.service != measurement.service and distrust(m) is None]
    counts = {m.service: resolved_wakeups(m.metrics) for m in others}
    busiest = max(counts, key=lambda name: counts[name], default=None)
    if busiest is None or not least.allows(counts[busiest]):
        return "send more traffic, or set min_wakeups="
    had = METRICS["wakeups"].format(counts[busiest])
    return (
        f"send it more traffic or set min_wakeups=; if the limits are about {busiest}, which had {had} "
        f'wakeups, write service="{busiest}"'
    )


# Limit -> the rules whose diagnosis gives its fix. The first one's fix is also that of a limit without one.
_FIXED_BY = {
    "parked_growth": ("NP501", "NP502"),
    "abandoned_descriptors": ("NP501",),
    "stuck_goroutines": ("NP502",),
}


def _fix(measurement: Measurement, metric: str) -> str | None:
    """The fix for a broken limit, unless the diagnosis gives it."""
    rules = _FIXED_BY.get(metric, ())
    if rules and any(found.rule.code in rules for found in findings(measurement)):
        return None
    own = METRICS[metric].fix if metric in METRICS else None
    if metric == "parked_growth":
        own = _close(measurement) or own
    return own or next((RULES[rule].fix for rule in rules), None)


def _close(measurement: Measurement) -> str | None:
    """The fix for connections that are left open, if it is certain who opened them."""
    dialed = ends.dialed_more(measurement)
    if dialed:
        to = sorted({f"{o.peer_service} ({o.peers[0]})" if o.peer_service else o.peers[0] for o in dialed})
        return (
            f"close each connection that {measurement.service} dials, here to {', '.join(to)}; if it is a "
            "pool, allow for its size in the limit."
        )
    if ends.only_accepted_more(measurement):
        if measurement.abandoned_descriptors == 0:
            return "close the clients, which are still connected, or let the service close idle connections."
        return "close the connection when its client has gone."
    return None


def _check_rules(measurement: Measurement, forbidden: Mapping[str, bool]) -> list[Breach | Reason]:
    """The forbidden rules that are broken, and why one that is forbidden by its name could not be checked."""
    if not forbidden:
        return []
    broken: list[Breach | Reason] = [
        BrokenRule(found.service, found.rule.code, "max", found.proof.count, 0, why=found.reason)
        for found in findings(measurement)
        if found.rule.code in forbidden
    ]
    return broken + [
        missing.why.about(f"{missing.rule} was not checked")
        for missing in unchecked(measurement)
        if forbidden.get(missing.rule.code)
    ]


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
        [count] = measurement.judged(base)
        counted = f"{METRICS[base].format(count)} in {_length(measurement)}"
        return f"{counted}, {besides}" if besides else counted
    if besides:
        return besides
    if metric == "mutex_wait_seconds":
        return f"added up over goroutines, in {_length(measurement)}"
    if metric != "spurious":
        return ""
    spurious = measurement.snapshot.counters["spurious_wakeups"]
    resolved = spurious + measurement.snapshot.counters["productive_wakeups"]
    return f"{show(spurious)} of {show(resolved)} wakeups"


def _length(measurement: Measurement) -> str:
    """How long the window was: "0.34 s", "5.0 ms"."""
    seconds = measurement.window_seconds
    return units.show(seconds, "s") if seconds >= 0.1 else units.show(seconds * 1e9, "ns")
