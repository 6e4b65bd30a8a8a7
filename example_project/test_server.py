"""What the service promises beyond correct answers: it wakes up only for work, and in time."""

import contextlib
import socket
import time

import pytest


@pytest.fixture
def server(launch, request):
    """The service with the fault that the test is about; see server/fault_*.go."""
    return launch(*request.node.get_closest_marker("fault").args)


@pytest.fixture
def upstream():
    """The upstream of the service under test."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        listener.settimeout(10)
        yield listener


@pytest.mark.fault("dup")
@pytest.mark.netpoll(max_spurious="5%")
def test_a_message_wakes_its_reader_and_nobody_else(server, ping):
    ping(server, 200)


@pytest.mark.fault("herd")
@pytest.mark.netpoll(max_spurious_wakeups=0)
def test_a_connection_wakes_one_acceptor(server):
    for _ in range(50):
        with contextlib.ExitStack() as connections:
            # Several at once: on a busy machine, acceptors that run late would miss a single one.
            for _ in range(10):
                connections.enter_context(socket.create_connection(server.address, timeout=10))
            time.sleep(0.005)


@pytest.mark.fault("tickers")
@pytest.mark.netpoll(max_polls_per_event=20)
def test_an_almost_idle_service_sleeps(server, ping):
    ping(server, 10, pause=0.1)


@pytest.mark.fault("busy-poll")
@pytest.mark.netpoll(max_polls_per_event=20)
def test_an_open_connection_costs_nothing_while_it_is_silent(server, ping):
    ping(server, 10, pause=0.1)


@pytest.mark.fault("busy-poll")
@pytest.mark.netpoll(max_deadline_wakeups=20)
def test_no_reader_gives_up_while_its_client_is_silent(server, ping):
    ping(server, 10, pause=0.1)


@pytest.mark.fault("broadcast")
@pytest.mark.netpoll(max_wakeups_per_event=3)
def test_a_message_is_told_to_whom_it_concerns(server, ping):
    ping(server, 50, pause=0.002)


@pytest.mark.fault("stale")
@pytest.mark.netpoll(max_stale_retries=5)
def test_a_message_in_two_pieces_is_read_without_stale_retries(server, receive):
    with socket.create_connection(server.address, timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(50):
            connection.sendall(b"pi")
            time.sleep(0.001)
            connection.sendall(b"ng")
            assert receive(connection, 4) == b"ping"


@pytest.mark.fault("spin", "-files", "32")
@pytest.mark.netpoll(max_futile_calls=0)
def test_a_service_out_of_descriptors_waits_for_one(server):
    with contextlib.ExitStack() as connections:
        for _ in range(40):
            connections.enter_context(socket.create_connection(server.address, timeout=10))
        time.sleep(0.5)


@pytest.mark.fault("unbuffered")
@pytest.mark.netpoll(max_io_calls_per_wakeup=20)
def test_a_message_is_read_at_once(server, ping):
    ping(server, 50, pause=0.002, message=b"x" * 100)


@pytest.mark.fault("starve")
@pytest.mark.netpoll(max_latency_p50="5ms")
def test_a_message_is_read_soon_after_it_came(server, ping):
    ping(server, 60)


@pytest.mark.netpoll(max_wakeups=500)
def test_a_lost_upstream_is_dialed_with_pauses(launch, upstream):
    host, port = upstream.getsockname()
    launch("stampede", "-upstream", f"{host}:{port}", "-links", "10")
    links = [upstream.accept()[0] for _ in range(10)]
    upstream.shutdown(socket.SHUT_RDWR)  # it no longer listens
    for link in links:
        link.close()
    time.sleep(0.5)
