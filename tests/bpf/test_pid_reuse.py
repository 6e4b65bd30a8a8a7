"""A pid that the kernel reuses no longer stands for the former process."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pytest_netpoll.service import service
from tests.waiting import attempts, undisturbed

LAST_PID = Path("/proc/sys/kernel/ns_last_pid")


@pytest.fixture
def start_with_pid(monkeypatch):
    """start_with_pid(server, pid) starts a stopped service with that pid."""

    class Popen(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            for _ in attempts():  # other programs on this machine start processes, too
                LAST_PID.write_text(str(wanted - 1))
                super().__init__(*args, **kwargs)
                if self.pid == wanted:
                    return
                self.kill()
                self.wait()
            pytest.skip("another process got the pid")

    wanted = 0

    def start(server, pid):
        nonlocal wanted
        wanted = pid
        with monkeypatch.context() as patch:
            patch.setattr(service.subprocess, "Popen", Popen)
            server.start()
        assert server.pid == pid

    return start


@pytest.mark.alone
@pytest.mark.skipif(not os.access(LAST_PID, os.W_OK), reason="pids cannot be chosen here")
@undisturbed
def test_a_service_that_gets_its_former_pid_in_the_window_counts_once(
    launch, measure, connect, spaced_pings, start_with_pid, newest_go
):
    server = launch("echo", go=str(newest_go.go))
    spaced_pings(connect(server.address), 1000)  # CPU time that is not the window's
    with measure() as stretch:
        spaced_pings(connect(server.address), 50)
        server.stop()
        start_with_pid(server, server.pid)
        spaced_pings(connect(server.address), 70)
    m = stretch(server)
    # Each connection: its accept, its own first ping, and the end of the one that was open.
    assert m.productive_wakeups == pytest.approx(50 + 70 + 4, abs=3)
    assert 0 < m.cpu_seconds < 1
    assert m.dispatches is None
    assert "has ended, and its memory with it" in m.absent["dispatches"]
    with measure() as stretch:
        spaced_pings(connect(server.address), 30)
    assert stretch(server).wakeups == pytest.approx(30 + 2, abs=1)
    assert stretch(server).dispatches == pytest.approx(30 + 2, abs=20)
