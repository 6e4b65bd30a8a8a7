"""Where the numbers do not carry a sentence, none is said."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_netpoll.model.diagnosis import diagnose
from pytest_netpoll.model.evidence import Offender
from pytest_netpoll.model.histogram import bucket_of
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.median import median_of
from pytest_netpoll.model.metrics import COUNTERS
from pytest_netpoll.model.snapshot import Snapshot
from tests.made_up import late, offender, point

MS = 1_000_000


def measurement(
    histogram: dict[int, int] | None = None,
    cpu: float = 0.1,
    waited: float = 0.1,
    offenders: tuple[Offender, ...] = (),
    delayed: float | None = None,
    unmeasured: str | None = None,
    **counts: int,
) -> Measurement:
    """Of a second. histogram: ns -> wakeups. cpu, waited: s. delayed: in the slowest wakeup's interval."""
    counters = {**dict.fromkeys(COUNTERS, 0), **counts}
    latencies = {bucket_of(ns): n for ns, n in (histogram or {}).items()}
    delays = [50 * MS, waited * 1e8 if delayed is None else delayed * 1e9, 50 * MS]
    snapshot = Snapshot(counters, latencies, 0, int(cpu * 1e9), int(waited * 1e9))
    return Measurement(
        "s",
        1,
        "/s",
        "go1.26.6",
        1.0,
        snapshot,
        offenders=offenders,
        slowest=(late(20 * MS, at_ms=150.0),),
        timeline=tuple(point(100.0 * i, run_delay_ns=int(delay)) for i, delay in enumerate(delays, 1)),
        unmeasured=unmeasured,
    )


DUP = {"productive_wakeups": 100, "spurious_wakeups": 90}
TICKERS = {"blocking_polls": 10, "timed_polls": 990, "timeout_polls": 900, "events": 10}


@pytest.mark.parametrize(
    "more",
    [{"lost": 1}, {"unmeasured": "no"}],
)
def test_of_numbers_that_cannot_be_trusted_nothing_is_said(more: Any) -> None:
    assert diagnose(measurement(**DUP))
    assert diagnose(measurement(**DUP, **more)) == []


@pytest.mark.parametrize(
    "counts",
    [
        {"productive_wakeups": 1000, "spurious_wakeups": 40},  # few of many
        {"productive_wakeups": 3, "spurious_wakeups": 4},  # half of next to none
        {"productive_wakeups": 1000, "stale_retries": 40},
        {"productive_wakeups": 3, "stale_retries": 4},
        {**TICKERS, "timeout_polls": 150},  # seldom
        {**TICKERS, "events": 500},  # busy, with a timer now and then
        {**TICKERS, "blocking_polls": 1000},  # most ended by events
    ],
)
def test_what_may_be_chance_is_not_said(counts: dict[str, int]) -> None:
    assert diagnose(measurement(**counts)) == []


def test_acceptors_and_readers_woken_for_nothing_are_different_troubles() -> None:
    both = measurement(**DUP, offenders=(offender(60, syscall="accept4"), offender(30)))
    accepting, reading = diagnose(both)
    assert accepting.startswith("s: 60 of 90 spurious wakeups found no connection to accept")
    assert reading.startswith("s: 30 of 190 wakeups found nothing to read or write")
    [accepting] = diagnose(measurement(**DUP, offenders=(offender(90, syscall="accept4"),)))
    assert "accept" in accepting


def test_a_second_reader_explains_retries_too() -> None:
    [text] = diagnose(measurement(**DUP, stale_retries=60, offenders=(offender(90),)))
    assert "another reader of the same socket" in text


def test_timers_are_counted_with_the_polls_they_ended() -> None:
    [text] = diagnose(measurement(**TICKERS, break_polls=50))
    assert "950 of 1,000 blocking polls ended by a timer, 950 a second, for 10 events" in text
    assert "tickers or deadlines keep the poller busy" in text


def test_deadlines_are_told_from_tickers_where_they_were_counted() -> None:
    [text] = diagnose(measurement(**TICKERS, deadline_wakeups=800))
    assert "with 800 deadlines expired" in text
    assert "ticker" not in text
    [text] = diagnose(measurement(**TICKERS, deadline_wakeups=3))
    assert "tickers or sleeps keep the poller busy" in text


def test_who_has_the_cpu_says_why_wakeups_are_late() -> None:
    late = {20 * MS: 50}
    [own] = diagnose(measurement(late, cpu=0.98, waited=0.02))
    assert "50 of 50 wakeups ran more than 5.0 ms late" in own
    assert "CPU-bound" in own
    assert "machine" not in own
    [machine] = diagnose(measurement(late, cpu=0.02, waited=0.9))
    assert "machine is short of CPU: other" in machine
    assert "CPU-bound" not in machine
    [both] = diagnose(measurement(late, cpu=0.4, waited=0.6))
    assert "CPU-bound" in both
    assert "Besides, the machine is short of CPU" in both


def test_waiting_for_a_cpu_at_another_time_explains_no_late_wakeup() -> None:
    assert diagnose(measurement({20 * MS: 50}, cpu=0.02, waited=0.9, delayed=0.001)) == []


@pytest.mark.parametrize(
    ("late", "cpu", "waited"),
    [
        ({20 * MS: 50}, 0.1, 0.08),  # late for neither of the reasons known
        ({20 * MS: 9, 10_000: 100}, 0.98, 0.02),  # a few
        ({1 * MS: 500}, 0.98, 0.02),  # not late
        ({}, 0.98, 0.02),
    ],
)
def test_lateness_without_its_cause_in_the_numbers_is_not_explained(
    late: dict[int, int], cpu: float, waited: float
) -> None:
    assert diagnose(measurement(late, cpu, waited)) == []


def test_of_several_runs_one_is_diagnosed_with_its_own_numbers() -> None:
    seldom = measurement(**{**TICKERS, "timeout_polls": 150, "blocking_polls": 100, "timed_polls": 150})
    assert diagnose(seldom) == []
    assert diagnose(*median_of([[seldom]] * 4)) == []
    herds = [
        [measurement(productive_wakeups=100, spurious_wakeups=n, offenders=(offender(n, syscall="accept4"),))]
        for n in (20, 90, 60)
    ]
    [accepting] = diagnose(*median_of(herds))
    assert accepting.startswith("s: 60 of 60 spurious wakeups found no connection to accept")
