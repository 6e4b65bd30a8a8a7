"""Which code uses the CPU time."""

from __future__ import annotations

import psutil
import pytest

from tests.waiting import patiently, undisturbed


@pytest.fixture
def sampled(launch, commands, meter, newest_go):
    """sampled("shares", 1500): the CPU samples of a command to services/burn, and the measurement."""

    def sampled(kind, milliseconds, limited=("cpu_seconds",)):
        service = launch("burn", "-do", kind, go=str(newest_go.go))
        command = commands(service)
        window = meter.open(limited=limited)
        command(milliseconds)
        if kind == "hog":
            enough = used(service.pid) + 0.4
            patiently(lambda: used(service.pid) >= enough)
        [m] = meter.close(window, [service])
        assert m.unmeasured is None
        return [offender for offender in m.offenders if offender.offence == "cpu"], m

    return sampled


def used(pid):
    """Seconds of CPU time."""
    return sum(psutil.Process(pid).cpu_times()[:2])


def share_of(function, samples):
    return sum(s.share for s in samples if function in [f.function for f in s.stack])


@undisturbed
def test_shares_of_cpu_time_match_the_program(sampled):
    samples, m = sampled("shares", 1500)
    # 499 a second of CPU time.
    assert sum(s.count for s in samples) == pytest.approx(499 * m.cpu_seconds, rel=0.2, abs=20)
    assert share_of("main.heavy", samples) == pytest.approx(0.75, abs=0.1)
    assert share_of("main.light", samples) == pytest.approx(0.25, abs=0.1)
    assert samples[0].stack[0].function == "main.heavy"
    # A loop over several lines is one place.
    assert len([s for s in samples if s.share > 0.05]) == 2


@undisturbed
def test_the_function_that_yields_is_named_instead_of_the_scheduler(sampled):
    samples, _ = sampled("yield", 1000, ["dispatches"])
    assert samples[0].stack[0].function == "main.yield"
    # Nearly all the time the scheduler runs, on its own stack, which doesn't have the caller.
    assert samples[0].share > 0.5


@undisturbed
def test_the_hog_of_a_single_p_is_named_and_not_its_victims(sampled):
    samples, _ = sampled("hog", 1, ["runq_max"])
    assert share_of("main.hog", samples) > 0.8
    assert share_of("main.hog", samples[:1]) > 0.8


def test_nothing_is_sampled_without_a_request(sampled):
    assert sampled("shares", 100, ["spurious", "futile_calls"])[0] == []


def test_without_permission_for_perf_events_the_reason_is_reported(lacking, launch, newest_go):
    refuse = "def call(*_):\n    raise PermissionError(13, 'Permission denied')\nsyscall.call = call"
    meter = lacking(
        {"bpf/cpu.py": refuse.replace("syscall.call", "syscall = type('', (), {'call': call})\n#")}
    )
    service = launch("burn", go=str(newest_go.go))
    meter.watch(service)
    window = meter.open(limited=["cpu_seconds"])
    [m] = meter.close(window, [service])
    assert m.unmeasured is None
    assert m.cpu_seconds is not None
    assert "perf_event_open is not permitted (Permission denied" in m.unexplained["cpu"]
    assert "--cap-add PERFMON" in m.unexplained["cpu"]
    # A window that didn't ask misses nothing.
    [m] = meter.close(meter.open(limited=["spurious"]), [service])
    assert m.unexplained == {}


def test_other_refusals_of_perf_events_leave_the_rest_measured(lacking, launch, newest_go):
    meter = lacking({"bpf/cpu.py": "def _open(*_):\n    raise OSError(19, 'No such device')"})
    service = launch("burn", go=str(newest_go.go))
    meter.watch(service)
    window = meter.open(limited=["cpu_seconds"])
    [m] = meter.close(window, [service])
    assert m.unmeasured is None
    assert "refuses perf events of its CPUs' clocks: [Errno 19] No such device" in m.unexplained["cpu"]
