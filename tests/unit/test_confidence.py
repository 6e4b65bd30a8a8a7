"""The intervals of changes, compared with published tables and with noise of known truth."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from pytest_netpoll.model import confidence
from pytest_netpoll.model.confidence import Design, Interval, interval, looks


@pytest.mark.parametrize(
    ("rounds", "rank"),
    # Published ranks of the 95 % interval of a median, from either end.
    [
        (6, 1),
        (8, 1),
        (9, 2),
        (11, 2),
        (12, 3),
        (15, 4),
        (17, 5),
        (20, 6),
        (23, 7),
        (25, 8),
        (30, 10),
        (40, 14),
    ],
)
def test_the_interval_matches_published_tables(rounds: int, rank: int) -> None:
    noise = random.Random(rounds)
    differences = [noise.gauss(0, 1) for _ in range(rounds)]
    ordered = sorted(differences)
    assert interval(differences) == (ordered[rank - 1], statistics.median(differences), ordered[-rank])


def test_too_few_rounds_have_no_interval() -> None:
    found = interval([0.5] * (confidence.FEWEST - 1))
    assert (found.low, found.middle, found.high) == (-math.inf, 0.5, math.inf)
    assert not found.known
    assert interval([0.5] * confidence.FEWEST).known


def test_equal_rounds_have_an_interval_of_one_number() -> None:
    assert interval([0.5] * 8, of_looks=4) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("least", "most", "expected"),
    [
        (8, 40, (8, 14, 24, 40)),
        (6, 6, (6,)),
        (8, 8, (8,)),
        (6, 8, (8,)),
        (10, 20, (10, 12, 20)),
        (3, 6, (6,)),
    ],
)
def test_each_look_can_decide_and_the_last_one_is_after_the_most_rounds(
    least: int, most: int, expected: tuple[int, ...]
) -> None:
    assert looks(least, most) == expected
    for rounds in expected:
        assert interval([1.0] * rounds, len(expected)).known


@pytest.mark.parametrize("then", [3, 4, 8])
@pytest.mark.parametrize(("least", "most"), [(3, 6), (8, 40), (8, 100), (4, 300)])
def test_with_a_baseline_of_few_rounds_each_look_can_tell_something(then: int, least: int, most: int) -> None:
    found = looks(least, most, then)
    assert found[-1] == most
    assert all(Design(False, len(found)).has_interval(then, now) for now in found)


@pytest.mark.parametrize("then", [0, 1, 2])
def test_with_a_baseline_of_too_few_rounds_no_more_are_made(then: int) -> None:
    assert looks(8, 40, then) == (8,)


def test_looking_again_makes_each_interval_wider() -> None:
    noise = random.Random(1)
    differences = [noise.gauss(0, 1) for _ in range(12)]
    once, four = interval(differences), interval(differences, of_looks=4)
    assert four.low < once.low < once.high < four.high


@pytest.mark.parametrize("spikes", [0.0, 0.2])
def test_the_truth_is_outside_the_interval_in_at_most_5_of_100_runs(spikes: float) -> None:
    noise = random.Random(f"{spikes}")

    def difference() -> float:
        hit = noise.choice((-1, 1)) * noise.uniform(0.7, 1.6) if noise.random() < spikes else 0
        return noise.gauss(0.1, 0.1) + hit

    missed = 0
    for _ in range(1000):
        found = interval([difference() for _ in range(10)])
        missed += not found.low <= 0.1 <= found.high
    assert 0 < missed <= 60  # 50, and what chance adds once in 15 times


def apart(then: list[float], now: list[float], of_looks: int = 1) -> Interval:
    return Design(in_turns=False, of_looks=of_looks).interval(then, now, lambda old, new: new - old)


@pytest.mark.parametrize(
    ("then", "now", "outside"),
    # Published critical values of Mann and Whitney's U, two-sided at 5 %; the last two are beyond the tables.
    [(4, 4, 0), (3, 5, 0), (5, 5, 2), (8, 8, 13), (6, 10, 11), (20, 20, 127), (21, 21, 142), (40, 40, 596)],
)
def test_between_two_times_the_interval_matches_mann_and_whitney(then: int, now: int, outside: int) -> None:
    noise = random.Random(then)
    sides = [[noise.gauss(0, 1) for _ in range(count)] for count in (then, now)]
    ordered = sorted(new - old for old in sides[0] for new in sides[1])
    found = apart(*sides)
    assert found.middle == statistics.median(ordered)
    low = ordered.index(found.low)
    assert abs(low - outside) <= (1 if min(then, now) > 20 else 0)
    assert found.high == ordered[-1 - low]


@pytest.mark.parametrize(("then", "now"), [(1, 1), (3, 3), (3, 4), (1, 40), (2, 40)])
def test_few_measurements_at_two_times_have_no_interval(then: int, now: int) -> None:
    assert not apart([0.0] * then, [1.0] * now).known
    assert not Design(in_turns=False).has_interval(then, now)


@pytest.mark.parametrize(("then", "now"), [(5, 5), (8, 8), (4, 12)])
def test_the_truth_between_two_times_is_outside_in_at_most_5_of_100(then: int, now: int) -> None:
    noise = random.Random(f"{then} {now}")
    missed = 0
    for _ in range(1000):
        found = apart(
            [noise.lognormvariate(0, 0.3) for _ in range(then)],
            [noise.lognormvariate(0, 0.3) + 0.5 for _ in range(now)],
        )
        missed += not found.low <= 0.5 <= found.high
    assert missed <= 60
