"""The agent's timers, and the intervals that one of them samples; these modules need no kernel."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from pytest_netpoll.meter import privilege, slow_stacks
from pytest_netpoll.meter.intervals import collect


@pytest.fixture
def agent(monkeypatch):
    """agent("counters.timeline") is the agent's module of that name; it isn't in a package."""
    monkeypatch.syspath_prepend(str(privilege.AGENT))
    return importlib.import_module


def test_timers_run_between_lines_and_lines_arrive_whole(agent):
    timers = agent("counters.sampler").Timers()
    reader, writer = os.pipe()
    ticks = []

    def tick():
        ticks.append(time.monotonic())
        # A line in two pieces, and two in one.
        os.write(writer, {2: b"a\nb", 4: b"c\nd\n"}.get(len(ticks), b""))
        if len(ticks) == 6:
            os.close(writer)

    begun = time.monotonic()
    timers.every(0.01, tick)
    assert list(timers.lines(reader)) == ["a", "bc", "d"]
    assert len(ticks) == 6
    # Not from the first one, which may come late on a busy machine: the others then follow sooner.
    assert ticks[-1] - begun >= 0.06


def test_a_timer_that_takes_long_is_called_less_often(agent):
    timers = agent("counters.sampler").Timers()
    reader, writer = os.pipe()
    begun = time.monotonic()
    calls = []

    def slow():
        calls.append(time.sleep(0.01))
        if time.monotonic() - begun > 0.5:
            os.close(writer)

    timer = timers.every(0.01, slow)
    assert list(timers.lines(reader)) == []
    assert 1 <= len(calls) <= 4
    timers.cancel(timer)


def test_without_timers_the_agent_waits_for_lines(agent):
    reader, writer = os.pipe()
    os.write(writer, b"x\n\ny\nrest")
    os.close(writer)
    assert list(agent("counters.sampler").Timers().lines(reader)) == ["x", "", "y"]


def test_a_long_window_keeps_few_points_and_their_sums(agent):
    module = agent("counters.timeline")
    timeline = module.Timeline({7: module.NOTHING._replace(threads=3, running=1)})
    samples = 5000
    for i in range(1, samples + 1):
        counts = range(i, 17 * i, i)
        timeline.add(i * 10**8, {7: module.total([counts], run_delay=17 * i, threads=3, running=i % 2)})
    rows = timeline.of(7)
    assert 300 <= len(rows) <= module.MOST_POINTS
    assert [sum(row[i] for row in rows) for i in range(1, 18)] == [samples * i for i in range(1, 18)]
    assert rows[-1][0] == samples * 100
    times = [row[0] for row in rows]
    steps = {round(b - a) for a, b in itertools.pairwise(times[:-1])}
    assert steps == {1600}
    assert all(row[18] == 3 and row[19] == pytest.approx(0.5, abs=0.1) for row in rows[:-1])


def test_a_service_that_comes_later_is_counted_from_its_beginning(agent):
    module = agent("counters.timeline")
    timeline = module.Timeline({})
    timeline.add(100, {})
    timeline.add(200, {7: module.total([range(1, 17), [1] * 16], run_delay=4, threads=2, running=1)})
    assert timeline.of(7) == [[0.0, *range(2, 18), 4, 2, 1.0, None, None, None, None]]


def test_waiting_times_are_unknown_if_the_kernel_does_not_report_them(agent, monkeypatch):
    """As without CONFIG_SCHED_INFO: the threads exist anyway."""
    assert agent("processes.watched").passed((10, 3), (30, 4)) == {"cpu_ns": 20, "run_delay_ns": 1}
    proc = agent("processes.proc")
    monkeypatch.setattr(proc, "TELLS_WAITS", False)
    monkeypatch.setattr(proc, "_OF_THREADS", ("stat", "stat"))
    waits, running = proc.Threads(os.getpid()).look(True)
    assert dict(waits)[str(os.getpid())] == 0
    assert running >= 1
    assert agent("processes.watched").passed((10, 0), (30, 0)) == {"cpu_ns": 20, "run_delay_ns": None}


def test_the_intervals_of_two_processes_are_merged_by_time():
    counts = [1, 1, 0, 2, 1, 1, 0, 0, 1, 0, 1, 1, 30, 20, 10, 5]
    first = [[100.0, *counts, 7, 4, 1, 3000, 6, None, 0.5]]
    second = [[100.0, *counts, 1, 5, 0.5, 2000, 2, 0.5, 1], [200.0] + [0] * 23]
    points = collect([first, second])
    assert [point.t_ms for point in points] == [100.0, 200.0]
    both = points[0]
    assert (both.wakeups, both.spurious, both.polls, both.timeout_polls) == (2, 0, 4, 2)
    assert (both.threads, both.threads_running, both.run_delay_ns) == (9, 1.5, 8)
    # They may be in one cgroup; the Ps of one of them are unknown.
    assert (both.throttled_ns, both.runq_max, both.ps_running, both.spinning) == (3000, 6, 0.5, 1.5)


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("go1.19", 11),
        ("go1.22.10", 11),
        ("go1.23.9", 22),
        ("go1.24rc1", 22),
        ("go1.27.3", 11),
        ("go1.28", None),
        ("go1.190", None),
        ("devel", None),
        ("", None),
    ],
)
def test_a_goroutine_is_named_only_for_known_go_versions(version, expected):
    assert slow_stacks.goroutine([11, 22], version) == expected


def test_a_goroutine_that_could_not_be_read_has_no_name():
    assert slow_stacks.goroutine([0, 0], "go1.27.3") is None


def descriptors():
    """How many of this process's descriptors are files of threads. Other threads open others meanwhile."""
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found += "/task/" in str(link.readlink())
    return found


def test_files_of_threads_stay_open_within_bounds_and_are_closed_with_them(agent, monkeypatch):
    proc = agent("processes.proc")
    monkeypatch.setattr(proc.Threads, "most_kept", 3)
    end = threading.Event()
    others = [threading.Thread(target=end.wait) for _ in range(5)]
    for other in others:
        other.start()
    before = descriptors()
    looks = proc.Threads(os.getpid())
    for _ in range(2):
        waits, running = looks.look(True)
        # Not threading.active_count(): a worker of pytest-xdist has one that threading does not know.
        assert len(waits) == len(list(Path("/proc/self/task").iterdir()))
        assert running >= 1
        assert descriptors() == before + 2 * 3
    end.set()
    for other in others:
        other.join()
    assert looks.look(False)[1] == 0
    looks.close()
    assert descriptors() == before


def test_a_thread_that_ends_while_its_files_are_opened_leaves_none_open(agent, monkeypatch):
    proc = agent("processes.proc")
    monkeypatch.setattr(proc.Threads, "most_kept", 3)
    monkeypatch.setattr(proc, "_OF_THREADS", ("stat", "gone"))
    before = descriptors(), proc.Threads._kept
    assert proc.Threads(os.getpid()).look(True) == ([], 0)
    assert (descriptors(), proc.Threads._kept) == before


def test_looks_at_run_queues_that_find_no_room_in_a_trace_are_counted(agent, monkeypatch):
    recorder = agent("counters.recorder")
    monkeypatch.setattr(recorder, "MOST_LOOKS", 5)
    empty = SimpleNamespace(pop=lambda: {}[0])
    kernel = SimpleNamespace(traced=8, trace_records=empty, trace_dropped=MagicMock())
    records = recorder.Recorder(kernel)
    window = SimpleNamespace(opened=0, first=1, end=2)
    one, other = (SimpleNamespace(pid=pid, root=pid, slot=pid, foreign=False) for pid in (1, 2))
    state = SimpleNamespace(runnable=0, running=1)
    for round_ in range(2):
        records.prepare()
        records.open(round_)
        for _ in range(4):
            for process in (one, other):
                records.look(process, state)
        traces = records.take(round_, window, {1: [one], 2: [other]})
        assert [len(trace["looks"]) for trace in traces.values()] == [3, 2]
        assert [trace["missed_looks"] for trace in traces.values()] == [1, 2], "each window anew"
