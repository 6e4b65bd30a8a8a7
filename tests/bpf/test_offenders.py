"""Which descriptor a goroutine was woken for, for nothing or late, and which had unclaimed events. This is
recorded as it happens, so that a connection that was closed since is still named."""

from __future__ import annotations

import collections
import socket
import time

import pytest

from tests.waiting import patiently, undisturbed

PINGS = 20


def address(name):
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@pytest.fixture
def spurious(measure, spaced_pings, parked):
    """spurious(dup, address, …): the measurement while these connect in turn."""

    def spurious(service, *ends):
        with measure() as stretch:
            for family, end in ends:
                with socket.socket(family) as connection:
                    connection.settimeout(20)
                    connection.connect(end)
                    names = address(connection.getpeername()), address(connection.getsockname())
                    spaced_pings(connection, PINGS)
                parked()  # closed, and its descriptor gone, before the agent looks or the next one connects
        m = stretch(service)
        assert m.spurious_wakeups >= PINGS * len(ends) * 0.9
        assert sum(offender.count for offender in m.offenders) == m.spurious_wakeups + m.stale_retries
        return m, names

    return spurious


@pytest.mark.parametrize(
    ("listen", "family", "host"),
    [
        ("127.0.0.1", socket.AF_INET, "127.0.0.1"),
        ("[::1]", socket.AF_INET6, "::1"),
        ("", socket.AF_INET, "127.0.0.1"),  # IPv4 on a socket of IPv6
    ],
    ids=["ipv4", "ipv6", "mapped"],
)
@undisturbed
def test_a_connection_is_named_even_if_it_was_closed_before_the_window(
    factory, spurious, parked, newest_go, listen, family, host
):
    service = factory("./dup", args=["-addr", listen + ":{port}"], ready=None, go=str(newest_go.go))
    patiently(lambda: connects(family, (host, service.port)))
    parked()
    m, (local, peer) = spurious(service, (family, (host, service.port)))
    for offender in m.offenders:
        assert (offender.fd_type, offender.local, offender.peer) == ("tcp", local, peer)


def connects(family, end):
    with socket.socket(family) as probe:
        return probe.connect_ex(end) == 0


@undisturbed
def test_a_descriptor_that_was_two_connections_names_neither_for_both(launch, spurious, newest_go):
    service = launch("dup", go=str(newest_go.go))
    end = (socket.AF_INET, service.address)
    m, _ = spurious(service, end, end)
    assert {offender.fd_type for offender in m.offenders} == {"tcp"}
    # If a reader came too late on only one of them, that one is named.
    named = [offender.count for offender in m.offenders if offender.peer is not None]
    assert sum(named) <= m.spurious_wakeups / 2


@undisturbed
def test_late_readers_of_other_kinds_are_named(launch, measure, connect, spaced_pings, newest_go, tmp_path):
    path = str(tmp_path / f"socket-{time.monotonic_ns()}")
    service = launch("unix", "-path", path, go=str(newest_go.go))
    with measure() as stretch:
        spaced_pings(connect(path), PINGS)
    kinds = {(wakeup.fd_type, wakeup.local, wakeup.peer) for wakeup in stretch(service).slowest}
    assert kinds == {("unix", path, None)}


@undisturbed
def test_a_listener_is_distinguished_from_its_connections(
    launch, measure, connect, parked, spaced_pings, newest_go
):
    service = launch("echo", go=str(newest_go.go))
    parked()
    with measure() as stretch:
        spaced_pings(connect(service.address), 5)
    kinds = {wakeup.fd_type: wakeup for wakeup in stretch(service).slowest}
    assert kinds.keys() == {"listener", "tcp"}
    assert (kinds["listener"].local, kinds["listener"].peer) == (address(service.address), None)
    assert kinds["tcp"].peer is not None


@undisturbed
def test_sent_datagrams_are_unclaimed_events_whose_socket_is_named(launch, meter, parked, newest_go):
    service = launch("udp", go=str(newest_go.go))
    found = {}
    for limited in ([], ["unclaimed_events"]):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.connect(service.address)
            client.settimeout(20)
            window = meter.open(limited=limited)
            for _ in range(PINGS):
                client.send(b"ping")
                assert client.recv(16) == b"ping"
                parked()
            [m] = meter.close(window, [service])
        assert m.unmeasured is None
        assert m.unclaimed_events >= PINGS
        found[tuple(limited)] = m
    asked, unasked = found["unclaimed_events",], found[()]
    assert unasked.offenders == ()
    counts = collections.Counter()
    for offender in asked.offenders:
        assert (offender.offence, offender.syscall, offender.stack) == ("unclaimed", None, ())
        assert (offender.fd_type, offender.local) == ("udp", address(service.address))
        counts[offender.direction] += offender.count
    assert sum(counts.values()) == asked.unclaimed_events
    assert counts["write"] >= PINGS


@undisturbed
def test_nearly_all_stacks_find_room_window_after_window(launch, measure, connect, spaced_pings, newest_go):
    """Some share a slot in the kernel's map, by their hash; but none from former windows has one."""
    service = launch("paths", go=str(newest_go.go))
    connection = connect(service.address)
    for _ in range(3):
        with measure() as stretch:
            spaced_pings(connection, 500)
        m = stretch(service)
        assert 0.45 <= m.spurious <= 0.55
        assert sum(offender.count for offender in m.offenders) == m.spurious_wakeups
        assert len(m.offenders) > 300
        for offender in m.offenders:
            assert offender.share == offender.count / m.spurious_wakeups
            # Those without a stack are one place together.
            assert offender.stack or offender.share < 0.02
