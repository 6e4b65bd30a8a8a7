"""Windows inside windows, windows that overlap, and very many of them: each counts exactly its own."""

from __future__ import annotations

import contextlib
import resource
import socket
import threading
import time

import psutil
import pytest

from tests.bpf.conftest import fds_at_rest
from tests.waiting import attempts, patiently, undisturbed

# The kernel keeps the counts of the last 8 cuts (BANKS); each window is two.
MORE_THAN_THE_BANKS_HOLD = 12


@pytest.fixture
def pinged(launch, connect, newest_go):
    """(service, its connection)"""
    server = launch("echo", go=str(newest_go.go))
    return server, connect(server.address)


@pytest.mark.parametrize("inner_windows", [1, 3, 4, 5, MORE_THAN_THE_BANKS_HOLD])
@undisturbed
def test_a_window_counts_what_the_windows_inside_it_count(pinged, measure, spaced_pings, inner_windows):
    server, connection = pinged
    inner = []
    with measure() as outer:
        for i in range(inner_windows):
            with measure() as stretch:
                spaced_pings(connection, 10 + i)
            inner.append(stretch(server))
    m = outer(server)
    pings = sum(10 + i for i in range(inner_windows))
    assert m.productive_wakeups == pytest.approx(pings, rel=0.01)
    for name in ("wakeups", "productive_wakeups", "spurious_wakeups", "abandoned_wakeups"):
        assert getattr(m, name) == sum(getattr(i, name) for i in inner), name
    assert m.snapshot.latency_max_ns == max(i.snapshot.latency_max_ns for i in inner)
    assert m.pending_wakeups == 0


@undisturbed
def test_events_between_the_inner_windows_count_only_for_the_outer_one(pinged, measure, spaced_pings):
    server, connection = pinged
    with measure() as outer:
        for _ in range(MORE_THAN_THE_BANKS_HOLD):
            spaced_pings(connection, 3)
            with measure() as inner:
                spaced_pings(connection, 2)
            assert inner(server).wakeups == 2
            spaced_pings(connection, 1)
    assert outer(server).wakeups == 6 * MORE_THAN_THE_BANKS_HOLD


@undisturbed
def test_windows_four_deep_each_count_from_their_own_opening(pinged, measure, spaced_pings):
    server, connection = pinged
    with measure() as first:
        spaced_pings(connection, 1)
        with measure() as second:
            spaced_pings(connection, 20)
            with measure() as third:
                spaced_pings(connection, 300)
                with measure() as fourth:
                    spaced_pings(connection, 400)
            spaced_pings(connection, 50)
        spaced_pings(connection, 6)
    counted = [stretch(server).wakeups for stretch in (first, second, third, fourth)]
    assert counted == [pytest.approx(n, rel=0.01) for n in (777, 770, 700, 400)]


@pytest.mark.parametrize("windows_between", [0, MORE_THAN_THE_BANKS_HOLD])
@undisturbed
def test_windows_may_overlap(pinged, meter, measure, spaced_pings, windows_between):
    server, connection = pinged
    a = meter.open()
    spaced_pings(connection, 20)
    b = meter.open()
    for _ in range(windows_between):
        with measure():
            pass
    spaced_pings(connection, 30)
    (measured_a,) = meter.close(a, [server])
    spaced_pings(connection, 70)
    (measured_b,) = meter.close(b, [server])
    assert (measured_a.wakeups, measured_b.wakeups) == (50, 100)
    assert measured_a.unmeasured is None
    assert measured_b.unmeasured is None


@undisturbed
def test_wakeups_resolved_many_windows_later_count_in_the_window_that_woke_them(
    factory, meter, measure, command, newest_go, tmp_path
):
    """A starved service: all its readers are woken one by one, and none of them runs until the end."""
    release = tmp_path / f"release-{time.monotonic_ns()}"
    starved = factory(
        "./hog",
        args=["-addr", "127.0.0.1:{port}", "-until", release],
        env={"GODEBUG": "asyncpreemptoff=1"},
        go=str(newest_go.go),
    )
    inner = []
    with contextlib.ExitStack() as stack:
        stack.callback(release.touch)
        holder, *late = (
            stack.enter_context(socket.create_connection(starved.address, timeout=60))
            for _ in range(1 + MORE_THAN_THE_BANKS_HOLD)
        )
        for connection in (holder, *late):
            command(connection, 0)
        with measure() as outer:
            command(holder, 1)
            began = time.monotonic()
            window = meter.open()
            for number, connection in enumerate(late, 1):
                connection.sendall(b"0\n")
                for _ in attempts():
                    time.sleep(0.03)  # sysmon polls every 10 ms, if it gets a CPU
                    (m,), window = meter.lap(window, [starved], 0)
                    inner.append(m)
                    if sum(i.wakeups for i in inner) == number:
                        break
            meter.close(window, [starved])
            held = time.monotonic() - began
            release.touch()
            assert holder.recv(100) == b"done\n"
            for connection in late:
                assert connection.recv(100)
    m = outer(starved)
    assert m.wakeups == 1 + MORE_THAN_THE_BANKS_HOLD
    assert (m.productive_wakeups, m.pending_wakeups) == (m.wakeups, 0)
    # None of the windows has ended with a wakeup resolved.
    woken = [i.pending_wakeups for i in inner if i.wakeups]
    assert sum(woken) == sum(i.wakeups for i in inner) == MORE_THAN_THE_BANKS_HOLD
    # The first one waited through nearly all of the windows.
    assert m.latency_max > held / 2 * 1e9


@undisturbed
def test_only_the_window_beyond_the_limit_is_unmeasured(pinged, meter, spaced_pings):
    server, connection = pinged
    windows = []
    for _ in range(8):
        windows.append(meter.open())
        spaced_pings(connection, 5)
    measured = [meter.close(window, [server])[0] for window in reversed(windows)]
    refused, exact = measured[:2], measured[2:]
    assert all("windows are open" in (m.unmeasured or "") for m in refused)
    assert [(m.unmeasured, m.wakeups) for m in exact] == [(None, n) for n in (15, 20, 25, 30, 35, 40)]


@pytest.fixture
def many_connections():
    """many_connections(address, 5000): this many connections, all open until the test ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))

        def open_them(address, count):
            if hard != resource.RLIM_INFINITY and hard < count + 500:
                pytest.skip(f"no more than {hard} descriptors are allowed here")
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count + 500), hard))
            return [stack.enter_context(socket.create_connection(address, timeout=20)) for _ in range(count)]

        yield open_them


def test_a_thousand_windows_over_5000_connections_in_use_lose_and_leak_nothing(
    launch, meter, many_connections, parked, newest_go
):
    server = launch("echo", go=str(newest_go.go))
    agent = psutil.Process(meter.agent_pid)
    connections = many_connections(server.address, 5000)
    for connection in connections[-1], connections[0]:
        connection.sendall(b"ping")
        assert connection.recv(4) == b"ping"  # all are accepted
    parked()
    pings, stop = 0, threading.Event()

    def traffic():
        nonlocal pings
        while not stop.is_set():
            connection = connections[pings * 7 % len(connections)]
            connection.sendall(b"ping")
            assert connection.recv(4) == b"ping"
            pings += 1
            time.sleep(0.001)

    client = threading.Thread(target=traffic)
    inner = []

    def windows(count):
        for _ in range(count):
            window = meter.open()
            (m,) = meter.close(window, [server])
            inner.append(m)

    windows(1)
    fds = fds_at_rest(agent)
    outer = meter.open()
    client.start()
    try:
        windows(100)  # the allocator has all the memory that it needs
        before = agent.memory_info().rss
        windows(900)
        after = agent.memory_info().rss
    finally:
        stop.set()
        client.join()
    (m,) = meter.close(outer, [server])
    assert m.unmeasured is None
    assert m.wakeups == pytest.approx(pings, rel=0.02)
    assert m.wakeups == m.productive_wakeups + m.abandoned_wakeups + m.pending_wakeups
    # A wakeup woken in one window may be resolved in the next: it counts once, where it was woken.
    assert 0 < sum(i.wakeups for i in inner) <= m.wakeups
    assert all(i.pending_wakeups <= 1 and i.spurious_wakeups == 0 for i in inner)
    assert sum(i.productive_wakeups for i in inner) <= m.productive_wakeups
    patiently(lambda: agent.num_fds() <= fds)
    assert after - before < 2 << 20


@undisturbed
def test_a_closed_window_leaves_nothing_in_the_kernel(pinged, measure, spaced_pings):
    server, connection = pinged
    with measure() as busy:
        spaced_pings(connection, 50)
    with measure() as quiet:
        time.sleep(0.01)
    assert busy(server).wakeups == 50
    assert quiet(server).wakeups == 0
    assert quiet(server).latency_max is None


def test_a_window_whose_reading_is_interrupted_keeps_no_slot(
    new_meter, launch, connect, spaced_pings, newest_go, monkeypatch
):
    """For example by pytest-timeout while stacks are symbolized: it may come at any moment, and here it
    certainly does."""
    meter = new_meter(max_processes=1)

    def interrupt(*_: object) -> None:
        pytest.fail("Timeout")

    first = launch("echo", go=str(newest_go.go))
    meter.watch(first)
    window = meter.open()
    meter.unwatch(first)  # as if it were only attached and keeps running; the agent notices one that ended
    with monkeypatch.context() as patch:
        patch.setattr("pytest_netpoll.meter.offender_stacks.collect", interrupt)
        with pytest.raises(pytest.fail.Exception):
            meter.close(window, [first])

    second = launch("echo", go=str(newest_go.go))
    meter.watch(second)
    window = meter.open()
    spaced_pings(connect(second.address), 20)
    (m,) = meter.close(window, [second])
    assert m.unmeasured is None
    assert m.productive_wakeups >= 20
