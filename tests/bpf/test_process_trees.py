"""A service is all its processes, whenever and however they come and go."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import time

import psutil
import pytest

from pytest_netpoll.gobinary.symbols import Symbolizer
from pytest_netpoll.meter.meter import Meter
from pytest_netpoll.options import Config
from tests.waiting import patiently, undisturbed


def alive(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def listens(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


@pytest.fixture
def shell(factory):
    """shell("…{port}…") is a service whose command line the shell runs."""

    def shell(script, **options):
        return factory(command=["/bin/sh", "-c", script], **options)

    return shell


@pytest.fixture
def meter_for():
    """meter_for(factory, max_processes=2): a meter with its own agent, for services made later."""
    with contextlib.ExitStack() as stack:

        def meter_for(factory, **options):
            meter = Meter(dataclasses.replace(Config.default(), **options), Symbolizer(factory._rootdir))
            stack.callback(meter.stop)
            stack.callback(setattr, factory, "on_spawn", factory.on_spawn)
            stack.callback(setattr, factory, "on_exit", factory.on_exit)
            factory.on_spawn, factory.on_exit = meter.watch, meter.unwatch
            return meter

        yield meter_for


@undisturbed
def test_the_children_of_a_prefork_server_are_summed(launch, measure, connect, spaced_pings, newest_go):
    server = launch("prefork", "-n", "4", go=str(newest_go.go))
    children = psutil.Process(server.pid).children()
    assert len(children) == 4
    with measure() as stretch:
        connections = [connect(server.address) for _ in range(10)]
    m = stretch(server)
    # Each accept, and each connection's ping, unless it arrived before its reader parked.
    assert 9 <= m.productive_wakeups <= 20
    assert m.spurious_wakeups <= 3 * 10  # by the others, for each connection
    with measure() as stretch:
        for connection in connections:
            spaced_pings(connection, 20)
    m = stretch(server)
    assert m.productive_wakeups == pytest.approx(200, abs=2)
    assert (m.spurious_wakeups, m.abandoned_wakeups, m.pending_wakeups, m.lost) == (0, 0, 0, 0)
    assert m.pid == server.pid


def test_what_the_memory_of_a_child_held_is_lost_with_it(launch, measure, commands, newest_go):
    """The agent sees a child only if it runs for long enough, which is 0.1 s if the machine isn't busy."""
    for messages in (30_000, 300_000, 3_000_000):
        service = launch("forker", "-wake", str(messages), go=str(newest_go.go))
        with measure(("mutex",)) as stretch:
            assert commands(service)(1) == "done"
        m = stretch(service)
        assert m.unmeasured is None
        if m.dispatches is None:
            break
    for name in ("dispatches", "runq_max", "p_utilization", "sched_latency_p99", "mutex_wait_seconds"):
        assert getattr(m, name) is None
        assert f"that ran {service.executable} has ended, and its memory with it" in m.absent[name].what
    assert m.io_calls > 0


def test_programs_that_are_not_go_have_nothing_to_lose(launch, measure, commands, newest_go):
    service = launch("forker", go=str(newest_go.go))
    command = commands(service)
    with measure() as stretch:
        assert command(20) == "done"
    assert stretch(service).dispatches is not None


@undisturbed
def test_a_shell_that_execs_the_service_is_measured_as_the_service(
    shell, built, measure, connect, spaced_pings, newest_go
):
    server = shell(f"exec {built('echo', str(newest_go.go))} -addr 127.0.0.1:{{port}}")
    connection = connect(server.address)
    with measure() as stretch:
        spaced_pings(connection, 100)
    assert stretch(server).productive_wakeups == pytest.approx(100, abs=1)


@undisturbed
def test_a_shell_that_forks_the_service_is_measured_with_it(
    shell, built, measure, connect, spaced_pings, newest_go
):
    server = shell(f"{built('echo', str(newest_go.go))} -addr 127.0.0.1:{{port}} & wait")
    connection = connect(server.address)
    with measure() as stretch:
        spaced_pings(connection, 100)
    m = stretch(server)
    assert m.productive_wakeups == pytest.approx(100, abs=1)
    assert m.pid == server.pid


@pytest.fixture
def two_stage(shell, built, kept_port, tmp_path, newest_go):
    """(service, go, port): a shell that runs an echo and, after go() was called, another one on `port`."""
    fifo, port = tmp_path / "go", kept_port()
    os.mkfifo(fifo)
    echo = built("echo", str(newest_go.go))
    service = shell(
        f"{echo} -addr 127.0.0.1:{{port}} & read go < {fifo}; {echo} -addr 127.0.0.1:{port} & wait; wait"
    )

    def go():
        fifo.write_text("go\n")
        patiently(lambda: listens(port))

    return service, go, port


def test_a_process_forked_in_the_window_counts_from_its_first_wakeup(
    two_stage, measure, connect, parked, spaced_pings
):
    service, go, port = two_stage
    with measure() as stretch:
        go()
        parked()
        connection = connect(("127.0.0.1", port))
        spaced_pings(connection, 100)
    m = stretch(service)
    # The two accepts, the end of the connection that saw it listening, and 101 pings; without those that
    # arrived before a goroutine waited for them.
    assert 100 <= m.productive_wakeups <= 104
    assert (m.spurious_wakeups, m.abandoned_wakeups, m.lost) == (0, 0, 0)


def test_a_child_that_dies_in_the_window_keeps_its_numbers(two_stage, measure, connect, spaced_pings):
    service, go, port = two_stage
    go()
    first, second = sorted(psutil.Process(service.pid).children(), key=lambda p: p.create_time())
    connection, other = connect(("127.0.0.1", port)), connect(service.address)
    with measure() as stretch:
        spaced_pings(connection, 60)
        second.kill()
        patiently(lambda: not alive(second))
        spaced_pings(other, 40)
    assert stretch(service).productive_wakeups == pytest.approx(100, abs=2)
    # … and they go with it.
    with measure() as stretch:
        spaced_pings(other, 10)
    assert stretch(service).productive_wakeups == pytest.approx(10, abs=2)
    assert alive(first)


@undisturbed
def test_many_short_lived_children_find_a_slot_each(launch, measure, commands, go_toolchain):
    service = launch("forker", go=str(go_toolchain.go))
    command = commands(service)
    with measure() as stretch:
        assert command(200) == "done"
    m = stretch(service)
    assert (m.wakeups, m.productive_wakeups, m.lost) == (1, 1, 0)


@undisturbed
def test_the_short_lived_children_of_a_shell_find_a_slot_each(
    shell, built, measure, connect, spaced_pings, newest_go
):
    script = "while :; do /bin/true; done"
    service = shell(f"{built('echo', str(newest_go.go))} -addr 127.0.0.1:{{port}} & {script}")
    connection = connect(service.address)
    with measure() as stretch:
        spaced_pings(connection, 100)
        time.sleep(0.3)
    m = stretch(service)
    assert m.productive_wakeups == pytest.approx(100, abs=2)
    assert m.lost == 0


@undisturbed
def test_a_service_that_replaces_itself_from_another_thread_stays_watched(
    launch, measure, connect, parked, spaced_pings, go_toolchain
):
    service = launch("reexec", go=str(go_toolchain.go))
    pid = service.pid
    with connect(service.address) as connection, measure() as stretch:
        spaced_pings(connection, 30)
        os.kill(pid, signal.SIGUSR1)
        assert connection.recv(1) == b""
        patiently(lambda: listens(service.port))
        parked()
        again = connect(service.address)
        spaced_pings(again, 50)
    assert "exec in thread" in service.log
    m = stretch(service)
    # 80 spaced pings. Two accepts, the end of the connection that saw it listening, and connect()'s own ping
    # may each have arrived before a goroutine waited for them.
    assert 80 <= m.productive_wakeups <= 84
    assert (m.spurious_wakeups, m.lost) == (0, 0)
    # The scheduler's former counts ended with the former program.
    assert m.dispatches is None
    assert "began to run" in m.absent["dispatches"]
    with measure() as stretch:
        spaced_pings(again, 50)
    assert stretch(service).productive_wakeups == pytest.approx(50, abs=2)
    assert stretch(service).dispatches == pytest.approx(50, abs=20)


@undisturbed
def test_a_gateway_and_its_backend_have_numbers_of_their_own(
    launch, measure, connect, spaced_pings, newest_go
):
    backend = launch("echo", "-delay", "3ms", go=str(newest_go.go))
    gateway = launch("gate", "-backend", f"127.0.0.1:{backend.port}", go=str(newest_go.go))
    connection = connect(gateway.address)
    with measure() as stretch:
        spaced_pings(connection, 200)
    assert stretch(backend).productive_wakeups == pytest.approx(200, abs=2)
    assert stretch(gateway).productive_wakeups == pytest.approx(400, abs=4)
    assert stretch(gateway).spurious_wakeups == stretch(backend).spurious_wakeups == 0


@undisturbed
def test_a_service_restarted_between_windows_is_measured_as_before(
    launch, measure, connect, spaced_pings, newest_go
):
    service = launch("echo", go=str(newest_go.go))
    for _ in range(2):
        connection = connect(service.address)
        with measure() as stretch:
            spaced_pings(connection, 50)
        assert stretch(service).productive_wakeups == pytest.approx(50, abs=2)
        pid = service.pid
        service.restart()
        assert service.pid != pid


@undisturbed
def test_a_service_restarted_in_the_window_counts_both_processes(
    launch, measure, connect, spaced_pings, newest_go
):
    service = launch("echo", go=str(newest_go.go))
    connection = connect(service.address)
    with measure() as stretch:
        spaced_pings(connection, 50)
        service.restart()
        connection = connect(service.address)
        spaced_pings(connection, 70)
    m = stretch(service)
    # The check for readiness may have made a connection; and connect() makes an accept and a ping.
    assert m.productive_wakeups == pytest.approx(122, abs=3)
    assert m.pid == service.pid
    with measure() as stretch:
        spaced_pings(connection, 20)
    assert stretch(service).productive_wakeups == pytest.approx(20, abs=2)


def test_children_without_room_make_the_service_unmeasured(launch, factory, meter_for, newest_go):
    meter = meter_for(factory, max_processes=3)
    server = launch("prefork", "-n", "6", go=str(newest_go.go))
    for _ in range(2):  # not only in the window in which they were forked
        (m,) = meter.close(meter.open(), [server])
        assert m.unmeasured is not None
        assert "--netpoll-max-processes" in m.unmeasured


def test_children_that_found_no_room_are_watched_once_there_is_some(
    launch, factory, meter_for, connect, spaced_pings, newest_go
):
    meter = meter_for(factory, max_processes=5)
    filler = launch("prefork", "-n", "3", go=str(newest_go.go))
    server = launch("prefork", "-n", "2", go=str(newest_go.go))
    _, m = meter.close(meter.open(), [filler, server])
    assert m.unmeasured is not None
    assert "--netpoll-max-processes" in m.unmeasured
    filler.stop()
    meter.close(meter.open(), [server])  # frees the filler's
    connection = connect(server.address)
    window = meter.open()
    spaced_pings(connection, 50)
    (m,) = meter.close(window, [server])
    assert m.unmeasured is None
    assert m.productive_wakeups == pytest.approx(50, abs=2)


def test_a_process_refused_for_lack_of_room_takes_none(launch, factory, meter_for, newest_go):
    # Its children exist already when it is watched.
    meter = meter_for(factory, max_processes=4)
    told, factory.on_spawn = factory.on_spawn, None
    server = launch("prefork", "-n", "4", go=str(newest_go.go))
    factory.on_spawn = told
    meter.watch(server)
    echo = launch("echo", go=str(newest_go.go))
    refused, m = meter.close(meter.open(), [server, echo])
    assert refused.unmeasured is not None
    assert "--netpoll-max-processes=8" in refused.unmeasured
    assert m.unmeasured is None


@undisturbed
def test_the_cpu_time_of_threads_that_have_ended_is_kept(launch, measure, newest_go):
    service = launch("threads", go=str(newest_go.go))
    with (
        socket.create_connection(service.address, timeout=30) as connection,
        connection.makefile("rw") as wire,
    ):

        def command(n):
            wire.write(f"{n}\n")
            wire.flush()
            assert wire.readline() == "done\n"

        command(4)
        with measure() as stretch:
            command(4)  # 4 threads, 50 ms each
    assert 0.15 <= stretch(service).cpu_seconds <= 0.4
