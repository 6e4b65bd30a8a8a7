"""Writes a window in Chrome's trace-event format, which Perfetto and chrome://tracing open.

https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU: times are in µs.
"""

from __future__ import annotations

import errno
import functools
import itertools
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.trace import SPURIOUS, Event, Poll, Ready, Stack, Trace

TraceEvent = dict[str, Any]

# Goroutines get their own tracks, as threads of a made-up process whose number is beyond the largest pid.
_GOROUTINES = 1 << 22
_READY_NS = 1000  # a ready call is drawn this long, unless the next slice begins sooner
_EVENTS = {0x1: "EPOLLIN", 0x4: "EPOLLOUT", 0x8: "EPOLLERR", 0x10: "EPOLLHUP", 0x2000: "EPOLLRDHUP"}


def encode(trace: Trace, measurement: Measurement, nodeid: str) -> bytes:
    """The trace as JSON. measurement: of the same window; its numbers are in otherData."""
    counted = {name: getattr(measurement, name) for name in trace.counts}
    other = {
        "test": nodeid,
        "service": measurement.service,
        "window_seconds": measurement.window_seconds,
        "counted": counted,
        "recorded": dict(trace.counts),
        "dropped": trace.dropped,
        "missed_looks": trace.missed_looks,
        "absent": {name: str(measurement.absent[name]) for name in counted if name in measurement.absent},
    }
    return json.dumps(
        {"traceEvents": events(trace, measurement), "displayTimeUnit": "ns", "otherData": other},
        separators=(",", ":"),
    ).encode()


def events(trace: Trace, measurement: Measurement) -> list[TraceEvent]:
    return [
        *_names(trace, measurement.service),
        *_polls(trace),
        *_calls(trace),
        *_readies(trace),
        *_counters(trace, measurement),
        *_dropped(trace),
    ]


def _names(trace: Trace, service: str) -> Iterator[TraceEvent]:
    threads = sorted({(row.pid, row.tid) for row in trace.in_threads})
    pids = {pid for pid, _ in threads} | {look.pid for look in trace.looks}
    for pid in sorted(pids):
        yield {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": service}}
    for pid, tid in threads:
        yield {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": f"thread {tid}"}}
    for pid in sorted({ready.pid for ready in trace.readies}):
        name = f"{service}: goroutines made runnable"
        yield {"ph": "M", "name": "process_name", "pid": pid + _GOROUTINES, "args": {"name": name}}
    places = {(ready.pid, ready.goroutine): ready.parked for ready in trace.readies}
    for (pid, goroutine), tid in _tracks(trace).items():
        name = " ".join([f"{goroutine:#x}", *_where(places[pid, goroutine])[:1]])
        names = {"pid": pid + _GOROUTINES, "tid": tid, "args": {"name": name}}
        yield {"ph": "M", "name": "thread_name", **names}


def _polls(trace: Trace) -> Iterator[TraceEvent]:
    brought: dict[tuple[int, int, int], list[Event]] = defaultdict(list)
    for event in trace.events:
        brought[event.pid, event.tid, event.at].append(event)
    for poll in trace.polls:
        found = brought[poll.pid, poll.tid, poll.at]
        args = {
            "kind": poll.kind,
            "events": len(found),
            "wakeups": sum(event.wakeups for event in found),
            "fds": [_described(event) for event in found],
        }
        yield _slice(_title(poll, found), "poll", poll.pid, poll.tid, poll.began, poll.at, args)


def _title(poll: Poll, found: Sequence[Event]) -> str:
    if poll.returned < 0:
        return f"poll: {_outcome(poll.returned)}"
    if poll.returned == 0:
        return "poll: timed out" if poll.kind == "timed" else "poll: no events"
    if not found:
        return "poll: the runtime's own wake-up"
    return f"poll: {len(found)} event{'s' * (len(found) > 1)}"


def _described(event: Event) -> str:
    """ "fd 7 EPOLLIN|EPOLLOUT wakes reader"."""
    bits = "|".join(name for bit, name in _EVENTS.items() if event.bits & bit)
    woken = [name for name in ("reader", "writer") if getattr(event, name) is not None]
    fd = "a closed descriptor" if event.fd is None else f"fd {event.fd}"
    return " ".join([fd, bits, *(["wakes", " and ".join(woken)] if woken else ["wakes nobody"])])


def _calls(trace: Trace) -> Iterator[TraceEvent]:
    """Each I/O call, with an arrow from the poll that woke its goroutine."""
    began = {(poll.pid, poll.tid, poll.at): poll.began for poll in trace.polls}
    woke = {
        (event.pid, event.at, event.fd, direction): event.tid
        for event in trace.events
        for direction, goroutine in (("read", event.reader), ("write", event.writer))
        if goroutine is not None
    }
    for number, call in enumerate(trace.calls, 1):
        name = f"{call.syscall}: woken for nothing" if call.returned == SPURIOUS else call.syscall
        args = {
            "fd": call.fd,
            "direction": call.direction,
            "returned": _outcome(call.returned),
            "goroutine": f"{call.goroutine:#x}",
            "wake_to_run_ns": call.at - call.woken_at,
            "stack": _where(call.stack),
        }
        start = _start(call.began, call.at)
        yield _slice(name, "io", call.pid, call.tid, start, call.at, args)
        poller = woke.get((call.pid, call.woken_at, call.fd, call.direction))
        if poller is not None:
            since = _start(began.get((call.pid, poller, call.woken_at)), call.woken_at)
            source = (call.pid, poller, max(since, call.woken_at - 1))
            yield from _arrow("wakeup", number, source, (call.pid, call.tid, start))


def _readies(trace: Trace) -> Iterator[TraceEvent]:
    """Each ready call, with an arrow to the goroutine that it made runnable."""
    tracks = _tracks(trace)
    following = _following(trace)
    later: dict[tuple[int, int], int] = {}  # (pid, goroutine) -> when it was made runnable next
    ends: list[int] = []
    for ready in reversed(trace.readies):
        track = ready.pid, ready.goroutine
        ends.append(min(ready.at + _READY_NS, later.get(track, ready.at + _READY_NS)))
        later[track] = ready.at
    for number, (ready, end) in enumerate(zip(trace.readies, reversed(ends), strict=True), 1):
        soon = min(ready.at + _READY_NS, following.get((ready.tid, ready.at), ready.at + _READY_NS))
        args = {
            "goroutine": f"{ready.goroutine:#x}",
            "stack": _where(ready.stack),
            "parked": _where(ready.parked),
        }
        yield _slice("ready", "ready", ready.pid, ready.tid, ready.at, soon, args)
        pid, tid = ready.pid + _GOROUTINES, tracks[ready.pid, ready.goroutine]
        yield _slice("runnable", "ready", pid, tid, ready.at, end, {"by thread": ready.tid})
        yield from _arrow("ready", number, (ready.pid, ready.tid, ready.at), (pid, tid, ready.at))


def _following(trace: Trace) -> dict[tuple[int, int], int]:
    """(thread, ready call's time) -> when the next slice begins there: slices may not overlap."""
    starts: dict[int, list[int]] = defaultdict(list)
    for row in trace.in_threads:
        starts[row.tid].append(row.at if isinstance(row, Ready) else _start(row.began, row.at))
    return {
        (tid, start): following
        for tid, found in starts.items()
        for start, following in itertools.pairwise(sorted(found))
    }


def _tracks(trace: Trace) -> dict[tuple[int, int], int]:
    """(pid, goroutine) -> the number of its track."""
    found = dict.fromkeys((ready.pid, ready.goroutine) for ready in trace.readies)
    return {key: 2 * _GOROUTINES + number for number, key in enumerate(found)}


def _counters(trace: Trace, measurement: Measurement) -> Iterator[TraceEvent]:
    for look in trace.looks:
        yield _counter("goroutines in run queues", look.pid, look.at, look.runnable)
        yield _counter("Ps running Go code", look.pid, look.at, look.running)
    since = 0.0
    for point in measurement.timeline:
        if point.throttled_ns is not None and measurement.pid is not None:
            # For the interval that ends at the point.
            yield _counter("ms throttled", measurement.pid, round(since * 1e6), point.throttled_ns / 1e6)
        since = point.t_ms


def _dropped(trace: Trace) -> Iterator[TraceEvent]:
    if trace.dropped:
        last = max((row.at for row in trace.in_threads), default=0)
        yield _notice(f"{trace.dropped} records were dropped from here on", last)
    if trace.missed_looks:
        last = max((look.at for look in trace.looks), default=0)
        yield _notice(f"no more looks at run queues from here on ({trace.missed_looks} were dropped)", last)


def _notice(text: str, at: int) -> TraceEvent:
    return {"ph": "i", "s": "g", "name": text, "cat": "dropped", "pid": 0, "tid": 0, "ts": at / 1e3}


def _start(began: int | None, at: int) -> int:
    """A slice's start: not before the window opened, nor after the slice's end."""
    return min(max(began or 0, 0), at)


def _slice(
    name: str, category: str, pid: int, tid: int, began: int | None, at: int, args: Mapping[str, Any]
) -> TraceEvent:
    start = _start(began, at)
    known = {} if began is not None and began >= 0 else {"began": "before the window"}
    return {
        "ph": "X",
        "name": name,
        "cat": category,
        "pid": pid,
        "tid": tid,
        "ts": start / 1e3,
        "dur": (at - start) / 1e3,
        "args": {**args, **known},
    }


def _arrow(
    kind: str, number: int, source: tuple[int, int, int], target: tuple[int, int, int]
) -> Iterator[TraceEvent]:
    """An arrow between the slices at two places, each (pid, tid, ns)."""
    for phase, (pid, tid, at) in ({"ph": "s"}, source), ({"ph": "f", "bp": "e"}, target):
        yield {**phase, "name": kind, "cat": kind, "id": number, "pid": pid, "tid": tid, "ts": at / 1e3}


def _counter(name: str, pid: int, at: int, value: float) -> TraceEvent:
    return {"ph": "C", "name": name, "pid": pid, "tid": 0, "ts": at / 1e3, "args": {name: value}}


def _outcome(returned: int) -> str:
    return str(returned) if returned >= 0 else errno.errorcode.get(-returned, str(returned))


@functools.lru_cache(1024)  # few stacks recur in many events
def _where(stack: Stack) -> Sequence[str]:
    """["main.serve server.go:12"], innermost first."""
    return [f"{frame.function} {frame.file}:{frame.line}" for frame in stack]
