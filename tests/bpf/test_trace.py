"""A window event by event: what was counted, as a trace that Perfetto opens.

Chrome's own viewer (catapult's trace2html) was tried by hand, because it takes 43 MB of sources. It found the
two slices of each arrow, and printed no warnings.
"""

from __future__ import annotations

import json
import re
import socket
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pytest_netpoll.gobinary.symbols import Symbolizer
from pytest_netpoll.meter import traced
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.trace import Trace
from pytest_netpoll.options import Config
from pytest_netpoll.report import trace_events
from pytest_netpoll.service.factory import ServiceFactory
from tests.bpf.conftest import SERVICES, ping
from tests.waiting import attempts, fall_asleep

PINGS, WOKEN = 20, 3


class Recorded(NamedTuple):
    """events: of the trace's file, by their phase."""

    measurement: Measurement
    trace: Trace
    events: dict[str, list[dict[str, Any]]]
    other: dict[str, Any]

    def slices(self, category: str) -> list[dict[str, Any]]:
        return [event for event in self.events["X"] if event["cat"] == category]

    def arrows(self, kind: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """The slices at the two ends of each."""
        ends: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for phase in "sf":
            for event in self.events[phase]:
                if event["cat"] == kind:
                    ends[event["id"]].append(self._slice_at(event))
        return [(source, target) for source, target in ends.values()]

    def _slice_at(self, end: dict[str, Any]) -> dict[str, Any]:
        (found,) = (
            event
            for event in self.events["X"]
            if (event["pid"], event["tid"]) == (end["pid"], end["tid"])
            and event["ts"] <= end["ts"] < event["ts"] + event["dur"]
        )
        return found


Record = Callable[..., dict[str, Recorded]]


@pytest.fixture(scope="module")
def record(cache_dir: Path) -> Iterator[Record]:
    """record(pings, "dup", records=64): these services, each pinged that often while a trace is recorded."""
    factory = ServiceFactory(rootdir=SERVICES, cache_dir=cache_dir, on_spawn=None, on_exit=None)
    arguments = {"ready": ["-n", WOKEN]}

    def record(pings: int, *names: str, records: int = traced.TRACE_RECORDS) -> dict[str, Recorded]:
        services = [
            factory(
                f"./{name}",
                args=["-addr", "127.0.0.1:{port}", *arguments.get(name, ())],
                ready=re.compile("ready on"),
            )
            for name in names
        ]
        pids = [service.pid for service in services]
        clients = [socket.create_connection(service.address, timeout=20) for service in services]
        try:
            for client in clients:
                ping(client)
            fall_asleep(*pids)
            roots = dict(zip(pids, services, strict=True))
            symbolizer = Symbolizer(SERVICES)
            with traced.recording(
                Config.default(), symbolizer, services, roots, records=records
            ) as recording:
                for client in clients * pings:
                    ping(client)
                    fall_asleep(*pids)
        finally:
            for client in clients:
                client.close()
            factory.stop_all()
        return {name: opened(*made) for name, made in zip(names, recording.recorded, strict=True)}

    yield record
    factory.stop_all()


def opened(measurement: Measurement, trace: Trace | None) -> Recorded:
    assert measurement.unmeasured is None, measurement.unmeasured
    assert trace is not None
    read = json.loads(trace_events.encode(trace, measurement, "test_it.py::test_it"))
    events: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in read["traceEvents"]:
        events[event["ph"]].append(event)
    return Recorded(measurement, trace, events, read["otherData"])


@pytest.fixture(scope="module")
def recorded(record: Record) -> dict[str, Recorded]:
    for _ in attempts():
        made = record(PINGS, "dup", "ready")
        # A CPU may stop just between the two events that a ping causes, or before a goroutine parks.
        dup, ready = made["dup"], made["ready"]
        found = dup.measurement.spurious_wakeups, ready.measurement.spurious_wakeups, both_readers(dup)
        woken = PINGS * WOKEN if ready.measurement.ready_calls else 0
        if found == (PINGS, 0, PINGS) and len(own_calls(ready)) == woken and len(dup.trace.looks) >= 2:
            break
    return made


def both_readers(dup: Recorded) -> int:
    """How many polls woke both readers of the one socket, the other one for nothing."""
    both = defaultdict(list)
    for poll, read in dup.arrows("wakeup"):
        both[poll["ts"] + poll["dur"]].append(read)
    outcomes = [sorted(read["args"]["returned"] for read in reads) for reads in both.values()]
    return outcomes.count(["4", "EAGAIN"])


def own_calls(ready: Recorded) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The arrows from the program's own code to the goroutines that it makes runnable."""
    arrows = ready.arrows("ready")
    return [pair for pair in arrows if any("ready/main.go" in line for line in pair[0]["args"]["stack"])]


@pytest.mark.parametrize("name", ["dup", "ready"])
def test_a_trace_has_exactly_what_its_window_counted(recorded: dict[str, Recorded], name: str) -> None:
    made = recorded[name]
    assert made.trace.dropped == 0
    counted = {metric: getattr(made.measurement, metric) for metric in made.trace.counts}
    assert made.other["counted"] == counted
    assert made.other["recorded"] == {
        # Without uprobes they are neither counted nor recorded.
        metric: count if count is not None else 0
        for metric, count in counted.items()
    }
    assert counted["wakeups"] >= PINGS
    assert counted["spurious_wakeups"] == (PINGS if name == "dup" else 0)
    assert len(made.slices("poll")) == counted["polls"]
    assert sum(poll["args"]["events"] for poll in made.slices("poll")) == counted["events"]
    assert sum(poll["args"]["wakeups"] for poll in made.slices("poll")) == counted["wakeups"]
    for kind in ("blocking", "timed", "nonblocking"):
        of_kind = [poll for poll in made.slices("poll") if poll["args"]["kind"] == kind]
        assert len(of_kind) == getattr(made.measurement, f"{kind}_polls")


@pytest.mark.parametrize("name", ["dup", "ready"])
def test_slices_of_a_thread_do_not_overlap_and_lie_in_the_window(
    recorded: dict[str, Recorded], name: str
) -> None:
    made = recorded[name]
    tracks: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for event in made.events["X"]:
        tracks[event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for slices in tracks.values():
        end = 0.0
        for start, stop in sorted(slices):
            assert end <= start + 0.0005  # half a ns: they are floats
            end = stop
    settled = 20_000  # µs in which wakeups of the window may still be resolved
    assert end <= made.measurement.window_seconds * 1e6 + settled


def test_an_arrow_leads_from_the_poll_that_wakes_a_reader_to_its_read(recorded: dict[str, Recorded]) -> None:
    dup = recorded["dup"]
    arrows = dup.arrows("wakeup")
    assert len(arrows) == dup.measurement.productive_wakeups + dup.measurement.spurious_wakeups
    for poll, read in arrows:
        assert (poll["cat"], read["cat"]) == ("poll", "io")
        assert f"fd {read['args']['fd']} EPOLLIN|EPOLLOUT wakes reader" in poll["args"]["fds"]
        assert poll["ts"] + poll["dur"] <= read["ts"] + read["dur"]
        assert read["args"]["stack"][0].startswith("services/kit.Echo kit/kit.go:")
        latency = read["ts"] + read["dur"] - poll["ts"] - poll["dur"]
        assert read["args"]["wake_to_run_ns"] == pytest.approx(latency * 1000, abs=2)
    assert both_readers(dup) == PINGS
    assert {read["name"] for _, read in arrows} == {"read", "read: woken for nothing"}


@pytest.mark.uprobes
def test_an_arrow_leads_from_a_waker_to_the_goroutine_that_it_makes_runnable(
    recorded: dict[str, Recorded],
) -> None:
    ready = recorded["ready"]
    arrows = ready.arrows("ready")
    assert len(arrows) == ready.measurement.ready_calls >= PINGS * WOKEN
    own = own_calls(ready)
    assert len(own) == PINGS * WOKEN
    names = {event["tid"]: event["args"]["name"] for event in ready.events["M"] if "tid" in event}
    woken = {target["tid"] for _, target in own}
    assert len(woken) == WOKEN
    for tid in woken:
        assert re.fullmatch(r"0x[0-9a-f]+ main\.main\.func1 ready/main\.go:\d+", names[tid])


def test_run_queues_and_ps_are_counters(recorded: dict[str, Recorded]) -> None:
    dup = recorded["dup"]
    counters = defaultdict(list)
    for event in dup.events["C"]:
        assert event["pid"] == dup.measurement.pid
        counters[event["name"]].extend(event["args"].values())
    looks = len(dup.trace.looks)
    assert looks >= 2
    assert len(counters["goroutines in run queues"]) == len(counters["Ps running Go code"]) == looks
    assert max(counters["goroutines in run queues"]) == dup.measurement.runq_max
    assert all(0 <= ps <= dup.measurement.gomaxprocs for ps in counters["Ps running Go code"])


def test_dropped_records_are_counted_and_the_trace_shows_from_when_on(record: Record) -> None:
    made = record(40, "dup", records=64)["dup"]
    m, counts = made.measurement, made.trace.counts
    kept = len(made.trace.in_threads) + len(made.trace.events)
    happened = m.polls + m.events + m.productive_wakeups + m.spurious_wakeups + (m.ready_calls or 0)
    assert kept == 64
    assert made.trace.dropped == made.other["dropped"] == happened - kept > 0
    assert counts["polls"] < m.polls
    (instant,) = made.events["i"]
    assert instant["name"] == f"{made.trace.dropped} records were dropped from here on"
    assert instant["ts"] >= max(event["ts"] + event["dur"] for event in made.slices("poll")) - 0.001
