"""Queue delays and responses, compared with what the clients of services with known delays see."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import socket
import struct
import threading
import time
from pathlib import Path

import pytest

from pytest_netpoll.model.histogram import percentile
from tests.waiting import attempts, fall_asleep, patiently, undisturbed

SO_TIMESTAMPNS = 35
MS = 1_000_000


class Client:
    """Times its requests until the kernel got the answer, because on a busy machine the client waits, too."""

    def __init__(self, address, size=4):
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.socket = socket.socket(family)
        self.socket.settimeout(20)
        self.socket.connect(address)
        if family == socket.AF_INET:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self.request = b"x" * size
        self.took = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def ask(self):
        self.send()
        self.receive()

    def send(self):
        self.sent = time.time_ns()
        self.socket.sendall(self.request)

    def receive(self):
        answer, ancillary, _, _ = self.socket.recvmsg(100, 100)
        assert answer == self.request
        seconds, ns = struct.unpack("ll", ancillary[0][2]) if ancillary else divmod(time.time_ns(), 10**9)
        self.took.append(seconds * 10**9 + ns - self.sent)


def quantile(times, q):
    """The nearest-rank quantile, as in the metrics."""
    return sorted(times)[math.ceil(q * len(times)) - 1]


def count(m, name):
    return sum(m.snapshot.delays[name].histogram.values())


def apart(m, took):
    """By how much the service's responses differ from what its clients saw, if that is too much."""
    if count(m, "response") != len(took):
        # The service has lost its CPU in the call that wrote the last answer.
        return {"responses": (count(m, "response"), len(took))}
    seen = {"response_p50": quantile(took, 0.5), "response_p90": quantile(took, 0.9)}
    return {
        name: (getattr(m, name), ns)
        for name, ns in seen.items()
        if getattr(m, name) != pytest.approx(ns, rel=0.1, abs=0.3 * MS)
    }


def until_they_agree(measure, client, service, asks, pause, disturbed=lambda _: False):
    """The measurement while the client sends that many requests, and calls pause() after each; the last of
    several attempts. On a busy machine the client may lose its CPU between reading its clock and its call.
    disturbed: what else may be wrong with a measurement.
    """
    for _ in attempts():
        client.took.clear()
        with measure() as stretch:
            for _ in range(asks):
                client.ask()
                pause()
        if not apart(stretch(service), client.took) and not disturbed(stretch(service)):
            break
    return stretch


def pause(s):
    return functools.partial(time.sleep, s)


SERVICES = {
    "calm": ([], 0),
    "slow": (["-handle", "20ms"], 20),
    "busy": (["-handle", "5ms", "-burn"], 5),
    "starved": (["-cpu", "1", "-hogs", "3"], 5),
    "starved-on-two": (["-cpu", "2", "-hogs", "4"], 5),
    "polled-by-sysmon": (["-cpu", "1", "-yielders", "8"], 2),
}


@pytest.mark.parametrize("name", SERVICES)
def test_responses_match_what_the_client_waits_for(launch, measure, newest_go, name):
    args, least = SERVICES[name]
    service = launch("answer", *args, go=str(newest_go.go))
    with Client(service.address) as client:
        client.ask()
        m = until_they_agree(
            measure, client, service, 40, pause(0.003), lambda m: not goes_where_it_should(name, m)
        )(service)
    assert not apart(m, client.took)
    assert m.response_p90 >= least * MS
    assert goes_where_it_should(name, m)


def goes_where_it_should(name, m):
    """Whether the time went there; on a busy machine threads also wait for a CPU."""
    parts = budget(m, "response")
    if name in ("slow", "busy"):
        return parts.handling > 0.9 * parts.total
    if name.startswith("starved"):
        return parts.poll + parts.run > 0.5 * parts.total
    if name == "polled-by-sysmon":
        # The median is what latency alone does not show.
        return parts.poll > 0.2 * parts.total and m.poll_delay_p50 > 1 * MS
    return True


MAIN = Path(__file__).parent / "services" / "answer" / "main.go"


def line_of(code):
    return 1 + next(i for i, line in enumerate(MAIN.read_text().splitlines()) if code in line)


@undisturbed
def test_the_slowest_answers_are_named_with_their_parts_and_their_lines(launch, measure, newest_go):
    service = launch("answer", "-handle", "20ms", go=str(newest_go.go))
    with Client(service.address) as client:
        client.ask()
        with measure() as stretch:
            for _ in range(10):
                client.ask()
        ends = tuple(
            "{}:{}".format(*end) for end in (client.socket.getpeername(), client.socket.getsockname())
        )
    m = stretch(service)
    responses = [answer for answer in m.slow_answers if answer.what == "response"]
    reads = [answer for answer in m.slow_answers if answer.what == "queue_delay"]
    assert len(responses) == len(reads) == 8
    for answer in responses:
        assert answer.handling_ns >= 20 * MS
        assert (answer.direction, answer.local, answer.peer) == ("write", *ends)
        assert answer.stack[0].line == line_of("c.Write(request)")
    for read in reads:
        assert (read.direction, read.syscall, read.handling_ns) == ("read", "read", 0)
        assert read.stack[0].line == line_of("io.ReadFull(c, request)")
    assert len({answer.goroutine for answer in m.slow_answers}) == 1


def budget(m, name):
    found = m.snapshot.delays[name].budget.values()
    first, *others = found
    for other in others:
        first = first + other
    return first


@pytest.fixture
def quota():
    """quota(pid) limits the process to 4 ms of CPU every 40 ms, which it gets before others."""
    made = []

    def quota(pid):
        for base, files in (
            (
                Path("/sys/fs/cgroup/cpu"),
                {"cpu.cfs_period_us": "40000", "cpu.cfs_quota_us": "4000", "cpu.shares": "262144"},
            ),
            (Path("/sys/fs/cgroup"), {"cpu.max": "4000 40000", "cpu.weight": "10000"}),
        ):
            group = base / f"netpoll-test-{os.getpid()}"
            with contextlib.suppress(OSError):
                group.mkdir()
                made.append(group)
                for name, value in files.items():
                    (group / name).write_text(value)
                (group / "cgroup.procs").write_text(str(pid))
                return
        pytest.skip("needs a cgroup of its own, with the cpu controller")

    yield quota
    for group in made:
        patiently(lambda group=group: not (group / "cgroup.procs").read_text())
        group.rmdir()


def test_responses_of_a_throttled_service_match_what_the_client_waits_for(quota, factory, measure, newest_go):
    service = factory(
        "./answer",
        args=["-addr", "127.0.0.1:{port}", "-handle", "20ms", "-burn"],
        ready=re.compile("ready on"),
        go=str(newest_go.go),
    )
    quota(service.pid)
    with Client(service.address) as client:
        m = until_they_agree(measure, client, service, 30, pause(0.001), lambda m: m.response_p90 <= 25 * MS)(
            service
        )
    service.stop()
    assert not apart(m, client.took)
    assert m.response_p90 > 25 * MS


@undisturbed
def test_a_connection_waits_for_a_busy_acceptor_and_so_does_its_first_request(launch, measure, go_toolchain):
    service = launch("answer", "-accept", "300ms", go=str(go_toolchain.go))
    with Client(service.address) as first:
        first.ask()
        with measure() as stretch, contextlib.ExitStack() as stack:
            others = [stack.enter_context(Client(service.address)) for _ in range(2)]
            for other in others:
                other.send()
            for other in others:
                other.receive()
            waited = max(ns for other in others for ns in other.took)
    m = stretch(service)
    # Two connections, and their requests, which arrived before they were accepted.
    assert count(m, "queue_delay") == 4
    assert count(m, "response") == 2
    assert m.response_max == pytest.approx(waited, abs=30 * MS)
    assert m.queue_delay_max >= 300 * MS
    # No goroutine was parked, so latency doesn't include it.
    assert m.latency_max is None or m.latency_max < 100 * MS


@undisturbed
def test_unread_data_counts_with_its_age(launch, measure, newest_go):
    service = launch("answer", "-accept", "60s", go=str(newest_go.go))
    with Client(service.address) as first:
        first.ask()
        began = time.monotonic_ns()
        with Client(service.address):
            queued = time.monotonic_ns()
            with measure() as stretch:
                time.sleep(0.2)
                at_least = time.monotonic_ns() - queued
    at_most = time.monotonic_ns() - began
    m = stretch(service)
    assert count(m, "queue_delay") == 1
    assert at_least - 50 * MS <= m.queue_delay_max <= at_most


@pytest.mark.parametrize("family", ["tcp", "unix"])
@undisturbed
def test_pipelined_requests_wait_since_their_arrival(launch, measure, tmp_path, newest_go, family):
    path = str(tmp_path / f"socket-{time.monotonic_ns()}")
    service = launch("answer", "-handle", "40ms", "-path", path, go=str(newest_go.go))
    with Client(path if family == "unix" else service.address) as client:
        client.ask()
        with measure() as stretch:
            began = time.monotonic_ns()
            sent = []
            for _ in range(4):
                client.socket.sendall(client.request)
                sent.append(time.monotonic_ns())
                time.sleep(0.01)
            for _ in sent:
                assert client.socket.recv(4, socket.MSG_WAITALL) == client.request
    m = stretch(service)
    assert count(m, "queue_delay") == count(m, "response") == 4
    # Each is read after those before it were handled, which takes at least 40 ms.
    least = sorted(40 * MS * i - (at - began) for i, at in enumerate(sent))
    for i, ns in enumerate(least):
        assert percentile(m.snapshot.delays["queue_delay"].histogram, (i + 1) / 4) >= 0.96 * ns


@undisturbed
def test_merged_arrivals_are_never_reported_as_too_long(launch, measure, newest_go):
    service = launch("answer", "-handle", "10ms", go=str(newest_go.go))
    with Client(service.address) as client:
        client.ask()
        for _ in attempts():  # or the client is as slow as the service
            with measure() as stretch:
                began = time.monotonic_ns()
                for _ in range(30):
                    client.socket.sendall(client.request)
                    time.sleep(0.001)
                for _ in range(30):
                    assert client.socket.recv(4, socket.MSG_WAITALL) == client.request
                most = time.monotonic_ns() - began
            m = stretch(service)
            assert count(m, "queue_delay") == 30
            assert m.response_max <= most
            if m.response_max > 150 * MS:
                break
    assert m.response_max > 150 * MS


@undisturbed
def test_answers_by_another_goroutine_are_not_responses(launch, measure, newest_go):
    service = launch("answer", "-writer", "-handle", "2ms", go=str(newest_go.go))
    with Client(service.address) as client, measure() as stretch:
        for _ in range(20):
            client.ask()
    m = stretch(service)
    assert m.response_p50 is m.response_max is None
    assert m.absent["response_p99"].what == "0 of 20 reads were answered by a write of the same goroutine"
    assert count(m, "queue_delay") == 20
    assert m.queue_delay_p50 is not None


@undisturbed
def test_connections_that_the_service_dialed_have_no_responses(launch, factory, measure, newest_go):
    """After reading a backend's answer it writes the next request, which may be any time later."""
    backend = factory(
        "./answer",
        name="backend",
        args=["-addr", "127.0.0.1:{port}"],
        ready=re.compile("ready on"),
        go=str(newest_go.go),
    )
    service = launch("answer", "-dial", "{}:{}".format(*backend.address), go=str(newest_go.go))
    with Client(service.address) as client:
        client.ask()
        stretch = until_they_agree(measure, client, service, 20, pause(0.02))
    assert not apart(stretch(service), client.took)
    assert count(stretch(backend), "response") == 20


@undisturbed
def test_peeking_takes_nothing(launch, measure, newest_go):
    service = launch("answer", "-peek", "10ms", go=str(newest_go.go))
    with Client(service.address) as client:
        client.ask()
        m = until_they_agree(
            measure,
            client,
            service,
            20,
            lambda: fall_asleep(service.pid),
            lambda m: budget(m, "response").run <= 0.5 * budget(m, "response").total,
        )(service)
    assert not apart(m, client.took)
    assert count(m, "queue_delay") == count(m, "poll_delay") == 20
    assert m.queue_delay_p50 >= 10 * MS
    parts = budget(m, "response")
    # The goroutine was woken for its peek, and ran for 10 ms until it read.
    assert parts.unparked == 0
    assert parts.run > 0.5 * parts.total > parts.handling


@undisturbed
def test_sockets_older_than_the_probe_are_measured_from_their_first_data_on(factory, new_meter, newest_go):
    def start(name, *args):
        return factory(
            "./answer",
            name=name,
            args=["-addr", "127.0.0.1:{port}", *args],
            ready=re.compile("ready on"),
            go=str(newest_go.go),
        )

    meter = new_meter(response="on")
    backend = start("backend")
    service = start("service", "-handle", "5ms", "-dial", "{}:{}".format(*backend.address))
    with Client(service.address) as client:
        client.ask()
        meter.start()
        meter.watch(service)
        window = meter.open()
        for _ in range(10):
            client.ask()
            time.sleep(0.002)
        [m] = meter.close(window, [service])
    assert m.unmeasured is None
    # Those that were accepted, and the one to the backend, whose answers aren't requests.
    assert count(m, "queue_delay") == 20
    # Some data may arrive before its reader parks.
    assert 0 < count(m, "poll_delay") <= 20
    assert count(m, "response") == 10
    assert m.response_p50 >= 5 * MS


@undisturbed
def test_a_connection_that_is_busy_while_the_probe_comes_has_responses(factory, new_meter, newest_go):
    service = factory("./echo", args=["-addr", "127.0.0.1:{port}"], ready="tcp", go=str(newest_go.go))
    meter, stop = new_meter(response="on"), threading.Event()
    with Client(service.address) as client:

        def keep_asking():
            while not stop.is_set():
                client.ask()

        asking = threading.Thread(target=keep_asking)
        asking.start()
        try:
            meter.start()
            meter.watch(service)
            window, asked = meter.open(), len(client.took)
            patiently(lambda: len(client.took) >= asked + 20)
            [m] = meter.close(window, [service])
        finally:
            stop.set()
            asking.join()
    assert m.unmeasured is None
    assert m.absent.get("response_p50") is None
    assert count(m, "response") >= 18  # the first and the last may be on their way


@undisturbed
def test_sockets_in_the_memory_of_an_ended_services_listener_are_not_listeners(
    launch, measure, tmp_path, newest_go
):
    """A client's may be: its answers aren't connections."""
    for _ in range(8):
        launch("answer", "-path", str(tmp_path / str(time.monotonic_ns())), go=str(newest_go.go)).stop()
    path = str(tmp_path / f"socket-{time.monotonic_ns()}")
    service = launch("answer", "-handle", "20ms", "-path", path, go=str(newest_go.go))
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(path)) for _ in range(100)]
        for client in clients:
            client.send()
        for client in clients:
            client.receive()
        with measure() as stretch:
            for _ in range(2):  # the second arrives before the first is answered
                for client in clients:
                    client.send()
            for client in clients * 2:
                assert client.socket.recv(4, socket.MSG_WAITALL) == client.request
    m = stretch(service)
    assert count(m, "queue_delay") == 200
