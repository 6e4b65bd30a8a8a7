"""Only the Go runtime's own epoll instance counts, and only after that is proven."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import threading
import time

import pytest

from pytest_netpoll.meter import privilege
from tests.waiting import attempts, undisturbed

PINGS = 200


@pytest.fixture
def foreign(launch, kept_port):
    """(service, address): the program `foreign`, and where its own epoll loop listens."""

    def foreign(*args, **options):
        address = ("127.0.0.1", kept_port())
        return launch("foreign", "-foreign", "{}:{}".format(*address), *args, **options), address

    return foreign


@pytest.mark.parametrize("args", [(), ("-mimic",)], ids=["plain", "mimic"])
@undisturbed
def test_another_epoll_loop_does_not_count(foreign, measure, connect, spaced_pings, go_toolchain, args):
    service, address = foreign(*args, go=str(go_toolchain.go))
    theirs, ours = connect(address), connect(service.address)
    with measure() as stretch:
        spaced_pings(theirs, PINGS)
    m = stretch(service)
    assert (m.wakeups, m.events, m.stale_retries, m.lost) == (0, 0, 0, 0)
    assert m.polls < PINGS / 4
    with measure() as stretch:
        pinger = threading.Thread(target=spaced_pings, args=[theirs, PINGS])
        pinger.start()
        spaced_pings(ours, PINGS)
        pinger.join()
    m = stretch(service)
    assert m.productive_wakeups == pytest.approx(PINGS, rel=0.01)
    assert (m.spurious_wakeups, m.abandoned_wakeups, m.stale_retries, m.lost) == (0, 0, 0, 0)


@pytest.mark.parametrize("args", [(), ("-mimic",)], ids=["plain", "mimic"])
@undisturbed
def test_another_epoll_loop_that_was_there_first_does_not_count(
    foreign, new_meter, connect, spaced_pings, go_toolchain, args
):
    service, address = foreign(*args, go=str(go_toolchain.go))
    theirs, ours = connect(address), connect(service.address)
    meter = new_meter()
    meter.watch(service)
    window = meter.open()
    spaced_pings(theirs, 50)
    spaced_pings(ours, 50)
    (m,) = meter.close(window, [service])
    assert m.unmeasured is None
    assert (m.productive_wakeups, m.spurious_wakeups, m.lost) == (50, 0, 0)


@pytest.mark.parametrize("args", [(), ("-mimic",)], ids=["plain", "mimic"])
def test_a_program_with_only_another_epoll_loop_is_unmeasured(
    foreign, measure, connect, spaced_pings, newest_go, args
):
    service, address = foreign("-only", *args, go=str(newest_go.go), ready=re.compile("ready"))
    theirs = connect(address)
    with measure() as stretch:
        spaced_pings(theirs, 50)
    reason = stretch.unmeasured(service)
    assert service.go_version in reason
    assert re.search(r"\d+ (of \d+ )?descriptors", reason)


@undisturbed
def test_a_service_that_listens_late_is_measured_from_its_first_connection(
    launch, measure, connect, parked, spaced_pings, go_toolchain
):
    service = launch("late", go=str(go_toolchain.go), ready=re.compile("waiting"))
    with measure() as before:
        pass
    with measure() as stretch:
        os.kill(service.pid, signal.SIGUSR1)
        connect_when_listening(service)
        parked()  # else the next connection may be accepted before its event has woken anybody
        connection = connect(service.address)
        spaced_pings(connection, PINGS)
    with measure() as after:
        spaced_pings(connection, PINGS)
    reason = before.unmeasured(service)
    assert service.go_version in reason
    assert "never waited for the network" in reason
    # And one or two accepts, the end of the first connection, and connect()'s ping.
    assert PINGS * 0.99 <= stretch(service).productive_wakeups <= PINGS + 4
    assert after(service).productive_wakeups == pytest.approx(PINGS, rel=0.01)
    for m in stretch(service), after(service):
        assert (m.spurious_wakeups, m.abandoned_wakeups, m.lost) == (0, 0, 0)


def connect_when_listening(service, address=None):
    """Retries until it listens; the connection of the attempt is closed again."""
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(address or service.address, timeout=5).close()
            return
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, "it never listened"
            time.sleep(0.005)


@undisturbed
def test_a_poller_without_descriptors_is_unmeasured_until_it_has_one(
    launch, measure, connect, spaced_pings, newest_go
):
    # Its timer made the runtime open its epoll instance, which has nothing in it yet that proves a layout.
    service = launch("late", "-after", "1h", go=str(newest_go.go), ready=re.compile("waiting"))
    with measure() as before:
        pass
    assert service.go_version in before.unmeasured(service)
    os.kill(service.pid, signal.SIGUSR1)
    connect_when_listening(service)
    connection = connect(service.address)
    with measure() as stretch:
        spaced_pings(connection, 50)
    assert stretch(service).productive_wakeups == pytest.approx(50, abs=1)


@undisturbed
def test_an_idle_service_is_measured_and_has_polls_but_no_wakeups(launch, measure, parked, go_toolchain):
    service = launch("idle", "-tickers", 50, go=str(go_toolchain.go))
    parked()  # the activity of its start is over
    polls = 0
    for _ in attempts():
        with measure() as stretch:
            time.sleep(0.5)
        m = stretch(service)
        assert (m.wakeups, m.events, m.lost) == (0, 0, 0)
        assert m.spurious is None
        assert m.timeout_polls + m.empty_polls + m.break_polls + m.interrupted_polls == m.polls
        polls += m.polls
        if polls > 100:
            break
    assert polls > 100


# The process execs between being inspected and the storing of what was seen.
OUTRUN = {
    "processes/calibrate.py": """
import os, signal, time
look = calibrate
def calibrate(pid, signed):
    found = look(pid, signed)
    if found.layout is not None and os.readlink("/proc/%d/exe" % pid).endswith("reexec"):
        os.kill(pid, signal.SIGUSR1)
        while not os.readlink("/proc/%d/exe" % pid).endswith("late"):
            time.sleep(0.001)
    return found
"""
}


def test_findings_about_a_program_are_not_used_for_its_successor(
    lacking, launch, built, kept_port, connect, parked, spaced_pings, newest_go
):
    meter = lacking(OUTRUN)
    port, late = kept_port(), built("late", str(newest_go.go))
    # Its epoll instance has another number.
    then = f"exec 3</dev/null; exec {late} -after 1s -addr 127.0.0.1:{port}"
    service = launch("reexec", "-then", then, go=str(newest_go.go))
    meter.watch(service)
    address = ("127.0.0.1", port)
    connect_when_listening(service, address)
    parked()
    connection = connect(address)
    window = meter.open()
    spaced_pings(connection, 50)
    (m,) = meter.close(window, [service])
    assert m.unmeasured is None
    assert m.productive_wakeups == pytest.approx(50, abs=1)


@pytest.fixture
def agent_of_another_time(tmp_path, monkeypatch):
    """An agent that doesn't know Go's pollDesc, as will be the case with a future Go."""
    agent = shutil.copytree(privilege.AGENT, tmp_path / "agent", ignore=shutil.ignore_patterns("__pycache__"))
    layouts = agent / "bpf/layouts.py"
    text = layouts.read_text()
    begin, end = text.index("LAYOUTS = ("), text.index("\n)\n", text.index("LAYOUTS = ("))
    unlike = "LAYOUTS = (\n" + '    Layout("go2", 12, 0, 12, 4),\n' * 3
    layouts.write_text(text[:begin] + unlike.rstrip("\n") + text[end:])
    shutil.copytree(privilege.bpf_sources(), tmp_path / "bpf")
    monkeypatch.setattr(privilege, "AGENT", agent)


@pytest.mark.usefixtures("agent_of_another_time")
@pytest.mark.parametrize("watched", ["from its start", "later"])
def test_an_unknown_layout_is_unmeasured_and_the_reason_has_the_go_version_and_what_was_seen(
    launch, factory, new_meter, connect, spaced_pings, newest_go, watched
):
    meter = new_meter()
    if watched == "from its start":
        factory.on_spawn = meter.watch
    service = launch("echo", go=str(newest_go.go))
    connection = connect(service.address)
    if watched == "later":
        meter.watch(service)
    window = meter.open()
    spaced_pings(connection, 20)
    (m,) = meter.close(window, [service])
    assert m.unmeasured is not None
    assert service.go_version in m.unmeasured
    assert re.search(r"\d+ (of \d+ )?descriptors", m.unmeasured)
    assert m.wakeups == 0
