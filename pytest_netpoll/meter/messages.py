"""The agent's answers, as types: anything else is rejected. agent/handlers.py makes them.

Times are in ns. Numbers are checked only for their type; the code that reads a count checks its range.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypedDict


class About(TypedDict):
    """The BCC that would be loaded. bcc_file: its module's path."""

    bcc: str
    bcc_file: str
    python: str


class AboutAgent(TypedDict):
    """The answer to about."""

    about: About


class Lack(TypedDict):
    """Something that isn't available here. fix: how to get it, if known."""

    what: str
    fix: str | None


class Ready(TypedDict):
    """The answer to load. capabilities: those that the agent keeps. typed: whether sys_exit's arguments are.
    no_cpu_samples: why there are none, or None. sees_sockets: whether the causes of spurious wakeups are
    visible. sees_held_writes: whether writes held back by TCP are. no_arrivals: why arrivals of data aren't
    recorded, or None. program: "compiled" or "cache". not_cached: why it didn't come from the cache; None if
    it did or the cache is off.
    """

    protocol: int
    bcc: str
    python: str
    kernel: str
    machine: str
    capabilities: list[str]
    follows_children: bool
    typed: bool
    no_cpu_samples: Lack | None
    sees_sockets: bool
    sees_held_writes: bool
    program: str
    not_cached: Lack | None
    no_arrivals: str | None
    startup_seconds: float
    resident_bytes: int


class Calibration(TypedDict):
    """What is proven about a process's poller.

    more_pollers: descriptors that prove another Go runtime in the process. why_not: what was seen instead, or
    None. others: descriptors registered with epoll that don't look like Go's.
    """

    layout: str | None
    epfd: int
    proven: int
    unproven: int
    more_pollers: int
    why_not: str | None
    others: int


class Process(TypedDict):
    """A watched process.

    root: the watched one it descends from. executable: a path that we can open, None if hidden. unwatched:
    children for which there was no room, or that the kernel did not report. foreign: it now runs as another
    user. goready, scheduler: whether attach or learn was called for its program.
    """

    pid: int
    root: int
    executable: str | None
    exited: bool
    unwatched: int
    foreign: bool
    calibration: Calibration
    goready: bool
    scheduler: bool


def in_files(stack: Iterable[Iterable[Any]]) -> list[tuple[str, int]]:
    """The (file, offset in it) of a message's stack. Raises ValueError or TypeError if it is malformed."""
    return [(str(path), int(offset)) for path, offset in stack]


class Wakeup(TypedDict):
    """Where a goroutine was woken. stack: [file, offset in it], innermost first."""

    direction: str
    syscall: str | None
    fd_type: str | None
    local: str | None
    peer: str | None
    stack: list[list[Any]]


class Offender(Wakeup):
    """offence: one of agent/counters/offenders.py; for "ready", "futile", "io" and "woken" the count is an
    estimate. outcome: how the I/O call ended, and bytes: what such calls moved, for "futile" and "io".
    events: the epoll events that woke it. registered_twice: with epoll. error_queue: whether that held
    anything. None: unknown. woken_stack: for "ready", where the woken goroutine had been parked. locked: for
    "ready" and "woken", whether the woken goroutine is locked to a thread. held_ns: for "held", for how long
    in total. filled: for "io", whether a read or recvfrom returned as many bytes as it asked for.
    """

    offence: str
    count: int
    outcome: str | None
    events: list[str]
    bytes: int | None
    registered_twice: bool | None
    error_queue: bool | None
    locked: bool
    filled: bool
    held_ns: int | None
    woken_stack: list[list[Any]]


class SlowWakeup(Wakeup):
    """at_ns: since the window opened. goid: the words of its g that may hold the goroutine's id. parts: for a
    queue delay or a response, which took latency_ns, as in a budget; empty for a wakeup.
    """

    latency_ns: int
    at_ns: int
    goid: list[int]
    parts: list[int]


class Delay(TypedDict):
    """budget: bucket -> ns before the poll, to the read after it, to the read where nobody was parked, and
    from the read to the write; all of them sums over the times in the bucket.
    """

    histogram: dict[str, int]
    max_ns: int
    budget: dict[str, list[int]]


class Parked(TypedDict):
    """The goroutines parked on descriptors. why_not: why that is unknown; everything else is empty then.

    goroutines: [goid or null, direction, type, local, peer, its stack's index, whether it came in the window,
    whether its peer is gone]: all of them, or those that stand out and examples. before, after: [direction,
    stack's index, how many there were, type or null, local or null] at the window's ends.
    abandoned: [type, local, peer, a goroutine's index or null, whether certainly nobody holds the other end]
    of sockets whose peers closed in the window. stuck: [goroutine's index, descriptor, inode, bytes unread].
    undecided: how many may be stuck. rested: whether the process had come to rest.
    """

    why_not: str | None
    goroutines: list[list[Any]]
    before: list[list[Any]]
    after: list[list[Any]]
    stacks: list[list[list[Any]]]
    abandoned: list[list[Any]]
    stuck: list[list[int]]
    undecided: int
    rested: bool


class ParkedIn(Parked):
    """The goroutines parked now in one process: each of them, without the counts."""

    pid: int


class ParkedNow(TypedDict):
    """The answer to parked."""

    processes: list[ParkedIn]


class MutexWaits(TypedDict):
    """How long goroutines waited for a sync.Mutex or sync.RWMutex. waited_ns: None if unknown. looks: how
    many it was seen at. most: goroutines that waited at one look. gap_ns: the longest time between two looks.
    stacks: [goroutines found there over all looks, ns that they waited, stack], estimated.
    """

    waited_ns: int | None
    looks: int
    most: int
    gap_ns: int
    stacks: list[list[Any]]


class Measured(Process):
    """A process in a window. Optional counters are None if they weren't counted. parked, mutexes: None unless
    requested. io_outcomes: how its I/O calls ended -> calls. futile: [syscall, outcome, calls].
    events_per_poll: events -> polls that returned that many. p_looks, p_running: Ps seen, over all looks, and
    those of them that ran Go code. sched_latency: [least ns, first ns beyond, goroutines]. mutex_wait,
    lock_wait: ns. delays: by agent/constants.py: DELAY_NAMES; None if arrivals of data aren't recorded, or
    not on sockets that it had before it was watched. requests, answered, unanswered, strangers: reads of
    accepted connections, by whether a write followed. unprobed: children that came and went before they had
    probes, counted with the service's first process. ended: with that process, too, the paths of the programs
    of children that ended and never polled, so that only what the kernel counted is known of them.
    """

    counters: dict[str, int]
    histogram: dict[str, int]
    latency_max_ns: int
    delays: dict[str, Delay] | None
    requests: int
    answered: int
    unanswered: int
    strangers: int
    ready_calls: int | None
    deadline_wakeups: int | None
    dispatches: int | None
    runq_max: int | None
    events_per_poll: dict[str, int]
    p_looks: int | None
    p_running: int | None
    sched_latency: list[list[int]] | None
    mutex_wait: int | None
    lock_wait: int | None
    io_outcomes: dict[str, int]
    futile: list[list[Any]]
    unprobed: int
    ended: list[str]
    offenders: list[Offender]
    slowest: list[SlowWakeup]
    parked: Parked | None
    mutexes: MutexWaits | None
    slow_answers: dict[str, list[SlowWakeup]]


class Times(TypedDict):
    """CPU time used and waited for by all descendants of a root in the window; None if unknown."""

    cpu_ns: int
    run_delay_ns: int | None


class Throttled(TypedDict):
    """CPU quotas of a root's descendants. unknown: why they are unknown, or None.

    cgroups: [name, periods, throttled periods and ns throttled when the window opened (or when it was first
    seen there), the same when it closed, µs of CPU in a period, µs of a period], the last two null without a
    quota.
    """

    unknown: str | None
    cgroups: list[list[Any]]


class Processes(TypedDict):
    """The answer to watch: the root's processes. To programs: all."""

    processes: list[Process]


class Opened(TypedDict):
    """The answer to open."""

    window: int


class Traced(TypedDict):
    """The trace of a root, in ns since the window opened. Rows have the fields of
    pytest_netpoll/model/trace.py; a stack is its index in `stacks` or None. dropped: over all roots.
    missed_looks: this root's.
    """

    polls: list[list[Any]]
    events: list[list[Any]]
    calls: list[list[Any]]
    readies: list[list[Any]]
    looks: list[list[int]]
    stacks: list[list[list[Any]]]
    dropped: int
    missed_looks: int


class _Traces(TypedDict, total=False):
    """By the root's pid; empty unless the program was loaded for a trace. Older agents don't send it."""

    traces: dict[str, Traced]


class Closed(_Traces):
    """The answer to close and lap, by the root's pid. timelines: rows of agent/counters/timeline.py.
    dropped_datagrams: UDP datagrams with a wrong checksum in the network namespace.
    """

    duration_ns: int
    services: dict[str, list[Measured]]
    timelines: dict[str, list[list[float | None]]]
    throttled: dict[str, Throttled]
    times: dict[str, Times]
    dropped_datagrams: dict[str, int | None]
