"""The 95 % confidence interval of a change, over several measurements.

In turns, a round measures both sides one right after the other, in the order A B, then B A. A slow phase of
the machine slows both, so each round's own difference counts (for times and counts their ratio), not the
sides' averages. The change is the median of the rounds' differences, and its interval lies between two of
them: each difference falls on either side of the truth like a coin toss, whatever the noise is. benchstat
computes its intervals like this, too. They need only the binomial distribution and no library; a neighbour
that makes some rounds twice as slow hardly moves them, while a t-interval grows with each such round.
Wilcoxon's signed-rank test needs fewer rounds on an idle machine, and more on a shared one. A bootstrap
interval is too narrow for 8 rounds.

A saved baseline's rounds don't form pairs with today's. So each old measurement is compared with each new
one: the change is the median of all these differences (Hodges and Lehmann's estimate), and its interval lies
between two of them, by Mann and Whitney's test, which benchstat uses, too.

Looking again after more rounds gives more chances to be wrong, so the 5 % are divided by the number of looks.
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

CONFIDENCE = 0.95
# Fewer rounds in turns have no 95 % interval: 5 rounds all lie on one side of the truth every 16th time.
FEWEST = 6
_GROWTH = 1.75  # the growth of the rounds from one look to the next
# Least measurements of each side, if measured at different times: one or two may all have met the same
# neighbour.
_FEWEST_APART = 3
# With more measurements on both sides, Mann and Whitney's distribution is the normal one.
_EXACT = 20


class Interval(NamedTuple):
    """Where a change lies. low, high: infinite if there were too few rounds. middle: the estimate."""

    low: float
    middle: float
    high: float

    @property
    def known(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)


class Design(NamedTuple):
    """How two sides were measured. in_turns: in pairs; else at different times, as with a baseline. of_looks:
    how many times intervals are computed, at most.
    """

    in_turns: bool
    of_looks: int = 1

    def interval(
        self, then: Sequence[float], now: Sequence[float], change: Callable[[float, float], float]
    ) -> Interval:
        """The interval of the change. change: (measurement then, measurement now) -> their difference."""
        if self.in_turns:
            return interval(list(map(change, then, now)), self.of_looks)
        ordered = sorted(itertools.starmap(change, itertools.product(then, now)))
        return _between(ordered, _outside_apart(len(then), len(now), self.of_looks))

    def has_interval(self, then: int, now: int) -> bool:
        """Whether that many measurements of each side are enough for an interval."""
        found = _outside(then, self.of_looks) if self.in_turns else _outside_apart(then, now, self.of_looks)
        return found is not None


def looks(least: int, most: int, then: int | None = None) -> tuple[int, ...]:
    """After how many rounds to look, at the latest after `most`. then: the rounds of a saved baseline; None
    if both sides are measured in turns.

    Even numbers if possible: A B B A cancels a steady drift. No look comes before there are enough rounds for
    an interval. If the baseline has too few for one, more rounds don't help: the one look is after `least`.
    """
    found = [most]

    def known(now: int, of_looks: int) -> bool:
        return Design(then is None, of_looks).has_interval(now if then is None else then, now)

    if then is not None and not known(most, 1):
        return (least,)
    while True:
        earlier = max(least, 2 * math.ceil(found[0] / _GROWTH / 2))
        if earlier >= found[0] or not known(earlier, len(found) + 1):
            return tuple(found)
        found.insert(0, earlier)


def fewest_now(then: int) -> int | None:
    """How many measurements it takes for an interval with that many of a saved baseline; None if no number is
    enough.
    """
    design = Design(in_turns=False)
    return next((now for now in range(_FEWEST_APART, _EXACT) if design.has_interval(then, now)), None)


def fewest_on_both_sides() -> int:
    """The least number of measurements that is enough for an interval if each side has as many."""
    design = Design(in_turns=False)
    return next(count for count in itertools.count(_FEWEST_APART) if design.has_interval(count, count))


def interval(differences: Sequence[float], of_looks: int = 1) -> Interval:
    """The interval of the rounds' differences. of_looks: how many times one is computed, at most."""
    return _between(sorted(differences), _outside(len(differences), of_looks))


def _between(ordered: Sequence[float], outside: int | None) -> Interval:
    middle = statistics.median(ordered)
    if outside is None:
        return Interval(-math.inf, middle, math.inf)
    return Interval(ordered[outside], middle, ordered[-1 - outside])


@functools.cache
def _outside(rounds: int, of_looks: int) -> int | None:
    """How many of the rounds lie beyond each end of the interval; None if there are too few rounds."""
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
    """How many of the differences of all pairs lie beyond each end of the interval."""
    if min(then, now) < _FEWEST_APART:
        return None
    error = (1 - CONFIDENCE) / of_looks / 2
    if min(then, now) > _EXACT:
        spread = math.sqrt(then * now * (then + now + 1) / 12)
        return math.floor(then * now / 2 + statistics.NormalDist().inv_cdf(error) * spread - 0.5)
    # ways[u]: the number of orders of the measurements with u pairs in which the earlier one is larger.
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
