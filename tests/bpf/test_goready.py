"""The wakeups that do not come from the network: they are counted, and their callers named."""

from __future__ import annotations

import dataclasses
import os
import shutil
import socket
import threading
import time
from pathlib import Path

import psutil
import pytest

from pytest_netpoll.gobinary.ready_sites import find_sites
from pytest_netpoll.gobinary.symbols import Symbolizer
from pytest_netpoll.meter.meter import Meter
from pytest_netpoll.options import Config
from tests.attacks import byte_at
from tests.waiting import patiently, undisturbed

pytestmark = pytest.mark.uprobes

MESSAGES = 100
WOKEN = 50

BREAKPOINT = b"\xcc"


def assert_ground_truth(m, messages=MESSAGES, per_message=WOKEN):
    assert m.ready_calls == pytest.approx(per_message * messages, rel=0.02)
    assert m.wakeups_per_event == pytest.approx(per_message + 1, rel=0.02)


@pytest.mark.parametrize("via", ["chan", "cond"])
@undisturbed
def test_a_message_that_wakes_n_goroutines_causes_n_plus_1_wakeups(
    launch, measure, connect, spaced_pings, go_toolchain, via
):
    server = launch("ready", "-via", via, "-n", WOKEN, go=str(go_toolchain.go))
    connection = connect(server.address)
    with measure() as stretch:
        spaced_pings(connection, MESSAGES)
    assert_ground_truth(stretch(server))


# cgo: the system's linker puts the program together, and decides where things are.
@pytest.mark.parametrize(
    "flags",
    [["-ldflags=-s -w"], ["-buildmode=pie", "-ldflags=-s -w"], ["-ldflags=-linkmode=external"]],
    ids=["stripped", "stripped-pie", "cgo"],
)
@undisturbed
def test_ready_calls_are_found_in_every_build_mode(launch, measure, connect, spaced_pings, newest_go, flags):
    server = launch("ready", "-n", WOKEN, go=str(newest_go.go), build_flags=flags)
    connection = connect(server.address)
    with measure() as stretch:
        spaced_pings(connection, MESSAGES)
    m = stretch(server)
    assert_ground_truth(m)
    stripped = "-ldflags=-s -w" in flags
    assert (m.dispatches is None) == stripped
    assert (m.runq_max is None) == stripped
    if stripped:
        assert m.absent["dispatches"].why == "the program is stripped"
        assert str(m.absent["dispatches"].fix).startswith("build the service with")


def command(address, number):
    """Sends "N" to a kit.Commands service, returns its answer."""
    with socket.create_connection(address, timeout=300) as connection:
        connection.sendall(b"%d\n" % number)
        return connection.makefile().readline().strip()


@undisturbed
def test_an_expired_deadline_is_a_ready_call_of_the_poller(launch, measure, go_toolchain):
    server = launch("deadline", go=str(go_toolchain.go))
    with measure() as stretch:
        assert command(server.address, 100) == "100"
    m = stretch(server)
    # If the machine is so busy that a deadline passes before the read waits, nobody is woken.
    assert 80 <= m.ready_calls <= 110
    if go_toolchain.version.startswith("1.19"):
        # It was inlined, and its callers also serve other purposes.
        assert m.deadline_wakeups is None
        assert "runtime.netpollgoready is not there in go1.19" in m.absent["deadline_wakeups"]
    else:
        assert m.ready_calls - 10 <= m.deadline_wakeups <= 100


@pytest.mark.parametrize("via", ["chan", "cond"])
@undisturbed
def test_the_waking_line_is_named(meter, launch, connect, spaced_pings, go_toolchain, via):
    server = launch("ready", "-via", via, "-n", WOKEN, go=str(go_toolchain.go))
    (waker, *others) = wakers(meter, server, connect(server.address), spaced_pings)
    assert waker.share > 0.98
    assert waker.stack[0].file == "ready/main.go"
    assert waker.stack[0].line == line_of("c <- 0" if via == "chan" else "cond.Broadcast()")
    assert sum(other.share for other in others) < 0.02


@undisturbed
def test_the_shares_of_two_wakers_match_their_calls(meter, launch, connect, spaced_pings, newest_go):
    server = launch("ready", "-via", "both", "-n", 100, go=str(newest_go.go))
    found = wakers(meter, server, connect(server.address), spaced_pings)
    # One in 16 of 20 000 calls was recorded: 0.5, six standard deviations wide.
    shares = {waker.stack[0].line: waker.share for waker in found}
    for code in ("c <- 0", "cond.Broadcast()"):
        assert shares[line_of(code)] == pytest.approx(0.5, abs=0.09)
    assert sum(waker.count for waker in found) == pytest.approx(20_000, rel=0.2)


@undisturbed
def test_a_goroutine_that_parked_before_a_timer_expired_is_not_its_waker(meter, launch, go_toolchain):
    server = launch("deadline", go=str(go_toolchain.go))
    window = meter.open(limited=["ready_calls"])
    assert command(server.address, 50) == "50"
    (m,) = meter.close(window, [server])
    deadlines = [o for o in m.offenders if o.stack and o.stack[0].function == "runtime.netpolldeadlineimpl"]
    assert sum(o.share for o in deadlines) > 0.9
    assert not any("main." in frame.function for o in deadlines for frame in o.stack)


def wakers(meter, server, connection, pings):
    window = meter.open(limited=["ready_calls"])
    pings(connection, MESSAGES)
    (m,) = meter.close(window, [server])
    assert m.unmeasured is None
    assert all(offender.offence == "ready" for offender in m.offenders)
    # A waker has no descriptor.
    assert {(offender.local, offender.peer) for offender in m.offenders} == {(None, None)}
    return m.offenders


def line_of(code):
    source = Path(__file__).parent / "services" / "ready" / "main.go"
    return 1 + [line.strip() for line in source.read_text().splitlines()].index(code)


def test_stacks_are_kept_only_while_a_window_asks_for_them(launch, measure, connect, spaced_pings, newest_go):
    server = launch("ready", "-n", WOKEN, go=str(newest_go.go))
    connection = connect(server.address)
    with measure() as stretch:
        spaced_pings(connection, 5)
    assert stretch(server).ready_calls >= 5 * WOKEN
    assert stretch(server).offenders == ()


@undisturbed
def test_children_are_counted_whenever_they_start(
    factory, built, measure, connect, kept_port, spaced_pings, tmp_path
):
    """Children of the shell, which isn't a Go program: one before the window opens, one in it."""
    program, go_on = built("ready"), tmp_path / f"go-on-{time.monotonic_ns()}"
    os.mkfifo(go_on)
    ports = [kept_port(), kept_port()]
    first, second = (f"{program} -n {WOKEN} -addr 127.0.0.1:{port}" for port in ports)
    script = f"{first} & read _ <{go_on}; {second} & wait"
    server = factory(command=["/bin/sh", "-c", script], ready=lambda _: listens(ports[0]), name="children")
    old = connect(("127.0.0.1", ports[0]))
    with measure() as stretch:
        spaced_pings(old, MESSAGES)
        go_on.write_text("\n")
        patiently(lambda: listens(ports[1]))
        new = connect(("127.0.0.1", ports[1]))
        spaced_pings(new, MESSAGES)
    # connect() pings once; starting takes the runtime a few.
    assert stretch(server).ready_calls == pytest.approx((2 * MESSAGES + 1) * WOKEN, rel=0.02)


def test_work_of_a_new_program_before_its_probes_makes_it_unmeasured(
    meter, launch, connect, spaced_pings, newest_go
):
    outer = meter.open()
    server = launch("ready", "-n", WOKEN, go=str(newest_go.go))  # it makes some at its start
    connection = connect(server.address)
    inner = meter.open()
    spaced_pings(connection, MESSAGES)
    known, unknown = (meter.close(window, [server])[0] for window in (inner, outer))
    assert_ground_truth(known)
    assert unknown.unmeasured is None
    assert (unknown.ready_calls, unknown.deadline_wakeups) == (None, None)
    assert f"process {server.pid} began to run {server.executable} while" in unknown.absent["ready_calls"]
    assert "in a fixture" in unknown.absent["ready_calls"]


@undisturbed
def test_children_that_never_polled_count_only_for_their_parent(meter, launch, newest_go):
    launch("prefork", "-n", "1", go=str(newest_go.go))  # has its program's probes attached
    server = launch("forker", "-wake", "500", go=str(newest_go.go))
    window = meter.open(limited=["ready_calls"])
    assert command(server.address, 40) == "done"  # each slot has had one of them
    other = launch("prefork", "-n", "2", go=str(newest_go.go))
    m, others = meter.close(window, [server, other])
    assert (m.unmeasured, others.unmeasured) == (None, None)
    assert m.ready_calls == pytest.approx(40 * 2 * 500, rel=0.05)
    assert others.ready_calls < 500
    assert sum(offender.count for offender in others.offenders) <= others.ready_calls


def listens(port):
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def meter_with():
    """meter_with(goready="on") is a meter with its own agent."""
    meters = []

    def meter_with(**options):
        meters.append(Meter(dataclasses.replace(Config.default(), **options), Symbolizer(Path.cwd())))
        return meters[-1]

    yield meter_with
    for meter in meters:
        meter.stop()


@pytest.mark.parametrize("goready", ["auto", "on"])
@undisturbed
def test_missing_ready_calls_are_unmeasured_only_with_goready_on(
    meter_with, factory, built, connect, spaced_pings, tmp_path, monkeypatch, goready
):
    # A program that is deleted while it runs cannot be read any more; it isn't read before.
    monkeypatch.setattr(factory, "on_spawn", None)
    monkeypatch.setattr(factory, "on_exit", None)
    program = shutil.copy(built("ready"), tmp_path / "deleted")
    server = factory(command=[str(program), "-n", str(WOKEN), "-addr", "127.0.0.1:{port}"])
    program.unlink()
    meter = meter_with(goready=goready)
    meter.watch(server)
    connection = connect(server.address)
    window = meter.open(limited=["ready_calls"])
    spaced_pings(connection, 20)
    (m,) = meter.close(window, [server])
    assert m.ready_calls is None
    if goready == "on":
        assert f"{program} (deleted), cannot be read" in m.unmeasured
    else:
        assert m.unmeasured is None
        assert m.productive_wakeups == pytest.approx(20, abs=1)
        assert f"{program} (deleted), cannot be read" in m.absent["ready_calls"]


def test_probes_exist_only_while_a_service_is_watched(launch, newest_go):
    server = launch("ready", go=str(newest_go.go))
    site = find_sites(server.executable).ready
    # Runs the same file, but isn't a service.
    with psutil.Popen([server.executable, "-addr", "127.0.0.1:0"]) as bystander:
        try:
            patiently(lambda: byte_at(bystander.pid, site) == BREAKPOINT)
            server.stop()
            patiently(lambda: byte_at(bystander.pid, site) == b"\x55")
        finally:
            bystander.kill()


def test_a_busy_service_survives_probes_that_come_and_go(meter, launch, go_toolchain):
    """During garbage collection, with stacks that move."""
    server = launch("crowd", "-for", "1s", go=str(go_toolchain.go))
    answers, enough = [], threading.Event()

    def work():
        while not enough.is_set():
            answers.append(command(server.address, 8))

    load = threading.Thread(target=work)
    load.start()
    cycles = counted = 0
    deadline = time.monotonic() + 120
    try:
        while cycles <= 5 or counted <= 1000:
            assert time.monotonic() < deadline, (cycles, counted)
            meter.unwatch(server)
            meter.watch(server)
            window = meter.open(limited=["ready_calls"])
            time.sleep(0.05)
            (m,) = meter.close(window, [server])
            cycles += 1
            counted += m.ready_calls or 0
    finally:
        enough.set()
        load.join()
    assert set(answers) == {"8"}
    assert command(server.address, 1) == "1"
    server.check_alive("after all")


def test_a_program_that_is_not_go_has_no_ready_calls(factory, measure):
    service = factory(command=["sleep", "60"], ready=None)
    with measure() as stretch:
        pass
    m = stretch.measurements[service.name]
    assert m.unmeasured is not None
    assert (m.ready_calls, m.deadline_wakeups, m.dispatches) == (None, None, None)


@undisturbed
def test_ready_calls_of_the_runtime_are_separated(launch, commands, meter, newest_go):
    n = 50
    service = launch("gc", go=str(newest_go.go), env={"GOMAXPROCS": "2"})
    command = commands(service)
    window = meter.open(limited=["ready_calls"])
    assert command(n) == "done"
    [m] = meter.close(window, [service])
    assert m.unmeasured is None
    own = m.ready_calls - m.runtime_ready_calls
    assert m.runtime_ready_calls >= n / 2
    # The other goroutine may have been about to park: then it didn't have to be woken.
    assert n / 2 <= own <= n + 5
    named = {o.stack[0].function for o in m.offenders if o.offence == "ready" and not o.runtime and o.stack}
    assert "main.send" in named
    # The callers were not recorded.
    window = meter.open()
    assert command(n) == "done"
    [m] = meter.close(window, [service])
    assert m.runtime_ready_calls is None


@undisturbed
def test_collecting_garbage_makes_no_ready_call_of_the_program(launch, commands, meter, go_toolchain):
    n = 50
    service = launch("gc", "-alone", go=str(go_toolchain.go), env={"GOMAXPROCS": "2"})
    command = commands(service)
    window = meter.open(limited=["ready_calls"])
    assert command(n) == "done"
    [m] = meter.close(window, [service])
    assert m.unmeasured is None
    assert m.ready_calls >= n
    own = [o for o in m.offenders if o.offence == "ready" and not o.runtime]
    assert (m.ready_calls - m.runtime_ready_calls, own) == (0, [])
