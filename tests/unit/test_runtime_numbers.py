"""The Go runtime's histograms, CPU quotas and correlations, where no kernel is needed."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import itertools
import struct
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_netpoll.cli.watch import prometheus
from pytest_netpoll.meter import cgroups, privilege
from pytest_netpoll.meter.snapshots import read_snapshot
from pytest_netpoll.model.correlation import wasted_and_answered
from pytest_netpoll.model.diagnosis import diagnose
from pytest_netpoll.model.evidence import CpuQuota
from pytest_netpoll.model.limits import resolve
from pytest_netpoll.model.verdict import judge
from pytest_netpoll.report import evidence_entries, recording, terminal
from tests.made_up import late, offender, point
from tests.unit.test_metrics import measurement, message, recorded


@pytest.fixture
def agent(monkeypatch):
    """agent("counters.throttling") is the agent's module of that name; it isn't in a package."""
    monkeypatch.syspath_prepend(str(privilege.AGENT))
    return importlib.import_module


def index_since_go_1_20(ns: int) -> int:
    """As timeHistogram.record counts it."""
    length = ns.bit_length()
    bit, bucket = (9, 0) if length < 9 else (length, length - 9 + 1)
    return 161 if bucket >= 40 else bucket * 4 + (ns >> (bit - 1 - 2)) % 4


def index_before(ns: int) -> int:
    if ns < 16:
        return ns
    group = ns.bit_length() - 4
    return 44 * 16 + 15 if group >= 45 else group * 16 + (ns >> (group - 1)) % 16


@pytest.mark.parametrize(
    ("counters", "index_of"), [(162, index_since_go_1_20), (721, index_before)], ids=["go1.20", "go1.19"]
)
def test_bucket_bounds_match_the_runtimes(agent, counters, index_of):
    bounds = agent("counters.scheduler_memory").bounds
    for ns in [
        *range(3000),
        *(base + d for e in range(12, 47) for base in (1 << e,) for d in (-1, 0, 1, 1 << e - 2)),
    ]:
        low, high = bounds(counters, index_of(ns))
        assert low <= ns < high, ns
    last = counters - (2 if counters == 162 else 1)
    edges = [bounds(counters, index) for index in range(last)]
    assert all(a[1] == b[0] for a, b in itertools.pairwise(edges))
    assert bounds(counters, last)[0] == 0  # underflow
    assert bounds(162, 161)[0] == 1 << 47


def test_a_shrunken_histogram_is_unknown_and_grown_buckets_have_bounds(agent):
    between = agent("counters.scheduler_memory").latencies_between
    before, after = [0] * 162, [0] * 162
    before[4], after[4], after[161] = 2, 5, 1
    assert between(tuple(before), tuple(after)) == [[256, 320, 3], [1 << 47, 1 << 48, 1]]
    assert between(tuple(after), tuple(before)) is None
    assert between(tuple(after), (0,)) is None


class Hostile:
    """A process's memory with arbitrary content: words, and nothing at some places."""

    def __init__(self, words: list[int]) -> None:
        self.words = words
        self.reads = 0

    def read(self, address: int, size: int) -> bytes | None:
        assert 0 <= size <= 1 << 17
        self.reads += 1
        start = (address ^ self.reads) % len(self.words)
        if self.words[start] % 7 == 3:
            return None
        words = [self.words[(start + i) % len(self.words)] for i in range(size // 8 + 1)]
        return struct.pack(f"<{len(words)}Q", *words)[:size]


WORDS = st.one_of(
    st.integers(0, 5), st.integers(0, 2**64 - 1), st.sampled_from([1 << 63, 2**64 - 8, 1 << 40])
)


# allglen, allgptr, and what is in a g.
WAITERS = (8216, 8224, 176, 22, 23, 24)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(words=st.lists(WORDS, min_size=1, max_size=40), bias=st.sampled_from([0, 1 << 46, -(1 << 30)]))
def test_arbitrary_memory_gives_numbers_or_nothing(agent, words, bias):
    module = agent("counters.scheduler_memory")
    layout = module.Layout(
        64, 72, 80, 0, 4, 16, 24, 40, 48, 56, 4096, 1280, 8192, 8200, 8208, 16, 24, *WAITERS
    )
    assert layout.plausible
    memory = Hostile(words)
    state = None
    with contextlib.suppress(struct.error):  # as Schedulers does
        state = module.read_state(memory, layout, bias)
    assert state is None or (0 <= state.running <= state.ps <= 4096 and 0 <= state.runnable < 1 << 32)
    totals = module.read_totals(memory, layout, bias)
    assert totals.latencies is None or len(totals.latencies) == 162
    assert memory.reads < 3 * 4096 + 2 * 16384 + 20


@pytest.mark.parametrize(
    "name", ["runqhead", "m", "curg", "gstatus", "alllink", "waitreason", "time_to_run_size"]
)
def test_a_layout_with_a_struct_too_large_to_be_read_is_refused(agent, name):
    module = agent("counters.scheduler_memory")
    layout = module.Layout(
        64, 72, 80, 0, 4, 16, 24, 40, 48, 56, 4096, 5760, 8192, 8200, 8208, 16, 24, *WAITERS
    )
    assert layout.plausible
    assert not layout._replace(**{name: 1 << 30}).plausible


def test_percentiles_of_scheduling_latencies_are_the_middles_of_the_runtimes_buckets():
    m = measurement(read_snapshot(message(sched_latency=[[1024, 1280, 90], [4096, 5120, 9], [0, 64, 1]])))
    assert (m.sched_latency_p50, m.sched_latency_p99, m.sched_latency_max) == (1151.5, 4607.5, 4607.5)
    assert measurement(read_snapshot(message())).sched_latency_p50 is None


def test_events_per_poll_and_busy_ps_are_over_all_processes():
    one = read_snapshot(message(events_per_poll={"1": 98, "20": 1}, p_looks=20, p_running=5))
    other = read_snapshot(message(events_per_poll={"1": 1}, p_looks=20, p_running=15))
    m = measurement(one + other)
    assert (m.events_per_poll_p50, m.events_per_poll_p99, m.events_per_poll_max) == (1, 1, 20)
    assert m.p_utilization == 0.5


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"events_per_poll": {"0": 1}}, "no number of events"),
        ({"events_per_poll": {"9" * 5000: 1}}, "no number of events"),
        ({"events_per_poll": {"1": -1}}, "an integer >= 0"),
        ({"sched_latency": [[1, 2]]}, "expected \\[ns, ns, count\\]"),
        ({"sched_latency": [[1, 2, 0.5]]}, "an integer >= 0"),
        ({"mutex_wait": -1}, "an integer >= 0"),
    ],
)
def test_a_message_with_impossible_numbers_is_refused(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        read_snapshot(message(**changes))


class Live:
    exited = foreign = False

    def __init__(self, pid: int) -> None:
        self.pid = pid


@pytest.fixture
def v2(agent, monkeypatch, tmp_path):
    """throttling, root directory and where the process is, of a cgroup v2 made of files."""
    module = agent("counters.throttling")
    where = ["/a/b"]
    monkeypatch.setattr(module, "_mounted", lambda: (None, module.Hierarchy(str(tmp_path), "/", v2=True)))
    monkeypatch.setattr(module, "_cgroup_of", lambda _: (where[0], True))
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "cgroup.controllers").write_text("cpu memory\n")
    return module.Throttling(), tmp_path, where


def stat(directory: Any, periods: int, throttled: int, usec: int) -> None:
    text = f"usage_usec 9\nnr_periods {periods}\nnr_throttled {throttled}\nthrottled_usec {usec}\n"
    (directory / "cpu.stat").write_text(text)


def test_the_cgroup_that_stopped_the_service_longest_counts(v2):
    throttling, root, _ = v2
    (root / "a" / "cpu.max").write_text("20000 100000\n")
    (root / "a" / "b" / "cpu.max").write_text("50000 100000\n")
    stat(root / "a", 5, 2, 100)
    stat(root / "a" / "b", 0, 0, 0)
    throttling.sample({7: [Live(7)]})
    throttling.open(1)
    throttling.sample({7: [Live(7)]})
    before = throttling.grown(7)
    stat(root / "a", 15, 11, 700)
    stat(root / "a" / "b", 10, 3, 50)
    throttling.sample({7: [Live(7)]})
    assert throttling.grown(7) - before == 600_000
    told = throttling.as_json(1, 7)
    quotas = cgroups.collect([told, told])  # another process in the same cgroup
    assert (quotas.ns, quotas.throttled, quotas.absent) == (600_000, 9, {})
    cgroup, inner = quotas.cgroups
    assert (inner.name, inner.throttled_periods, inner.throttled_ns) == ("/a/b", 3, 50_000)
    assert (cgroup.name, cgroup.quota_us, cgroup.period_us, cgroup.periods) == ("/a", 20_000, 100_000, 10)
    throttling.lap(1)
    assert cgroups.collect([throttling.as_json(1, 7)]).throttled == 0


def test_without_a_quota_throttling_is_0_and_without_counters_unknown(v2):
    throttling, root, where = v2
    throttling.open(1)
    throttling.sample({7: [Live(7)]})
    assert cgroups.collect([throttling.as_json(1, 7)])[:3] == (0, 0, ())
    for path, controllers in (("/../x", "cpu"), ("/a", "memory")):
        where[0] = path
        (root / "cgroup.controllers").write_text(controllers)
        throttling.sample({7: [Live(7)]})
        quotas = cgroups.collect([throttling.as_json(1, 7)])
        assert throttling.grown(7) is None
        assert quotas.ns is None
        assert quotas.absent.keys() == {"throttled_seconds", "throttled_periods"}


@pytest.mark.parametrize(
    "row", [["/x", 1], ["/x", 1, 2, 3, 4, 5, "6", 7, 8], ["/x", -1, 0, 0, 0, 0, 0, 1, 1]]
)
def test_a_cgroup_with_impossible_counters_is_refused(row):
    with pytest.raises(ValueError, match=r"cgroup|unpack"):
        cgroups.collect([{"unknown": None, "cgroups": [row]}])


QUOTA = CpuQuota(
    name="/x",
    quota_us=20_000,
    period_us=100_000,
    periods=31,
    throttled_periods=30,
    throttled_ns=2_400_000_000,
)


def test_a_broken_limit_names_the_cgroup_its_quota_and_the_periods():
    snapshot = dataclasses.replace(recorded(1000), throttled_periods=30, throttled_ns=QUOTA.throttled_ns)
    m = dataclasses.replace(measurement(snapshot), cgroups=(QUOTA,))
    said = "the cgroup /x allows 0.2 CPUs (20 ms every 100 ms) and stopped the service in 30 of 31 periods"
    for limit in ("max_throttled_periods", "max_throttled_seconds", "max_throttled_periods_per_second"):
        limits = resolve([((), {limit: 1})], "t")
        test = recording.build("t", ("t.py", 1), judge([m], limits), limits, [m], 1.0)
        assert said in terminal.failure_section(test, 200)
        assert str(evidence_entries.worst_places(test)[0]) == said
    limits = resolve([((), {"max_latency_max": "1ns"})], "t")
    test = recording.build("t", ("t.py", 1), judge([m], limits), limits, [m], 1.0)
    assert said not in terminal.failure_section(test, 200)


@pytest.mark.parametrize("stopped", [True, False])
def test_late_wakeups_are_blamed_on_a_quota_only_if_it_stopped_the_service_meanwhile(stopped):
    ns = 80_000_000
    snapshot = dataclasses.replace(
        recorded(*[ns] * 20), cpu_ns=900_000_000, run_delay_ns=0, throttled_periods=30
    )
    line = points(10, throttled_ns=lambda _: stopped * ns)
    late_ones = tuple(late(ns, at_ms=100.0 * i) for i in range(1, 9))
    hog = offender(450, offence="cpu", share=0.9)
    about = {"cgroups": (QUOTA,), "timeline": tuple(line), "slowest": late_ones, "offenders": (hog,)}
    found = diagnose(dataclasses.replace(measurement(snapshot), **about))
    quota = (
        "server: NP403 cpu-quota at server/fault_dup.go:33: the CPU quota of the cgroup /x, 20 ms every "
        "100 ms, stopped the service in 30 of 31 periods"
    )
    # A service that sometimes runs into its quota gets no other diagnosis.
    assert [text.startswith(quota) for text in found] == [True] * stopped


def points(n: int, **series: Any) -> list[Any]:
    return [point(100.0 * (i + 1), **{name: of(i) for name, of in series.items()}) for i in range(n)]


def test_spurious_wakeups_that_come_with_fewer_answers_correlate():
    rising = points(30, spurious=lambda i: i, productive=lambda i: 100 - i)
    found = wasted_and_answered(rising)
    assert (found.other, found.intervals) == ("productive_wakeups", 30)
    assert found.coefficient == pytest.approx(-1)
    answered = points(30, spurious=lambda i: i, productive=lambda i: 100 - i, answers=lambda i: 2 * i)
    assert wasted_and_answered(answered).other == "answers"
    assert wasted_and_answered(answered).coefficient == pytest.approx(1)
    # The last interval ends with the window: with 5 ms, its counts aren't those of an interval.
    stub = point(3005.0, spurious=0, productive=0)
    assert wasted_and_answered([*rising, stub]) == found


@pytest.mark.parametrize(
    "given",
    [[], points(19, spurious=lambda i: i, productive=lambda i: i), points(30, productive=lambda i: i)],
    ids=["none", "few", "constant"],
)
def test_few_intervals_or_constant_rates_have_no_correlation(given):
    found = wasted_and_answered(given)
    assert (found.coefficient, found.intervals) == (None, len(given))


def test_prometheus_gets_scheduling_latencies_as_a_separate_histogram():
    m = measurement(read_snapshot(message(sched_latency=[[1024, 1280, 3], [4096, 5120, 1]])))
    with prometheus.Exporter("127.0.0.1", 0) as exporter:
        exporter.update(m, m)
        families = {family.name: family for family in exporter.collect()}
    samples = families["netpoll_sched_latency_seconds"].samples
    buckets = [(s.labels["le"], s.value) for s in samples if s.name.endswith("_bucket")]
    assert buckets[:4] == [("1.024e-06", 0), ("2.048e-06", 3), ("4.096e-06", 3), ("8.192e-06", 4)]
    assert buckets[-1] == ("+Inf", 4)
