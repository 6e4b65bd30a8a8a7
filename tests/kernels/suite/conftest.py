"""Runs inside a machine: services that were built outside, measured by the installed plugin."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from pathlib import Path

import pytest
import slowly  # noqa: F401 - sets deadlines

SERVICES = Path(__file__).parents[1] / "services"  # services/go1.27.3/echo
GO = sorted(
    (path.name for path in SERVICES.iterdir()),
    key=lambda name: [int(part) for part in re.findall(r"\d+", name)],
)


def pytest_generate_tests(metafunc):
    if "go" in metafunc.fixturenames:
        metafunc.parametrize("go", GO)


@pytest.fixture
def newest_go():
    return GO[-1]


@pytest.fixture
def start(go_service):
    """start([program, argument]) is a service that prints that it is ready; it runs until the test ends."""
    with contextlib.ExitStack() as stack:

        def start(command):
            service = go_service(command=command, ready=re.compile("ready on"), timeout=120)
            stack.callback(service.stop)
            return service

        yield start


@pytest.fixture
def launch(start):
    """launch("echo", "go1.19.8", "-work", 1) is the service, running."""
    return lambda name, go, *args: start([SERVICES / go / name, "-addr", "127.0.0.1:{port}", *args])


def pytest_netpoll_measured(measurement):
    # An expected failure must be a broken limit, not a test that was not measured.
    assert measurement.unmeasured is None, measurement.unmeasured


@pytest.fixture
def connect(parked):
    """connect(service) is a connection that was accepted and whose reader is parked."""
    with contextlib.ExitStack() as stack:

        def connect(service):
            return connect_to(service.address, service)

        def connect_to(address, service):
            connection = stack.enter_context(socket.create_connection(address, timeout=60))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            ping(connection)
            parked(service)
            return connection

        connect.to = connect_to
        yield connect


def ping(connection):
    connection.sendall(b"ping")
    answer = b""
    while len(answer) < 4 and (more := connection.recv(4 - len(answer))):
        answer += more
    assert answer == b"ping"


@pytest.fixture
def parked():
    """parked(service) returns when all its threads sleep, so that goroutines that were about to park have
    parked."""

    def parked(service):
        time.sleep(0.002)
        deadline = time.monotonic() + 60
        asleep = 0
        while asleep < 2:
            assert time.monotonic() < deadline, "it never sleeps"
            asleep = 0 if awake(service.pid) else asleep + 1

    return parked


def awake(pid):
    """Whether a thread of the process or its descendants runs."""
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):
            if (task / "stat").read_text().rpartition(")")[2].split()[0] in "RD":
                return True
            if any(awake(child) for child in (task / "children").read_text().split()):
                return True
    return False


@pytest.fixture
def spaced_pings(parked):
    """spaced_pings(connection, service, 60): the reader parks before each, so each is exactly one wakeup."""

    def spaced_pings(connection, service, count):
        for _ in range(count):
            ping(connection)
            parked(service)

    return spaced_pings


@pytest.fixture(scope="session")
def has_btf():
    """Whether the machine should have BTF: NETPOLL_BTF, set by what boots it."""
    return os.environ["NETPOLL_BTF"] == "1"
