"""Waits for mutexes: what the agent reads of them, what is made of that, and what is shown and compared."""

from __future__ import annotations

import base64
import ctypes
import dataclasses
import gzip
import importlib
import os
import re
import struct
from typing import Any

import pytest

from pytest_netpoll.errors import Reason
from pytest_netpoll.gobinary.symbols import Frame
from pytest_netpoll.meter import mutex_waits, offender_stacks, privilege
from pytest_netpoll.model.histogram import bucket_of
from pytest_netpoll.model.limits import resolve
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.metrics import COUNTERS
from pytest_netpoll.model.sample import Sample
from pytest_netpoll.model.snapshot import Delay, Snapshot
from pytest_netpoll.model.verdict import judge
from pytest_netpoll.report import artifacts, baseline_file, evidence_entries, record, recording, terminal
from pytest_netpoll.report.html import document
from pytest_netpoll.report.next_steps import next_step
from tests.agents import MEASURED
from tests.made_up import offender, point, slow_answer

MS = 1_000_000


@pytest.fixture
def agent(monkeypatch):
    """agent("processes.waiters") is the agent's module of that name, which is in no package."""
    monkeypatch.syspath_prepend(str(privilege.AGENT))
    return importlib.import_module


class Goroutines:
    """This process's memory as a Go program's: structs of 480 bytes, with room between some."""

    STATUS, REASON, SIZE = 144, 176, 480
    WAITING, RUNNING, MUTEX, RLOCK, SLEEP = 4, 2, 22, 23, 19

    def __init__(self, room: int) -> None:
        self.memory = ctypes.create_string_buffer(room * 2 * self.SIZE)
        self.array = (ctypes.c_uint64 * room)()
        self.head = (ctypes.c_uint64 * 2)(0, ctypes.addressof(self.array))  # allglen, allgptr

    def add(self, status: int, reason: int) -> int:
        count = self.head[0]
        # After seven in a row some memory for something else, as at the end of a span.
        at = (count * self.SIZE + count // 7 * 2000) % (len(self.memory) - self.SIZE) // 8 * 8
        g = ctypes.addressof(self.memory) + at
        struct.pack_into("<Q", self.memory, at + 72, g)
        struct.pack_into("<I", self.memory, at + self.STATUS, status)
        self.memory[at + self.REASON] = reason
        self.array[count] = g
        self.head[0] += 1
        return g

    def layout(self, agent: Any) -> Any:
        names = agent("counters.scheduler_memory").Layout._fields
        places = {"allgptr": 8, "gstatus": self.STATUS, "waitreason": self.REASON}
        reasons = {"mutex_reason": self.MUTEX, "rlock_reason": self.RLOCK, "lock_reason": 24}
        return agent("counters.scheduler_memory").Layout(**{**dict.fromkeys(names, 0), **places, **reasons})

    def waiters(self, agent: Any) -> Any:
        module = agent("processes.waiters")
        return module.Waiters(os.getpid(), self.layout(agent), ctypes.addressof(self.head))


def waiting_for_a_mutex(count: int) -> Goroutines:
    made = Goroutines(2 * count)
    for _ in range(count):
        made.add(made.WAITING, made.MUTEX)
    return made


def test_those_count_that_wait_and_for_a_mutex_also_new_ones(agent):
    made = Goroutines(3000)
    waiters = made.waiters(agent)
    kinds = [
        (made.WAITING, made.MUTEX),
        (made.WAITING | 0x1000, made.RLOCK),  # the GC scans its stack
        (made.RUNNING, made.MUTEX),  # what it waited for before
        (made.WAITING, made.SLEEP),
    ]
    with agent("processes.proc").Memory(os.getpid()) as memory:
        assert waiters.look(memory) == (0, [])
        expected = set()
        for number in range(2000):
            kind = number % 4
            g = made.add(*kinds[kind])
            expected |= {g} if kind < 2 else set()
            if number % 90 == 0:  # more often than there are groups
                found = waiters.look(memory)
                assert found.goroutines == len(expected)
                assert set(found.sample) <= expected
                assert len(found.sample) == min(8, len(expected))
        assert all(waiters.waits(memory, g) for g in found.sample)
        assert waiters.look(memory).goroutines == len(expected) == 1000


@pytest.mark.parametrize(
    "spoil",
    [
        lambda made: made.head.__setitem__(0, 1 << 40),
        lambda made: made.head.__setitem__(1, 8),
        lambda made: made.array.__setitem__(3, 0),
        lambda made: made.array.__setitem__(3, made.array[2]),
        lambda made: made.array.__setitem__(3, made.array[2] + 4),
        lambda made: made.array.__setitem__(3, (1 << 64) - 8),
        lambda made: made.array.__setitem__(3, 1 << 46),
    ],
)
def test_memory_that_holds_no_goroutines_is_not_measured(agent, spoil):
    made = waiting_for_a_mutex(10)
    spoil(made)
    with agent("processes.proc").Memory(os.getpid()) as memory:
        assert made.waiters(agent).look(memory) is None


def test_the_agent_keeps_little_of_what_a_hostile_process_claims(agent, monkeypatch):
    made = waiting_for_a_mutex(10)
    module = agent("processes.waiters")
    with agent("processes.proc").Memory(os.getpid()) as memory:
        for member in ("gstatus", "waitreason"):
            layout = made.layout(agent)._replace(**{member: 1 << 16})
            far = module.Waiters(os.getpid(), layout, ctypes.addressof(made.head))
            assert far.look(memory) is None
            assert far._groups == []
        assert made.waiters(agent).look(memory).goroutines == 10
        monkeypatch.setattr(module, "_MOST_BYTES", 1000)
        assert made.waiters(agent).look(memory) is None


def test_where_many_reads_at_once_are_refused_they_are_made_one_by_one(agent, monkeypatch):
    made = waiting_for_a_mutex(2500)
    ranges = agent("processes.ranges")

    def refuse(*_: object) -> int:
        ctypes.set_errno(1)  # EPERM
        return -1

    monkeypatch.setattr(ranges, "_readv", refuse)
    with agent("processes.proc").Memory(os.getpid()) as memory:
        assert made.waiters(agent).look(memory).goroutines == 2500


def test_a_look_stands_for_the_time_since_the_one_before(agent):
    waits = agent("counters.mutexes").Waits(1000)
    waits.add(1500, 4, [(1,), (1,), (2,)])
    waits.add(1700, 0, [])
    waits.add(1800, 1, [(2,)])
    assert (waits.waited, waits.looks, waits.most, waits.gap) == (4 * 500 + 100, 3, 4, 500)
    assert {stack: (round(seen, 2), round(ns)) for stack, (seen, ns) in waits.stacks.items()} == {
        (1,): (2.67, 1333),
        (2,): (2.33, 767),
    }


class Symbols:
    """Resolves addresses as functions of these names, at their own numbers' lines."""

    def stack(self, raw: Any) -> tuple[Frame, ...]:
        return tuple(Frame(name, "main.go", line) for name, line in raw)


def process(waited_ns: int | None, *stacks: Any, gap_ns: int = 20 * MS, looks: int = 90) -> Any:
    told = {"waited_ns": waited_ns, "looks": looks, "most": 3, "gap_ns": gap_ns, "stacks": list(stacks)}
    return {**MEASURED, "mutexes": told}


INNER = [["runtime.gopark", 1], ["internal/sync.(*Mutex).Lock", 2], ["sync.(*Mutex).Lock", 3]]
WHY = Reason("it can't be known")


def collected(*processes: Any) -> mutex_waits.Found:
    symbols: Any = Symbols()
    return mutex_waits.collect(processes, symbols, 2000 * MS, lambda _: WHY)


def test_waits_are_added_up_by_place_and_named_by_what_the_program_called():
    writer = [*INNER, ["sync.(*RWMutex).Lock", 4], ["main.write", 5]]
    found = collected(
        process(600 * MS, [3, 300 * MS, [*INNER, ["main.enter", 7]]], [1, 100 * MS, []]),
        process(400 * MS, [2, 200 * MS, [*INNER, ["main.enter", 7]]], [4, 100 * MS, writer]),
    )
    assert (found.waited_ns, found.absent) == (1000 * MS, None)
    first, second = found.offenders
    assert (first.count, first.lock, first.stack[0].function) == (5, "sync.Mutex.Lock", "main.enter")
    assert (second.lock, second.stack[0].function) == ("sync.RWMutex.Lock", "main.write")
    assert (first.share, second.share) == (pytest.approx(5 / 6), pytest.approx(1 / 6))
    assert first.waited_ns + second.waited_ns == 1000 * MS


def test_what_was_not_looked_at_is_not_measured():
    assert collected(process(100), process(None)) == (None, WHY, ())
    assert collected({**MEASURED, "mutexes": None}) == (None, WHY, ())
    absent = collected(process(0, gap_ns=1300 * MS)).absent
    assert "not looked at for 1.3" in absent.what
    # 10 ms apart is the rule; once a parked goroutine is waited for, a second.
    assert collected(process(0, gap_ns=900 * MS)).waited_ns == 0
    # Few looks prove something only if they are close together.
    assert collected(process(0, gap_ns=900 * MS, looks=1)).waited_ns is None
    assert collected(process(0, gap_ns=20 * MS, looks=1)).waited_ns == 0


@pytest.mark.parametrize(
    ("functions", "unlocks"),
    [
        (["runtime.ready", "sync.runtime_Semrelease", "sync.(*Mutex).Unlock", "main.work"], True),
        (["runtime.ready", "internal/sync.(*Mutex).unlockSlow", "main.work"], True),
        (["runtime.ready", "sync.(*RWMutex).RUnlock", "main.work"], True),
        (["runtime.ready", "runtime.chansend", "main.work", "sync.(*Mutex).Unlock"], True),
        (["runtime.ready", "sync.(*WaitGroup).Done", "main.work"], False),
    ],
)
def test_unlocks_are_recognized_by_their_names(functions, unlocks):
    entry = {
        **MEASURED["offenders"][0],
        "offence": "ready",
        "stack": [(name, 1) for name in functions],
    }
    symbols: Any = Symbols()
    (found,) = offender_stacks.collect([entry], symbols, {"ready_calls": 7})
    assert found.unlocks is unlocks


def measured(**more: Any) -> Measurement:
    about: dict[str, Any] = {"cpu_ns": 10 * MS, "run_delay_ns": 0, "mutex_wait_ns": 2500 * MS}
    about |= {name: more.pop(name) for name in list(more) if name in Snapshot.__dataclass_fields__}
    snapshot = Snapshot(dict.fromkeys(COUNTERS, 0), **about)
    return Measurement("server", 42, "/srv/server", "go1.26.6", 1.0, snapshot, **more)


def built(measurement: Measurement, **limits: object) -> record.TestRecord:
    demanded = resolve([((), limits)], "test_it")
    verdict = judge([measurement], demanded)
    return recording.build("test_it", ("test_it.py", 1), verdict, demanded, [measurement], 1.0)


def test_a_broken_limit_names_who_waits_and_who_held_the_mutex():
    waits = [
        offender(
            90,
            offence="mutex",
            lock="sync.Mutex.Lock",
            waited_ns=2000 * MS,
            share=0.8,
            stack=(at("enter", 7),),
        ),
        offender(9, offence="mutex", lock=None, waited_ns=500 * MS, share=0.2, stack=(at("other", 8),)),
    ]
    callers = [
        offender(60, offence="ready", share=0.6, stack=(at("send", 1),)),
        offender(
            30,
            offence="ready",
            unlocks=True,
            share=0.3,
            stack=(at("leave", 9),),
            woken_stack=(at("enter", 7),),
        ),
        offender(10, offence="ready", unlocks=True, share=0.1, stack=(at("quit", 10),)),
    ]
    made = built(measured(offenders=(*callers, *waits), mutex_looked=True), max_mutex_wait_seconds=1)
    shown = terminal.failure_section(made, 110)
    assert "fix: hold the lock for less" in shown
    assert (
        "80.0 % of 2.50 s that goroutines waited for mutexes, in sync.Mutex.Lock, at\n    main.go:7" in shown
    )
    assert (
        "the mutex was held until its Unlock (75.0 % of the Unlocks that woke a waiter) at\n"
        "    main.go:9  main.leave"
    ) in shown
    assert "which woke the goroutine parked at main.go:7 main.enter" in shown
    assert "20.0 % of 2.50 s that goroutines waited for mutexes, at\n    main.go:8" in shown
    assert "main.send" not in shown
    profiles = {file.name for file in artifacts.profiles(made, lambda _, file: file)}
    assert profiles == {"server.wakers.pb.gz", "server.waiting.pb.gz"}
    [worst] = evidence_entries.worst_places(made)
    assert worst.stack[0]["function"] == "main.enter"


def at(function: str, line: int) -> Frame:
    return Frame(f"main.{function}", "main.go", line)


def test_a_rough_estimate_is_called_one_and_not_compared(tmp_path):
    rough, exact = measured(), measured(mutex_looked=True)
    assert (rough.estimates, exact.estimates) == (("mutex_wait_seconds",), ())
    assert Sample.of(rough).metrics["mutex_wait_seconds"] is None
    assert "rough estimate" in Sample.of(rough).absent["mutex_wait_seconds"].what
    assert Sample.of(exact).metrics["mutex_wait_seconds"] == 2.5
    for m, how in ((rough, "estimate"), (exact, "looked at every 10 ms")):
        shown = terminal.failure_section(built(m, max_mutex_wait_seconds=1), 110)
        assert f"2.50 s for mutexes ({how})" in shown
    for measurement, saved in ((rough, None), (exact, 2.5)):
        made = built(measurement)
        assert made["services"][0]["metrics"]["mutex_wait_seconds"] == 2.5
        assert baseline_file.sample(made["services"][0]).metrics["mutex_wait_seconds"] == saved
        baseline_file.write(tmp_path / ".netpoll" / "main.json", {}, [made])
        kept = baseline_file.load(tmp_path, "main").tests["test_it"]["server"]
        assert kept.metrics.get("mutex_wait_seconds") == saved
    assert dataclasses.replace(rough, runs=(exact, exact)).estimates == ()
    assert dataclasses.replace(exact, runs=(exact, rough)).estimates == ("mutex_wait_seconds",)


ANSWERS = [slow_answer(200 * MS, at_ms=250.0), slow_answer(180 * MS, at_ms=240.0)]
IDLE = tuple(point(ms, ps_running=0.05, answers=0) for ms in (100.0, 200.0, 300.0))


def hinted(answers=ANSWERS, timeline=IDLE, cpu_ms=10, limits=None, **more: Any) -> str | None:
    """The steps that are shown for a broken limit on handling."""
    made = built(measured(cpu_ns=cpu_ms * MS, slow_answers=tuple(answers), timeline=timeline, **more))
    made["breaches"] = [
        {"service": "server", "metric": "handling_p90", "measured": 2e8, "limit": 2e7, "kind": "max"}
    ]
    made["limits"] = limits or {}
    made["outcome"] = "failed"
    step = next_step(made, made["services"][0])
    shown = " ".join(terminal.failure_section(made, 100).split())
    assert ("hardly used the CPU: it waited" in shown) == (step is not None)
    (details,) = re.findall(r'id="details">([^<]*)<', document.render({}, [made]))
    page = gzip.decompress(base64.b64decode(details)).decode()
    assert ("hardly used the CPU: it waited" in page) == (step is not None)
    return None if step is None else step.steps


def test_slow_answers_that_waited_in_their_handler_have_a_next_step():
    assert "max_mutex_wait_seconds=" in hinted()
    assert "max_mutex_wait_seconds" not in hinted(limits={"max_mutex_wait_seconds": 9})
    # Much CPU was used, but at another time.
    later = (*IDLE, point(2000.0, ps_running=0.9, answers=0, run_delay_ns=500 * MS))
    assert hinted(timeline=later, cpu_ms=1500, run_delay_ns=500 * MS) is not None


@pytest.mark.parametrize(
    "more",
    [
        {"cpu_ms": 200, "timeline": tuple(point(p.t_ms, ps_running=0.9, answers=0) for p in IDLE)},
        {"cpu_ms": 200},  # in system calls or C
        {"cpu_ms": 200, "timeline": tuple(point(p.t_ms, ps_running=None, answers=0) for p in IDLE)},
        {"cpu_ms": 8, "answers": [slow_answer(20 * MS, at_ms=50.0)], "timeline": ()},
        {"timeline": tuple(point(p.t_ms, ps_running=0.05, answers=0, throttled_ns=50 * MS) for p in IDLE)},
        {"timeline": tuple(point(p.t_ms, ps_running=0.05, answers=0, run_delay_ns=50 * MS) for p in IDLE)},
        {"run_delay_ns": 50 * MS, "timeline": ()},
        {"answers": [slow_answer(200 * MS, at_ms=250.0, poll_delay_ns=100 * MS, handling_ns=100 * MS)]},
        {"answers": []},
    ],
    ids=[
        "busy",
        "calls",
        "unknown",
        "short",
        "throttled",
        "delayed",
        "delayed, without a timeline",
        "late",
        "none",
    ],
)
def test_other_slow_answers_have_none(more):
    assert hinted(**more) is None


def answered(ms: int, runnable_ms: int = 1, **more: Any) -> dict[str, Any]:
    """Fifty answers that all took `ms` in the handler, and goroutines that waited `runnable_ms` to run."""
    handled = Delay({bucket_of(ms * MS): 50}, ms * MS)
    return {
        "delays": {
            **dict.fromkeys(("queue_delay", "poll_delay"), Delay()),
            "handling": handled,
            "response": handled,
        },
        "requests": 50,
        "answered": 50,
        "sched_latency": {(0, runnable_ms * MS): 100},
        "answers": [slow_answer(ms * MS, at_ms=250.0)],
        **more,
    }


def test_answers_that_usually_waited_in_their_handler_have_a_next_step():
    assert "max_mutex_wait_seconds=" in hinted(cpu_ms=200, **answered(45))
    # Much CPU for each answer, a wait for a CPU or for the quota, and Ps that are all busy.
    assert hinted(cpu_ms=2000, **answered(45)) is None
    assert hinted(cpu_ms=200, run_delay_ns=2000 * MS, **answered(45)) is None
    assert hinted(cpu_ms=200, throttled_ns=2000 * MS, throttled_periods=9, **answered(45)) is None
    assert hinted(cpu_ms=200, **answered(45, runnable_ms=40)) is None
    assert hinted(cpu_ms=200, **answered(45, sched_latency=None)) is None


def test_fast_answers_do_not_hide_that_those_beyond_the_limit_waited():
    def mixed(handling: Delay, **more: Any) -> str | None:
        """Forty answers of 45 ms, and as many as `handling` adds of less."""
        both = Delay({**handling.histogram, bucket_of(45 * MS): 40}, 45 * MS)
        delays = {**answered(45)["delays"], "handling": both, "response": both}
        more = {"cpu_ms": 100, "answers": [slow_answer(45 * MS, at_ms=250.0)], **more}
        return hinted(**{**answered(45), "delays": delays, **more})

    fast = Delay({bucket_of(MS // 10): 60}, MS // 10)
    assert "max_mutex_wait_seconds=" in mixed(fast)
    # Their CPU time, shared among forty, would explain it; and so would a wait for a P.
    assert mixed(fast, cpu_ms=450) is None
    assert mixed(fast, sched_latency={(0, MS): 9900, (20 * MS, 40 * MS): 100}) is None
