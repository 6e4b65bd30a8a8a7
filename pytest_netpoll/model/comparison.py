"""Compares a run with a baseline: what regressed beyond its tolerance."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pytest_netpoll.errors import Reason
from pytest_netpoll.model import confidence, units
from pytest_netpoll.model.confidence import Design
from pytest_netpoll.model.difference import (
    Difference,
    Judged,
    Regression,
    Undecided,
    differences,
    judge_rules,
)
from pytest_netpoll.model.limits import MIN_WAKEUPS
from pytest_netpoll.model.measurement import resolved_wakeups
from pytest_netpoll.model.metrics import METRICS, SCHED_LATENCIES, Metric, base_of
from pytest_netpoll.model.sample import Sample, Samples, too_few
from pytest_netpoll.model.tolerance import Tolerance
from pytest_netpoll.model.verdict import Verdict

# The parts of the environment that decide whether times can be compared, besides each service's.
ENVIRONMENT_KEYS = ("kernel", "arch", "plugin")
# Wakeups that must lie beyond a percentile. With fewer it jumps between windows of the same service: with 200
# wakeups the p99 is one of the two slowest, and worse than its baseline every tenth time.
_IN_TAIL = 10


@dataclass(frozen=True)
class Baseline:
    """Saved measurements. name: as users call it. tests: by nodeid."""

    name: str
    environment: Mapping[str, Any] = field(default_factory=dict)
    tests: Mapping[str, Samples] = field(default_factory=dict)


@dataclass(frozen=True)
class Rules:
    """Tolerances, and when to compare times: "auto" doesn't in another environment."""

    tolerances: Sequence[Tolerance] = ()
    latencies: Literal["auto", "always"] = "auto"


@dataclass(frozen=True)
class Change:
    """A metric that changed, judged or not, for better or worse.

    difference: with its interval, if there were enough rounds.
    """

    service: str
    metric: str
    baseline: int | float
    measured: int | float
    difference: Difference | None = None

    def place(self, limited: Collection[str]) -> tuple[bool, bool, float]:
        """The key to sort by. limited: the metrics that the test limits."""
        return place(self.metric, self.baseline, self.measured, limited)

    def __str__(self) -> str:
        if self.difference is not None:
            return str(self.difference)
        values = units.show_changed(self.baseline, self.measured, METRICS[self.metric].unit)
        return f"{self.metric} {' → '.join(values)}"


def place(
    metric: str, then: int | float, now: int | float, limited: Collection[str]
) -> tuple[bool, bool, float]:
    """Sorts changes: limited metrics first, times last, and large changes before small ones."""
    known = METRICS.get(metric)
    size = abs((now - then) / then) if then else math.inf
    return metric not in limited, known is not None and known.is_time, -size


def limited(limits: Iterable[str]) -> set[str]:
    """The metrics that must not exceed one of the limits; max_polls_per_second is about polls."""
    names = {name.removeprefix("max_") for name in limits if name.startswith("max_")}
    return set(map(base_of, names))


@dataclass(frozen=True)
class Comparison:
    """One test compared with a baseline or base. outcome: "new" if the baseline doesn't have the test. then:
    the baseline's numbers. unmeasured: what had to be compared but was not measured now. notes: what was not
    compared for another reason, and what remeasuring did not confirm. measured: how often the test was
    measured. judged: whether there were tolerances; without any, nothing counts as worse. changes: those
    larger than two runs differ by chance. commit: of the base that was measured in turns; None for a saved
    baseline. numbers: all that has an interval, which takes several rounds. undecided: the tolerances that
    the rounds could not decide.
    """

    baseline: str
    known: bool
    then: Samples
    regressions: tuple[Regression, ...] = ()
    unmeasured: tuple[Reason, ...] = ()
    notes: tuple[str, ...] = ()
    measured: int = 1
    judged: bool = True
    changes: tuple[Change, ...] = ()
    commit: str | None = None
    numbers: tuple[Difference, ...] = ()
    undecided: tuple[Undecided, ...] = ()

    @property
    def outcome(self) -> Literal["passed", "regressed", "unmeasured", "new"]:
        if self.regressions:
            return "regressed"
        if self.unmeasured:
            return "unmeasured"
        return "passed" if self.known else "new"

    @property
    def reasons(self) -> list[Reason]:
        """What keeps the test from passing."""
        return [*(Reason(str(regression)) for regression in self.regressions), *self.unmeasured]

    @property
    def doubtful(self) -> bool:
        """Whether remeasuring may disprove a regression."""
        return any(regression.doubtful for regression in self.regressions)

    def confirm(self, again: Samples) -> Comparison:
        """The comparison after remeasuring: a time that was worse only once isn't a regression."""
        kept: list[Regression] = []
        notes = list(self.notes)
        for regression in self.regressions:
            metric = METRICS[regression.metric]
            if not regression.doubtful:
                kept.append(regression)
                continue
            sample = again.get(regression.service)
            value = sample.metrics.get(metric.name) if sample and sample.unmeasured is None else None
            if value is None or value > regression.limit:
                # An unmeasured metric doesn't prove that it hasn't regressed.
                more = () if value is None else (value,)
                kept.append(dataclasses.replace(regression, again=(*regression.again, *more)))
            else:
                first, second = units.show_changed(regression.measured, value, metric.unit)
                notes.append(
                    f"{regression.service}: {metric.name} {first} was not confirmed: {second} when remeasured"
                )
        return dataclasses.replace(
            self, regressions=tuple(kept), notes=tuple(notes), measured=self.measured + 1
        )


def compare(
    nodeid: str,
    now: Samples,
    environment: Mapping[str, Any],
    baseline: Baseline,
    rules: Rules,
    limits: Mapping[str, int | float] | None = None,
    binds: Callable[[str], bool] = lambda _: True,
    of_looks: int = 1,
) -> Comparison:
    """Compares one test with its baseline. environment: today's, as in the JSON report. limits: as there.
    binds: whether the test is about the service of that name; others in the baseline are ignored. of_looks:
    how many times the test is compared, at most.

    With several rounds then and now, the interval decides, as with a base that is measured in turns;
    otherwise a single number does.
    """
    then = baseline.tests.get(nodeid)
    if then is None:
        missing = f"not in baseline {baseline.name}"
        return Comparison(baseline.name, False, {}, notes=(missing,), judged=bool(rules.tolerances))
    regressions: list[Regression] = []
    changed: list[Change] = []
    unmeasured: list[Reason] = []
    notes: list[str] = []
    numbers: list[Difference] = []
    undecided: list[Undecided] = []
    imprecise: list[str] = []
    minimum = (limits or {}).get("min_wakeups", MIN_WAKEUPS)
    design = Design(in_turns=False, of_looks=of_looks)
    for service in sorted(then.keys() - now.keys()):
        if binds(service):
            missing = f"{service}: is in baseline {baseline.name}, but is no longer measured"
            notes.append(missing)
            # A service without events may belong to another test: a test that uses none is about all that
            # run.
            if rules.tolerances and then[service].metrics.get("events"):
                renamed = f'if it was renamed, pass name="{service}" to go_service; '
                unmeasured.append(Reason(missing, fix=renamed + "else save the baseline again"))
    for service, sample in now.items():
        if service not in then:
            notes.append(f"{service}: is not in baseline {baseline.name}")
            continue
        if sample.unmeasured is not None:
            if rules.tolerances:
                unmeasured.append(Reason.of(sample.unmeasured).about(service))
            continue
        before = then[service]
        elsewhere = _elsewhere(environment, sample, baseline.environment, before)
        refused = rules.latencies == "auto" and bool(elsewhere)
        if refused and (not rules.tolerances or any(METRICS[t.metric].is_time for t in rules.tolerances)):
            notes.append(
                f"{service}: times were not compared: {', '.join(elsewhere)} "
                "(--netpoll-compare-latencies=always compares them anyway)"
            )
        tolerances = [t for t in rules.tolerances if not (refused and METRICS[t.metric].is_time)]
        comparable = [metric for metric in METRICS.values() if not (refused and metric.is_time)]
        if design.has_interval(len(before.each), len(sample.each)):
            sides = before.each, sample.each
            found = differences(service, *sides, design, comparable)
            numbers += found.values()
            changed += _changed(found.values())
            source = f"baseline {baseline.name}"
            judged = judge_rules(service, *sides, tolerances, found, design, source, limits)
        else:
            imprecise.append(f"{service}: {_no_interval(len(before.each), len(sample.each))}")
            changed += _changes(service, sample, before, minimum, comparable)
            judged = _judge_once(service, before, sample, tolerances, baseline.name, minimum)
        regressions += judged.regressions
        undecided += judged.undecided
        unmeasured += judged.unmeasured
        notes += judged.notes
    return Comparison(
        baseline.name,
        True,
        then,
        tuple(regressions),
        tuple(unmeasured),
        tuple(dict.fromkeys([*notes, *map(str, () if regressions else undecided), *imprecise])),
        measured=max((len(sample.each) for sample in now.values()), default=1),
        judged=bool(rules.tolerances),
        changes=tuple(sorted(changed, key=lambda change: change.place(limited(limits or {})))),
        numbers=tuple(numbers),
        undecided=tuple(undecided),
    )


def _judge_once(
    service: str,
    before: Sample,
    sample: Sample,
    tolerances: Sequence[Tolerance],
    name: str,
    minimum: int | float,
) -> Judged:
    """Judges by one number of each side, without an interval. name: of the baseline."""
    judged = Judged()
    for tolerance in tolerances:
        metric = METRICS[tolerance.metric]
        steady = _steady(metric, sample, before)
        if steady is not metric:
            judged.notes.append(
                f"{service}: compared {steady.name} instead of {metric.name}, "
                f"which needs {_IN_TAIL} wakeups beyond it: send more traffic"
            )
            metric = steady
        value, old = sample.metrics.get(metric.name), before.metrics.get(metric.name)
        what = f"{service}: {metric.name}"
        few = too_few(sample, minimum) if metric.is_statistic else None
        few_then = too_few(before, minimum) if metric.is_statistic else None
        if old is None or few_then is not None:
            judged.notes.append(f"{what} has no baseline: {few_then or 'it was not measured then'}")
        elif value is None or few is not None:
            known = sample.absent.get(metric.name, metric.absent)
            why = Reason(few) if few is not None else known
            judged.unmeasured.append(why.about(f"{what} cannot be compared"))
        elif value > tolerance.limit(old):
            judged.regressions.append(Regression(service, metric.name, value, old, tolerance, name))
    return judged


def _no_interval(then: int, now: int) -> str:
    rounds = "1 round" if then == 1 else f"{then} rounds"
    enough = confidence.fewest_now(then)
    how = f"--netpoll-rounds={enough} gives one"
    if enough is None:
        both = confidence.fewest_on_both_sides()
        how = f"save the baseline again with --netpoll-rounds={both}, and compare with as many, to have one"
    return f"no 95 % interval: {rounds} in the baseline, {now} now; {how}"


# Unit -> the least change, as a share of the larger value and in absolute terms, that is more than chance.
_NOTABLE: Mapping[str, tuple[float, float]] = {
    "share": (0, 0.01),
    "ratio": (0.1, 0.1),
    "count": (0.1, 10),
    "ns": (0.25, 1_000),
    "s": (0.25, 0.01),
}


def _changes(
    service: str, now: Sample, then: Sample, minimum: int | float, metrics: Sequence[Metric]
) -> Iterator[Change]:
    few = too_few(now, minimum) or too_few(then, minimum)
    for metric in metrics:
        value, old = now.metrics.get(metric.name), then.metrics.get(metric.name)
        if value is None or old is None or not _is_notable(metric, old, value):
            continue
        # The runtime doesn't report how many events its histogram holds, but wakeups are among them.
        rests_on = METRICS[metric.name.removeprefix("sched_")] if metric.name in SCHED_LATENCIES else metric
        if rests_on.is_statistic and (few or _steady(rests_on, now, then) is not rests_on):
            continue
        yield Change(service, metric.name, old, value)


def _changed(found: Iterable[Difference]) -> Iterator[Change]:
    for difference in found:
        base, head = difference.base, difference.head
        if difference.seen and _is_notable(METRICS[difference.metric], base, head):
            yield Change(difference.service, difference.metric, base, head, difference)


def _is_notable(metric: Metric, old: int | float, value: int | float) -> bool:
    share, least = _NOTABLE[metric.unit]
    return metric.more_is_worse and abs(value - old) >= max(least, share * max(value, old))


def confirmed(comparison: Comparison, reruns: int, measure: Callable[[], Samples]) -> Comparison:
    """The comparison after remeasuring doubtful regressions, at most `reruns` times."""
    for _ in range(reruns):
        if not comparison.doubtful:
            break
        comparison = comparison.confirm(measure())
    return comparison


def settle(
    verdict: Verdict, comparison: Comparison | None, mode: Literal["gate", "report", "off"]
) -> Verdict:
    """The verdict on limits and baseline together: a regression is as bad as a broken limit."""
    if comparison is None or mode == "off":
        return verdict
    reasons = comparison.reasons
    if not reasons:
        return verdict
    failed = (verdict.gate or verdict.outcome) == "failed" or bool(comparison.regressions)
    settled = dataclasses.replace(
        verdict,
        outcome="failed" if failed else "unmeasured",
        reasons=tuple(dict.fromkeys([*verdict.reasons, *reasons])),
    )
    return settled.in_report_mode() if mode == "report" else settled


def _steady(metric: Metric, *samples: Sample) -> Metric:
    """The metric itself, or the highest percentile below it that rests on enough wakeups in all samples."""
    if metric.tail is None:
        return metric
    fewest = min(resolved_wakeups(sample.metrics) for sample in samples)
    family = [m for m in METRICS.values() if m.family == metric.family]
    lower = {m.tail: m for m in family if m.tail is not None and m.tail >= metric.tail}
    steady = [tail for tail in lower if tail * fewest >= _IN_TAIL]
    return lower[min(steady, default=max(lower))]


def _elsewhere(
    environment: Mapping[str, Any], sample: Sample, before: Mapping[str, Any], old: Sample
) -> list[str]:
    pairs = {key: (before.get(key), environment.get(key)) for key in ENVIRONMENT_KEYS}
    pairs["Go"] = (old.go_version, sample.go_version)
    pairs["GOMAXPROCS"] = (old.gomaxprocs, sample.gomaxprocs)
    return changes(pairs)


def changes(pairs: Mapping[str, tuple[object, object]]) -> list[str]:
    """What differs in {name: (then, now)}: "kernel 6.1.0 then, 6.8.0 now"."""
    return [
        f"{key} {'unknown' if then is None else then} then, {'unknown' if now is None else now} now"
        for key, (then, now) in pairs.items()
        if then != now
    ]
