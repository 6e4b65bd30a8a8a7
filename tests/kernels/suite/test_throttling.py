"""What a CPU quota of cgroup v2 costs a service. On other machines v1 often has that controller."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

CGROUPS = Path("/sys/fs/cgroup")
BURST = 150  # checksums for a ping: many times what the quota leaves, even here


@pytest.fixture
def quota():
    """A cgroup that may run for 5 of 100 ms."""
    controllers = CGROUPS / "cgroup.controllers"
    if not controllers.exists() or "cpu" not in controllers.read_text().split():
        pytest.skip("cgroup v2 has no cpu controller here")
    (CGROUPS / "cgroup.subtree_control").write_text("+cpu")
    path = CGROUPS / "netpoll-test"
    path.mkdir()
    (path / "cpu.max").write_text("5000 100000")
    yield path
    deadline = time.monotonic() + 60
    while (path / "cgroup.procs").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    path.rmdir()


def throttled(path):
    """(periods, seconds), as the kernel reports them."""
    found = dict(line.split() for line in (path / "cpu.stat").read_text().splitlines())
    return int(found["nr_throttled"]), int(found["throttled_usec"]) / 1e6


def test_throttling_by_cgroup_v2_is_measured(quota, launch, connect, netpoll, newest_go):
    server = launch("echo", newest_go, "-work", BURST)
    connection = connect(server)
    with netpoll.measure() as window:
        pass
    assert (window[server].throttled_periods, window[server].throttled_seconds) == (0, 0)
    (quota / "cgroup.procs").write_text(str(server.pid))
    before = throttled(quota)
    with netpoll.measure() as window:
        first = last = throttled(quota)
        while last[0] < first[0] + 3:
            connection.sendall(b"ping")
            assert connection.recv(4)
            last = throttled(quota)
    after = throttled(quota)
    m = window[server]
    assert last[0] - first[0] <= m.throttled_periods <= after[0] - before[0]
    assert last[1] - first[1] - 1e-6 <= m.throttled_seconds <= after[1] - before[1] + 1e-6
    [cgroup] = m.cgroups
    assert (cgroup.quota_us, cgroup.period_us) == (5_000, 100_000)
    (CGROUPS / "cgroup.procs").write_text(str(server.pid))
