"""How sure a change is: the interval that it lies in with 95 % confidence, over several measurements.

In turns, a round measures both sides one right after the other, in the order A B, then B A. What slows the
machine for a while slows both, so what counts is each round's own difference (of times and counts their
ratio), not the averages of the sides. The change is the median of the rounds' differences, and its interval
lies between two of them: each lies on either side of the truth like a coin tossed, whatever the noise is
like. benchstat's intervals are made so, too. They need the binomial distribution and no library; and a
neighbour that makes some rounds twice as slow moves them little, where a t-interval grows with each such
round. Wilcoxon's signed-rank test needs fewer rounds on an idle machine, and more on a shared one. A
bootstrap's interval is too narrow for 8 rounds.

Of a saved baseline no round belongs to one of today's. There each measurement then is compared with each now:
the change is the median of all these differences (Hodges and Lehmann's), and its interval lies between two of
them, as Mann and Whitney's test tells, which is benchstat's, too.

Who looks again after more rounds has more chances to be wrong: the 5 % are divided by the number of looks.
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

CONFIDENCE = 0.95
# Fewer rounds in turns have no interval of 95 %: of 5 all lie on one side of the truth every 16th time.
FEWEST = 6
_GROWTH = 1.75  # of the rounds, from one look to the next
# Measured at two times, each side has so many at least: one or two may all have met the same neighbour.
_FEWEST_APART = 3
# With more measurements on both sides, Mann and Whitney's distribution is the normal one.
_EXACT = 20


class Interval(NamedTuple):
    """Where a change lies. low, high: infinite where there were too few rounds. middle: the estimate."""

    low: float
    middle: float
    high: float

    @property
    def known(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)


class Design(NamedTuple):
    """How two sides were measured. in_turns: number by number; else each at its time, as a baseline is.

    of_looks: how many times an interval is asked for, at most.
    """

    in_turns: bool
    of_looks: int = 1

    def interval(
        self, then: Sequence[float], now: Sequence[float], change: Callable[[float, float], float]
    ) -> Interval:
        """Of the change that `change` gives for one measurement of each side."""
        if self.in_turns:
            return interval(list(map(change, then, now)), self.of_looks)
        ordered = sorted(itertools.starmap(change, itertools.product(then, now)))
        return _between(ordered, _outside_apart(len(then), len(now), self.of_looks))

    def has_interval(self, then: int, now: int) -> bool:
        """Whether so many measurements of each side are enough for one."""
        found = _outside(then, self.of_looks) if self.in_turns else _outside_apart(then, now, self.of_looks)
        return found is not None


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
    return _between(sorted(differences), _outside(len(differences), of_looks))


def _between(ordered: Sequence[float], outside: int | None) -> Interval:
    middle = statistics.median(ordered)
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


@functools.cache
def _outside_apart(then: int, now: int, of_looks: int) -> int | None:
    """How many of the differences of each with each do."""
    if min(then, now) < _FEWEST_APART:
        return None
    error = (1 - CONFIDENCE) / of_looks / 2
    if min(then, now) > _EXACT:
        spread = math.sqrt(then * now * (then + now + 1) / 12)
        return math.floor(then * now / 2 + statistics.NormalDist().inv_cdf(error) * spread - 0.5)
    # ways[u]: how many orders of all the measurements have u pairs in which the earlier one is larger.
    ways = [1] + [0] * (then * now)
    for step in range(1, min(then, now) + 1):
        factor = max(then, now) + step
        for u in range(len(ways) - 1, factor - 1, -1):
            ways[u] -= ways[u - factor]
        for u in range(step, len(ways)):
            ways[u] += ways[u - step]
    total, below, outside = math.comb(then + now, now), 0, None
    for u, count in enumerate(ways):
        below += count
        if below > error * total:
            break
        outside = u
    return outside
