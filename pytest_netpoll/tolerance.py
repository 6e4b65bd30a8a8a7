"""By how much a metric may get worse than its baseline: "latency_p99:+25%", "spurious:+0.02"."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_netpoll import units
from pytest_netpoll.metrics import METRICS, Metric

_EXAMPLE = 'write METRIC:+AMOUNT, such as "spurious:+0.02" or "latency_p99:+25%"'


@dataclass(frozen=True)
class Tolerance:
    """amount: a fraction of the baseline where `relative`, else in the metric's canonical unit."""

    metric: str
    amount: float
    relative: bool
    text: str

    def __str__(self) -> str:
        return f"{self.metric}:{self.text}"

    def limit(self, baseline: int | float) -> float:
        """The worst value that is still tolerated."""
        return baseline * (1 + self.amount) if self.relative else baseline + self.amount


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
        raise ValueError(f"{name} cannot get worse: more of it is neither good nor bad")
    if amount.startswith("-"):
        raise ValueError(f"{text!r}: improvements never fail, write {name}:+{amount[1:]}")
    try:
        value, relative = _amount(amount.removeprefix("+").strip(), metric)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None
    return Tolerance(name, value, relative, f"+{amount.removeprefix('+').strip()}")


def parse_list(text: str) -> tuple[Tolerance, ...]:
    """Of "spurious:+0.02,latency_p99:+25%"."""
    return tuple(map(parse, text.split(",")))


def join(lists: Sequence[Sequence[Tolerance]]) -> tuple[Tolerance, ...]:
    """One list of several; ValueError where they name a metric twice."""
    joined = [tolerance for tolerances in lists for tolerance in tolerances]
    names = [tolerance.metric for tolerance in joined]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name} is given twice")
    return tuple(joined)


def _amount(text: str, metric: Metric) -> tuple[float, bool]:
    if not text.endswith("%"):
        return units.parse(text, metric.unit), False
    if metric.unit == "share":
        # Of a share, "2 %" could be two points or a fiftieth.
        percent = units.parse(text, "share")
        raise ValueError(f"{metric.name} is a share already: write +{percent:g} for {text} of all wakeups")
    return units.parse(text.removesuffix("%").strip(), "ratio") / 100, True
