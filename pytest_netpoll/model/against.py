"""Head against base, measured in turns: what has changed, how sure that is, and which rules that breaks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from pytest_netpoll.errors import Reason
from pytest_netpoll.model import confidence, units
from pytest_netpoll.model.comparison import Comparison, Regression, Sample, Samples, too_few
from pytest_netpoll.model.confidence import Interval
from pytest_netpoll.model.limits import MIN_WAKEUPS
from pytest_netpoll.model.measurement import median
from pytest_netpoll.model.metrics import METRICS, Metric
from pytest_netpoll.model.tolerance import Tolerance

# More rounds than so many times those made nobody waits for.
_PATIENCE = 20
# Of the rounds, those that may be unmeasured: they are left out, and said. More, and nothing is compared.
_UNMEASURED = 0.25
_PERCENT = f"{confidence.CONFIDENCE * 100:.0f} %"


class Plan(NamedTuple):
    """What is compared. ref: as the user wrote it. commit: what it stood for. least, most: rounds."""

    ref: str
    commit: str
    tolerances: Sequence[Tolerance]
    least: int
    most: int

    @property
    def looks(self) -> tuple[int, ...]:
        return confidence.looks(self.least, self.most)


@dataclass(frozen=True)
class Difference:
    """A number of a service on both sides: their medians, and the change with its interval over the rounds.

    relative: whether the change is a fraction of the base (0.2 is +20 %), or a difference in the metric's
    canonical unit, as of shares and of what was 0. exact: each side had one and the same in all rounds.
    """

    service: str
    metric: str
    base: int | float
    head: int | float
    change: Interval
    relative: bool
    exact: bool
    rounds: int

    @property
    def seen(self) -> bool:
        """Whether there is one: the interval is on one side of no change."""
        return self.change.low > 0 or self.change.high < 0

    @property
    def worse(self) -> bool:
        return self.change.low > 0 and METRICS[self.metric].more_is_worse

    def amount(self, value: float) -> str:
        """ "+20.1 %", "-3.0 µs"; of more than tenfold the factor."""
        if self.relative and value > 9:
            return f"×{1 + value:.0f}"  # noqa: RUF001 - the sign for it
        if self.relative:
            return f"{value * 100:+.1f} %"
        sign = "-" if value < 0 else "+"
        return f"{sign}{METRICS[self.metric].format(abs(value))}"

    @property
    def text(self) -> str:
        """ "+20.1 % (+15.2 % to +26.0 %)", "~ (-2.0 % to +1.3 %)"; of what is exact no interval."""
        if not self.change.known:
            return f"unknown after {self.rounds} rounds"
        if self.exact:
            return f"{self.amount(self.change.middle)} (exact)" if self.seen else "~ (exact)"
        span = f"({self.amount(self.change.low)} to {self.amount(self.change.high)})"
        return f"{self.amount(self.change.middle) if self.seen else '~'} {span}"

    def __str__(self) -> str:
        show = METRICS[self.metric].format
        values = (
            " → ".join(units.show_apart(self.base, self.head, show))
            if self.base != self.head
            else show(self.base)
        )
        return f"{self.metric} {values}, {self.text}"


@dataclass(frozen=True)
class Worse(Regression):
    """A rule that is broken for sure. measured, baseline: the medians of head and base."""

    difference: Difference | None = None

    def __str__(self) -> str:
        assert self.difference is not None
        how = "exactly" if self.difference.exact else f"with {_PERCENT} confidence"
        return (
            f"{self.service}: {self.difference}: worse than {self.source} by more than "
            f"{self.tolerance.text}, {how} over {self.difference.rounds} rounds"
        )


@dataclass(frozen=True)
class Undecided:
    """A rule that the rounds could not decide. enough: how many might; None where it is at the tolerance."""

    tolerance: Tolerance
    difference: Difference
    enough: int | None

    def __str__(self) -> str:
        made = self.difference.rounds
        more = (
            f"about {self.enough} rounds would decide it: --netpoll-rounds={made}:{self.enough}"
            if self.enough is not None
            else "the change is about as large as the tolerance, so more rounds would hardly decide it"
        )
        undecided = f"{made} rounds can't decide whether that is more than {self.tolerance.text}"
        return f"{self.difference.service}: {self.difference}: {undecided}; {more}"


Round: TypeAlias = tuple[Samples, Samples]  # base, head


def compare_rounds(
    rounds: Sequence[Round],
    plan: Plan,
    limits: Mapping[str, int | float] | None = None,
    doubts: Mapping[str, Reason] | None = None,
) -> Comparison:
    """One test on both sides, each measured once in each of the rounds.

    limits: as in the JSON report. doubts: service -> why its rounds do not compare the two sides.
    """
    bases, heads = _by_service([base for base, _ in rounds]), _by_service([head for _, head in rounds])
    notes: list[str] = []
    unmeasured: list[Reason] = []
    regressions: list[Regression] = []
    undecided: list[Undecided] = []
    numbers: list[Difference] = []
    source = f"base ({plan.ref})"
    for service, head in heads.items():
        if service not in bases:
            notes.append(f"{service} was not compared: it is not built from a package of the repository")
            continue
        told = _measured(bases[service], head, source)
        doubt = (doubts or {}).get(service) or told.doubt
        if doubt is not None:
            (unmeasured if plan.tolerances else notes).append(doubt.about(f"{service} was not compared"))
            continue
        base, now = told.base, told.head
        notes += [note.about(service).headline for note in told.notes]
        found = _numbers(service, base, now, len(plan.looks))
        numbers += found.values()
        for tolerance in plan.tolerances:
            metric = METRICS[tolerance.metric]
            why_not = _incomparable(metric, base, now, limits)
            if why_not is not None:
                at_base, reason = why_not
                if at_base:
                    notes.append(f"{service}: {metric.name} has no number of {source}: {reason.headline}")
                else:
                    unmeasured.append(reason.about(f"{service}: {metric.name} cannot be compared"))
                continue
            difference = found[metric.name]
            parts = _parts(tolerance, base, now, len(plan.looks))
            if all(part.low > 0 for part in parts):
                regressions.append(
                    Worse(
                        service,
                        metric.name,
                        difference.head,
                        difference.base,
                        tolerance,
                        source,
                        (),
                        difference,
                    )
                )
            elif not any(part.high <= 0 for part in parts):
                undecided.append(Undecided(tolerance, difference, _enough(parts, len(base))))
    if undecided and len(rounds) >= plan.most:
        notes += map(str, undecided)
    return Comparison(
        plan.ref,
        True,
        {
            name: _median_sample([sample for sample in samples if sample is not None])
            for name, samples in bases.items()
            if name in heads
        },
        tuple(regressions),
        tuple(unmeasured),
        tuple(dict.fromkeys(notes)),
        measured=len(rounds),
        judged=bool(plan.tolerances),
        commit=plan.commit,
        numbers=tuple(numbers),
        undecided=tuple(undecided),
    )


def not_compared(plan: Plan, why: str) -> Comparison:
    """Of a test that the base does not pass: as where a baseline does not know it."""
    return Comparison(plan.ref, False, {}, notes=(why,), judged=bool(plan.tolerances), commit=plan.commit)


def unsteady(plan: Plan, why: Reason) -> Comparison:
    """Of a test that the base passes now and then."""
    reasons = (why,) if plan.tolerances else ()
    notes = () if plan.tolerances else (why.headline,)
    judged = bool(plan.tolerances)
    return Comparison(plan.ref, True, {}, (), reasons, notes, judged=judged, commit=plan.commit)


def settled(comparison: Callable[[], Comparison], plan: Plan, make: Callable[[int], bool]) -> Comparison:
    """Makes rounds until one rule is broken or each of them is decided, at most plan.most.

    make: makes them until there are so many, and says whether it could.
    """
    for look in plan.looks:
        made = make(look)
        found = comparison()
        if not made or found.regressions or not found.undecided:
            break
    return found


class _Measured(NamedTuple):
    """The rounds of a service that were measured on both sides. doubt: why they are too few to compare."""

    base: list[Sample]
    head: list[Sample]
    notes: list[Reason]
    doubt: Reason | None


def _by_service(side: Sequence[Samples]) -> dict[str, list[Sample | None]]:
    """What each service measured in each of the rounds; None where it did not run."""
    names = dict.fromkeys(name for samples in side for name in samples)
    return {name: [samples.get(name) for samples in side] for name in names}


def _measured(base: Sequence[Sample | None], head: Sequence[Sample | None], source: str) -> _Measured:
    found = _Measured([], [], [], None)
    for number, (then, now) in enumerate(zip(base, head, strict=True), 1):
        whys = [_distrusted(then, f"{source}, round {number}"), _distrusted(now, f"head, round {number}")]
        why = next(filter(None, whys), None)
        if why is not None:
            found.notes.append(why)
        elif then is not None and now is not None:
            found.base.append(then)
            found.head.append(now)
    most = len(base) * _UNMEASURED
    return found._replace(doubt=found.notes[0]) if len(found.notes) > most else found


def _distrusted(sample: Sample | None, where: str) -> Reason | None:
    if sample is None:
        return Reason(f"{where}: it did not run", fix="start it in a fixture, or in each call of the test")
    return Reason.of(sample.unmeasured).about(where) if sample.unmeasured is not None else None


def _values(metric: Metric, samples: Sequence[Sample]) -> list[float] | None:
    values = [sample.metrics.get(metric.name) for sample in samples]
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else None


def _numbers(
    service: str, base: Sequence[Sample], head: Sequence[Sample], of_looks: int
) -> dict[str, Difference]:
    found = {}
    for metric in METRICS.values():
        then, now = _values(metric, base), _values(metric, head)
        if then is None or now is None:
            continue
        relative = metric.unit != "share" and min(*then, *now) > 0
        change = _ratio(then, now, 0.0, of_looks) if relative else _excess(then, now, 0.0, 0.0, of_looks)
        found[metric.name] = Difference(
            service,
            metric.name,
            median(then) or 0,
            median(now) or 0,
            change,
            relative,
            exact=len(set(then)) == len(set(now)) == 1,
            rounds=len(then),
        )
    return found


def _incomparable(
    metric: Metric, base: Sequence[Sample], head: Sequence[Sample], limits: Mapping[str, int | float] | None
) -> tuple[bool, Reason] | None:
    """Whether it is the base's fault, and why."""
    minimum = (limits or {}).get("min_wakeups", MIN_WAKEUPS)
    for at_base, samples in ((True, base), (False, head)):
        if _values(metric, samples) is None:
            known = (sample.absent[metric.name] for sample in samples if metric.name in sample.absent)
            return at_base, next(known, metric.absent)
        if metric.needs_wakeups:
            few = next(filter(None, (too_few(sample, minimum) for sample in samples)), None)
            if few is not None:
                return at_base, Reason(few, fix="send more traffic")
    return None


def _parts(
    tolerance: Tolerance, base: Sequence[Sample], head: Sequence[Sample], of_looks: int
) -> list[Interval]:
    """By how much each amount of the tolerance is exceeded: what has to exceed both, does so in both."""
    metric = METRICS[tolerance.metric]
    then, now = _values(metric, base), _values(metric, head)
    assert then is not None
    assert now is not None
    parts = []
    if tolerance.relative is not None:
        positive = min(*then, *now) > 0
        compute = _ratio if positive else _share_excess
        parts.append(compute(then, now, tolerance.relative, of_looks))
    if tolerance.absolute is not None or not parts:
        parts.append(_excess(then, now, 0.0, tolerance.absolute or 0.0, of_looks))
    return parts


def _ratio(then: Sequence[float], now: Sequence[float], tolerated: float, of_looks: int) -> Interval:
    """Of logarithms, of which those of twice and of half are equally far from none; as a fraction again."""
    logs = [math.log(new / old) for old, new in zip(then, now, strict=True)]
    low, middle, high = confidence.interval(logs, of_looks)
    if math.isinf(high):
        return Interval(low, math.expm1(middle) - tolerated, high)
    return Interval(*(math.expm1(edge) - tolerated for edge in (low, middle, high)))


def _share_excess(then: Sequence[float], now: Sequence[float], tolerated: float, of_looks: int) -> Interval:
    return _excess(then, now, tolerated, 0.0, of_looks)


def _excess(
    then: Sequence[float], now: Sequence[float], relative: float, absolute: float, of_looks: int
) -> Interval:
    differences = [new - old * (1 + relative) - absolute for old, new in zip(then, now, strict=True)]
    return confidence.interval(differences, of_looks)


def _enough(parts: Sequence[Interval], made: int) -> int | None:
    """The rounds after which the interval might have left the tolerance: it shrinks with their root."""
    needed = []
    for part in parts:
        if part.low <= 0 < part.high:
            distance = abs(part.middle)
            half = max(part.high - part.middle, part.middle - part.low)
            needed.append(made * (half / distance) ** 2 if distance else math.inf)
    most = max(needed, default=math.inf)
    return 2 * math.ceil(most * 1.1 / 2) if most <= _PATIENCE * made else None


def _median_sample(samples: Sequence[Sample]) -> Sample:
    metrics: dict[str, int | float | None] = {}
    for metric in METRICS.values():
        values = _values(metric, samples)
        metrics[metric.name] = None if values is None else median(values)
    return Sample(metrics, samples[0].go_version, samples[0].gomaxprocs)
