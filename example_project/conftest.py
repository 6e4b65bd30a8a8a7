"""The service under test, once for each fault; with --wasteful the faults are in it."""

import socket
import time

import pytest


def pytest_addoption(parser):
    parser.addoption(
        "--wasteful",
        action="store_true",
        help="run the service with each test's fault switched on, to see it caught",
    )


@pytest.fixture
def launch(go_service, pytestconfig):
    """launch("dup", *flags) is the service with this fault; without --wasteful the fault is fixed."""

    def launch(fault, *flags):
        wanted = fault if pytestconfig.getoption("--wasteful") else "none"
        args = ["-addr", "127.0.0.1:{port}", "-fault", wanted, *flags]
        return go_service("./server", args=args, name="healthy" if wanted == "none" else wanted)

    return launch


@pytest.fixture
def ping(record_property):
    """ping(server, 50) sends 50 messages over one connection, each after the answer to the one before."""

    def ping(server, count, *, pause=0.0, message=b"ping"):
        with socket.create_connection(server.address, timeout=10) as connection:
            for _ in range(count):
                connection.sendall(message)
                assert receive(connection, len(message)) == message
                time.sleep(pause)
        record_property("requests", count)  # pytest-netpoll turns it into requests per second

    return ping


def receive(connection, size):
    data = b""
    while len(data) < size and (more := connection.recv(size - len(data))):
        data += more
    return data


@pytest.fixture(name="receive")
def receive_fixture():
    """receive(connection, 4) waits for that many bytes."""
    return receive
