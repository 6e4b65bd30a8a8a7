"""Each rule's thresholds: if the numbers prove nothing, nothing is reported."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest

from pytest_netpoll.errors import Reason
from pytest_netpoll.gobinary.symbols import Frame
from pytest_netpoll.model.diagnosis import diagnose, findings, unchecked
from pytest_netpoll.model.evidence import CpuQuota, Offender
from pytest_netpoll.model.histogram import bucket_of
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.median import median_of
from pytest_netpoll.model.metrics import COUNTERS
from pytest_netpoll.model.snapshot import Snapshot
from tests.made_up import late, offender, point

MS = 1_000_000


def measurement(
    histogram: dict[int, int] | None = None,
    cpu: float = 0.1,
    waited: float = 0.1,
    offenders: tuple[Offender, ...] = (),
    delayed: float | None = None,
    unmeasured: str | None = None,
    ps_running: float | None = None,
    facts: Mapping[str, Any] = MappingProxyType({}),
    seen: Mapping[str, Any] = MappingProxyType({}),
    **counts: int,
) -> Measurement:
    """Of one second. histogram: ns -> wakeups. cpu, waited: s. delayed: in the slowest wakeup's interval.

    facts: for the Measurement; seen: for its Snapshot.
    """
    counters = {**dict.fromkeys(COUNTERS, 0), **counts}
    latencies = {bucket_of(ns): n for ns, n in (histogram or {}).items()}
    delays = [50 * MS, waited * 1e8 if delayed is None else delayed * 1e9, 50 * MS]
    snapshot = Snapshot(counters, latencies, 0, int(cpu * 1e9), int(waited * 1e9), **seen)
    return Measurement(
        "s",
        1,
        "/s",
        "go1.26.6",
        1.0,
        snapshot,
        offenders=offenders,
        slowest=(late(20 * MS, at_ms=150.0),),
        timeline=tuple(
            point(100.0 * i, run_delay_ns=int(delay), ps_running=ps_running)
            for i, delay in enumerate(delays, 1)
        ),
        unmeasured=unmeasured,
        **{"cpus": 1, **facts},
    )


DUP: Any = {
    "productive_wakeups": 100,
    "spurious_wakeups": 90,
    "offenders": (offender(90, cause="registered twice"),),
}
TICKERS = {"blocking_polls": 10, "timed_polls": 990, "timeout_polls": 900, "events": 10}


@pytest.mark.parametrize(
    "more",
    [{"lost": 1}, {"unmeasured": "no"}],
)
def test_inexact_numbers_get_no_diagnosis(more: Any) -> None:
    assert diagnose(measurement(**DUP))
    assert diagnose(measurement(**DUP, **more)) == []


@pytest.mark.parametrize(
    "counts",
    [
        {**TICKERS, "timeout_polls": 150},  # seldom
        {**TICKERS, "events": 500},  # busy, with a timer now and then
        {**TICKERS, "blocking_polls": 1000},  # most ended by events
    ],
)
def test_what_may_be_chance_is_not_diagnosed(counts: dict[str, int]) -> None:
    assert diagnose(measurement(**counts)) == []


def test_acceptors_and_readers_woken_for_nothing_break_different_rules() -> None:
    twice: Any = {"cause": "registered twice"}
    accept = offender(60, syscall="accept4", **twice)
    both = measurement(**{**DUP, "offenders": (accept, offender(30, **twice))})
    reading, accepting = diagnose(both)
    assert accepting.startswith("s: NP102 shared-listener at server/fault_dup.go:33: 60 of 90 spurious")
    assert reading.startswith("s: NP101 second-reader at server/fault_dup.go:33: 30 of 190 wakeups")
    [accepting] = diagnose(measurement(**{**DUP, "offenders": (offender(90, syscall="accept4", **twice),)}))
    assert "accept" in accepting


def test_a_second_reader_explains_retries_too() -> None:
    retries = offender(60, offence="stale", cause="registered twice")
    [text] = diagnose(measurement(**{**DUP, "offenders": (*DUP["offenders"], retries)}, stale_retries=60))
    assert "another reader of the same socket" in text


def test_timers_are_counted_with_the_polls_they_ended() -> None:
    [text] = diagnose(measurement(**TICKERS, break_polls=50))
    assert "950 of 1,000 polls that waited were ended by a timer, 950 a second, for 10 events" in text
    assert "tickers or deadlines keep the poller busy" in text


def test_deadlines_are_distinguished_from_tickers_if_they_were_counted() -> None:
    [text] = diagnose(measurement(**TICKERS, deadline_wakeups=800, seen={"io_outcomes": {"EAGAIN": 800}}))
    assert "with 800 deadlines expired" in text
    assert "ticker" not in text
    [text] = diagnose(measurement(**TICKERS, deadline_wakeups=3))
    assert "tickers or sleeps keep the poller busy" in text


def cpu(share: float, function: str = "main.hog", **more: Any) -> Offender:
    """499 CPU samples a second."""
    stack = (Frame(function, "server/hog.go", 12),)
    return offender(round(499 * share), offence="cpu", share=share, stack=stack, **more)


def test_the_code_that_has_the_cpu_explains_late_wakeups() -> None:
    late = {20 * MS: 50}
    hog = (cpu(0.9),)
    [own] = diagnose(measurement(late, cpu=0.98, waited=0.02, offenders=hog))
    assert "50 of 50 wakeups ran more than 5.0 ms late" in own
    assert "CPU-bound" in own
    assert "main.hog alone has 90.0 %" in own
    assert "machine" not in own
    [machine] = diagnose(measurement(late, cpu=0.02, waited=0.9, offenders=hog))
    assert "machine is short of CPU: other" in machine
    assert "CPU-bound" not in machine
    own, machine = diagnose(measurement(late, cpu=0.4, waited=0.6, offenders=hog))
    assert "CPU-bound" in own
    assert "the machine is short of CPU" in machine


@pytest.mark.parametrize("samples", [(), (cpu(0.9, "runtime.gcDrain"),), (cpu(0.9, "runtime.schedule"),)])
def test_without_samples_in_its_own_code_a_program_does_not_starve_itself(samples: Any) -> None:
    made = measurement({20 * MS: 50}, cpu=0.98, waited=0.02, offenders=samples)
    assert not any("CPU-bound" in text for text in diagnose(made))


@pytest.mark.parametrize(
    ("gomaxprocs", "cpus", "fix"),
    [
        (1, 2, "Fix: raise GOMAXPROCS, which is 1"),
        (1, 1, "Fix: give CPU-bound work a process of its own, or the service more than one CPU"),
        (4, 4, "Fix: give CPU-bound work fewer goroutines than GOMAXPROCS"),
        (None, 4, "fewer goroutines than GOMAXPROCS"),
    ],
)
def test_the_advice_is_possible(gomaxprocs: int | None, cpus: int | None, fix: str) -> None:
    facts = {"gomaxprocs": gomaxprocs, "cpus": cpus}
    [text] = diagnose(measurement({20 * MS: 50}, 0.98, 0.02, facts=facts, offenders=(cpu(0.9),)))
    assert fix in text
    if gomaxprocs == 1:
        [text] = diagnose(measurement({}, 0.98, 0.02, facts=facts, **POLLS))
        assert "only the runtime's monitor polls" in text
        assert fix in text


READER = (Frame("main.read", "main.go", 1), Frame("main.serve", "main.go", 2))
HANDLER = (Frame("main.work", "main.go", 3), Frame("main.serve", "main.go", 4))


@pytest.mark.parametrize(
    ("wakeups", "moved", "stack", "share", "expected"),
    [
        (98, 98, HANDLER, 0.9, ["NP401"]),  # 10 ms each
        (110, 0, HANDLER, 0.9, []),
        (98, 110, HANDLER, 0.9, []),  # they aren't woken for each message
        (1000, 0, HANDLER, 0.9, []),  # too many messages
        (1000, 9999, (Frame("main.loop", "main.go", 5),), 0.6, ["NP401"]),
        (1000, 0, (Frame("main.loop", "main.go", 5),), 0.45, []),
    ],
)
def test_goroutines_that_wait_for_each_other_are_not_starved(
    wakeups: int, moved: int, stack: tuple[Frame, ...], share: float, expected: list[str]
) -> None:
    samples = (dataclasses.replace(cpu(share), stack=stack), cpu(0.9 - share, "main.other"))
    seen = {"io_outcomes": {"data": moved}}
    made = measurement({20 * MS: wakeups}, cpu=0.98, waited=0.02, offenders=samples, seen=seen)
    made = dataclasses.replace(made, slowest=(late(20 * MS, stack=READER),))
    assert [f.rule.code for f in findings(made)] == expected


def test_the_line_of_starvation_is_in_the_programs_own_code_where_assembly_hides_it() -> None:
    sha = Frame("crypto/sha256.block", "crypto/sha256/sha256block_amd64.s", 734)
    loop = Frame("main.loop", "main.go", 5)
    for caller, line in (
        ((), "main.go:5"),
        ((Frame("main.rehash", "main.go", 9),), "crypto/sha256/sha256block_amd64.s:734"),
    ):
        samples = (dataclasses.replace(cpu(0.7), stack=(sha, *caller)), cpu(0.25))
        samples = (samples[0], dataclasses.replace(samples[1], stack=(loop,)))
        made = measurement({20 * MS: 98}, cpu=0.98, waited=0.02, offenders=samples)
        assert [(f.rule.code, f.line) for f in findings(made)] == [("NP401", line)]


def test_waiting_for_a_cpu_at_another_time_explains_no_late_wakeup() -> None:
    assert diagnose(measurement({20 * MS: 50}, 0.02, 0.9, offenders=(cpu(0.9),), delayed=0.001)) == []


@pytest.mark.parametrize(
    ("late", "used", "waited"),
    [
        ({20 * MS: 50}, 0.1, 0.08),  # late for neither of the reasons known
        ({20 * MS: 9, 10_000: 100}, 0.98, 0.02),  # a few
        ({1 * MS: 500}, 0.98, 0.02),  # not late
        ({}, 0.98, 0.02),
    ],
)
def test_lateness_without_its_cause_in_the_numbers_is_not_explained(
    late: dict[int, int], used: float, waited: float
) -> None:
    assert diagnose(measurement(late, used, waited, offenders=(cpu(0.9),))) == []


def test_a_few_timers_in_a_short_window_are_no_churn() -> None:
    for ended, expired, expected in ((100, 3, "NP301"), (99, 3, None), (100, 26, "NP302"), (99, 26, None)):
        counts = {"timed_polls": ended, "timeout_polls": ended, "deadline_wakeups": expired}
        made = measurement(**counts, seen={"io_outcomes": {"EAGAIN": expired}})
        short = dataclasses.replace(made, window_seconds=0.1)
        assert [f.rule.code for f in findings(short)] == ([expected] if expected else [])


@pytest.mark.parametrize(
    ("polls", "ready", "expired", "tried", "go", "expected"),
    [
        (340, 200, 200, 0, "go1.27.3", []),  # connections that are closed at their deadlines
        (463, 239, 239, 239, "go1.27.3", ["NP302"]),  # an acceptor that looks at a flag
        (799, 0, 0, 2, "go1.27.3", []),  # callbacks that remove entries of a cache
        (799, 0, 0, 2, "go1.22.12", ["NP301"]),  # forgotten tickers, perhaps
        (340, 200, 200, 0, "go1.22.12", []),
        (844, 495, 0, 0, "go1.27.3", ["NP301"]),  # a loop that sleeps
        (844, 695, 200, 0, "go1.27.3", ["NP301"]),  # beside connections that are closed
    ],
)
def test_timers_that_come_once_are_no_churn(
    polls: int, ready: int, expired: int, tried: int, go: str, expected: list[str]
) -> None:
    counts = {"timed_polls": polls, "timeout_polls": polls, "ready_calls": ready, "deadline_wakeups": expired}
    made = measurement(**counts, seen={"io_outcomes": {"EAGAIN": tried}})
    assert [f.rule.code for f in findings(dataclasses.replace(made, go_version=go))] == expected


def test_connections_that_are_closed_at_their_deadlines_are_no_churn_with_go_1_19() -> None:
    waker = (Frame("runtime.netpolldeadlineimpl", "runtime/netpoll.go", 598),)
    for tried, expected in ((1, []), (200, ["NP301"])):
        made = measurement(
            timed_polls=314,
            timeout_polls=313,
            ready_calls=201,
            offenders=(offender(200, offence="ready", fd_type=None, stack=waker),),
            seen={"io_outcomes": {"EAGAIN": tried}},
        )
        made = dataclasses.replace(made, go_version="go1.19.8")
        assert [f.rule.code for f in findings(made)] == expected


def ticker(function: str) -> Offender:
    waker, parked = Frame("time.sendTime", "time/sleep.go", 154), Frame("main.room", "room.go", 7)
    woken = (parked, Frame(function, "room.go", 3))
    return offender(300, offence="ready", fd_type=None, stack=(waker,), woken_stack=woken)


def test_timers_that_compute_something_are_no_churn() -> None:
    working = dataclasses.replace(cpu(0.9), stack=(*cpu(0.9).stack, Frame("main.rooms", "room.go", 3)))
    for root, used, expected in (
        ("main.rooms", 0.32, []),  # a simulation: 0.5 ms at each of 615 polls
        ("main.rooms", 0.1, ["NP301"]),
        ("main.others", 0.32, ["NP301"]),  # beside a computation
    ):
        counts = {"timed_polls": 615, "timeout_polls": 615, "ready_calls": 320, "deadline_wakeups": 0}
        made = measurement(**counts, cpu=used, offenders=(ticker(root), working))
        assert [f.rule.code for f in findings(made)] == expected


@pytest.mark.parametrize(
    ("outcomes", "futile", "expected"),
    [
        ({"ENOENT": 417}, {}, []),  # links that are dialed again, after a pause
        ({"ENOENT": 417}, {("connect", "ENOENT"): 400}, ["NP301"]),  # without one
        ({"EAGAIN": 417}, {}, ["NP301"]),
    ],
)
def test_timers_after_which_calls_fail_are_no_churn(outcomes: Any, futile: Any, expected: list[str]) -> None:
    made = measurement(
        timed_polls=417, timeout_polls=417, cpu=0.3, seen={"io_outcomes": outcomes, "futile": futile}
    )
    assert [f.rule.code for f in findings(made)] == expected


@pytest.mark.parametrize(
    ("breaks", "moved", "expected"), [(0, 450, []), (0, 449, ["NP301"]), (100, 650, ["NP301"])]
)
def test_timers_that_send_something_are_no_churn(breaks: int, moved: int, expected: list[str]) -> None:
    made = measurement(**TICKERS, break_polls=breaks, seen={"io_outcomes": {"data": moved}})
    assert [f.rule.code for f in findings(made)] == expected


def test_one_of_several_runs_is_diagnosed_with_its_own_numbers() -> None:
    seldom = measurement(**{**TICKERS, "timeout_polls": 150, "blocking_polls": 100, "timed_polls": 150})
    assert diagnose(seldom) == []
    assert diagnose(*median_of([[seldom]] * 4)) == []

    def herd(n: int) -> Offender:
        return offender(n, syscall="accept4", cause="registered twice")

    herds = [
        [measurement(productive_wakeups=100, spurious_wakeups=n, offenders=(herd(n),))] for n in (20, 90, 60)
    ]
    [accepting] = diagnose(*median_of(herds))
    assert accepting.startswith("s: NP102 shared-listener at server/fault_dup.go:33: 60 of 60 spurious")


def codes(*offenders: Offender, **more: Any) -> list[str]:
    """The codes of the rules that a measurement with these offenders breaks; 200 wakeups, 100 of them
    spurious."""
    counts = {"wakeups": 200, "productive_wakeups": 100, "spurious_wakeups": 100, "stale_retries": 100}
    return [f.rule.code for f in findings(measurement(**{**counts, **more}, offenders=offenders))]


def test_a_loop_that_never_waits_makes_no_stale_retries() -> None:
    retries = offender(41, offence="stale", cause="data")
    for calls, expected in ((139_324, ["NP201"]), (30, ["NP103"])):
        loop = offender(calls, offence="futile", outcome="EAGAIN")
        seen = {"futile": {("read", "EAGAIN"): calls}}
        assert codes(retries, loop, cpu=1.0, seen=seen) == expected


REFUSED = {"io_outcomes": {"ECONNREFUSED": 100}}
DROPPED = {"dropped_datagrams": 100}


@pytest.mark.parametrize(
    ("woken", "seen", "code"),
    [
        ({"cause": "registered twice"}, {}, "NP101"),
        ({"cause": "registered twice", "syscall": "accept"}, {}, "NP102"),
        ({"cause": "data", "offence": "stale"}, {}, "NP103"),
        ({"cause": "full queue", "direction": "write", "fd_type": "unixgram"}, {}, "NP104"),
        ({"cause": "error queue", "fd_type": "udp"}, {}, "NP105"),
        ({"cause": "socket error", "fd_type": "udp"}, REFUSED, "NP106"),
        ({"cause": "data", "fd_type": "udp"}, DROPPED, "NP107"),
        # These prove nothing.
        ({"cause": None}, {}, None),
        ({"cause": None, "syscall": "accept"}, {}, None),
        ({"cause": "data"}, {}, None),
        ({"cause": "registered twice", "offence": "stale"}, {}, None),
        ({"cause": "error queue", "offence": "stale"}, {}, None),
        ({"cause": "socket error", "fd_type": "udp"}, {}, None),
        ({"cause": "socket error", "fd_type": "tcp"}, REFUSED, None),
        ({"cause": "data", "fd_type": "udp"}, {"dropped_datagrams": 50}, None),
        ({"cause": "data", "fd_type": "tcp"}, DROPPED, None),
        ({"cause": "registered twice", "fd_type": "udp"}, DROPPED, None),
        ({"cause": "registered twice", "fd_type": "udp"}, {"dropped_datagrams": None}, None),
        ({"cause": "registered twice", "fd_type": "tcp"}, {"dropped_datagrams": None}, "NP101"),
    ],
)
def test_the_cause_of_a_wakeup_decides_the_rule(woken: Any, seen: Any, code: str | None) -> None:
    few = 4 if code == "NP102" else 8  # may be chance
    for count, expected in ((100, code), (few, None)):
        found = codes(offender(count, **woken), seen={"dropped_datagrams": 0, **seen})
        assert found == ([expected] if expected else [])


@pytest.mark.parametrize(
    ("cause", "fd_type", "missing"),
    [
        ("registered twice", "udp", "NP101"),
        ("data", "udp", "NP107"),
        ("registered twice", "tcp", None),
        ("data", "tcp", None),
        ("error queue", "udp", None),
    ],
)
def test_only_datagrams_need_to_know_those_that_were_dropped(
    cause: Any, fd_type: str, missing: str | None
) -> None:
    for dropped in (None, 0):
        made = measurement(
            offenders=(offender(20, cause=cause, fd_type=fd_type),),
            seen={"dropped_datagrams": dropped},
            wakeups=20,
            spurious_wakeups=20,
        )
        found = {rule.rule.code for rule in unchecked(made)} & {"NP101", "NP107"}
        assert found == ({missing} - {None} if dropped is None else set())


@pytest.mark.parametrize(
    ("wakeups", "wasted", "expected"), [(100, 5, ["NP102"]), (100, 4, []), (990, 10, ["NP102"]), (991, 9, [])]
)
def test_a_shared_listener_is_more_than_a_few_of_many_wakeups(
    wakeups: int, wasted: int, expected: list[str]
) -> None:
    found = offender(wasted, syscall="accept4", cause="registered twice")
    assert codes(found, productive_wakeups=wakeups, spurious_wakeups=wasted) == expected


@pytest.mark.parametrize(
    ("futile", "expected"),
    [
        ({("read", "EAGAIN"): 6000}, ["NP201"]),
        ({("read", "end of file"): 6000}, ["NP202"]),
        ({("accept4", "EMFILE"): 6000}, ["NP203"]),
        ({("read", "EAGAIN"): 60, ("read", "end of file"): 60, ("accept4", "EMFILE"): 60}, []),
        ({}, []),
    ],
)
def test_loops_are_distinguished_by_how_their_calls_end(futile: Any, expected: list[str]) -> None:
    assert codes(seen={"futile": futile}) == expected


def io_calls(count: int, **more: Any) -> Offender:
    """Reads that returned data."""
    return offender(count, **{"offence": "io", "outcome": "data", "bytes": 100 * count, **more})


@pytest.mark.parametrize(
    ("futile", "used", "expected"),
    [(5_000, 0.1, ["NP201"]), (4_999, 0.1, []), (50_000, 8.0, ["NP201"]), (49_999, 8.0, [])],
)
def test_a_loop_without_a_pause_makes_many_calls(futile: int, used: float, expected: list[str]) -> None:
    assert codes(seen={"futile": {("recvfrom", "EAGAIN"): futile}}, cpu=used) == expected


@pytest.mark.parametrize(
    ("calls", "moved", "expected"),
    [
        ([io_calls(100)], 2000, ["NP203"]),
        ([io_calls(101)], 2000, []),  # each request may have caused ten of them
        ([io_calls(50), io_calls(51, syscall="accept4")], 2000, []),
        # A loop may log each failure.
        ([io_calls(10), io_calls(2000, direction="write", syscall="write")], 2010, ["NP203"]),
        ([io_calls(10), io_calls(2000, outcome="EAGAIN")], 10, ["NP203"]),
        # I/O calls weren't recorded.
        ([], 100, ["NP203"]),
        ([], 101, []),
    ],
)
def test_a_loop_fails_more_often_than_it_reads(
    calls: list[Offender], moved: int, expected: list[str]
) -> None:
    futile = {("write", "ENOSPC"): 1000}
    seen = {"futile": futile, "io_outcomes": {"data": moved}}
    assert codes(*calls, cpu=0.01, seen=seen) == expected


@pytest.mark.parametrize(
    ("used", "samples", "expected"),
    [
        (1.0, cpu(0.9, not_blocking=400), ["NP204"]),
        (1.0, cpu(0.9, not_blocking=270), ["NP204"]),
        (1.0, cpu(0.9, not_blocking=269), []),
        (1.0, cpu(0.9, not_blocking=100), []),  # it computes, and checks now and then
        (1.0, cpu(0.2, not_blocking=90), []),  # a small part
        (0.1, cpu(0.9, not_blocking=400), []),
    ],
)
def test_a_busy_loop_checks_most_of_the_time(used: float, samples: Offender, expected: list[str]) -> None:
    assert codes(samples, cpu=used) == expected


@pytest.mark.parametrize(
    ("reads", "expected"),
    [
        ({}, ["NP205"]),
        ({"bytes": 20_000 * 512}, []),  # large pieces
        ({"filled": 16_000}, ["NP205"]),
        ({"filled": 15_999}, []),  # there was room for more, so nothing was left
        ({"count": 1_500}, []),  # less than ten for each of 200 wakeups
        ({"fd_type": "file"}, []),
        ({"fd_type": "unixpacket"}, []),  # a read takes one message, however small it is
        ({"syscall": "write", "direction": "write"}, []),
        ({"outcome": "EAGAIN"}, []),
    ],
)
def test_small_reads_are_many_and_small(reads: Any, expected: list[str]) -> None:
    about = {"count": 20_000, "offence": "io", "outcome": "data", "bytes": 20_000, "filled": 20_000, **reads}
    assert codes(offender(**about)) == expected


def test_reads_that_only_the_standard_library_makes_are_not_the_programs() -> None:
    library = tuple(Frame(name, "net/http/h2.go", 1) for name in ("net.(*netFD).Read", "net/http.readFrames"))
    same = Frame("golang.org/x/net/http2.(*serverConn).serve", "http2/server.go", 815)
    own = Frame("main.main", "main.go", 9)
    for stack, expected in ((library, []), ((*library, same), []), ((*library, same, own), ["NP205"])):
        reads = dataclasses.replace(io_calls(26_918, filled=26_918, bytes=107_809), stack=stack)
        assert codes(reads) == expected


def test_one_of_something_is_singular() -> None:
    reads = io_calls(20_000, filled=20_000, bytes=20_000)
    [text] = diagnose(measurement(wakeups=1, offenders=(reads,)))
    assert "20,000 read calls for 1 wakeup brought" in text
    [text] = diagnose(measurement(**{**TICKERS, "events": 1}))
    assert "for 1 event: " in text


@pytest.mark.parametrize(
    ("used", "waited", "ps", "cpus", "expected"),
    [
        (1.9, 8.0, 48, 2, ["NP406"]),
        (1.9, 8.0, 2, 2, []),
        (0.2, 8.0, 48, 2, []),  # others have the CPUs
        (1.9, 0.1, 48, 2, []),
        (1.9, 2.0, 48, 2, []),  # hardly more threads than CPUs
        # As many threads at a time; others have the CPUs for a third of the time, or for most of it.
        (1.3, 9.0, 48, 2, ["NP406"]),
        (0.5, 9.0, 48, 2, []),
        (1.9, 8.0, None, 2, []),
        (1.9, 8.0, 48, None, []),
    ],
)
def test_more_ps_than_cpus_break_their_rule(
    used: float, waited: float, ps: int | None, cpus: int | None, expected: list[str]
) -> None:
    assert codes(cpu=used, waited=waited, facts={"gomaxprocs": ps, "cpus": cpus}) == expected


@pytest.mark.parametrize(("running", "expected"), [(8.0, ["NP406"]), (2.1, ["NP406"]), (2.0, []), (0.0, [])])
def test_threads_that_need_no_p_are_not_too_many_ps(running: float, expected: list[str]) -> None:
    facts = {"gomaxprocs": 8, "cpus": 2}
    assert codes(cpu=1.9, waited=8.0, ps_running=running, facts=facts) == expected
    # On a busy machine the agent may come too late to look in an interval.
    m = measurement(cpu=1.9, waited=8.0, ps_running=running, facts=facts)
    first, *others = m.timeline
    unseen = dataclasses.replace(m, timeline=(dataclasses.replace(first, ps_running=None), *others))
    assert [finding.rule.code for finding in findings(unseen)] == expected


@pytest.mark.parametrize(
    ("at_once", "after_75_ms", "expected"),
    [
        (8, 0, []),  # they did something else before they read
        (8, 1, []),
        (8, 2, ["NP401"]),
        (0, 8, ["NP401"]),
        (4, 0, ["NP401"]),  # too few to tell
        (0, 0, ["NP401"]),
    ],
)
def test_a_reader_that_ran_at_once_is_not_starved(
    at_once: int, after_75_ms: int, expected: list[str]
) -> None:
    latency = {"sched_latency": {(27_000, 28_000): at_once, (75 * MS, 76 * MS): after_75_ms}}
    assert codes(cpu(0.9), histogram={20 * MS: 50}, cpu=0.98, waited=0.02, seen=latency) == expected


@pytest.mark.parametrize(
    ("late", "others", "throttled", "expected"),
    [
        (20, 10, 80 * MS, ["NP403"]),
        (20, 400, 80 * MS, ["NP403"]),  # each of them is explained
        (9, 400, 80 * MS, []),
        (20, 400, 5 * MS, []),
        (20, 10, None, []),
    ],
)
def test_a_quota_explains_late_wakeups_however_many_others_there_are(
    late: int, others: int, throttled: int | None, expected: list[str]
) -> None:
    about: dict[str, Any] = {"periods": 30, "throttled_periods": 29, "throttled_ns": 10**9}
    for ended in (False, True):
        quota = CpuQuota(
            name="/box", quota_us=None if ended else 20_000, period_us=None if ended else 100_000, **about
        )
        made = measurement({20 * MS: late, 10_000: others}, facts={"cgroups": (quota,)})
        points = tuple(point(100.0 * i, throttled_ns=throttled) for i in (1, 2, 3))
        found = findings(dataclasses.replace(made, timeline=points))
        assert [f.rule.code for f in found] == expected
        for finding in found:
            named = "/box (it has ended since)" if ended else "/box, 20 ms every 100 ms,"
            assert f"{named} stopped the service in 29 of 30 periods" in finding.proof.text


@pytest.mark.parametrize(
    ("share", "used", "expected"), [(0.5, 1.0, ["NP407"]), (0.1, 1.0, []), (0.5, 0.2, [])]
)
def test_gc_pressure_is_a_large_part_of_much(share: float, used: float, expected: list[str]) -> None:
    assert codes(cpu(share, "runtime.gcDrain"), cpu(0.2), cpu=used) == expected


@pytest.mark.parametrize(
    ("marking", "assists", "own", "expected"),
    [
        (0.94, 0.0, 0.03, []),  # debug.FreeOSMemory beside a large heap
        (0.52, 0.35, 0.1, ["NP407"]),  # services/causes with -do gc
        (0.5, 0.06, 0.06, ["NP407"]),
        (0.9, 0.0, 0.1, ["NP407"]),
    ],
)
def test_gc_pressure_comes_from_code_that_allocates(
    marking: float, assists: float, own: float, expected: list[str]
) -> None:
    samples = cpu(marking, "runtime.gcDrain"), cpu(assists, "runtime.gcDrainN"), cpu(own)
    assert codes(*samples, cpu=1.0) == expected


BOTH = "If the program calls runtime.GC itself, leave collecting to the runtime"


@pytest.mark.parametrize(
    ("called", "assists", "line", "cause", "fix", "other"),
    [
        (0.2, 0.0, 57, "The program calls runtime.GC itself, seen in 100 samples.", "leave collect", "GOGC"),
        (0.0, 0.1, 12, "allocates for each message, or GOGC is low", "allocate less", "runtime.GC"),
        # The line is where more of the samples are.
        (0.1, 0.05, 57, "seen in 50 samples. Goroutines that allocate assist", BOTH, None),
        (0.05, 0.1, 12, "seen in 25 samples. Goroutines that allocate assist", BOTH, None),
        # The samples can't tell.
        (0.0, 0.0, 12, "allocates for each message, calls runtime.GC itself, or sets", BOTH, None),
    ],
)
def test_gc_pressure_names_a_call_of_runtime_gc_that_the_samples_show(
    called: float, assists: float, line: int, cause: str, fix: str, other: str | None
) -> None:
    call = (Frame("main.handle", "server/main.go", 57),)
    shares = [cpu(0.5, "runtime.gcDrain"), cpu(0.2)]
    if called:
        shares.append(dataclasses.replace(cpu(called, collects=True), stack=call))
    if assists:
        shares.append(cpu(assists, "runtime.gcDrainN"))
    [found] = findings(measurement(cpu=1.0, offenders=tuple(shares)))
    assert found.line is not None
    assert found.line.endswith(f":{line}")
    assert cause in found.proof.text
    assert fix in found.fix
    assert other is None or other not in found.fix


def test_one_collection_in_a_short_window_is_no_pressure() -> None:
    for used, expected in ((0.2, ["NP407"]), (0.08, [])):
        made = measurement(cpu=used, waited=0.2, offenders=(cpu(0.5, "runtime.gcDrain"), cpu(0.2)))
        short = dataclasses.replace(made, window_seconds=0.1)
        assert [f.rule.code for f in findings(short)] == expected


def test_a_few_samples_prove_nothing() -> None:
    one = offender(1, offence="cpu", share=1.0, stack=(Frame("runtime.gcDrain", "runtime/mgcmark.go", 1),))
    assert codes(one, cpu=1.0) == []


CALLBACK = tuple(Frame(name, "main.go", 1) for name in ("main.onData", "_cgoexp_9496bfc3b8ca_onData"))


def handed(count: int, offence: str = "woken", locked: bool = True) -> Offender:
    return offender(count, offence=offence, syscall=None, locked=locked)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([handed(30)], ["NP405"]),
        ([handed(15), handed(15, "ready")], ["NP405"]),
        ([handed(30, locked=False)], []),
        ([handed(10)], []),
        # Callbacks from C are locked by cgo.
        ([dataclasses.replace(handed(30), stack=CALLBACK)], []),
        ([dataclasses.replace(handed(30, "ready"), woken_stack=CALLBACK)], []),
        ([dataclasses.replace(handed(30, "ready"), stack=CALLBACK)], ["NP405"]),
        # A main loop that a ticker wakes.
        (
            [dataclasses.replace(handed(61, "ready"), stack=(Frame("time.sendTime", "time/sleep.go", 154),))],
            [],
        ),
    ],
)
def test_locked_goroutines_that_are_often_woken_break_their_rule(
    found: list[Offender], expected: list[str]
) -> None:
    assert codes(*found) == expected


def test_writes_that_were_held_back_count_with_their_time() -> None:
    held = offender(20, offence="held", direction="write", syscall="write", held_ns=20 * 41 * MS)
    [text] = diagnose(measurement({}, offenders=(held,)))
    assert "20 writes stayed in the service's sockets for 41.0 ms each" in text
    assert codes(offender(4, offence="held", held_ns=4 * 41 * MS)) == []


@pytest.mark.parametrize(
    ("used", "cpus", "blamed"), [(0.4, 1, True), (0.6, 1, False), (0.6, 2, True), (0.6, None, False)]
)
def test_the_machine_is_blamed_if_others_had_most_of_the_cpu(
    used: float, cpus: int | None, blamed: bool
) -> None:
    assert ("NP404" in codes(histogram={20 * MS: 50}, cpu=used, waited=0.9, facts={"cpus": cpus})) is blamed


POLLS = {"polls": 100, "nonblocking_polls": 99, "events": 100}


@pytest.mark.parametrize(
    ("counts", "used", "expected"),
    [
        ({}, 0.98, ["NP402"]),
        ({"polls": 5000, "nonblocking_polls": 5000}, 0.98, []),  # it polls whenever it has served one
        ({"nonblocking_polls": 80}, 0.98, []),
        ({"events": 3}, 0.98, []),
        ({}, 0.05, []),
        ({}, 0.6, []),
        # Messages that come while it waits: ten of 300 ms of computing, one after the other, in a second.
        ({"nonblocking_polls": 96, "blocking_polls": 4, "events": 12}, 0.98, ["NP402"]),
        ({"polls": 180, "nonblocking_polls": 173, "blocking_polls": 7, "events": 12}, 0.98, []),
    ],
)
def test_nobody_polls_if_all_ps_are_busy(counts: Any, used: float, expected: list[str]) -> None:
    facts = {"gomaxprocs": 1, "cpus": 2}
    for waited in (0.02, 0.9):  # who waits for the CPU may be behind, and always have messages to handle
        assert codes(cpu=used, waited=waited, facts=facts, **{**POLLS, **counts}) == expected


@pytest.mark.parametrize(
    ("ms", "used", "waited", "cpus", "expected"),
    [
        # Others have the CPU half of the time, or two thirds: without that, wakeups are 4 ms late, or 20 ms.
        (9, 0.7, 0.9, 2, "NP402"),
        (60, 0.3, 0.6, 2, "NP401"),
        # Its own threads have the CPU.
        (9, 0.9, 4.0, 1, "NP401"),
        (9, 0.9, 0.05, 2, "NP401"),
    ],
)
def test_starvation_outranks_nobody_polls(
    ms: int, used: float, waited: float, cpus: int, expected: str
) -> None:
    more = {"cpu": used, "waited": waited, "delayed": 0.0, "facts": {"gomaxprocs": 1, "cpus": cpus}}
    assert codes(cpu(0.9), histogram={ms * MS: 50}, **more, **POLLS) == [expected]


def left(closed: int, local: str | None = "127.0.0.1:1", **more: Any) -> Offender:
    """Abandoned connections, this many of them certainly closed at the other end."""
    about: dict[str, Any] = {
        "offence": "parked",
        "stack": (),
        "abandoned": 9,
        "closed": closed,
        "peers": ("a:2",),
    }
    return offender(0, local=local, **{**about, **more})


NOT_RESTED = Reason("process 1 did not rest")


@pytest.mark.parametrize(
    ("offenders", "facts", "expected"),
    [
        ((left(3),), {}, ["NP501"]),
        ((left(3, fd_type="unix", local="/run/s"),), {}, ["NP501"]),
        ((left(2),), {}, []),
        # Two listeners, each with few enough to be chance; dialed connections; clients that may be
        # half-closed.
        ((left(2), left(2, "127.0.0.1:3")), {}, []),
        (tuple(left(1, f"127.0.0.1:{port}") for port in range(9)), {}, []),
        ((left(9, None),), {}, []),
        ((left(0, growth=9),), {}, []),
        ((left(9),), {"unexplained": {"parked": NOT_RESTED}}, []),
        ((left(9),), {"absent": {"abandoned_descriptors": NOT_RESTED}}, []),
        ((left(0, stuck=1, stack=(Frame("main.f", "f.go", 1),)),), {}, ["NP502"]),
        ((left(0, stuck=1),), {"absent": {"stuck_goroutines": NOT_RESTED}}, []),
        ((left(0, "127.0.0.1:1"),), {}, []),
    ],
)
def test_only_what_is_certainly_left_behind_is_a_leak(
    offenders: tuple[Offender, ...], facts: dict[str, Any], expected: list[str]
) -> None:
    found = findings(measurement(offenders=offenders, facts=facts))
    assert [finding.rule.code for finding in found] == expected
    lacking = {missing.rule.code for missing in unchecked(measurement(offenders=offenders, facts=facts))}
    assert ("NP501" in lacking) == any("stuck" not in name for about in facts.values() for name in about)
    assert ("NP502" in lacking) == any("stuck" in name for about in facts.values() for name in about)
