"""Do spurious wakeups cost throughput? How the two correlate, interval by interval."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_netpoll.model.evidence import TimelinePoint

# With fewer intervals a coefficient is just chance.
LEAST_INTERVALS = 20


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """Between spurious wakeups a second and `other` a second ("answers", else "productive_wakeups").
    coefficient: Pearson's, -1 to 1; None below LEAST_INTERVALS, or if one of the two never changed.
    """

    other: str
    coefficient: float | None
    intervals: int


def wasted_and_answered(points: Sequence[TimelinePoint]) -> Correlation:
    """The correlation over the window's intervals, without the last one if it is much shorter."""
    known = any(point.answers for point in points)
    wasted: list[float] = []
    answers: list[float] = []
    begin, usual = 0.0, points[0].t_ms if points else 0.0
    for point in points:
        milliseconds = point.t_ms - begin
        begin = point.t_ms
        if milliseconds >= usual / 2:
            wasted.append(point.spurious / milliseconds)
            answers.append((point.answers if known else point.productive) / milliseconds)
    coefficient = None
    if len(wasted) >= LEAST_INTERVALS and len(set(wasted)) > 1 and len(set(answers)) > 1:
        # Rounding may make it a little more than 1.
        coefficient = max(-1.0, min(1.0, statistics.correlation(wasted, answers)))
    return Correlation(
        other="answers" if known else "productive_wakeups", coefficient=coefficient, intervals=len(wasted)
    )
