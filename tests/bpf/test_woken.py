"""Which goroutines the network and timers wake, and where they were parked, also in programs without
symbols."""

from __future__ import annotations

import time

import pytest

from tests.bpf.conftest import SERVICES
from tests.waiting import undisturbed

STRIPPED = ["-ldflags=-s -w"]
CHANGES = 60


@pytest.fixture
def watcher(launch, go_toolchain, tmp_path, parked):
    service = launch("wake", "-dir", tmp_path, go=str(go_toolchain.go), build_flags=STRIPPED)
    parked()
    return service


@pytest.fixture
def change(tmp_path, parked):
    """change(60) changes a file that often, with the watcher parked again in between."""

    def change(count):
        with (tmp_path / "log").open("ab", buffering=0) as file:
            for _ in range(count):
                file.write(b"x")
                parked()

    return change


def of(m, offence):
    return [offender for offender in m.offenders if offender.offence == offence]


def names(stack):
    return [frame.function for frame in stack]


@pytest.mark.parametrize("limit", ["wakeups", "polls"])
@undisturbed
def test_the_woken_reader_is_named_with_its_descriptor(watcher, change, meter, limit):
    window = meter.open(limited=[limit])
    change(CHANGES)
    (m,) = meter.close(window, [watcher])
    assert m.unmeasured is None
    (woken,) = of(m, "woken")
    assert (woken.count, woken.direction, woken.fd_type) == (m.wakeups, "read", "inotify")
    assert m.wakeups == pytest.approx(CHANGES, abs=1)
    assert woken.share == 1
    assert names(woken.stack)[0] == "main.watch"
    assert woken.stack[0].file == "wake/main.go"


@pytest.mark.uprobes
@undisturbed
def test_the_goroutine_of_a_ticker_is_named_for_polls_that_timers_end(launch, meter, go_toolchain):
    service = launch("wake", "-ticks", 20, go=str(go_toolchain.go), build_flags=STRIPPED)
    window = meter.open(limited=["polls"])
    time.sleep(0.5)
    (m,) = meter.close(window, [service])
    assert m.unmeasured is None
    worst, *_ = of(m, "ready")
    assert names(worst.woken_stack)[0] == "main.tick"
    assert worst.share > 0.8
    assert not worst.runtime


@pytest.mark.uprobes
@undisturbed
def test_the_goroutine_of_a_deadline_is_named(launch, commands, meter, go_toolchain):
    service = launch("deadline", go=str(go_toolchain.go), build_flags=STRIPPED)
    command = commands(service)
    window = meter.open(limited=["deadline_wakeups"])
    command(40)
    (m,) = meter.close(window, [service])
    worst = of(m, "ready")[0]
    assert names(worst.woken_stack)[0] == "main.main.func1"
    assert worst.share > 0.9
    assert not worst.runtime


@pytest.mark.uprobes
@undisturbed
def test_waker_and_wakee_of_a_ready_call_are_named(launch, connect, spaced_pings, meter, go_toolchain):
    service = launch("ready", "-n", 10, go=str(go_toolchain.go), build_flags=STRIPPED)
    connection = connect(service.address)
    window = meter.open(limited=["ready_calls"])
    spaced_pings(connection, 20)
    (m,) = meter.close(window, [service])
    worst = of(m, "ready")[0]
    assert worst.share > 0.9
    assert {frame.file for frame in (worst.stack[0], worst.woken_stack[0])} == {"ready/main.go"}
    lines = (source_line("ready/main.go", stack[0].line) for stack in (worst.stack, worst.woken_stack))
    assert [line.strip() for line in lines] == ["c <- 0", "for range c {"]


def source_line(file, number):
    return (SERVICES / file).read_text().splitlines()[number - 1]


@undisturbed
def test_each_descriptor_counts_for_itself(launch, connect, spaced_pings, meter, newest_go):
    service = launch("echo", go=str(newest_go.go))
    often, seldom = connect(service.address), connect(service.address)
    window = meter.open(limited=["productive_wakeups"])
    for _ in range(3):
        spaced_pings(often, 9)
        spaced_pings(seldom, 3)
    (m,) = meter.close(window, [service])
    (woken,) = of(m, "woken")
    assert (woken.count, woken.fd_type, woken.peer) == (36, "tcp", None)
    assert "services/kit.Echo" in names(woken.stack)


@undisturbed
def test_woken_goroutines_are_recorded_only_on_request(watcher, change, meter):
    window = meter.open(limited=["spurious", "io_calls"])
    change(5)
    (m,) = meter.close(window, [watcher])
    assert m.wakeups >= 4
    assert of(m, "woken") == []
