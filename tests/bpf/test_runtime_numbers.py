"""The Go runtime's own numbers, and quotas: compared with what the program and the kernel report."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest

from pytest_netpoll.gobinary import time_to_run
from pytest_netpoll.gobinary.scheduler_layout import find_layout
from pytest_netpoll.model.diagnosis import findings
from tests.waiting import attempts, patiently, suspend, undisturbed

ROUNDS = 60


@pytest.fixture
def runtimes(launch, commands, measure, go_toolchain):
    """runtimes("wakes", 60, "-hogs", 2): the measurement of a command, and the service's answer to it.

    Of services/runtime: [what it timed itself, ns waited for locks, scheduling events, and the bounds of the
    bucket of their median].
    """

    def runtimes(do, rounds, *args, flags=(), offences=()):
        service = launch("runtime", "-do", do, *args, go=str(go_toolchain.go), build_flags=list(flags))
        command = commands(service)
        command(1)  # metrics.Read allocates the first time
        with measure(offences) as stretch:
            answer = command(rounds)
        return stretch(service), [int(number) for number in answer.split()]

    return runtimes


@pytest.fixture
def go_minor(go_toolchain):
    return int(go_toolchain.version.split(".")[1])


def assert_the_runtimes_own(m, answer):
    """The window holds a few more events than the command."""
    _, _, events, low, high = answer
    assert events <= sum(m.snapshot.sched_latency.values()) <= events + 20
    assert low / 1.3 <= m.sched_latency_p50 <= high * 1.3
    assert m.sched_latency_p50 <= m.sched_latency_p90 <= m.sched_latency_p99 <= m.sched_latency_p999
    assert m.sched_latency_p999 <= m.sched_latency_max


@undisturbed
def test_goroutines_wait_long_only_behind_hogs(runtimes):
    calm, answer = runtimes("wakes", ROUNDS)
    assert_the_runtimes_own(calm, answer)
    starved, slow_answer = runtimes("wakes", 20, "-hogs", 2, "-cpu", 1)
    assert_the_runtimes_own(starved, slow_answer)
    # The goroutines' own clocks; the runtime's numbers include the hogs' waits for each other.
    assert slow_answer[0] / 2 <= starved.sched_latency_p50 <= slow_answer[0] * 2
    assert starved.sched_latency_p50 >= max(1_000_000, 10 * calm.sched_latency_p50)
    assert starved.p_utilization > 0.8
    # The agent may get no CPU for a whole interval, which then has no look.
    seen = [point for point in starved.timeline if point.ps_running is not None]
    assert 0.8 < max(point.ps_running for point in seen) <= 1
    # The window's first look, when those of the command before may still be ending, is in no interval.
    assert starved.runq_max >= max(point.runq_max for point in seen) >= 10
    assert all(point.spinning <= 1 for point in seen)


@undisturbed
def test_latencies_of_a_stripped_program_are_found_by_its_machine_code(runtimes, go_minor):
    m, answer = runtimes("wakes", ROUNDS, flags=["-ldflags=-s -w"], offences=["mutex"])
    if go_minor < 20:
        assert m.sched_latency_p50 is None
        assert "inlined or absent" in m.absent["sched_latency_p50"].why
    else:
        assert_the_runtimes_own(m, answer)
    for name in ("p_utilization", "mutex_wait_seconds", "runtime_lock_wait_seconds", "dispatches"):
        assert getattr(m, name) is None
        assert "the program is stripped" in m.absent[name].why


@pytest.mark.parametrize("arch", ["amd64", "arm64"])
def test_machine_code_and_debug_information_agree(built, go_toolchain, go_minor, arch):
    path = built("echo", go=str(go_toolchain.go), env={"GOARCH": arch, "CGO_ENABLED": "0"})
    if go_minor < 20:
        with pytest.raises(ValueError, match="inlined or absent"):
            time_to_run.find(path)
        return
    assert time_to_run.find(path) == find_layout(path).places["time_to_run"]


@undisturbed
def test_lock_waits_match_the_runtimes_estimates(runtimes, go_minor):
    mutex, (waited, estimated, *_) = runtimes("mutex", 20)
    channel, (_, contended, *_) = runtimes("channel", 100)
    if go_minor < 20:
        assert mutex.mutex_wait_seconds is None
        assert "before Go 1.20" in mutex.absent["mutex_wait_seconds"].what
        return
    # The program's estimate includes the waits for the runtime's own locks.
    locks = mutex.runtime_lock_wait_seconds or 0
    assert mutex.estimates == ("mutex_wait_seconds",)
    assert (mutex.mutex_wait_seconds + locks) * 1e9 == pytest.approx(estimated, rel=0.05, abs=1e6)
    # Its own clock keeps running until a goroutine that has the lock runs.
    assert waited / 4 <= mutex.mutex_wait_seconds * 1e9 <= 1.6 * waited
    assert channel.mutex_wait_seconds == 0
    if go_minor < 22:
        assert channel.runtime_lock_wait_seconds is None
        return
    assert channel.runtime_lock_wait_seconds * 1e9 == pytest.approx(contended, rel=0.05, abs=1e6)


@undisturbed
def test_events_per_poll_are_those_that_were_ready_together(
    launch, measure, connect, spaced_pings, newest_go
):
    """The connections became readable while the service was stopped."""
    service = launch("echo", go=str(newest_go.go))
    connections = [connect(service.address) for _ in range(20)]
    with measure() as idle:
        time.sleep(0.1)
    m = idle(service)
    assert (m.mutex_wait_seconds, m.events_per_poll_max) == (0, None)
    assert m.p_utilization <= 0.2
    with measure() as calm:
        spaced_pings(connections[0], 30)
    m = calm(service)
    assert (m.events_per_poll_p50, m.events_per_poll_max) == (1, 1)
    assert sum(m.snapshot.events_per_poll.values()) == m.events
    with measure() as stretch:
        suspend(service.pid)
        for connection in connections:
            connection.sendall(b"ping")
        os.kill(service.pid, signal.SIGCONT)
        for connection in connections:
            assert connection.recv(4) == b"ping"
    m = stretch(service)
    assert m.events_per_poll_max == m.events_per_poll_p99 == 20
    assert sum(events * polls for events, polls in m.snapshot.events_per_poll.items()) == m.events


@pytest.fixture
def quota():
    with made_quota() as path:
        yield path


@contextlib.contextmanager
def made_quota(ms=20):
    """A cgroup with this CPU time every 100 ms, v1 or v2; returns its directory. Processes in it end with
    it."""
    mounts = Path("/proc/self/mounts").read_text()
    v1 = re.search(r"^\S+ (\S+) cgroup (?:\S*,)?cpu[, ]", mounts, re.MULTILINE)
    v2 = re.search(r"^\S+ (\S+) cgroup2 ", mounts, re.MULTILINE)
    if v1 is None and v2 is None:
        pytest.skip("no cgroup filesystem is mounted")
    path = Path((v1 or v2)[1]) / f"netpoll-quota-{os.getpid()}"
    try:
        path.mkdir()
        # Before others, so that it uses up its quota on a busy machine, too.
        if v1 is None:
            (path / "cpu.max").write_text(f"{ms}000 100000")
            (path / "cpu.weight").write_text("10000")
        else:
            (path / "cpu.shares").write_text("262144")
            (path / "cpu.cfs_period_us").write_text("100000")
            (path / "cpu.cfs_quota_us").write_text(f"{ms}000")
    except OSError as error:
        with contextlib.suppress(OSError):
            path.rmdir()
        pytest.skip(f"no cgroup with a CPU quota can be made at {path}: {error.strerror}")
    yield path
    for pid in (path / "cgroup.procs").read_text().split():
        os.kill(int(pid), signal.SIGKILL)
    patiently(lambda: not (path / "cgroup.procs").read_text() and removed(path))


def removed(path):
    with contextlib.suppress(OSError):
        path.rmdir()
    return not path.exists()


def throttled(path):
    """(periods throttled, seconds), as the kernel reports them."""
    found = dict(line.split() for line in (path / "cpu.stat").read_text().splitlines())
    ns = int(found["throttled_time"]) if "throttled_time" in found else int(found["throttled_usec"]) * 1000
    return int(found["nr_throttled"]), ns / 1e9


@undisturbed
def test_throttling_matches_the_kernels_numbers(launch, measure, newest_go, quota):
    service = launch("runtime", "-hogs", 2, go=str(newest_go.go))
    with measure() as free:
        time.sleep(0.2)
    m = free(service)
    if m.cgroups:
        pytest.skip("everything here runs under a CPU quota")
    assert (m.throttled_periods, m.throttled_seconds) == (0, 0)
    (quota / "cgroup.procs").write_text(str(service.pid))
    patiently(lambda: throttled(quota)[0] > 2)
    before = throttled(quota)
    with measure() as stretch:
        first = throttled(quota)
        patiently(lambda: throttled(quota)[0] >= first[0] + 4)
        last = throttled(quota)
    after = throttled(quota)
    m = stretch(service)
    assert last[0] - first[0] <= m.throttled_periods <= after[0] - before[0]
    assert last[1] - first[1] - 1e-6 <= m.throttled_seconds <= after[1] - before[1] + 1e-6
    assert m.throttled_seconds > 0  # less if other processes leave the service little
    [cgroup] = m.cgroups
    assert (cgroup.quota_us, cgroup.period_us) == (20_000, 100_000)
    assert cgroup.name.endswith(f"/{quota.name}")
    assert cgroup.throttled_periods == m.throttled_periods <= cgroup.periods
    assert m.throttled_seconds == pytest.approx(sum(point.throttled_ns for point in m.timeline) / 1e9)


@pytest.fixture
def small_quota():
    """So little that it is used up even on a busy machine."""
    with made_quota(10) as path:
        yield path


def test_a_throttled_service_is_not_reported_as_starving_itself(launch, meter, newest_go, small_quota):
    service = launch("causes", "-do", "spin", go=str(newest_go.go), env={"GOMAXPROCS": "2"})
    (small_quota / "cgroup.procs").write_text(str(service.pid))
    patiently(lambda: throttled(small_quota)[0] > 2)
    for _ in attempts():
        window = meter.open(offences=["cpu"])
        with socket.create_connection(service.address, timeout=60) as connection:
            for _ in range(14):
                connection.sendall(b"0\n")
                assert connection.recv(16) == b"done\n"
                time.sleep(0.02)
        [m] = meter.close(window, [service])
        found = {finding.rule.code: finding for finding in findings(m)}
        assert found.keys() <= {"NP403"}, [str(finding) for finding in found.values()]
        if found:  # else it waited for others rather than for its quota
            break
    assert found.keys() == {"NP403"}
    assert "10 ms every 100 ms, stopped the service in" in found["NP403"].proof.text
