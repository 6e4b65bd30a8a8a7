"""Goroutines parked on descriptors at a window's end, and descriptors whose peers are gone: services/keep
keeps some."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading

import pytest

from pytest_netpoll.model.metrics import PARKED_METRICS
from tests.bpf.conftest import SERVICES
from tests.waiting import fall_asleep, suspend, undisturbed

STRIPPED = ["-ldflags=-s -w"]


@pytest.fixture
def keep(start_keep):
    return start_keep()


@pytest.fixture
def start_keep(launch, newest_go):
    return lambda: launch("keep", go=str(newest_go.go), build_flags=STRIPPED)


@pytest.fixture
def held(meter):
    """with held(service) as found: …; found holds the measurement, with what is parked, after the block."""

    @contextlib.contextmanager
    def held(service):
        found = []
        window = meter.open(limited=["parked_growth"])
        try:
            yield found
        finally:
            found += meter.close(window, [service])
        (m,) = found
        assert m.unmeasured is None
        assert m.parked_goroutines == sum(group.count for group in groups(m))

    return held


def groups(m):
    return [offender for offender in m.offenders if offender.offence == "parked"]


def group(m, function):
    """The group whose stack begins there."""
    (found,) = [g for g in groups(m) if g.stack and g.stack[0].function == function]
    return found


@undisturbed
def test_growth_counts_the_stacks_that_grew(launch, client, held, go_toolchain):
    service = launch("keep", go=str(go_toolchain.go), build_flags=STRIPPED)
    idle = [client(service, "idle") for _ in range(10)]
    with held(service) as found:
        for connection in [client(service, "upstream") for _ in range(5)]:
            connection.close()
        for connection in idle[:8]:
            connection.close()
    (m,) = found
    # Only the other ends of the leaks are new readers in serve, and eight have gone.
    assert m.parked_growth == 5
    leaked = group(m, "main.leak")
    assert (leaked.count, leaked.growth, leaked.direction, leaked.fd_type) == (5, 5, "read", "tcp")
    assert leaked.peers == (f"127.0.0.1:{service.port}",)
    assert service.port in m.listening
    source = (SERVICES / leaked.stack[0].file).read_text().splitlines()
    assert "func leak" in source[leaked.stack[0].line - 1]
    assert groups(m)[0] == leaked
    assert (group(m, "main.serve").count, group(m, "main.serve").growth) == (2 + 5, 0)
    assert group(m, "main.main").fd_type == "listener"
    assert (m.abandoned_descriptors, m.stuck_goroutines) == (0, 0)


@undisturbed
def test_descriptors_are_abandoned_once_their_peers_are_gone(start_keep, client, held):
    keep = start_keep()
    before = client(keep, "channel")
    before.close()
    with held(keep) as found:
        closed = [client(keep, "channel") for _ in range(4)]
        reset = client(keep, "channel")
        client(keep, "channel")  # its client stays
        ends = {f"127.0.0.1:{connection.getsockname()[1]}" for connection in closed}
        for connection in closed:
            connection.close()
        reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        reset.close()
    (m,) = found
    assert (m.abandoned_descriptors, m.parked_growth, m.parked_goroutines) == (5, 0, 1)
    (kept,) = [g for g in groups(m) if g.abandoned == 4]
    assert (set(kept.peers), kept.count, kept.stack) == (ends, 0, ())


@undisturbed
def test_only_a_goroutine_that_ignores_reported_data_is_stuck(start_keep, client, held):
    keep = start_keep()
    stuck, low = client(keep, "stuck"), client(keep, "low 100")
    with held(keep) as found:
        stuck.sendall(b"hello")
        low.sendall(b"hello")
    (m,) = found
    assert m.stuck_goroutines == 1
    assert group(m, "main.ignore").stuck == 1
    assert groups(m)[0].stuck == 1
    # It was already there at the window's first look.
    assert m.parked_growth == 0


@undisturbed
def test_a_goroutine_that_could_not_run_yet_is_undecided(start_keep, client, held):
    keep = start_keep()
    connection = client(keep, "idle")
    fall_asleep(keep.pid)  # its reader is parked
    suspend(keep.pid)
    try:
        with held(keep) as found:
            connection.sendall(b"hello")
    finally:
        os.kill(keep.pid, signal.SIGCONT)
    (m,) = found
    assert m.stuck_goroutines is None
    assert "did not rest" in m.absent["stuck_goroutines"].headline
    assert m.parked_growth == 0


@undisturbed
def test_clients_that_come_just_before_a_window_and_go_just_before_its_end_leave_nothing(
    start_keep, client, held
):
    keep = start_keep()
    for _ in range(5):
        # The service has not accepted it yet.
        with socket.create_connection(keep.address), held(keep) as found:
            gone = [client(keep, "idle") for _ in range(20)]
            # It hasn't noticed their end when the window closes.
            suspend(keep.pid)
            for connection in gone:
                connection.close()
            resumed = threading.Timer(0.05, os.kill, (keep.pid, signal.SIGCONT))
            resumed.start()
        resumed.join()
        (m,) = found
        assert (m.parked_growth, m.abandoned_descriptors, m.stuck_goroutines) == (0, 0, 0)


def test_parked_goroutines_of_an_ended_service_are_unknown(keep, client, meter):
    window = meter.open(limited=["parked_growth"])
    client(keep, "idle")
    keep.stop()
    (m,) = meter.close(window, [keep])
    assert m.unmeasured is None
    for name in PARKED_METRICS:
        assert getattr(m, name) is None
        assert "had ended when the window closed" in m.absent[name].what


@undisturbed
def test_children_that_come_and_go_have_nobody_parked(start_keep, client, meter, held):
    keep = start_keep()
    try:
        with held(keep) as found:
            client(keep, "exec")
            for _ in range(20):
                assert len(meter.parked(keep)) == 1  # in main, for the listener
    finally:
        keep.stop()
    (m,) = found
    assert (m.parked_growth, m.stuck_goroutines) == (0, 0)


def test_parked_goroutines_are_read_only_on_request(keep, meter):
    (m,) = meter.close(meter.open(limited=["spurious", "ready_calls"]), [keep])
    assert [getattr(m, name) for name in PARKED_METRICS] == [None] * 4
    assert groups(m) == []


@undisturbed
def test_a_dump_shows_the_goroutines_of_a_process_by_stack(start_keep, client, newest_go):
    keep = start_keep()
    one = client(keep, "upstream")
    fall_asleep(keep.pid)  # all its goroutines are parked
    number = f"127.0.0.1:{one.getsockname()[1]}"
    command = [sys.executable, "-m", "pytest_netpoll", "dump", "--port", str(keep.port)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert (run.returncode, run.stderr) == (0, "")
    head, *places = run.stdout.split("\n\n")
    assert head == f"keep (pid {keep.pid}, go{newest_go.version}): 4 goroutines parked on descriptors"
    assert [place.splitlines()[0] for place in places] == [
        "2 goroutines, read on tcp:",
        "1 goroutine, read on listener:",
        "1 goroutine, read on tcp:",
    ]
    assert number in places[0]
    assert "keep/main.go" in places[2]
    assert "main.leak" in places[2]
    keep.check_alive("after all")


def test_a_dump_of_another_program_says_that_it_is_not_go():
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            command = [sys.executable, "-m", "pytest_netpoll", "dump", "--pid", str(process.pid)]
            run = subprocess.run(command, capture_output=True, text=True, timeout=600)
        finally:
            process.kill()
    assert (run.returncode, run.stdout) == (1, "")
    assert "sleep is not a Go program" in run.stderr
    assert "\n  fix: name the Go process" in run.stderr
