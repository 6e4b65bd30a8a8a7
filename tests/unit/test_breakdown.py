"""Where the time of answers went, or why that is unknown."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from pytest_netpoll.agent.constants import BUDGET_SHIFT
from pytest_netpoll.meter import unanswered
from pytest_netpoll.model.breakdown import budgets
from pytest_netpoll.model.histogram import bucket_of
from pytest_netpoll.model.metrics import METRICS
from pytest_netpoll.model.snapshot import Delay, Parts, Snapshot

NAMES = ("queue_delay", "poll_delay", "handling", "response")
times = st.integers(0, 10**9)


def of(answers: list[Parts]) -> Snapshot:
    """A service with these answers."""
    response = Delay()
    for parts in answers:
        bucket = bucket_of(parts.total)
        response += Delay({bucket: 1}, parts.total, {bucket >> BUDGET_SHIFT: parts})
    return Snapshot(
        delays={**dict.fromkeys(NAMES, Delay()), "response": response},
        requests=len(answers),
        answered=len(answers),
    )


@given(st.lists(st.builds(Parts, times, times, times, times), min_size=1, max_size=50))
def test_the_parts_add_up_to_the_percentile_and_are_those_of_the_reads_there(answers: list[Parts]) -> None:
    snapshot = of(answers)
    for budget in budgets(snapshot):
        assert METRICS[budget.metric].read(snapshot) == budget.ns
        parts = budget.poll_delay_ns, budget.wake_to_run_ns, budget.unparked_ns, budget.handling_ns
        assert abs(sum(parts) - budget.ns) <= 1e-6 * budget.ns
    total = [p.total for p in answers]
    if len({bucket_of(ns) >> BUDGET_SHIFT for ns in total}) == len(total) and all(total):
        # One read there: its own parts, except for the bucket's width.
        slowest = max(answers, key=lambda parts: parts.total)
        found = budgets(snapshot)[-1]
        assert found.handling_ns <= 1.04 * slowest.handling
        assert found.handling_ns >= 0.96 * slowest.handling


def test_without_responses_the_queue_delays_are_split() -> None:
    bucket = bucket_of(300)
    delay = Delay({bucket: 1}, 300, {bucket >> BUDGET_SHIFT: Parts(100, 200)})
    snapshot = Snapshot(delays={**dict.fromkeys(NAMES, Delay()), "queue_delay": delay}, requests=9)
    assert [budget.metric for budget in budgets(snapshot)] == ["queue_delay_p50", "queue_delay_p99"]
    assert budgets(Snapshot()) == []


def test_with_fewer_than_half_of_the_reads_answered_there_is_no_response() -> None:
    half = of([Parts(1000)] * 5)
    assert METRICS["response_p50"].read(half) is not None
    assert not unanswered.reasons(half, None)
    fewer = dataclasses.replace(half, requests=11)
    assert METRICS["response_p50"].read(fewer) is METRICS["response_max"].read(fewer) is None
    reasons = unanswered.reasons(fewer, None)
    assert reasons["response_p99"].what == "5 of 11 reads were answered by a write of the same goroutine"
    assert "handling_p99" not in reasons
    strange = dataclasses.replace(fewer, answered=0, strangers=11)
    assert "could not be recognized" in unanswered.reasons(strange, None)["handling_p50"]


def test_missing_arrival_times_are_the_reason_for_all_of_them() -> None:
    reasons = unanswered.reasons(Snapshot(), "this kernel has no BTF")
    assert len(reasons) == 4 * 5
    assert reasons["queue_delay_p50"].why == "this kernel has no BTF"
