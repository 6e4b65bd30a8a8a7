"""Evidence for tests of the reports, with the fields that matter to them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from pytest_netpoll.gobinary.symbols import Frame
from pytest_netpoll.model.evidence import Offender, SlowAnswer, SlowWakeup, TimelinePoint
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.metrics import COUNTERS, PARKED_METRICS
from pytest_netpoll.model.snapshot import Snapshot

WATCHER = Frame("main.(*watcher).run", "server/fault_dup.go", 33)


def offender(count: int = 499, **more: Any) -> Offender:
    """On a TCP connection; all that there was of its kind."""
    about = {
        "offence": "spurious",
        "share": 1.0,
        "direction": "read",
        "syscall": "read",
        "fd_type": "tcp",
        "local": "127.0.0.1:7777",
        "peer": "127.0.0.1:5012",
        "stack": (WATCHER,),
    }
    return Offender(count=count, **{**about, **more})


def late(latency_ns: int, **more: Any) -> SlowWakeup:
    """On a TCP connection, without further details."""
    unknown = dict.fromkeys(("goroutine", "syscall", "local", "peer"))
    about = {**unknown, "at_ms": 1.0, "direction": "read", "fd_type": "tcp", "stack": ()}
    return SlowWakeup(latency_ns=latency_ns, **{**about, **more})


def slow_answer(ns: int, **more: Any) -> SlowAnswer:
    """A response on a TCP connection, which consists only of handling."""
    parts = {"poll_delay_ns": 0, "wake_to_run_ns": 0, "unparked_ns": 0, "handling_ns": ns}
    unknown = dict.fromkeys(("goroutine", "syscall", "local", "peer"))
    about = {"what": "response", "at_ms": 1.0, "direction": "write", "fd_type": "tcp", "stack": (WATCHER,)}
    return SlowAnswer(ns=ns, **{**parts, **unknown, **about, **more})


def point(t_ms: float, **counts: Any) -> TimelinePoint:
    """An empty one."""
    nothing: dict[str, Any] = {field.name: 0 for field in fields(TimelinePoint)}
    return TimelinePoint(**{**nothing, "answers": None, "t_ms": t_ms, **counts})


def parked_group(count: int, local: str | None, *peers: str, kind: str = "tcp", growth: int = 9) -> Offender:
    """Goroutines that are parked at one place."""
    where: dict[str, Any] = {"fd_type": kind, "local": local, "peer": None, "peers": peers}
    return offender(count, offence="parked", growth=growth, **where)


def with_parked(name: str, *groups: Offender, abandoned: int = 0) -> Measurement:
    """Of a service with 9 goroutines more than before."""
    counters = {**dict.fromkeys(COUNTERS, 0), **dict.fromkeys(PARKED_METRICS, 0), "parked_growth": 9}
    counters["abandoned_descriptors"] = abandoned
    snapshot = Snapshot(counters, {}, 0, 0, None)
    return Measurement(name, 1, "", "go1.26.6", 1.0, snapshot, offenders=groups)
