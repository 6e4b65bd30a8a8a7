"""The Go scheduler's own counters, read from the process's memory."""

from __future__ import annotations

import socket

import pytest

from tests.waiting import undisturbed

PINGS = 300


# If a thread loses its CPU in a system call, its goroutine needs another time slice.
@undisturbed
def test_a_ping_is_one_time_slice(launch, measure, connect, spaced_pings, go_toolchain):
    server = launch("echo", go=str(go_toolchain.go))
    connection = connect(server.address)
    with measure() as stretch:
        spaced_pings(connection, PINGS)
    m = stretch(server)
    # The runtime's own goroutines run now and then.
    assert m.dispatches == pytest.approx(PINGS, rel=0.05)
    assert m.dispatches_per_event == pytest.approx(1, rel=0.05)


@undisturbed
def test_the_longest_run_queue_is_measured(launch, measure, go_toolchain):
    server = launch("crowd", "-alone", "-cpu", "1", "-for", "300ms", go=str(go_toolchain.go))
    with measure() as stretch, socket.create_connection(server.address, timeout=60) as connection:
        connection.sendall(b"200\n")
        assert connection.makefile().readline() == "200\n"
    assert stretch(server).runq_max == pytest.approx(200, rel=0.05)


@undisturbed
def test_an_idle_services_run_queue_is_empty(launch, measure, connect, newest_go):
    server = launch("echo", go=str(newest_go.go))
    connect(server.address)
    with measure() as stretch:
        pass
    assert stretch(server).runq_max == 0


@pytest.mark.uprobes
@undisturbed
def test_an_expired_deadline_takes_no_time_slice(launch, measure, newest_go):
    """The readied goroutine runs next, in its waker's time slice: not a dispatch, but a ready call."""
    server = launch("deadline", go=str(newest_go.go))
    with measure() as stretch, socket.create_connection(server.address, timeout=60) as connection:
        connection.sendall(b"100\n")
        assert connection.makefile().readline() == "100\n"
    m = stretch(server)
    assert m.ready_calls == pytest.approx(100, abs=2)
    assert m.dispatches < 50
