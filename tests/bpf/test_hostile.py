"""A program that lies about its descriptors and its memory: only its own data is reported."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest

from pytest_netpoll.meter.agent_client import Agent
from tests.attacks import OWN, on_one_cpu, others, reported_of_others
from tests.waiting import attempts

# How long it lies; set a minute or more to find what is rare.
SECONDS = float(os.environ.get("NETPOLL_HOSTILE_SECONDS", "8"))

ENOUGH = 10_000  # entries


def test_invented_descriptors_reveal_only_the_programs_own(
    meter, factory, built, launch, connect, spaced_pings, newest_go, monkeypatch
):
    # The agent's raw answer, before it is prepared for people.
    answers, close = [], Agent.close
    monkeypatch.setattr(Agent, "close", lambda *args: answers.append(close(*args)) or answers[-1])
    command = [built("hostile", str(newest_go.go)), "-own", f"{OWN}:0", "-for", f"{SECONDS + 600}s"]
    with on_one_cpu(), others() as more:
        service = factory(command=command, ready=re.compile("ready on"), name="hostile")
        more()
        meter.close(meter.open(), [])  # it is calibrated by now, and has told no lies yet
        os.kill(service.pid, signal.SIGUSR1)
        end, told, unclaimed, productive = time.monotonic() + SECONDS, 0, 0, 0
        for _ in attempts(10 * SECONDS):
            window = meter.open(limited=["unclaimed_events"])
            time.sleep(min(2, SECONDS / 2))
            (m,) = meter.close(window, [service])
            unclaimed += m.unclaimed_events
            productive += m.productive_wakeups
            count, strange = reported_of_others(answers[-1]["services"][str(service.pid)])
            assert strange == set()
            told += count
            if min(told / ENOUGH, unclaimed / 1000, productive / 1000) > 1 and time.monotonic() >= end:
                break
    service.check_alive("after all")
    service.stop()
    assert told > ENOUGH
    assert unclaimed > 1000
    assert productive > 1000
    # A program that tells no lies is measured as usual.
    server = launch("echo", go=str(newest_go.go))
    connection = connect(server.address)
    window = meter.open()
    spaced_pings(connection, 50)
    (m,) = meter.close(window, [server])
    assert m.unmeasured is None
    assert m.productive_wakeups == pytest.approx(50, abs=1)
