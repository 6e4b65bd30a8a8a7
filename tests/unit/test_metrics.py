from __future__ import annotations

import copy
import itertools
import json
import pickle
from typing import Any, cast, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_netpoll.meter.snapshots import read_snapshot
from pytest_netpoll.model.histogram import BUCKETS, bucket_bounds, bucket_of, percentile
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.metrics import (
    COUNTERS,
    METRICS,
    OPTIONAL_COUNTERS,
    Report,
    in_report,
    markdown_table,
)
from pytest_netpoll.model.snapshot import Snapshot

LATENCIES = st.integers(0, 2**40 - 1)


def counters(**given: int) -> dict[str, int]:
    return {**dict.fromkeys(COUNTERS, 0), **given}


def measurement(snapshot: Snapshot) -> Measurement:
    return Measurement("server", 42, "/srv/server", "go1.26.6", 1.0, snapshot)


def recorded(*latencies: int) -> Snapshot:
    histogram: dict[int, int] = {}
    for latency in latencies:
        histogram[bucket_of(latency)] = histogram.get(bucket_of(latency), 0) + 1
    return Snapshot(counters(), histogram, max(latencies, default=0))


def message(**changes: Any) -> dict[str, Any]:
    full: dict[str, Any] = {
        "counters": counters(wakeups=3),
        "histogram": {"16": 3},
        "latency_max_ns": 16,
        "runq_max": None,
        "io_outcomes": {"data": 3, "EAGAIN": 2},
        "futile": [],
        "events_per_poll": {},
        "sched_latency": None,
    }
    return {**full, **changes}


def test_table_has_every_metric_of_the_contract_in_its_order() -> None:
    contract = """
        wakeups productive_wakeups spurious_wakeups abandoned_wakeups pending_wakeups spurious
        stale_retries events unclaimed_events duplicate_events parking_events
        polls blocking_polls timed_polls nonblocking_polls
        empty_polls timeout_polls break_polls interrupted_polls polls_per_event
        events_per_poll_p50 events_per_poll_p99 events_per_poll_max
        io_calls futile_calls io_calls_per_wakeup
        latency_p50 latency_p90 latency_p99 latency_p999 latency_max
        queue_delay_p50 queue_delay_p90 queue_delay_p99 queue_delay_p999 queue_delay_max
        poll_delay_p50 poll_delay_p90 poll_delay_p99 poll_delay_p999 poll_delay_max
        handling_p50 handling_p90 handling_p99 handling_p999 handling_max
        response_p50 response_p90 response_p99 response_p999 response_max
        ready_calls deadline_wakeups runtime_ready_calls wakeups_per_event
        dispatches dispatches_per_event runq_max p_utilization
        sched_latency_p50 sched_latency_p90 sched_latency_p99 sched_latency_p999 sched_latency_max
        mutex_wait_seconds runtime_lock_wait_seconds
        cpu_seconds run_delay_seconds throttled_seconds throttled_periods
        parked_goroutines parked_growth abandoned_descriptors stuck_goroutines lost
    """
    assert list(METRICS) == contract.split()


def test_markdown_table_has_a_row_for_every_metric() -> None:
    rows = markdown_table().splitlines()
    assert len(rows) == 2 + len(METRICS)
    assert "| `spurious` | ratio 0–1 | spurious / (spurious + productive) |" in rows  # noqa: RUF001


@pytest.mark.parametrize("report", get_args(Report))
def test_a_report_has_the_metrics_that_the_table_assigns_to_it(report: Report) -> None:
    assert {metric.name for metric in in_report(report)} == {
        name for name, metric in METRICS.items() if report in metric.reports
    }


def test_a_metric_is_shown_beside_rows_that_there_are() -> None:
    beside = {name for metric in METRICS.values() for name in metric.beside}
    assert {"latency", "polls", "I/O calls", "CPU"} < beside <= {metric.row for metric in METRICS.values()}


def test_no_two_metrics_claim_the_same_place() -> None:
    rows = [(metric.row, metric.part) for metric in METRICS.values() if metric.row]
    assert len(set(rows)) == len(rows), "two of one name, or two that lead a row"
    for reports in (("summary", "baseline", "toolchains", "runs"), ("lines",)):
        columns = {metric for report in reports for metric in in_report(cast("Report", report))}
        assert len({metric.column for metric in columns}) == len(columns)


@pytest.mark.parametrize(
    ("ns", "index"),
    [(0, 0), (15, 15), (16, 16), (31, 31), (32, 32), (33, 32), (34, 33), (2**40 - 1, 591), (2**50, 591)],
)
def test_bucket_indices_match_the_kernel_side(ns: int, index: int) -> None:
    assert bucket_of(ns) == index
    assert BUCKETS == 592


@given(st.integers(16, 2**40 - 1))
def test_bucket_formula_is_the_one_the_kernel_side_uses(ns: int) -> None:
    exponent = ns.bit_length() - 1
    assert bucket_of(ns) == (exponent - 3) * 16 + ((ns >> (exponent - 4)) & 15)


def test_buckets_have_no_gaps_and_do_not_overlap() -> None:
    bounds = [bucket_bounds(index) for index in range(BUCKETS)]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == 2**40
    assert all(high == low for (_, high), (low, _) in itertools.pairwise(bounds))


@pytest.mark.parametrize("index", [-1, BUCKETS])
def test_an_index_outside_the_histogram_has_no_bounds(index: int) -> None:
    with pytest.raises(ValueError, match=r"not in 0\.\.591"):
        bucket_bounds(index)


@given(LATENCIES)
def test_every_latency_lies_in_its_bucket(ns: int) -> None:
    low, high = bucket_bounds(bucket_of(ns))
    assert low <= ns < high


@given(LATENCIES)
def test_histogram_is_at_most_7_percent_off(ns: int) -> None:
    value = percentile({bucket_of(ns): 1}, 0.5)
    assert value is not None
    assert abs(value - ns) <= 0.07 * ns


@given(st.lists(LATENCIES, min_size=1), st.sampled_from([0.5, 0.9, 0.99, 0.999, 1.0]))
def test_percentile_is_the_nearest_rank_of_the_samples(samples: list[int], q: float) -> None:
    per_mille = round(q * 1000)
    exact = sorted(samples)[-(-per_mille * len(samples) // 1000) - 1]
    value = percentile(recorded(*samples).histogram, q)
    assert value is not None
    assert abs(value - exact) <= 0.07 * exact


def test_percentile_does_not_slip_a_rank_by_float_rounding() -> None:
    assert percentile(dict.fromkeys(range(1, 32), 1) | {32: 69}, 0.07) == 7


def test_percentile_of_nothing_is_none() -> None:
    assert percentile({}, 0.5) is None
    assert percentile({3: 0}, 0.5) is None


@pytest.mark.parametrize("q", [0, -0.1, 1.1, 99])
def test_percentile_rejects_what_is_not_a_quantile(q: float) -> None:
    with pytest.raises(ValueError, match="quantile"):
        percentile({1: 1}, q)


@given(st.lists(LATENCIES, min_size=1))
def test_latency_percentiles_rise_and_never_exceed_the_maximum(samples: list[int]) -> None:
    m = measurement(recorded(*samples))
    latencies = [m.latency_p50, m.latency_p90, m.latency_p99, m.latency_p999, m.latency_max]
    assert None not in latencies
    assert latencies == sorted(latencies, key=lambda value: value or 0)
    assert m.latency_max == max(samples)


def test_maximum_is_never_below_what_the_histogram_proves() -> None:
    snapshot = Snapshot(counters(), {bucket_of(1_000_000): 1}, latency_max_ns=5)
    assert measurement(snapshot).latency_max == bucket_bounds(bucket_of(1_000_000))[0]


def test_pending_wakeups_complete_the_sum() -> None:
    snapshot = Snapshot(counters(wakeups=10, productive_wakeups=5, spurious_wakeups=3, abandoned_wakeups=1))
    m = measurement(snapshot)
    assert m.pending_wakeups == 1
    assert m.spurious == pytest.approx(3 / 8)


def test_ratios_without_a_denominator_are_not_measured() -> None:
    m = measurement(Snapshot(counters(polls=7, ready_calls=2)))
    assert (m.spurious, m.polls_per_event, m.wakeups_per_event, m.latency_p50, m.latency_max) == (None,) * 5


def test_wakeups_per_event_needs_ready_calls() -> None:
    assert measurement(Snapshot(counters(wakeups=4, events=4))).wakeups_per_event is None
    assert measurement(Snapshot(counters(wakeups=4, events=4, ready_calls=2))).wakeups_per_event == 1.5


def test_io_calls_per_wakeup_needs_a_wakeup() -> None:
    assert measurement(Snapshot(counters(io_calls=4))).io_calls_per_wakeup is None
    assert measurement(Snapshot(counters(io_calls=6, wakeups=4))).io_calls_per_wakeup == 1.5


def test_times_from_proc_are_seconds() -> None:
    m = measurement(Snapshot(counters(), cpu_ns=340_000_000, run_delay_ns=None))
    assert m.cpu_seconds == pytest.approx(0.34)
    assert m.run_delay_seconds is None


def test_measurements_have_every_metric_and_survive_json() -> None:
    metrics = measurement(recorded(5, 100, 3000)).metrics
    assert list(metrics) == list(METRICS)
    assert json.loads(json.dumps(metrics)) == metrics


def test_a_measurement_without_counts_has_only_nones() -> None:
    m = Measurement("server", None, None, None, 0.0, unmeasured="the service is gone")
    assert set(m.metrics.values()) == {None}


def test_a_misspelt_metric_is_an_attribute_error_that_suggests_the_right_one() -> None:
    m = measurement(Snapshot())
    with pytest.raises(AttributeError, match="no metric 'latency_p9', did you mean 'latency_p9"):
        _ = m.latency_p9
    with pytest.raises(AttributeError, match=r"no metric 'zzz'$"):
        _ = m.zzz


def test_a_measurement_can_be_pickled_and_copied() -> None:
    m = measurement(recorded(5))
    assert pickle.loads(pickle.dumps(m)) == copy.deepcopy(m) == m


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("wakeups", 15000, "15,000"),
        ("spurious", 0.048, "4.8 %"),
        ("polls_per_event", 1.034, "1.03"),
        ("latency_p99", 1_234_567.5, "1.2 ms"),
        ("cpu_seconds", 0.34, "0.34 s"),
        ("ready_calls", None, "–"),  # noqa: RUF001
    ],
)
def test_metrics_format_their_values(name: str, value: float | None, text: str) -> None:
    assert METRICS[name].format(value) == text


def test_snapshots_add_up() -> None:
    a = Snapshot(counters(wakeups=1, ready_calls=1), {1: 1, 2: 1}, 9, cpu_ns=10, run_delay_ns=1)
    b = Snapshot(counters(wakeups=2, ready_calls=3), {2: 5}, 7, cpu_ns=5, run_delay_ns=2)
    expected = Snapshot(counters(wakeups=3, ready_calls=4), {1: 1, 2: 6}, 9, cpu_ns=15, run_delay_ns=3)
    assert a + b == b + a == expected


def test_the_outcomes_of_io_calls_add_up() -> None:
    a = Snapshot(io_outcomes={"data": 1, "EAGAIN": 2}, futile={("read", "EAGAIN"): 1})
    b = Snapshot(io_outcomes={"EAGAIN": 3, "EMFILE": 4}, futile={("accept4", "EMFILE"): 2})
    assert (a + b).io_outcomes == {"data": 1, "EAGAIN": 5, "EMFILE": 4}
    assert (a + b).futile == {("read", "EAGAIN"): 1, ("accept4", "EMFILE"): 2}


def test_a_sum_has_only_what_both_sides_measured() -> None:
    a = Snapshot(counters(wakeups=1, ready_calls=1), cpu_ns=10, run_delay_ns=None)
    b = Snapshot(counters(wakeups=2), cpu_ns=None, run_delay_ns=3)
    assert a + b == Snapshot(counters(wakeups=3))


def test_an_agents_message_becomes_a_snapshot() -> None:
    expected = Snapshot(
        counters(wakeups=3),
        {16: 3},
        16,
        runq_max=5,
        io_outcomes={"data": 3, "EAGAIN": 2},
        futile={("read", "EAGAIN"): 3},
    )
    # Of two outcomes on two CPUs, or one of each: they add up.
    futile = [["read", "EAGAIN", 1], ["read", "EAGAIN", 2]]
    assert read_snapshot(message(pid=42, runq_max=5, futile=futile)) == expected


def test_optional_counters_may_be_absent_or_null_or_present() -> None:
    for name in OPTIONAL_COUNTERS:
        assert name not in read_snapshot(message()).counters
        null: dict[str, int | None] = {**counters(), name: None}
        assert name not in read_snapshot(message(counters=null)).counters
        assert read_snapshot(message(counters=counters(**{name: 4}))).counters[name] == 4


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (None, "snapshot: expected an object"),
        ([], "snapshot: expected an object"),
        ({}, "counters: expected an object, got None"),
        (message(counters=[1]), r"counters: expected an object, got \[1\]"),
        (message(counters={"wakeups": 1}), "counters.productive_wakeups: expected an integer >= 0, got None"),
        (message(counters=counters(wakeups=-1)), "counters.wakeups: expected an integer >= 0, got -1"),
        (message(counters=counters(wakeups=True)), "counters.wakeups: .* got True"),
        (message(counters=counters(wakups=1)), "unknown counter 'wakups'"),
        (message(counters=counters() | {"ready_calls": "4"}), "counters.ready_calls: .* got '4'"),
        (message(histogram=None), "histogram: expected an object"),
        (message(histogram={"592": 1}), "'592' is not a bucket in 0..591"),
        (message(histogram={"-1": 1}), "'-1' is not a bucket"),
        (message(histogram={"²": 1}), "'²' is not a bucket"),
        (message(histogram={"3": 1.5}), "histogram.3: expected an integer >= 0, got 1.5"),
        (message(latency_max_ns=None), "latency_max_ns: expected an integer"),
        (message(runq_max="1"), "runq_max: expected an integer"),
        (message(runq_max=-1), "runq_max: expected an integer"),
        (message(io_outcomes=None), "io_outcomes: expected an object"),
        (message(io_outcomes={"EAGAIN": -1}), "io_outcomes.EAGAIN: expected an integer >= 0, got -1"),
        (message(futile=None), "futile: expected a list"),
        (message(futile=[["read", 11, 2]]), "futile: expected .syscall, outcome, calls."),
        (message(futile=[["read", "EAGAIN", True]]), "futile: .* got True"),
    ],
)
def test_a_malformed_message_is_a_value_error_that_names_the_field(bad: object, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        read_snapshot(bad)
