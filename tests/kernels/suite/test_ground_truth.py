"""Services whose true numbers are known, on this kernel; small enough for emulation."""

from __future__ import annotations

import os
import shlex
import socket
import time
from pathlib import Path

import psutil
import pytest
from conftest import SERVICES

PINGS = 60
CONNECTIONS = 40
KIT = Path(__file__).with_name("kit.go.txt").read_text().splitlines()
ECHO_READS = next(number for number, line in enumerate(KIT, 1) if "c.Read(buf)" in line)


def test_the_kernels_types_are_used_if_it_has_them(netpoll, has_btf):
    with netpoll.measure():
        pass
    seen = netpoll._meter.environment
    assert (seen["typed"], seen["follows_children"]) == (has_btf, has_btf)
    assert seen["kernel"] == os.uname().release


def test_every_spaced_ping_is_one_productive_wakeup(launch, connect, spaced_pings, netpoll, go, has_btf):
    server = launch("echo", go)
    connection = connect(server)
    with netpoll.measure() as window:
        spaced_pings(connection, server, PINGS)
    m = window[server]
    assert m.productive_wakeups == PINGS
    assert (m.spurious_wakeups, m.abandoned_wakeups, m.pending_wakeups, m.stale_retries, m.lost) == (0,) * 5
    assert m.go_version == go
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    timed = has_btf and release >= (6, 3)
    assert (netpoll._meter.environment["no_arrivals"] is None) == timed
    if timed:
        assert sum(m.snapshot.delays["response"].histogram.values()) == PINGS
        assert 0 < m.poll_delay_p50 <= m.queue_delay_max <= m.response_max
    else:
        assert m.response_p50 is None


@pytest.mark.parametrize("name", ["dup", "dup-stripped"])
def test_half_of_the_wakeups_of_a_duplicated_connection_are_spurious_and_the_line_is_named(
    launch, connect, spaced_pings, netpoll, go, name, has_btf
):
    server = launch(name, go)
    connection = connect(server)
    with netpoll.measure() as window:
        spaced_pings(connection, server, PINGS)
    m = window[server]
    # On a busy host one of the two readers may poll too late to be woken.
    assert 1.5 * PINGS <= m.wakeups <= 2 * PINGS + 2
    assert 0.4 <= m.spurious <= 0.55
    assert sum(offender.share for offender in m.offenders) == pytest.approx(1)
    for offender in m.offenders:
        frame = offender.stack[0]
        assert (frame.function, frame.line) == ("services/kit.Echo", ECHO_READS)
        assert frame.file.endswith("kit/kit.go")
        assert offender.fd_type == ("tcp" if has_btf else "socket")


def test_a_spliced_echo_leaves_no_wakeup_unresolved(launch, connect, spaced_pings, netpoll, go):
    server = launch("spliceecho", go)
    connection = connect(server)
    with netpoll.measure() as window:
        spaced_pings(connection, server, PINGS)
    m = window[server]
    assert m.productive_wakeups == pytest.approx(PINGS, abs=1)
    assert m.abandoned_wakeups + m.pending_wakeups <= 1


def test_a_shared_listener_causes_spurious_wakeups(launch, netpoll, newest_go):
    server = launch("prefork", newest_go, "-n", 4)
    # A worker that polls too late isn't woken; on two busy CPUs that goes for nearly all.
    for _ in range(20):
        with netpoll.measure() as window:
            for _ in range(CONNECTIONS):
                with socket.create_connection(server.address, timeout=60):
                    time.sleep(0.005)
        m = window[server]
        if m.spurious_wakeups:
            break
    assert 1 <= m.spurious_wakeups <= 3 * CONNECTIONS
    assert {offender.syscall for offender in m.offenders} == {"accept4"}


def test_a_message_that_wakes_n_goroutines_causes_n_ready_calls(launch, connect, spaced_pings, netpoll, go):
    server = launch("ready", go, "-n", 20)
    connection = connect(server)
    with netpoll.measure() as window:
        spaced_pings(connection, server, PINGS)
    m = window[server]
    assert m.productive_wakeups == PINGS
    # And a few per second of the runtime itself.
    assert 20 * PINGS <= m.ready_calls <= 20 * PINGS * 1.05


def test_a_child_forked_in_the_window_counts_from_its_first_wakeup(
    start, connect, spaced_pings, netpoll, newest_go, has_btf, tmp_path
):
    fifo = tmp_path / "go"
    os.mkfifo(fifo)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = free.getsockname()
    echo = shlex.quote(str(SERVICES / newest_go / "echo"))
    script = (
        f"{echo} -addr 127.0.0.1:{{port}} & read go <{fifo}; {echo} -addr 127.0.0.1:{address[1]} & wait; wait"
    )
    server = start(["/bin/sh", "-c", script])

    def children():
        return len(psutil.Process(server.pid).children())

    with netpoll.measure() as window:
        fifo.write_text("go\n")
        deadline = time.monotonic() + 120
        while server.log.count("ready on") < 2:
            assert time.monotonic() < deadline, server.log
            time.sleep(0.05)
        assert children() == 2
        connection = connect.to(address, server)
        spaced_pings(connection, server, PINGS)
    if not has_btf:
        with pytest.raises(pytest.fail.Exception, match="1 not watched: child processes that this kernel"):
            window[server]
        with netpoll.measure() as window:
            spaced_pings(connection, server, PINGS)
        assert window[server].productive_wakeups == PINGS
        return
    m = window[server]
    # The accept and the first ping are two more, unless they arrived before a goroutine waited for them.
    assert PINGS <= m.productive_wakeups <= PINGS + 2
    assert (m.spurious_wakeups, m.abandoned_wakeups, m.lost) == (0, 0, 0)


@pytest.mark.netpoll(max_spurious=0.05)
def test_a_healthy_service_passes_the_gate(launch, connect, spaced_pings, newest_go):
    server = launch("echo", newest_go)
    spaced_pings(connect(server), server, 20)


@pytest.mark.xfail(reason="half of its wakeups are spurious", strict=True)
@pytest.mark.netpoll(max_spurious=0.05)
def test_a_wasteful_service_does_not_pass_the_gate(launch, connect, spaced_pings, newest_go):
    server = launch("dup", newest_go)
    spaced_pings(connect(server), server, 20)
