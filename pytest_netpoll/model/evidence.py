"""What explains a service's numbers: where goroutines were woken for nothing, or late, and when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from pytest_netpoll.gobinary.symbols import Frame

Offence: TypeAlias = Literal[
    "spurious", "stale", "ready", "unclaimed", "futile", "io", "cpu", "parked", "woken", "held", "mutex"
]

# The cause of a spurious wakeup or a stale retry. "registered twice": it was for reading, and the socket is
# registered with epoll more than once. "error queue": for an error, and the socket's error queue held
# something. "socket error": for an error, and the error queue was empty. "full queue": for writing to a Unix
# datagram socket. "data": for reading, and the socket is registered once.
Cause: TypeAlias = Literal["registered twice", "error queue", "socket error", "full queue", "data"]


@dataclass(frozen=True, kw_only=True)
class Offender:
    """A place in the code that was woken for nothing (spurious), tried again for nothing (stale), wakes
    goroutines by runtime.ready (ready: it has no descriptor), makes I/O calls (futile: futile ones; io:
    others), or used CPU time (cpu: counts are samples); where goroutines were parked when the network woke
    them (woken), or when the window closed (parked); or made a write that Nagle's algorithm held back (held);
    or waited for a sync.Mutex or sync.RWMutex (mutex: the count is over all looks, about 10 ms apart);
    or a descriptor whose events found nobody waiting (unclaimed: no code is involved, so there is no stack).

    count: estimated from a sample for ready calls, I/O calls and woken goroutines. share: 0-1, of all such in
    the service, or in the sample. If the kernel had no room for all, shares add up to less than 1. outcome:
    how the I/O call ended ("data", "end of file", "EAGAIN", …), None for other offences. runtime: for ready
    calls, whether the runtime made it for its own background work. cause: of spurious wakeups and stale
    retries; None if unknown. bytes: what the I/O calls moved, estimated. filled: I/O calls that
    read as many bytes as they asked for, estimated; only of read and recvfrom. not_blocking: CPU samples in a
    runtime call that only checks, such as that of a select with a default. collects: whether the CPU samples
    are in a call of runtime.GC, which only the program makes. local, peer: None if they differ at this place,
    or don't exist. stack: innermost first, starts at the user's own code; empty if the kernel had no room for
    it. woken_stack: for ready calls, where the woken goroutine had been parked; empty if unknown. locked: for
    ready calls and woken goroutines, whether the woken one is locked to a thread (runtime.LockOSThread).
    held_ns: for how long the writes were held back in total; None for other offences.
    unlocks: of ready calls, whether a mutex was unlocked there, which woke a goroutine that waited for it.
    lock: what was waited for, such as "sync.RWMutex.RLock", and waited_ns: for how long in total, estimated;
    None for other offences than "mutex", of which the share is that of the time.

    For "parked" only: growth: how many more than when the window opened. abandoned: descriptors whose peers
    closed meanwhile; those on which nobody is parked have an entry with count 0, whose stack is where their
    reader was parked before, if woken goroutines were recorded. stuck: goroutines with data to read that had
    been reported. closed: abandoned descriptors whose other end is certainly closed completely, not just half
    of it. peers: some of the descriptors' other ends, those that came in the window first. peer_service: the
    service of the test that has them, if it is one and the same.
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
    cause: Cause | None = None
    bytes: int | None = None
    filled: int = 0
    not_blocking: int = 0
    collects: bool = False
    locked: bool = False
    held_ns: int | None = None
    unlocks: bool = False
    lock: str | None = None
    waited_ns: int | None = None
    stack: tuple[Frame, ...]
    woken_stack: tuple[Frame, ...] = ()
    growth: int = 0
    abandoned: int = 0
    stuck: int = 0
    closed: int = 0
    peers: tuple[str, ...] = ()
    peer_service: str | None = None


@dataclass(frozen=True, kw_only=True)
class ParkedGoroutine:
    """A goroutine that waits for a descriptor. goroutine: its id, as in a traceback; None if unknown.
    direction: "read" or "write". local, peer: None if there is none. stack: where it waits, innermost first,
    from the user's own code on. peer_gone: whether the descriptor is a socket whose peer has closed.
    """

    goroutine: int | None
    direction: str
    fd_type: str | None
    local: str | None
    peer: str | None
    stack: tuple[Frame, ...]
    peer_gone: bool = False


@dataclass(frozen=True, kw_only=True)
class SlowWakeup:
    """One of the wakeups that took longest to run.

    at_ms: when it ran, since the window opened. goroutine: its id, as in a traceback; None for unknown
    versions of Go. stack: of the reader or writer, innermost first, starts at the user's own code.
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
    """One of the longest queue delays ("queue_delay") or responses ("response"). ns: the total.
    poll_delay_ns: before the poll that reported the data. wake_to_run_ns: from there to the read.
    unparked_ns: before a read for which nobody was parked. handling_ns: from the read to the write. The other
    fields are as in SlowWakeup, for the read or the answering write.
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
    their sum, and poll_delay_ns and wake_to_run_ns are the parts of it before and after the poll.
    answers: writes that answered a read; handling_ns is their sum. All of these are 0 if answers were not
    timed. run_delay_ns: waited for a CPU, over all threads; 0 if the metric run_delay_seconds was not
    measured. threads: alive at the sample; threads_running: those of them on a CPU or waiting for one, a mean
    if intervals were merged.
    runq_max: the most goroutines in a process's run queues. ps_running: Ps that ran Go code, on average.
    spinning: threads that looked for work, on average. throttled_ns: for how long a CPU quota stopped the
    service, over all CPUs. These are None if unknown.
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
    throttled_ns: int | None = None
    runq_max: int | None = None
    ps_running: float | None = None
    spinning: float | None = None


@dataclass(frozen=True, kw_only=True)
class CpuQuota:
    """A cgroup whose CPU quota bound a service in a window.

    quota_us: of CPU in each period of period_us; None if there is no quota (any more). periods: those in
    which it wanted to run. throttled_periods: those in which the quota stopped it. throttled_ns: for how
    long, over all CPUs.
    """

    name: str
    quota_us: int | None
    period_us: int | None
    periods: int
    throttled_periods: int
    throttled_ns: int
