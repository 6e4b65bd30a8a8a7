"""A program that lies about its descriptors and its memory: nothing is told of it that is not its own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from pytest_netpoll.meter.agent_client import Probe

OTHERS = "127.66.0."
OWN = "127.77.0.1"
# How long it lies; a minute and more is for who looks for what is rare.
SECONDS = float(os.environ.get("NETPOLL_HOSTILE_SECONDS", "8"))

# Its children hold sockets in tables of descriptors as large as the hostile program's: in the kernel they lie
# where what is behind the end of one is the beginning of another.
SOMEBODY = f"""
import os, socket
end, begin = os.pipe()
kept = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(220)]
for i, s in enumerate(kept):
    s.bind(("{OTHERS}%d" % (i + 1), 0))
for _ in range(2):
    for _ in range(150):
        if not os.fork():
            os.close(begin)
            os.read(end, 1)
            os._exit(0)
    print("there", flush=True)
    os.read(0, 1)
"""


@contextlib.contextmanager
def on_one_cpu():
    """What is started within is: the kernel hands out neighbouring memory there."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def others():
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", SOMEBODY], **pipes) as process:

        def more():
            assert process.stdout.readline() == b"there\n"
            process.stdin.write(b".")
            process.stdin.flush()

        try:
            more()
            yield more
        finally:
            process.stdin.close()


def test_invented_descriptors_reveal_nothing_but_the_programs_own(
    meter, factory, built, launch, connect, spaced_pings, newest_go, monkeypatch
):
    # What the agent says, before any of it is put together for people.
    answers, close = [], Probe.close
    monkeypatch.setattr(Probe, "close", lambda *args: answers.append(close(*args)) or answers[-1])
    command = [built("hostile", str(newest_go.go)), "-own", f"{OWN}:0", "-for", f"{SECONDS}s"]
    with on_one_cpu(), others() as more:
        service = factory(command=command, ready=re.compile("ready on"), name="hostile")
        more()
        meter.close(meter.open(), [])  # it is known by now, as one that has told no lies yet
        os.kill(service.pid, signal.SIGUSR1)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            window = meter.open(limited=["unclaimed_events"])
            time.sleep(min(2, SECONDS / 2))
            (m,) = meter.close(window, [service])
            assert m.unclaimed_events > 1000
            assert m.productive_wakeups > 1000
    service.check_alive("after all")
    service.stop()
    (processes,) = zip(*(answer["services"][str(service.pid)] for answer in answers), strict=True)
    told = [entry for process in processes for entry in (*process["offenders"], *process["slowest"])]
    assert len(told) > 10_000
    ends = {entry[end] for entry in told for end in ("local", "peer")} - {None, "/dev/null"}
    assert {end.rpartition(":")[0] for end in ends} == {OWN}
    # And who tells no lies is measured as ever.
    server = launch("echo", go=str(newest_go.go))
    connection = connect(server.address)
    window = meter.open()
    spaced_pings(connection, 50)
    (m,) = meter.close(window, [server])
    assert m.unmeasured is None
    assert m.productive_wakeups == pytest.approx(50, abs=1)
