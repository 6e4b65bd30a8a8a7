"""By how much a metric may get worse than its baseline: "latency_p99:+25%+1ms", "spurious:+0.02"."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_netpoll.model import units
from pytest_netpoll.model.metrics import METRICS, Metric

_EXAMPLE = 'write METRIC:+AMOUNT, such as "spurious:+0.02" or "latency_p99:+25%+1ms"'


@dataclass(frozen=True)
class Tolerance:
    """relative: a fraction of the baseline. absolute: in the metric's canonical unit.

    If both are given, only a change that exceeds both is a regression: 25 % of 20 µs is noise, and so is 1 ms
    of 1 s. text: both as the user wrote them, "+25%+1ms".
    """

    metric: str
    text: str
    relative: float | None = None
    absolute: float | None = None

    def __str__(self) -> str:
        return f"{self.metric}:{self.text}"

    def limit(self, baseline: int | float) -> float:
        """The worst value that is still tolerated."""
        limits = []
        if self.relative is not None:
            limits.append(baseline * (1 + self.relative))
        if self.absolute is not None:
            limits.append(baseline + self.absolute)
        return max(limits, default=baseline)


def parse(text: str) -> Tolerance:
    """ValueError says what is wrong and what to write."""
    name, colon, amount = (part.strip() for part in text.partition(":"))
    if not (name and colon and amount):
        raise ValueError(f"{text!r} is not a tolerance: {_EXAMPLE}")
    if name not in METRICS:
        close = difflib.get_close_matches(name, METRICS, n=1)
        raise ValueError(f"unknown metric {name!r}" + (f", did you mean {close[0]!r}?" if close else ""))
    metric = METRICS[name]
    if not metric.more_is_worse:
        raise ValueError(f"{name} cannot regress: more of it is neither good nor bad")
    if amount.startswith("-"):
        raise ValueError(f"{text!r}: improvements never fail, write {name}:+{amount[1:]}")
    parts = [part.strip() for part in amount.removeprefix("+").split("+")]
    if not all(parts):
        raise ValueError(f"{text!r} is not a tolerance: {_EXAMPLE}")
    try:
        # A percentage and an amount, in either order.
        percentages = [_fraction(part, metric) for part in parts if part.endswith("%")]
        amounts = [_amount(part, metric) for part in parts if not part.endswith("%")]
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None
    if len(percentages) > 1 or len(amounts) > 1:
        raise ValueError(f"{text!r} has more than a percentage and an amount: {_EXAMPLE}")
    return Tolerance(
        name,
        "".join(f"+{part}" for part in parts),
        relative=next(iter(percentages), None),
        absolute=next(iter(amounts), None),
    )


def parse_list(text: str) -> tuple[Tolerance, ...]:
    """Parses "spurious:+0.02,latency_p99:+25%"."""
    return tuple(map(parse, text.split(",")))


def join(lists: Sequence[Sequence[Tolerance]]) -> tuple[Tolerance, ...]:
    """Joins several lists; ValueError if they name a metric twice."""
    joined = [tolerance for tolerances in lists for tolerance in tolerances]
    names = [tolerance.metric for tolerance in joined]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"{name} is given twice; if both amounts must be exceeded, write them as one: {name}:+25%+…"
            )
    return tuple(joined)


def _fraction(text: str, metric: Metric) -> float:
    if metric.unit == "share":
        # For a share, "2 %" could mean two points or a fiftieth.
        percent = units.parse(text, "share")
        raise ValueError(f"{metric.name} is a share already: write +{percent:g} for {text} of all wakeups")
    return units.parse(text.removesuffix("%").strip(), "ratio") / 100


def _amount(text: str, metric: Metric) -> float:
    try:
        return units.parse(text, metric.unit)
    except ValueError as error:
        number = units.number_in(text)
        if metric.unit == "share" and number is not None and 1 <= number < 100:
            raise ValueError(f"write +{number / 100:g} for {number:g} % of all wakeups") from None
        if metric.unit in ("ns", "count") and number is not None and 0 < number < 1:
            raise ValueError(f"{error}, or +{number * 100:g}% if it is of the baseline") from None
        raise
