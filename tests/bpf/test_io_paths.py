"""Every way in which a Go service waits for a descriptor, with the number of wakeups that it makes."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest

from tests.waiting import patiently, undisturbed

N = 200


def assert_resolved(m):
    """What holds if a syscall follows every wakeup."""
    assert (m.spurious_wakeups, m.stale_retries, m.lost) == (0, 0, 0)
    assert m.abandoned_wakeups + m.pending_wakeups <= 0.01 * m.wakeups


def assert_answered(m, requests):
    """What holds if one goroutine reads and answers each request."""
    counts = {name: sum(delay.histogram.values()) for name, delay in m.snapshot.delays.items()}
    assert counts["queue_delay"] >= requests
    assert counts["response"] == pytest.approx(requests, rel=0.01)
    assert m.response_p50 is not None


def assert_unanswered(m, reads, why):
    assert sum(m.snapshot.delays["queue_delay"].histogram.values()) >= reads
    assert m.queue_delay_p50 is not None
    assert m.response_p50 is m.response_max is None
    assert why in m.absent["response_p50"]


def unverified(*protocols):
    """Settings of a TLS client that accepts the services' self-signed certificates."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if protocols:
        context.set_alpn_protocols(protocols)
    return context


@pytest.mark.parametrize("via", ["readfrom", "readmsg"])
@undisturbed
def test_every_spaced_datagram_is_one_wakeup(launch, measure, parked, newest_go, via):
    service = launch("udp", "-via", via, go=str(newest_go.go))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(service.address)
        client.settimeout(20)
        with measure() as stretch:
            for _ in range(N):
                client.send(b"ping")
                assert client.recv(16) == b"ping"
                parked()
    m = stretch(service)
    assert m.wakeups == pytest.approx(N, rel=0.01)
    assert_resolved(m)
    assert_unanswered(m, N, "no read of an accepted stream connection")


@undisturbed
def test_every_spaced_ping_over_a_unix_socket_is_one_wakeup(
    launch, measure, connect, spaced_pings, tmp_path, newest_go
):
    path = str(tmp_path / f"socket-{time.monotonic_ns()}")
    service = launch("unix", "-path", path, go=str(newest_go.go))
    connection = connect(path)
    with measure() as stretch:
        spaced_pings(connection, N)
    m = stretch(service)
    assert m.wakeups == pytest.approx(N, rel=0.01)
    assert_resolved(m)
    assert_answered(m, N)


@undisturbed
def test_every_message_through_a_pipe_is_one_wakeup(launch, measure, commands, newest_go):
    service = launch("pipe", go=str(newest_go.go))
    command = commands(service)
    with measure() as stretch:
        assert command(N) == "done"
    m = stretch(service)
    assert m.wakeups == pytest.approx(N + 1, rel=0.01)
    assert_resolved(m)


@undisturbed
def test_every_spaced_ping_over_tls_is_one_wakeup(launch, measure, spaced_pings, newest_go):
    service = launch("tls", go=str(newest_go.go))
    with (
        socket.create_connection(service.address, timeout=20) as raw,
        unverified().wrap_socket(raw) as connection,
    ):
        spaced_pings(connection, 1)
        with measure() as stretch:
            spaced_pings(connection, N)
    m = stretch(service)
    assert m.wakeups == pytest.approx(N, rel=0.01)
    assert_resolved(m)
    assert_answered(m, N)


@undisturbed
def test_every_spaced_request_is_one_wakeup(launch, measure, parked, go_toolchain):
    service = launch("http", go=str(go_toolchain.go))
    with contextlib.closing(http.client.HTTPConnection(*service.address, timeout=20)) as client:
        get(client)
        with measure() as stretch:
            for _ in range(N):
                assert get(client) == b"hello\n"
                parked()
    m = stretch(service)
    assert m.wakeups == pytest.approx(N, rel=0.01)
    # The background read and the one that follows it both get EAGAIN: no retry, and not stale.
    assert_resolved(m)
    assert_answered(m, N)


def get(client):
    client.request("GET", "/")
    return client.getresponse().read()


@undisturbed
def test_every_spaced_request_over_http2_is_one_wakeup(launch, measure, parked, newest_go):
    service = launch("http", "-tls", go=str(newest_go.go))
    with Http2(service.address) as client:
        client.get("/")
        parked()
        with measure() as stretch:
            for _ in range(N):
                assert client.get("/") == b"hello\n"
                parked()
    m = stretch(service)
    assert m.wakeups == pytest.approx(N, rel=0.01)
    assert_resolved(m)
    assert_unanswered(m, N, "answered by a write of the same goroutine")


class Http2:
    """A minimal HTTP/2 client: small answers, one request after the other."""

    DATA, HEADERS, SETTINGS = 0, 1, 4
    END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1

    def __init__(self, address):
        connection = socket.create_connection(address, timeout=20)
        self._connection = unverified("h2").wrap_socket(connection)
        assert self._connection.selected_alpn_protocol() == "h2"
        self._incoming = self._connection.makefile("rb")
        self._stream = -1
        self._connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        self._send(self.SETTINGS, 0, 0, b"")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._incoming.close()
        self._connection.close()

    def get(self, path):
        self._stream += 2
        # Of HPACK: :method GET and :scheme https by index, :path and :authority in full.
        fields = b"\x82\x87" + b"\x04" + self._text(path) + b"\x01" + self._text("localhost")
        self._send(self.HEADERS, self.END_STREAM | self.END_HEADERS, self._stream, fields)
        body = b""
        while True:
            kind, flags, stream, payload = self._receive()
            if kind == self.SETTINGS and not flags & self.ACK:
                self._send(self.SETTINGS, self.ACK, 0, b"")
            if stream != self._stream:
                continue
            assert kind in (self.DATA, self.HEADERS), kind
            if kind == self.DATA:
                body += payload
            if flags & self.END_STREAM:
                return body

    @staticmethod
    def _text(value):
        return bytes([len(value)]) + value.encode()

    def _send(self, kind, flags, stream, payload):
        head = len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big")
        self._connection.sendall(head + payload)

    def _receive(self):
        head = self._incoming.read(9)
        payload = self._incoming.read(int.from_bytes(head[:3], "big"))
        return head[3], head[4], int.from_bytes(head[5:9], "big"), payload


@undisturbed
def test_sendfile_resolves_the_wakeups_of_its_target(launch, measure, parked, go_toolchain):
    requests, size = 20, 16 << 20  # more than the buffers of both sockets hold
    service = launch("sendfile", "-size", size, go=str(go_toolchain.go))
    with contextlib.closing(http.client.HTTPConnection(*service.address, timeout=20)) as client:
        get(client)
        with measure() as stretch:
            for _ in range(requests):
                client.request("GET", "/")
                time.sleep(0.02)  # the buffers are full, and the writer waits, before anything is read
                assert len(client.getresponse().read()) == size
                parked()
    m = stretch(service)
    assert m.wakeups >= 2 * requests  # for each request, and each time there was room again
    assert m.abandoned_wakeups + m.pending_wakeups <= 0.01 * m.wakeups
    assert (m.spurious_wakeups, m.lost) == (0, 0)
    assert_answered(m, requests)


@undisturbed
def test_a_proxy_that_splices_is_woken_by_both_of_its_sides(
    launch, measure, connect, spaced_pings, go_toolchain
):
    backend = launch("echo", "-delay", "3ms", go=str(go_toolchain.go))
    proxy = launch("spliceecho", "-backend", f"127.0.0.1:{backend.port}", go=str(go_toolchain.go))
    connection = connect(proxy.address)
    with measure() as stretch:
        spaced_pings(connection, N)
    m = stretch(proxy)
    assert m.wakeups == pytest.approx(2 * N, rel=0.01)
    assert_resolved(m)
    assert_unanswered(m, N, "answered by a write of the same goroutine")


@undisturbed
def test_a_writer_that_waits_for_room_is_woken_productively(launch, measure, connect, newest_go):
    service = launch("echo", go=str(newest_go.go))
    connection = connect(service.address)
    size = 128 << 20
    sender = threading.Thread(target=connection.sendall, args=[bytes(size)])
    with measure() as stretch:
        sender.start()
        time.sleep(0.1)  # both directions are full
        received = 0
        while received < size:
            received += len(connection.recv(1 << 20))
        sender.join()
    m = stretch(service)
    assert m.productive_wakeups > 10
    assert m.abandoned_wakeups + m.pending_wakeups <= max(1, 0.01 * m.wakeups)
    # An event may be on its way to the poller while the running reader already takes its data.
    assert m.spurious_wakeups <= 1
    assert m.lost == 0


@undisturbed
def test_every_spaced_connection_wakes_the_listener_once_and_its_end_the_reader(
    launch, measure, parked, newest_go
):
    service = launch("echo", go=str(newest_go.go))
    parked()
    with contextlib.ExitStack() as connections:
        with measure() as begins:
            for _ in range(N):
                connections.enter_context(socket.create_connection(service.address, timeout=20))
                parked()
        with measure() as ends:
            connections.close()
            parked()
    for stretch in begins, ends:
        m = stretch(service)
        assert m.wakeups == pytest.approx(N, rel=0.01)
        assert_resolved(m)


@undisturbed
def test_dialing_wakes_at_most_once_and_each_answer_once(launch, measure, commands, newest_go):
    target = launch("echo", "-delay", "3ms", go=str(newest_go.go))
    service = launch("dial", "-target", f"127.0.0.1:{target.port}", go=str(newest_go.go))
    command = commands(service)
    with measure() as stretch:
        assert command(N) == "done"
    m = stretch(service)
    assert 0.99 * N <= m.wakeups <= 2 * N + 1
    assert_resolved(m)


@undisturbed
def test_every_connect_that_had_to_wait_is_one_wakeup(launch, measure, commands, parked, go_toolchain):
    with Unhurried() as target:
        service = launch("dial", "-together", "-target", target.address, go=str(go_toolchain.go))
        command = commands(service)
        accepting = threading.Thread(target=target.answer, args=[20, parked])
        with measure() as stretch:
            accepting.start()
            assert command(20) == "done"
        accepting.join()
    m = stretch(service)
    assert m.wakeups == 2 * 20 + 1
    assert_resolved(m)


class Unhurried:
    """A server that lets all its clients wait: first for a connection, then for an answer."""

    def __init__(self):
        self._stack = contextlib.ExitStack()
        self._listener = self._stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        self._listener.settimeout(20)
        self.address = "{}:{}".format(*self._listener.getsockname())
        # With a full backlog, the kernel ignores further clients until they retry after a second.
        self._stack.enter_context(socket.create_connection(self._listener.getsockname(), timeout=20))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stack.close()

    def _dialing(self):
        """How many sockets wait for a connection to it."""
        to, syn_sent = f":{self._listener.getsockname()[1]:04X}", "02"
        rows = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()]
        return sum(row[2].endswith(to) and row[3] == syn_sent for row in rows)

    def answer(self, clients, parked):
        patiently(lambda: self._dialing() == clients)
        parked()  # the clients wait for their connections
        self._listener.listen(128)
        self._stack.enter_context(self._listener.accept()[0])  # the one that filled the backlog
        connections = [self._stack.enter_context(self._listener.accept()[0]) for _ in range(clients)]
        for connection in connections:
            connection.settimeout(20)
        asked = [connection.recv(1) for connection in connections]
        parked()
        for connection, byte in zip(connections, asked, strict=True):
            connection.sendall(byte)


@undisturbed
def test_expired_deadlines_are_not_network_wakeups(launch, measure, commands, newest_go):
    service = launch("deadline", go=str(newest_go.go))
    command = commands(service)
    with measure() as stretch:
        assert command(50) == "50"
    m = stretch(service)
    # Each deadline was followed by a read that got EAGAIN: no retry, and not stale.
    assert (m.wakeups, m.productive_wakeups) == (1, 1)
    assert (m.spurious_wakeups, m.stale_retries, m.lost) == (0, 0, 0)


@undisturbed
def test_readers_whose_connection_is_closed_leave_nothing_unresolved(launch, measure, commands, newest_go):
    service = launch("closer", go=str(newest_go.go))
    command = commands(service)
    with measure() as stretch:
        assert command(100) == "done"
    m = stretch(service)
    assert 1 <= m.wakeups <= 100 + 1  # the command, and the dials that had to wait
    assert m.productive_wakeups == m.wakeups
    assert (m.stale_retries, m.lost) == (0, 0)


@undisturbed
def test_a_pending_wakeup_is_not_charged_to_the_next_user_of_the_descriptor(
    launch, measure, commands, newest_go
):
    service = launch("reuse", go=str(newest_go.go))
    command = commands(service)
    with measure() as stretch:
        assert command(50) == "50"
    m = stretch(service)
    assert (m.wakeups, m.abandoned_wakeups, m.productive_wakeups) == (101, 50, 51)
    assert (m.spurious_wakeups, m.stale_retries, m.lost) == (0, 0, 0)
