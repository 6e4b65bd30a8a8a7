"""Merging offenders: the stacks of one window, and several windows."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, cast

import pytest

from pytest_netpoll.gobinary.symbols import Frame, Symbolizer
from pytest_netpoll.meter import offender_stacks
from pytest_netpoll.report import evidence_text
from pytest_netpoll.report.record import OffenderRecord, ServiceRecord
from tests.made_up import offender

SEEN = {"events": ["EPOLLIN"], "registered_twice": False, "error_queue": False, "filled": False}
COUNTERS = {"spurious_wakeups": 65, "stale_retries": 5}


def lap(count, fd_type="tcp", line=39, offence="spurious", peer="a:1"):
    stack = (Frame("main.read", "main.go", line),)
    return offender(count, offence=offence, fd_type=fd_type, local="b:2", peer=peer, stack=stack)


def test_the_same_place_is_one_offender_and_the_worst_comes_first():
    total = offender_stacks.total(
        [[lap(10), lap(30, line=50)], [lap(25)], [lap(5, offence="stale")]], COUNTERS
    )
    assert [(o.offence, o.stack[0].line, o.count) for o in total] == [
        ("spurious", 39, 35),
        ("spurious", 50, 30),
        ("stale", 39, 5),
    ]
    assert [o.share for o in total] == [35 / 65, 30 / 65, 1.0]


def test_a_descriptor_closed_meanwhile_does_not_split_a_place():
    (total,) = offender_stacks.total(
        [[lap(1, "closed", peer=None)], [lap(2)], [lap(3, "closed", peer=None)]], {}
    )
    assert (total.count, total.fd_type, total.local, total.peer) == (6, "tcp", "b:2", None)
    (total,) = offender_stacks.total([[lap(1, "closed")], [lap(2, "closed")]], {})
    assert total.fd_type == "closed"


def test_offenders_that_were_not_recorded_are_missing_from_the_shares():
    laps = [[lap(10), lap(30, line=50)], [lap(25), lap(5, offence="ready")]]
    total = offender_stacks.total(laps, {"spurious_wakeups": 100, "ready_calls": 1000})
    # Ready calls are sampled, so there is no total to compare with.
    assert [o.share for o in total] == [0.35, 0.3, 1.0]


def test_shares_of_one_window_lack_them_too(tmp_path):
    raw = [{**asdict(entry), **SEEN, "stack": []} for entry in (lap(30), lap(3, offence="stale"))]
    found = offender_stacks.collect(raw, Symbolizer(tmp_path), {"spurious_wakeups": 40, "stale_retries": 4})
    assert [o.share for o in found] == [0.75, 0.75]


class Symbols:
    """Resolves addresses as functions of these names, at their own numbers' lines."""

    def stack(self, raw):
        return tuple(Frame(name, "main.go", line) for name, line in raw)


def test_a_call_of_runtime_gc_is_a_place_of_its_own_however_often_the_function_is_seen():
    def samples(count, *stack):
        return {**asdict(lap(count, offence="cpu")), **SEEN, "stack": list(stack)}

    handle = ("main.handle", 40)
    raw = [
        samples(3, ("runtime.Gosched", 1), ("runtime.GC", 1), ("main.handle", 57)),
        samples(2, ("runtime.sweepone", 1), ("runtime.GC", 1), ("main.handle", 57)),
        samples(90, handle),
        samples(4, ("runtime.mallocgc", 1), handle),
        samples(1, ("runtime.gcDrain", 9), ("runtime.gcBgMarkWorker", 1)),
    ]
    found = offender_stacks.collect(raw, Symbols(), {})
    places = [(o.stack[0].function, o.stack[0].line, o.count, o.collects) for o in found]
    assert places == [
        ("main.handle", 40, 94, False),
        ("main.handle", 57, 5, True),
        ("runtime.gcDrain", 9, 1, False),
    ]
    merged = offender_stacks.total([found, found], {})
    assert [(o.count, o.collects) for o in merged] == [(188, False), (10, True), (2, False)]


@pytest.mark.parametrize("wrong", [{"offence": "spurios"}, {"count": 0}, {"count": "3"}, {"syscall": 3}])
def test_an_entry_of_another_kind_is_a_value_error(tmp_path, wrong):
    raw = [{**asdict(lap(3)), **SEEN, "stack": [], **wrong}]
    with pytest.raises(ValueError, match="offender"):
        offender_stacks.collect(raw, Symbolizer(tmp_path), {})


@pytest.mark.parametrize("counters", [{}, {"spurious_wakeups": 64}])
def test_no_share_exceeds_100_percent(counters):
    """A wakeup may be resolved between reading the counters and reading the offenders."""
    assert [o.share for o in offender_stacks.total([[lap(65)]], counters)] == [1.0]


@pytest.mark.parametrize(
    ("functions", "background"),
    [
        (["runtime.ready", "runtime.gcSweep", "runtime.gcMarkTermination"], True),
        (["runtime.ready", "runtime.resumeG", "runtime.markroot.func1"], True),
        # The GC may begin wherever the program allocates.
        (["runtime.ready", "runtime.gcStart", "runtime.mallocgc", "main.work"], True),
        (["runtime.ready", "runtime.findRunnable", "runtime.schedule"], True),
        (["runtime.ready", "runtime.schedule", "runtime.mcall"], True),
        # A finalizer's work is the program's.
        (["runtime.ready", "runtime.goready", "runtime.send", "main.finalize", "runtime.runfinq"], False),
        (["runtime.ready", "runtime.goready", "runtime.chansend", "main.work"], False),
        # Of a timer.
        (["runtime.ready", "runtime.goroutineReady", "runtime.unlockAndRun", "runtime.findRunnable"], False),
        (["runtime.ready", "sync.runtime_Semrelease", "sync.(*Mutex).Unlock", "main.work"], False),
        ([], False),
    ],
)
def test_ready_calls_of_the_runtime_are_recognized_by_their_stacks(functions, background):
    frames = [Frame(function, "file.go", 1) for function in functions]
    assert offender_stacks.by_the_runtime(frames) == background


def test_the_runtimes_share_of_the_sample_is_its_share_of_all_calls():
    def caller(count, runtime, offence="ready"):
        return replace(lap(count, offence=offence), runtime=runtime)

    sample = [caller(30, True), caller(10, False), caller(500, False, "spurious")]
    assert offender_stacks.runtime_ready_calls(sample, 400) == 300
    assert offender_stacks.runtime_ready_calls([], 0) == 0


@pytest.mark.parametrize(
    ("events", "seen", "cause"),
    [
        (["EPOLLIN"], {"registered_twice": True}, "registered twice"),
        (["EPOLLIN"], {}, "data"),
        (["EPOLLIN", "EPOLLERR"], {"error_queue": True}, "data"),
        (["EPOLLERR"], {"error_queue": True}, "error queue"),
        (["EPOLLERR"], {"registered_twice": True}, "socket error"),
        (["EPOLLHUP"], {}, None),
        ([], {}, None),
        (["EPOLLIN"], {"registered_twice": None}, None),
        (["EPOLLOUT"], {"direction": "write"}, None),
        (["EPOLLOUT"], {"direction": "write", "fd_type": "unixgram"}, "full queue"),
        (["EPOLLHUP"], {"direction": "write", "fd_type": "unixgram"}, None),
    ],
)
def test_event_bits_and_the_socket_determine_the_cause(events, seen, cause):
    entry = {**asdict(lap(3)), **SEEN, "events": events, **seen}
    assert offender_stacks.cause_of(entry) == cause


@pytest.mark.parametrize(
    ("functions", "looks"),
    [
        (["runtime.chanrecv", "runtime.selectnbrecv", "main.watch"], True),
        (["runtime.empty", "runtime.chanrecv", "runtime.selectnbrecv", "main.watch"], True),
        (["runtime.Gosched", "main.work"], True),
        (["runtime.lock2", "runtime.schedule", "runtime.mcall", "runtime.Gosched", "main.work"], True),
        (["sync.(*Mutex).TryLock", "main.work"], True),
        (["internal/sync.(*Mutex).TryLock", "sync.(*Mutex).TryLock", "main.work"], True),
        # It takes, or passes on, a message.
        (["runtime.unlock2", "runtime.chanrecv", "runtime.selectnbrecv", "main.drain"], False),
        (["runtime.ready", "runtime.send", "runtime.chansend", "runtime.selectnbsend", "main.hub"], False),
        (["main.watch", "main.serve"], False),
        (["runtime.mallocgc", "main.work"], False),
        (["runtime.chanrecv", "runtime.chanrecv1", "main.work"], False),
        (["runtime.schedule"], False),
    ],
)
def test_calls_that_only_check_are_recognized_by_their_names(functions, looks):
    frames = [Frame(function, "file.go", 1) for function in functions]
    assert offender_stacks._only_looks(frames) == looks


@pytest.mark.parametrize(
    ("offence", "total", "text"),
    [
        ("woken", 1, "100.0 % of 1 wakeup (read on tcp a), parked"),
        ("woken", 2, "100.0 % of 2 wakeups (read on tcp a), parked"),
        ("cpu", 1, "100.0 % of 1 CPU sample, running"),
        ("held", 1, "1 write (read on tcp a), held back for 41.0 ms, made"),
    ],
)
def test_one_of_a_kind_is_in_the_singular(offence: Any, total: int, text: str) -> None:
    made = offender(
        total if offence == "woken" else 1, offence=offence, local="a", peer=None, held_ns=41_000_000
    )
    service = cast("ServiceRecord", {"metrics": {"wakeups": total}, "runs": {}})
    assert evidence_text.offender_text(service, cast("OffenderRecord", asdict(made))) == text


def test_the_share_of_a_call_that_is_not_futile_is_of_those_calls() -> None:
    made = asdict(
        offender(2, offence="io", share=0.4, syscall="accept4", fd_type="listener", local="a", peer=None)
    )
    metrics = {"io_calls": 300_004, "futile_calls": 299_920}
    service = cast("ServiceRecord", {"metrics": metrics, "runs": {}})
    text = evidence_text.offender_text(service, cast("OffenderRecord", {**made, "outcome": "EAGAIN"}))
    assert text == "40.0 % of 84 other I/O calls (accept4 on listener a, EAGAIN), made"
