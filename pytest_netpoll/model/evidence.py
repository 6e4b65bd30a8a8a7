"""What explains a service's numbers: where goroutines were woken for nothing, or late, and when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from pytest_netpoll.gobinary.symbols import Frame

Offence: TypeAlias = Literal["spurious", "stale", "ready", "unclaimed", "futile", "io", "cpu"]


@dataclass(frozen=True, kw_only=True)
class Offender:
    """A place in the code that was woken for nothing (spurious), tried again for nothing (stale), wakes
    goroutines by runtime.ready (ready: it has no descriptor), makes I/O calls (futile: futile ones; io:
    others), or used CPU time (cpu: counts are samples); or a descriptor whose events found nobody waiting
    (unclaimed: no code is concerned, so there is no stack).

    count: estimated from a sample for ready calls and I/O calls. share: 0-1, of all such that were counted in
    the service; of what is sampled, of those in the sample. Where the kernel had no room for all of them,
    shares add up to less than 1. outcome: how the I/O call ended ("data", "end of file", "EAGAIN", …), None
    of other offences. runtime: of a ready call, whether the runtime made it for its own background work.
    local, peer: None where they differ between those at this place, and for what has none.
    stack: innermost first, starts at the user's own code; empty where the kernel had no room for it.
    """

    offence: Offence
    count: int
    share: float
    direction: str
    syscall: str | None
    outcome: str | None = None
    runtime: bool = False
    fd_type: str | None
    local: str | None = None
    peer: str | None = None
    stack: tuple[Frame, ...]


@dataclass(frozen=True, kw_only=True)
class SlowWakeup:
    """One of the wakeups that took longest to run.

    at_ms: when it ran, since the window opened. goroutine: its id, as in a traceback; None where the version
    of Go is unknown. stack: of the reader or writer, innermost first, starts at the user's own code.
    """

    latency_ns: int
    at_ms: float
    goroutine: int | None
    direction: str
    syscall: str | None
    fd_type: str | None
    local: str | None
    peer: str | None
    stack: tuple[Frame, ...]


@dataclass(frozen=True, kw_only=True)
class SlowAnswer:
    """One of the queue delays ("queue_delay"), or of the responses ("response"), that took longest.

    ns: all of it, and what of it was before the poll that reported the data, from there to the read, before a
    read where nobody was parked, and from the read to the write. The rest as of a slow wakeup, where the
    read, or the write that answers, was made.
    """

    what: str
    ns: int
    poll_delay_ns: int
    wake_to_run_ns: int
    unparked_ns: int
    handling_ns: int
    at_ms: float
    goroutine: int | None
    direction: str
    syscall: str | None
    fd_type: str | None
    local: str | None
    peer: str | None
    stack: tuple[Frame, ...]


@dataclass(frozen=True, kw_only=True)
class TimelinePoint:
    """What the service's processes did in one interval, which ends with a sample.

    t_ms: its end, since the window opened; it begins where the one before ends, the first with the window.
    Intervals are 100 ms, longer in windows of over a minute; the last ends with the window. The counts add
    up to the metrics of that name. reads: those that took what had arrived on a socket. queue_delay_ns is
    theirs, a sum, and poll_delay_ns and wake_to_run_ns are what of it was before the poll and after it.
    answers: writes that answered a read; handling_ns is theirs. run_delay_ns: waited for a CPU, over all
    threads; 0 where the metric run_delay_seconds was not measured. threads: alive at the sample;
    threads_running: of them on a CPU or waiting for one, a mean where intervals were put together.
    """

    t_ms: float
    wakeups: int
    productive: int
    spurious: int
    polls: int
    blocking_polls: int
    timed_polls: int
    nonblocking_polls: int
    empty_polls: int
    timeout_polls: int
    break_polls: int
    reads: int
    answers: int
    queue_delay_ns: int
    poll_delay_ns: int
    wake_to_run_ns: int
    handling_ns: int
    run_delay_ns: int
    threads: int
    threads_running: float
