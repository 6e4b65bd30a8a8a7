"""The slowest wakeups of a service that holds its only P for a known time while a known reader waits."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from tests.waiting import undisturbed

# Far longer than a busy machine delays anything.
HOLDS_MS = (600, 450, 300)

KIT = Path(__file__).parent / "services" / "kit" / "kit.go"
SCAN_LINE = 1 + next(i for i, line in enumerate(KIT.read_text().splitlines()) if "lines.Scan()" in line)


@pytest.fixture
def hog(factory, go_toolchain):
    return factory(
        "./hog",
        args=["-addr", "127.0.0.1:{port}"],
        env={"GODEBUG": "asyncpreemptoff=1"},
        go=str(go_toolchain.go),
    )


@undisturbed
def test_a_late_reader_is_named_with_its_goroutine_its_connection_and_its_line(hog, measure, command):
    with (
        socket.create_connection(hog.address, timeout=20) as holder,
        socket.create_connection(hog.address, timeout=20) as late,
    ):
        command(holder, 0)
        [goroutine] = command(late, 0)
        to, peer = ("{}:{}".format(*end) for end in (late.getpeername(), late.getsockname()))
        waited = []
        with measure() as stretch:
            for ms in HOLDS_MS:
                time.sleep(0.02)
                command(holder, ms)
                sent = time.monotonic_ns()
                command(late, 0)
                waited.append(time.monotonic_ns() - sent)
                assert holder.recv(100) == b"done\n"
            for _ in range(30):
                command(late, 0)
                time.sleep(0.001)
    m = stretch(hog)
    assert len(m.slowest) == 8
    in_time = sorted(m.slowest[:3], key=lambda wakeup: wakeup.at_ms)
    for wakeup, ms, seen in zip(in_time, HOLDS_MS, waited, strict=True):
        # It is woken at sysmon's next poll; a machine that is short of CPU may be later with that.
        assert ms * 1e6 / 3 < wakeup.latency_ns < seen
        assert (wakeup.direction, wakeup.syscall, wakeup.fd_type) == ("read", "read", "tcp")
        assert (wakeup.local, wakeup.peer) == (to, peer)
        assert wakeup.goroutine == int(goroutine)
        assert wakeup.stack[0].file.endswith("kit/kit.go")
        assert wakeup.stack[0].line == SCAN_LINE
    assert in_time[0].at_ms > 0
    assert in_time[2].at_ms < m.window_seconds * 1000
    assert [w.latency_ns for w in m.slowest] == sorted((w.latency_ns for w in m.slowest), reverse=True)


@undisturbed
def test_nested_windows_each_have_their_own_slowest_wakeups(hog, measure, command):
    with (
        socket.create_connection(hog.address, timeout=20) as holder,
        socket.create_connection(hog.address, timeout=20) as late,
    ):
        command(late, 0)
        with measure() as outer:
            command(holder, HOLDS_MS[0])
            command(late, 0)
            assert holder.recv(100) == b"done\n"
            for _ in range(10):  # more than there are banks
                with measure() as inner:
                    command(late, 0)
    # On a noisy machine other wakeups are slow, too, so the whole list must agree.
    assert outer(hog).slowest[0].latency_ns > HOLDS_MS[0] * 1e6 / 3
    assert len(inner(hog).slowest) == 1
