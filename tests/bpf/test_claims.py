"""What docs/claims.md says about popular claims about Go's poller, measured on services that would show
them."""

from __future__ import annotations

import contextlib
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.cpu_time import before_others
from tests.waiting import attempts, patiently, suspend, undisturbed

ROOT = Path(__file__).parents[2]
EPOLLIN, EPOLLONESHOT, EPOLLET = 1, 1 << 30, 1 << 31
WAITERS = 200


@pytest.fixture
def claims(launch, newest_go):
    """claims("-hogs", 4) is services/claims with these flags."""
    return lambda *flags: launch("claims", *flags, go=str(newest_go.go))


@pytest.fixture
def crowd(connect):
    """crowd(service, 200) is that many connections, each with its reader parked."""
    return lambda service, count: [connect(service.address) for _ in range(count)]


@undisturbed
def test_a_poll_that_returns_0_wakes_nobody(launch, measure, go_toolchain, parked):
    service = launch("idle", "-tickers", "4", "-period", "4ms", go=str(go_toolchain.go))
    with contextlib.ExitStack() as stack:
        for _ in range(WAITERS):
            stack.enter_context(socket.create_connection(service.address, timeout=20))
        patiently(lambda: psutil.Process(service.pid).num_fds() > WAITERS)
        parked()
        returned_0 = 0
        for _ in attempts():
            with measure() as stretch:
                time.sleep(0.5)
            m = stretch(service)
            # A woken waiter reads again, whatever woke it: not even one round of waiters did.
            assert m.snapshot.io_outcomes.get("EAGAIN", 0) < WAITERS / 2
            assert (m.wakeups, m.spurious_wakeups) == (0, 0)
            returned_0 += m.empty_polls + m.timeout_polls
            if returned_0 > 20:
                break
    assert returned_0 > 20


@undisturbed
def test_a_storm_of_connections_causes_no_spurious_wakeups(launch, measure, go_toolchain):
    server = launch("echo", go=str(go_toolchain.go))
    # There is one in millions (see test_scale.py), and more if a poll loses its CPU before it wakes anybody.
    with before_others(server.pid), measure() as stretch:
        storm(server.address, 1000)
    m = stretch(server)
    assert m.productive_wakeups > 500
    assert m.spurious_wakeups < 0.01 * m.wakeups
    assert m.lost == 0


def storm(address: tuple[str, int], count: int) -> None:
    """This many connections at once, each of which pings three times, from a few threads."""

    def client(connections: int) -> None:
        with contextlib.ExitStack() as stack:
            opened = []
            for _ in range(connections):
                connection = stack.enter_context(socket.create_connection(address, timeout=20))
                connection.settimeout(20)
                opened.append(connection)
            for _ in range(3):
                for connection in opened:
                    connection.sendall(b"ping")
                for connection in opened:
                    assert connection.recv(4, socket.MSG_WAITALL) == b"ping"

    threads = [threading.Thread(target=client, args=[count // 8]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    time.sleep(0.05)


def test_descriptors_are_registered_once_and_not_oneshot(launch, connect, spaced_pings, go_toolchain):
    service = launch("echo", go=str(go_toolchain.go))
    connection = connect(service.address)
    before = registered(service.pid)
    spaced_pings(connection, 20)
    assert registered(service.pid) == before
    # The listener and the connection; the runtime's own descriptor is level-triggered.
    edge = [events for events in before.values() if events & EPOLLET]
    assert len(edge) == len(before) - 1 >= 2
    assert not any(events & EPOLLONESHOT for events in before.values())
    # A oneshot registration that has fired has only its flags left until it is armed again.
    assert all(events & EPOLLIN for events in before.values())


def registered(pid: int) -> dict[int, int]:
    """Descriptor -> the events that it is registered for with epoll, as the kernel shows them."""
    found = {}
    for info in Path(f"/proc/{pid}/fdinfo").iterdir():
        for line in info.read_text().splitlines():
            if line.startswith("tfd:"):
                words = line.split()
                found[int(words[1])] = int(words[words.index("events:") + 1], 16)
    return found


@undisturbed
def test_computing_goroutines_starve_others_and_sleeping_ones_do_not(claims, measure):
    late = {}
    for flag in ("-sleepers", "-hogs"):
        service = claims("-cpu", 1, flag, 4)
        with measure() as stretch, socket.create_connection(service.address, timeout=20) as connection:
            for _ in range(6):
                ping([connection])
                time.sleep(0.1)  # so that its reader parks again, for which it needs its own turn
        late[flag] = stretch(service).latency_p50
        service.stop()
    assert late["-hogs"] > 5 * late["-sleepers"]


def marks(m):
    """The share of empty polls, the mean wait in a poll in ms, and the variance of the number of ready
    descriptors."""
    empty = (m.empty_polls + m.timeout_polls) / m.polls
    sizes = [events for events, polls in m.snapshot.events_per_poll.items() for _ in range(polls)]
    return empty, 1000 * m.window_seconds / m.polls, statistics.pvariance(sizes or [0])


@undisturbed
def test_healthy_services_exceed_the_supposed_thresholds(launch, measure, connect, crowd, parked, newest_go):
    go = str(newest_go.go)
    ticking = launch("idle", "-tickers", "1", "-period", "20ms", go=go)
    quiet = launch("echo", go=go)
    bursts = launch("echo", go=go)
    calm = connect(quiet.address)
    crowded = crowd(bursts, 100)
    with measure() as stretch:
        for _ in range(3):
            time.sleep(0.5)
            ping([calm])
    assert marks(stretch(ticking))[0] > 0.85
    # It waits for a message in one poll, and makes another poll before that.
    assert marks(stretch(quiet))[1] > 100
    with measure() as stretch:
        for _ in range(5):
            # Messages that come together, as from a load balancer: one poll brings them all.
            suspend(bursts.pid)
            for connection in crowded:
                connection.sendall(b"ping")
            psutil.Process(bursts.pid).resume()
            for connection in crowded:
                assert connection.recv(4, socket.MSG_WAITALL) == b"ping"
            parked()
            ping(crowded[:1])
            parked()
    assert marks(stretch(bursts))[2] > 200
    assert stretch(bursts).spurious_wakeups == 0


@undisturbed
def test_an_unhealthy_service_stays_below_the_thresholds(launch, measure, connect, spaced_pings, newest_go):
    service = launch("dup", go=str(newest_go.go))
    connection = connect(service.address)
    with measure() as stretch:
        spaced_pings(connection, 200)
    m = stretch(service)
    empty, wait, variance = marks(m)
    assert m.spurious > 0.1
    assert empty < 0.85
    assert wait < 100
    assert variance < 200


def ping(connections: list[socket.socket]) -> None:
    for connection in connections:
        connection.sendall(b"ping")
        assert connection.recv(4, socket.MSG_WAITALL) == b"ping"


@undisturbed
def test_a_connection_that_never_waits_makes_its_callers_spin(claims, measure):
    m = {}
    for kind in ("net", "trylock", "nonblock"):
        service = claims("-conn", kind)
        with measure() as stretch, socket.create_connection(service.address, timeout=20) as connection:
            for _ in range(20):
                ping([connection])
            time.sleep(0.3)
        m[kind] = stretch(service)
        service.stop()
    assert m["net"].futile_calls == m["trylock"].futile_calls == 0
    # A lock without contention saves no call. (A reader that comes too early tries twice.)
    assert m["trylock"].io_calls == pytest.approx(m["net"].io_calls, abs=30)
    assert m["nonblock"].io_calls > 10 * m["net"].io_calls
    assert m["nonblock"].futile_calls > 0.5 * m["nonblock"].io_calls


class Upstream:
    """A silent server that can go away and come back on the same port."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as reserved:
            address = reserved.getsockname()
        # The socket that no longer listens keeps its port, so that no dialing socket gets it and connects to
        # itself.
        self.listener = socket.create_server(address, backlog=1024)
        self.listener.settimeout(20)
        self.address = self.listener.getsockname()
        self.connections: list[socket.socket] = []

    def accept(self, count: int) -> None:
        self.connections = [self.listener.accept()[0] for _ in range(count)]

    def go(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        for connection in self.connections:
            connection.close()

    def come_back(self) -> None:
        self.listener.listen(1024)


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    upstream = Upstream()
    yield upstream
    upstream.go()
    upstream.listener.close()


@undisturbed
def test_a_wait_before_each_dial_prevents_a_stampede(claims, measure, parked, upstream):
    links, outage = 10, 0.5
    host, port = upstream.address
    dials, abandoned = {}, {}
    for redial in ("never", "now", "backoff"):
        service = claims("-upstream", f"{host}:{port}", "-links", links, "-redial", redial)
        upstream.accept(links)
        parked()  # the dials have returned, too
        with measure({"parked"}) as stretch:
            upstream.go()
            time.sleep(outage)
            upstream.come_back()
            if redial != "never":
                upstream.accept(links)
        m = stretch(service)
        # The result of connect for a dial that does not block, whether it is refused later or not.
        dials[redial] = sum(m.snapshot.io_outcomes.get(name, 0) for name in ("EINPROGRESS", "ECONNREFUSED"))
        abandoned[redial] = m.abandoned_descriptors
        service.stop()
    assert dials["never"] == 0
    assert dials["now"] > 4 * dials["backoff"] >= 4 * links
    assert abandoned == {"never": links, "now": 0, "backoff": 0}
