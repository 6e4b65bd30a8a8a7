"""How sure a change is: the interval that it lies in with 95 % confidence, over rounds of two measurements.

A round measures both sides one right after the other, in the order A B, then B A. What slows the machine for
a while slows both, so what counts is each round's own difference (of times and counts their ratio), not the
averages of the sides. Where nothing has changed, either side of a round is as likely to be the slower one:
the differences lie symmetrically around 0, whatever the noise is like. Wilcoxon's signed-rank test asks for
no more, so its interval is exact for as few as 8 rounds, also if a neighbour makes one in ten twice as slow.
A t-interval grows with each such round, and a bootstrap's is too narrow for so few. The estimate is Hodges
and Lehmann's: the median of the means of all pairs of rounds.

Who looks again after more rounds has more chances to be wrong: the 5 % are divided by the number of looks.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from pytest_netpoll.errors import UsageError

CONFIDENCE = 0.95
# Fewer rounds have no interval of 95 %: one side is the slower in all of 5 every 16th time.
FEWEST = 6
_GROWTH = 1.5  # of the rounds, from one look to the next


class Interval(NamedTuple):
    """Where a change lies. low, high: infinite where there were too few rounds. middle: the estimate."""

    low: float
    middle: float
    high: float

    @property
    def told(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)


def require() -> None:
    """UsageError where the library of the extra "against" is missing."""
    if importlib.util.find_spec("scipy") is None:
        raise UsageError(
            "--netpoll-against cannot compare",
            why="scipy cannot be imported",
            fix="pip install 'pytest-netpoll[against]'",
        )


def looks(least: int, most: int) -> tuple[int, ...]:
    """After how many rounds to look, at the latest after `most`: each time half as many again.

    Even numbers, where they can be: A B B A cancels what changes steadily. Of the looks that there would be
    too few rounds for there are none.
    """
    found = [most]
    while True:
        earlier = max(least, 2 * math.ceil(found[0] / _GROWTH / 2))
        if earlier >= found[0] or _outside(earlier, len(found) + 1) is None:
            return tuple(found)
        found.insert(0, earlier)


def interval(differences: Sequence[float], of_looks: int = 1) -> Interval:
    """Of the differences of the rounds. of_looks: how many times one is asked for, at most."""
    means = sorted(
        (first + second) / 2 for number, first in enumerate(differences) for second in differences[number:]
    )
    middle = statistics.median(means)
    outside = _outside(len(differences), of_looks)
    if outside is None:
        return Interval(-math.inf, middle, math.inf)
    return Interval(means[outside], middle, means[-1 - outside])


@functools.cache
def _outside(rounds: int, of_looks: int) -> int | None:
    """How many of the means of all pairs lie beyond each end of the interval; None for too few rounds."""
    error = (1 - CONFIDENCE) / of_looks / 2
    if 0.5**rounds > error:
        return None
    low, high = 0, rounds * (rounds + 1) // 2
    while high - low > 1:  # the largest sum of ranks that is as unlikely as that
        middle = (low + high) // 2
        low, high = (middle, high) if _probability(rounds, middle) <= error else (low, middle)
    return low


def _probability(rounds: int, rank_sum: int) -> float:
    """That the ranks of the positive differences add up to that or less, where nothing has changed."""
    from scipy import stats  # takes a second

    ranked, left = [], rank_sum
    for rank in range(rounds, 0, -1):
        positive = rank <= left
        left -= rank if positive else 0
        ranked.append(rank if positive else -rank)
    return float(stats.wilcoxon(ranked, alternative="less", method="exact").pvalue)
