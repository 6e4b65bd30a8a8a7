"""Compares a service's numbers on two sides: the change, its interval, and the tolerances it breaks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pytest_netpoll.errors import Reason
from pytest_netpoll.model import confidence, units
from pytest_netpoll.model.confidence import Design, Interval
from pytest_netpoll.model.limits import MIN_WAKEUPS
from pytest_netpoll.model.measurement import median
from pytest_netpoll.model.metrics import METRICS, Metric
from pytest_netpoll.model.sample import Sample, too_few, values_of
from pytest_netpoll.model.tolerance import Tolerance

# Don't suggest more than this many times the rounds made: nobody would wait for them.
_PATIENCE = 20
# Bounds exp(): the numbers of a damaged file may differ by more than a float can hold.
_LARGEST = 700.0
_PERCENT = f"{confidence.CONFIDENCE * 100:.0f} %"


@dataclass(frozen=True)
class Difference:
    """A metric's medians on both sides, and the change with its interval over the rounds.

    relative: whether the change is a fraction of the base (0.2 is +20 %), or a difference in the metric's
    canonical unit (for shares, and if a side was 0). exact: each side had the same value in all rounds.
    rounds: of the head. base_rounds: of a saved baseline; None if both sides were measured in turns.
    """

    service: str
    metric: str
    base: int | float
    head: int | float
    change: Interval
    relative: bool
    exact: bool
    rounds: int
    base_rounds: int | None = None

    @property
    def seen(self) -> bool:
        """Whether there is a change: the interval doesn't contain 0."""
        return self.change.low > 0 or self.change.high < 0

    @property
    def worse(self) -> bool:
        return self.change.low > 0 and METRICS[self.metric].more_is_worse

    def amount(self, value: float) -> str:
        """ "+20.1 %", "-3.0 µs", or the factor if it grew more than tenfold."""
        if self.relative and value > 9:
            return f"×{1 + value:.0f}"  # noqa: RUF001 - the sign for it
        if self.relative:
            return f"{value * 100:+.1f} %"
        sign = "-" if value < 0 else "+"
        return f"{sign}{METRICS[self.metric].format(abs(value))}"

    @property
    def text(self) -> str:
        """ "+20.1 % (+15.2 % to +26.0 %)", "~ (-2.0 % to +1.3 %)"; no interval if exact."""
        if not self.change.known:
            return f"unknown after {self.rounds} rounds"
        if self.exact:
            return f"{self.amount(self.change.middle)} (exact)" if self.seen else "~ (exact)"
        span = f"({self.amount(self.change.low)} to {self.amount(self.change.high)})"
        return f"{self.amount(self.change.middle) if self.seen else '~'} {span}"

    @property
    def over(self) -> str:
        """ "8 rounds", "5 rounds then and 8 now"."""
        if self.base_rounds is None:
            return f"{self.rounds} rounds"
        return f"{self.base_rounds} rounds then and {self.rounds} now"

    def __str__(self) -> str:
        metric = METRICS[self.metric]
        values = (
            " → ".join(units.show_changed(self.base, self.head, metric.unit))
            if self.base != self.head
            else metric.format(self.base)
        )
        return f"{self.metric} {values}, {self.text}"


@dataclass(frozen=True)
class Regression:
    """A metric beyond its tolerance. measured, baseline: in the metric's canonical unit. again: when
    remeasured.

    metric: the one that was compared; not the tolerance's own if that needs more wakeups.
    """

    service: str
    metric: str
    measured: int | float
    baseline: int | float
    tolerance: Tolerance
    source: str
    again: tuple[int | float, ...] = ()

    @property
    def limit(self) -> float:
        return self.tolerance.limit(self.baseline)

    @property
    def doubtful(self) -> bool:
        """Whether it is a time measured once, which a busy machine may have caused."""
        return METRICS[self.metric].is_time

    def __str__(self) -> str:
        metric = METRICS[self.metric]
        measured, baseline = units.show_changed(self.measured, self.baseline, metric.unit)
        again = f" (remeasured: {', '.join(map(metric.format, self.again))})" if self.again else ""
        asked = self.tolerance.metric
        instead = "" if asked == self.metric else f" (too few wakeups for {asked})"
        return (
            f"{self.service}: {self.metric} {measured}{again} > {baseline} {self.tolerance.text} "
            f"of baseline {self.source}{instead}"
        )


@dataclass(frozen=True)
class Worse(Regression):
    """A regression proven by its interval. measured, baseline: the medians of head and base."""

    difference: Difference | None = None

    @property
    def doubtful(self) -> bool:
        return False

    def __str__(self) -> str:
        assert self.difference is not None
        how = "exactly" if self.difference.exact else f"with {_PERCENT} confidence"
        return (
            f"{self.service}: {self.difference}: worse than {self.source} by more than "
            f"{self.tolerance.text}, {how} over {self.difference.over}"
        )


@dataclass(frozen=True)
class Undecided:
    """A tolerance that the rounds could not decide. enough: how many might; None if the change is at the
    tolerance.
    """

    tolerance: Tolerance
    difference: Difference
    enough: int | None

    def __str__(self) -> str:
        made, base = self.difference.rounds, self.difference.base_rounds
        if self.enough is None:
            more = "the change is about as large as the tolerance, so more rounds would hardly decide it"
        elif base is None:
            more = f"about {self.enough} rounds would decide it: --netpoll-rounds={made}:{self.enough}"
        else:
            rounds = f"--netpoll-rounds={self.enough}"
            more = f"about {self.enough} rounds would decide it: save and compare with {rounds}"
        return (
            f"{self.difference.service}: {self.difference}: {self.difference.over} can't decide whether "
            f"that is more than {self.tolerance.text}; {more}"
        )


@dataclass
class Judged:
    """The tolerances applied to one service. notes: what was not compared. unmeasured: what had to be
    compared, but wasn't.
    """

    regressions: list[Regression] = field(default_factory=list)
    undecided: list[Undecided] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unmeasured: list[Reason] = field(default_factory=list)


def differences(
    service: str, base: Sequence[Sample], head: Sequence[Sample], design: Design, metrics: Iterable[Metric]
) -> dict[str, Difference]:
    """{metric: Difference} for the metrics that both sides have in all rounds."""
    found = {}
    for metric in metrics:
        then, now = values_of(metric, base), values_of(metric, head)
        if then is None or now is None:
            continue
        relative = metric.unit != "share" and min(*then, *now) > 0
        change = _ratio(then, now, 0.0, design) if relative else _excess(then, now, 0.0, 0.0, design)
        found[metric.name] = Difference(
            service,
            metric.name,
            median(then) or 0,
            median(now) or 0,
            change,
            relative,
            exact=len(set(then)) == len(set(now)) == 1,
            rounds=len(now),
            base_rounds=None if design.in_turns else len(then),
        )
    return found


def judge_rules(
    service: str,
    base: Sequence[Sample],
    head: Sequence[Sample],
    tolerances: Iterable[Tolerance],
    numbers: Mapping[str, Difference],
    design: Design,
    source: str,
    limits: Mapping[str, int | float] | None = None,
) -> Judged:
    """Judges each tolerance: broken if the whole interval lies beyond it, kept if none of it does.

    numbers: from `differences`. source: the base's name. limits: as in the JSON report.
    """
    judged = Judged()
    for tolerance in tolerances:
        metric = METRICS[tolerance.metric]
        why_not = _incomparable(metric, base, head, limits)
        if why_not is not None:
            at_base, reason = why_not
            if at_base:
                judged.notes.append(
                    f"{service}: {metric.name} has no number from {source}: {reason.headline}"
                )
            else:
                judged.unmeasured.append(reason.about(f"{service}: {metric.name} cannot be compared"))
            continue
        number = numbers[metric.name]
        parts = _parts(tolerance, base, head, design)
        if all(part.low > 0 for part in parts):
            judged.regressions.append(
                Worse(service, metric.name, number.head, number.base, tolerance, source, (), number)
            )
        elif not any(part.high <= 0 for part in parts):
            made = min(len(base), len(head))
            judged.undecided.append(Undecided(tolerance, number, _enough(parts, made)))
    return judged


def _incomparable(
    metric: Metric, base: Sequence[Sample], head: Sequence[Sample], limits: Mapping[str, int | float] | None
) -> tuple[bool, Reason] | None:
    """Why the metric can't be compared, and whether the base is the cause; None if it can be."""
    minimum = (limits or {}).get("min_wakeups", MIN_WAKEUPS)
    for at_base, samples in ((True, base), (False, head)):
        if values_of(metric, samples) is None:
            known = (sample.absent[metric.name] for sample in samples if metric.name in sample.absent)
            return at_base, next(known, metric.absent)
        if metric.needs_wakeups:
            few = next(filter(None, (too_few(sample, minimum) for sample in samples)), None)
            if few is not None:
                return at_base, Reason(few, fix="send more traffic")
    return None


def _parts(
    tolerance: Tolerance, base: Sequence[Sample], head: Sequence[Sample], design: Design
) -> list[Interval]:
    """The excess over each part of the tolerance; a regression exceeds all of them."""
    metric = METRICS[tolerance.metric]
    then, now = values_of(metric, base), values_of(metric, head)
    assert then is not None
    assert now is not None
    parts = []
    if tolerance.relative is not None:
        parts.append(
            _ratio(then, now, tolerance.relative, design)
            if min(*then, *now) > 0
            else _excess(then, now, tolerance.relative, 0.0, design)
        )
    if tolerance.absolute is not None or not parts:
        parts.append(_excess(then, now, 0.0, tolerance.absolute or 0.0, design))
    return parts


def _ratio(then: Sequence[float], now: Sequence[float], tolerated: float, design: Design) -> Interval:
    """Compares logarithms, so that doubling and halving count the same; returns fractions."""
    low, middle, high = design.interval(then, now, lambda old, new: math.log(new) - math.log(old))
    if math.isinf(high):
        return Interval(low, _fraction(middle) - tolerated, high)
    return Interval(*(_fraction(edge) - tolerated for edge in (low, middle, high)))


def _fraction(logarithm: float) -> float:
    return math.expm1(min(logarithm, _LARGEST))


def _excess(
    then: Sequence[float], now: Sequence[float], relative: float, absolute: float, design: Design
) -> Interval:
    return design.interval(then, now, lambda old, new: new - old * (1 + relative) - absolute)


def _enough(parts: Sequence[Interval], made: int) -> int | None:
    """How many rounds might decide it: the interval shrinks with the square root of the rounds."""
    needed = []
    for part in parts:
        if part.low <= 0 < part.high:
            distance = abs(part.middle)
            half = max(part.high - part.middle, part.middle - part.low)
            needed.append(made * (half / distance) ** 2 if distance else math.inf)
    most = max(needed, default=math.inf)
    return 2 * math.ceil(most * 1.1 / 2) if most <= _PATIENCE * made else None
