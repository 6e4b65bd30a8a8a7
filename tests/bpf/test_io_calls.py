"""How many I/O calls there were, how they ended, and which of them were futile."""

from __future__ import annotations

import collections
import socket

import pytest

from tests.waiting import undisturbed

N = 2000
# Calls that a command itself takes, and those on the runtime's own wake-up descriptor meanwhile.
OWN_CALLS = 40
# If the machine interrupts a spin for 1 ms, two calls are not futile, because the streak starts over.
INTERRUPTED = 0.03


@pytest.fixture
def run(launch, measure, commands, newest_go):
    """run("eagain", N) is the measurement while services/io does that N times."""

    def run(kind, n=N, **options):
        service = launch("io", "-do", kind, go=str(newest_go.go), **options)
        command = commands(service)
        with measure() as stretch:
            assert command(n) == "done"
        return stretch(service)

    return run


@pytest.mark.parametrize(
    ("kind", "syscall", "outcome"),
    [
        ("eagain", "read", "EAGAIN"),
        ("eof", "read", "end of file"),
        ("error", "read", "EISDIR"),
        ("splice", "splice", "EAGAIN"),
    ],
)
@undisturbed
def test_calls_that_keep_finding_nothing_are_futile(run, kind, syscall, outcome):
    m = run(kind)
    assert N <= m.io_calls <= N + OWN_CALLS
    assert N <= m.snapshot.io_outcomes[outcome] <= N + OWN_CALLS
    assert (1 - INTERRUPTED) * N <= m.futile_calls <= N - 2
    assert m.snapshot.futile == {(syscall, outcome): m.futile_calls}


@undisturbed
def test_each_descriptor_has_its_own_streak(run):
    m = run("two")
    assert (1 - INTERRUPTED) * 2 * N <= m.futile_calls <= 2 * (N - 2)


@pytest.mark.parametrize(
    ("kind", "calls", "outcomes"),
    [
        ("check", 4, {"data": 2, "EAGAIN": 2}),
        ("alternate", 2, {"EAGAIN": 1, "ESPIPE": 1}),
        ("reopen", 1, {"end of file": 1}),
        ("redirect", 1, {"end of file": 1}),
        ("datagram", 2, {"data": 2}),
    ],
)
@undisturbed
def test_two_calls_in_a_row_or_on_different_descriptors_are_not_futile(run, kind, calls, outcomes):
    m = run(kind)
    assert calls * N <= m.io_calls <= calls * N + OWN_CALLS
    assert m.futile_calls == 0
    for outcome, times in outcomes.items():
        assert times * N <= m.snapshot.io_outcomes[outcome] <= times * N + OWN_CALLS


@undisturbed
def test_a_pause_of_a_millisecond_ends_the_streak(run):
    n = 100
    m = run("pause", n)
    assert 3 * n <= m.snapshot.io_outcomes["EAGAIN"] <= 3 * n + OWN_CALLS
    # The machine may make a pause between the three.
    assert 0.8 * n <= m.futile_calls <= n


def test_a_call_without_data_on_a_descriptor_beyond_the_table_is_lost(new_meter, launch, newest_go, commands):
    meter = new_meter(max_fds=64)
    service = launch("io", "-do", "new", go=str(newest_go.go))
    meter.watch(service)
    command = commands(service)
    window = meter.open()
    assert command(50) == "done"
    [m] = meter.close(window, [service])
    assert m.unmeasured.fix == "raise --netpoll-max-fds"
    # Each pipe takes two descriptors, and the service already has some of the table's 64.
    assert 50 - 64 / 2 < m.lost < 50


def pings(connection, count):
    for _ in range(count):
        connection.sendall(b"ping\n")
        assert connection.recv(5, socket.MSG_WAITALL) == b"ping\n"


@pytest.mark.parametrize("name", ["echo", "spliceecho"])
@undisturbed
def test_a_healthy_service_under_load_has_no_futile_call(launch, measure, newest_go, name):
    service = launch(name, go=str(newest_go.go))
    with measure() as stretch:
        for _ in range(5):
            with socket.create_connection(service.address, timeout=20) as connection:
                pings(connection, 200)
    m = stretch(service)
    assert m.io_calls > 400
    assert m.futile_calls == 0


# Kinds of services/healthy: how often, and the minimum number of I/O calls for each time.
HEALTHY = {
    "http": (200, 4),
    "http2": (50, 2),
    "tls": (200, 4),
    "query": (500, 5),
    "deadline": (4, 1),
    "idle": (20, 4),
    "slow": (20, 1),
    "backoff": (3, 1),
}


@undisturbed
def test_healthy_programs_have_no_futile_calls(launch, measure, newest_go):
    service = launch("healthy", go=str(newest_go.go))
    measured = {}
    with (
        socket.create_connection(service.address, timeout=60) as connection,
        connection.makefile("rw") as wire,
    ):
        for kind, (times, _) in HEALTHY.items():
            with measure() as stretch:
                wire.write(f"{kind} {times}\n")
                wire.flush()
                assert wire.readline() == "done\n"
            measured[kind] = stretch(service)
    for kind, (times, calls) in HEALTHY.items():
        assert measured[kind].io_calls >= calls * times, kind
    # On a busy machine, "query" may make one (docs/accuracy.md).
    assert {kind: m.futile_calls for kind, m in measured.items()} == dict.fromkeys(HEALTHY, 0)
    assert measured["backoff"].snapshot.io_outcomes["EMFILE"] >= 3 * 3


@pytest.fixture
def explained(launch, commands, meter, newest_go):
    """explained("eagain", ["futile_calls"]) is like `run`, with a window that explains these metrics."""

    def explained(kind, limited, n=N):
        service = launch("io", "-do", kind, go=str(newest_go.go))
        command = commands(service)
        window = meter.open(limited=limited)
        assert command(n) == "done"
        [m] = meter.close(window, [service])
        assert m.unmeasured is None
        return m

    return explained


@pytest.mark.parametrize(
    ("kind", "caller", "syscall", "outcome", "fd_type"),
    [
        ("eagain", "main.kinds.func1", "read", "EAGAIN", "pipe"),
        ("error", "main.kinds.func3", "read", "EISDIR", None),
        ("splice", "main.kinds.func4", "splice", "EAGAIN", "pipe"),
    ],
)
@undisturbed
def test_the_code_that_makes_futile_calls_is_named(explained, kind, caller, syscall, outcome, fd_type):
    m = explained(kind, ["futile_calls"])
    assert {offender.offence for offender in m.offenders} == {"futile"}
    worst = m.offenders[0]
    assert worst.share > 0.99
    # An estimate: after the first 256 on a CPU, one in 64 stands for all.
    assert worst.count == pytest.approx(m.futile_calls, rel=0.9)
    assert (worst.syscall, worst.outcome) == (syscall, outcome)
    assert fd_type is None or worst.fd_type == fd_type
    assert caller in [frame.function for frame in worst.stack]


@undisturbed
def test_all_io_calls_are_explained_on_request(explained):
    m = explained("check", ["io_calls_per_wakeup"], 10 * N)  # one call in 64 is recorded
    found = collections.Counter()
    for offender in m.offenders:
        found[offender.offence, offender.syscall, offender.outcome] += offender.share
        if offender.share > 0.1:
            assert "main.kinds.func6" in [frame.function for frame in offender.stack]
    assert found["io", "read", "EAGAIN"] == pytest.approx(0.5, abs=0.2)
    assert found["io", "read", "data"] == pytest.approx(0.25, abs=0.15)
    assert found["io", "write", "data"] == pytest.approx(0.25, abs=0.15)


def test_no_code_is_named_without_a_limit(explained):
    assert explained("eagain", []).offenders == ()
    # A limit on futile calls isn't about two in a row.
    assert explained("check", ["futile_calls"]).offenders == ()
