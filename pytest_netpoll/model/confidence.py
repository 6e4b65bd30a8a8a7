"""How certain a change is: its interval of 95 % confidence, over rounds of two measurements.

A round measures both sides one right after the other, in the order A B, then B A. What slows the machine for
a while slows both, so what counts is each round's own difference (of times and counts their ratio), not the
averages of the sides. The change is the median of the rounds' differences, and its interval lies between two
of them: each lies on either side of the truth like a coin tossed, whatever the noise is like. benchstat's
intervals are made so, too. They need the binomial distribution and no library; and a neighbour that makes
some rounds twice as slow moves them little, where a t-interval grows with each such round. Wilcoxon's
signed-rank test needs fewer rounds on an idle machine, and more on a shared one. A bootstrap's interval is
too narrow for 8 rounds.

Who looks again after more rounds has more chances to be wrong: the 5 % are divided by the number of looks.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

CONFIDENCE = 0.95
# Fewer rounds have no interval of 95 %: of 5 all lie on one side of the truth every 16th time.
FEWEST = 6
_GROWTH = 1.75  # of the rounds, from one look to the next


class Interval(NamedTuple):
    """Where a change lies. low, high: infinite where there were too few rounds. middle: the estimate."""

    low: float
    middle: float
    high: float

    @property
    def known(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)


def looks(least: int, most: int) -> tuple[int, ...]:
    """After how many rounds to look, at the latest after `most`.

    Even numbers, where they can be: A B B A cancels what changes steadily. There is no look at fewer rounds
    than it takes to see anything.
    """
    found = [most]
    while True:
        earlier = max(least, 2 * math.ceil(found[0] / _GROWTH / 2))
        if earlier >= found[0] or _outside(earlier, len(found) + 1) is None:
            return tuple(found)
        found.insert(0, earlier)


def interval(differences: Sequence[float], of_looks: int = 1) -> Interval:
    """Of the differences of the rounds. of_looks: how many times one is asked for, at most."""
    ordered, middle = sorted(differences), statistics.median(differences)
    outside = _outside(len(ordered), of_looks)
    if outside is None:
        return Interval(-math.inf, middle, math.inf)
    return Interval(ordered[outside], middle, ordered[-1 - outside])


@functools.cache
def _outside(rounds: int, of_looks: int) -> int | None:
    """How many of the rounds lie beyond each end of the interval; None where there are too few of them."""
    error = (1 - CONFIDENCE) / of_looks / 2
    below, outside = 0.0, None
    for count in range(rounds):
        below += math.comb(rounds, count) / 2**rounds
        if below > error:
            break
        outside = count
    return outside
