"""The diagnosis of each fault of example_project, really measured; healthy services get none."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path

import psutil
import pytest

from pytest_netpoll.model.diagnosis import diagnose, findings
from pytest_netpoll.model.limits import resolve
from tests.cpu_time import burners
from tests.waiting import attempts, patiently, undisturbed

SERVER = Path(__file__).parents[2] / "example_project" / "server"
ONE_CPU = ("taskset", "-c", str(min(os.sched_getaffinity(0))))


@pytest.fixture
def measure(measure):
    """As with all rules forbidden."""
    return lambda: measure(resolve([((), {"forbid": "all"})], "t").offences)


@pytest.fixture
def launch_fault(factory):
    return lambda fault: factory(str(SERVER), args=["-addr", "127.0.0.1:{port}", "-fault", fault], name=fault)


def ping(server, count, pause=0.0):
    with socket.create_connection(server.address, timeout=20) as connection:
        for _ in range(count):
            connection.sendall(b"ping")
            assert receive(connection) == b"ping"
            time.sleep(pause)


def ping_in_pieces(server, count):
    with socket.create_connection(server.address, timeout=20) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(count):
            connection.sendall(b"pi")
            time.sleep(0.001)
            connection.sendall(b"ng")
            assert receive(connection) == b"ping"


def receive(connection):
    data = b""
    while len(data) < 4 and (more := connection.recv(4)):
        data += more
    return data


# fault -> (what the client does, its rule, the diagnosis)
FAULTS = {
    "dup": (
        lambda s: ping(s, 100),
        "NP101",
        ["wakeups found nothing to read or write", "both ends are read"],
    ),
    "tickers": (
        lambda s: ping(s, 15, 0.05),
        "NP301",
        ["polls that waited were ended by a timer", "share one slow ticker"],
    ),
    "busy-poll": (
        lambda s: ping(s, 15, 0.05),
        "NP302",
        ["polls that waited were ended by a timer", "without a deadline"],
    ),
    "stale": (lambda s: ping_in_pieces(s, 30), "NP103", ["retries got EAGAIN again", "drains the socket"]),
    # With time for the reader to park again, for which it needs its own turn.
    "starve": (lambda s: ping(s, 20, 0.2), "NP401", ["ran more than 5.0 ms late", "CPU-bound", "GOMAXPROCS"]),
}


@pytest.mark.parametrize("fault", FAULTS)
@undisturbed
def test_each_fault_is_diagnosed_and_no_other(launch_fault, measure, fault):
    act, code, said = FAULTS[fault]
    server = launch_fault(fault)
    # On a busy machine a service may not get to its fault often enough.
    for _ in attempts():
        with measure() as stretch:
            act(server)
        if texts := unhurried(stretch(server)):
            break
    assert len(texts) == 1, texts
    assert [f.rule.code for f in findings(stretch(server)) if f.rule.code != "NP404"] == [code]
    assert texts[0].startswith(f"{server.name}: ")
    for phrase in said:
        assert phrase in texts[0]


def spread_workers(server):
    """Over the CPUs: if all are on one, the first to run accepts, and the others' polls report nothing."""
    cpus = sorted(os.sched_getaffinity(0))
    workers = patiently(lambda: len(found := psutil.Process(server.pid).children()) == 4 and found)
    for i, worker in enumerate(workers):
        for thread in worker.threads():
            os.sched_setaffinity(thread.id, {cpus[i % len(cpus)]})


@undisturbed
def test_a_shared_listener_is_diagnosed(launch_fault, measure):
    server = launch_fault("herd")
    spread_workers(server)
    # Several at once, because on a busy machine a worker may poll too late to be woken for a single one.
    for _ in attempts():
        with measure() as stretch:
            for _ in range(30):
                with contextlib.ExitStack() as stack:
                    for _ in range(3):
                        stack.enter_context(socket.create_connection(server.address, timeout=20))
                    time.sleep(0.003)
        m = stretch(server)
        if unhurried(m):
            break
    [text] = unhurried(m)
    assert f"{m.spurious_wakeups} of {m.spurious_wakeups} spurious wakeups found no connection" in text
    assert "SO_REUSEPORT" in text


@pytest.mark.parametrize("fault", FAULTS)
@undisturbed
def test_a_healthy_service_gets_no_diagnosis(launch_fault, measure, fault):
    server = launch_fault("none")
    with measure() as stretch:
        FAULTS[fault][0](server)
    m = stretch(server)
    assert m.wakeups >= 10
    assert unhurried(m) == []


# Takes precedence on its CPU, for 30 ms of every 35.
@pytest.mark.alone
@undisturbed
def test_a_busy_machine_is_distinguished_from_a_service_that_starves_itself(factory, built, measure):
    # Each in its own session, because the scheduler may divide the CPU by session. The service gets a small
    # part, in turns shorter than a batch of readers takes, so most readers wait for later turns.
    server = factory(
        command=[*ONE_CPU, built("echo"), "-addr", "127.0.0.1:{port}", "-work", "50"], name="echo"
    )
    with hogs(), connected(server) as clients, measure() as stretch:
        for _ in range(5):
            ask_all(clients, b"ping", b"ping")
    m = stretch(server)
    [text] = diagnose(m)
    assert "the machine is short of CPU: other processes use it" in text
    assert "CPU-bound" not in text
    assert m.run_delay_seconds > m.cpu_seconds


def hogs():
    """14 processes that keep ONE_CPU busy."""
    return burners(14, ONE_CPU)


@contextlib.contextmanager
def connected(server, count=300):
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection(server.address, timeout=20)) for _ in range(count)
        ]


def ask_all(clients, question, answer):
    for client in clients:
        client.sendall(question)
    for client in clients:
        assert client.recv(len(answer), socket.MSG_WAITALL) == answer


# Its threads wait for a CPU just as long, and its wakeups are as late.
@pytest.mark.alone
@undisturbed
def test_the_machine_is_not_blamed_for_a_service_that_uses_the_cpu_itself(factory, built, measure):
    command = [*ONE_CPU, built("causes"), "-addr", "127.0.0.1:{port}", "-do", "kernel"]
    server = factory(command=command, name="kernel", env={"GOMAXPROCS": "1"})
    with contextlib.suppress(OSError):  # the scheduler may divide the CPU by session
        Path(f"/proc/{server.pid}/autogroup").write_text("-20")
    for _ in range(3):
        with connected(server, 100) as clients, measure() as stretch:
            for _ in range(3):
                ask_all(clients, b"50\n", b"done\n")
        m = stretch(server)
        assert m.run_delay_seconds > m.cpu_seconds
        if m.latency_p90 > 5e6 and m.cpu_seconds > m.window_seconds / 2:
            break
    else:
        pytest.skip("other processes have most of the CPU")
    assert diagnose(m) == unhurried(m)


@undisturbed
def test_an_acceptor_outside_the_poller_is_no_shared_listener(factory, built, measure):
    one_cpu = ["taskset", "-c", str(min(os.sched_getaffinity(0)))]  # or the poller is often faster
    command = [*one_cpu, built("causes"), "-addr", "127.0.0.1:{port}", "-do", "thief"]
    server = factory(command=command, name="thief")
    for number in attempts():
        with measure() as stretch:
            for _ in range(30 * (number + 1)):  # how often the poller is too late depends on the machine
                with connected(server, 3):
                    time.sleep(0.003)
        m = stretch(server)
        assert unhurried(m) == []
        if m.spurious_wakeups >= 5:
            break
    assert m.spurious_wakeups >= 5
    assert {o.syscall for o in m.offenders if o.offence == "spurious"} == {"accept4"}


def unhurried(m):
    """The diagnosis, without what a busy test machine may add."""
    return [text for text in diagnose(m) if ": the machine is short of CPU" not in text]
