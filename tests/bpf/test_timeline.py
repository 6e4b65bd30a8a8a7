"""The window in intervals: what happened when, and what the threads were doing."""

from __future__ import annotations

import itertools
import socket
import time

import pytest

from tests.waiting import fall_asleep, undisturbed


@undisturbed
def test_a_burst_is_in_its_interval(launch, measure, connect, spaced_pings):
    server = launch("echo")
    connection = connect(server.address)
    opening = time.monotonic()
    with measure() as stretch:
        opened = time.monotonic()
        time.sleep(0.5)
        begin = time.monotonic() - opened
        spaced_pings(connection, 50)
        end = time.monotonic() - opening
        time.sleep(0.5)
    m = stretch(server)
    times = [point.t_ms for point in m.timeline]
    assert times == sorted(times)
    assert len(times) >= 5
    assert times[-1] == pytest.approx(m.window_seconds * 1000, abs=0.1)
    assert sum(point.productive for point in m.timeline) >= 50
    # An interval may begin before the burst, or end after it. The window opened between our two clocks.
    intervals = [(0, m.timeline[0]), *((a.t_ms, b) for a, b in itertools.pairwise(m.timeline))]
    assert not any(point.wakeups for _, point in intervals if point.t_ms <= begin * 1000)
    assert not any(point.wakeups for since, point in intervals if since >= end * 1000)


@undisturbed
def test_running_threads_are_distinguished_from_waiting_ones(factory, measure, command):
    idle, busy = (
        factory("./hog", name=name, args=["-addr", "127.0.0.1:{port}", "-spin"], ready="tcp")
        for name in ("idle", "busy")
    )
    fall_asleep(idle.pid)
    with measure() as stretch, socket.create_connection(busy.address) as connection:
        command(connection, 600, answers=2)
    idle_points, busy_points = stretch(idle).timeline, stretch(busy).timeline
    assert all(point.threads > 1 for point in (*idle_points, *busy_points))
    assert max(point.threads_running for point in idle_points) == 0
    running = [point.threads_running for point in busy_points]
    assert 1 <= sorted(running)[len(running) // 2] <= 2
