"""What a service does in its first moments is counted, however busy the machine is."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess

import pytest

from pytest_netpoll.service import guardian
from tests.bpf.test_without_btf import BLIND

WAKEUPS = 20
DONE = re.compile("done")


@pytest.fixture
def busy_machine():
    """Twice as many processes as CPUs compute all the time."""
    with contextlib.ExitStack() as stack:
        for _ in range(2 * (os.cpu_count() or 1)):
            process = stack.enter_context(subprocess.Popen(["sh", "-c", "while :; do :; done"]))
            stack.callback(process.kill)
        yield


@pytest.fixture
def burst(factory, newest_go):
    return lambda *args: factory("./burst", args=["-n", WAKEUPS, *args], ready=DONE, go=str(newest_go.go))


def starts(service, measure, count):
    """The measurements of that many starts, each in its own window."""
    for _ in range(count):
        with measure() as stretch:
            service.restart()
        yield stretch(service)


@pytest.mark.usefixtures("busy_machine")
def test_no_wakeup_of_60_starts_under_load_is_missed(burst, measure):
    found = [(m.wakeups, m.productive_wakeups, m.lost) for m in starts(burst(), measure, 60)]
    assert found == [(WAKEUPS, WAKEUPS, 0)] * 60


@pytest.mark.usefixtures("busy_machine")
def test_a_daemon_whose_parent_has_ended_is_counted_from_its_first_moment(burst, measure):
    found = [m.productive_wakeups for m in starts(burst("-daemon"), measure, 15)]
    assert found == [WAKEUPS] * 15


@pytest.mark.parametrize("lines", [{}, BLIND], ids=["with BTF", "without"])
def test_a_daemon_that_ran_before_is_watched_with_the_service(burst, lacking, lines):
    meter = lacking(lines)
    service = burst("-daemon")
    family = guardian.family(service._leader, [service._mark])
    assert len(family) == 2
    meter.watch(service)
    assert {process["pid"] for process in meter.processes()} == family.keys()
