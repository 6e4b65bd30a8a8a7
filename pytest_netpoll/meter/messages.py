"""What the agent answers, as types: the probe passes on nothing else. agent/handlers.py makes them.

Times are in ns. Numbers are not checked beyond their kind: who reads a count knows what it can be.
"""

from __future__ import annotations

from typing import Any, TypedDict


class About(TypedDict):
    """Which BCC there is; bcc_file: where its module is."""

    bcc: str
    bcc_file: str
    python: str


class ToldAbout(TypedDict):
    """To about."""

    about: About


class Lack(TypedDict):
    """Of something that cannot be had here. fix: how it can, where that is known."""

    what: str
    fix: str | None


class Ready(TypedDict):
    """To load. capabilities: those that the agent keeps. typed: whether sys_exit's arguments are.
    no_cpu_samples: why there are none; None where there are. sees_sockets: whether it is known what lies
    behind a wakeup for nothing; sees_held_writes: and whether TCP holds writes back. no_arrivals: why it
    isn't recorded when data arrives; None where it is.
    program: "compiled", or where it came from: "cache"; not_cached: why not from there, None where that is
    off.
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
    """What is proven of a process's poller.

    more_pollers: descriptors that prove another Go runtime in the process. why_not: what was seen instead,
    None where nothing was. others: descriptors registered with epoll, of which nothing looks like Go's.
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

    root: the watched one it descends from. executable: a path that is good here, None where it is hidden.
    unwatched: children that there was no room for, or that the kernel did not tell of. foreign: it became
    another user's.
    goready, scheduler: whether attach or learn was called for the program that it runs.
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
    estimate. outcome: how the I/O call ended, and bytes: what such calls moved, of "futile" and "io". events:
    the epoll events that woke it; registered_twice: with epoll; error_queue: whether that held anything.
    None: not known. woken_stack: of "ready", where the woken goroutine had been parked. locked: of "ready"
    and "woken", whether that is locked to a thread. held_ns: of "held", for how long in all.
    """

    offence: str
    count: int
    outcome: str | None
    events: list[str]
    bytes: int | None
    registered_twice: bool | None
    error_queue: bool | None
    locked: bool
    held_ns: int | None
    woken_stack: list[list[Any]]


class SlowWakeup(Wakeup):
    """at_ns: since the window opened. goid: the words of its g that may hold the goroutine's id. parts: of a
    queue delay or a response, whose time is latency_ns, as in a budget; empty for a wakeup.
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
    """Who is parked on descriptors. why_not: why it isn't known; all else is empty then.

    goroutines: [goid or null, direction, type, local, peer, its stack's index, whether it came in the window,
    whether its peer is gone]: all of them, or those that stand out and examples. before, after: [direction,
    stack's index, how many there were, type or null, local or null] at the window's ends.
    abandoned: [type, local, peer, a goroutine's index or null, whether it's certain that nobody holds the
    other end] of sockets whose peers closed in the window.
    stuck: [goroutine's index, descriptor, inode, bytes unread]. undecided: how many may be stuck. rested:
    whether the process had got round to all that it was to do.
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
    """Now, in one process."""

    pid: int


class ParkedNow(TypedDict):
    """To parked."""

    processes: list[ParkedIn]


class Measured(Process):
    """A process in a window. None of the optional counters: not counted.

    parked: None where it was not asked for. io_outcomes: how its I/O calls ended -> calls. futile: [syscall,
    outcome, calls].
    events_per_poll: events -> polls that brought so many. p_looks, p_running: Ps seen, over all looks, and
    those of them that ran Go code. sched_latency: [least ns, first ns beyond, goroutines]. mutex_wait,
    lock_wait: ns.
    delays: by agent/constants.py: DELAY_NAMES; None where it isn't recorded when data arrives.
    requests, answered, unanswered, strangers: reads of accepted connections, by whether a write followed.
    unprobed: children that came and went before probes were there, counted with the service's first process.
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
    offenders: list[Offender]
    slowest: list[SlowWakeup]
    parked: Parked | None
    slow_answers: dict[str, list[SlowWakeup]]


class Times(TypedDict):
    """Of all that descended from a root in the window: CPU time used, and waited for: None if none tells."""

    cpu_ns: int
    run_delay_ns: int | None


class Throttled(TypedDict):
    """CPU quotas of what descended from a root. unknown: why, None where they are known.

    cgroups: [name, periods, throttled periods and ns throttled when the window opened (or when it was first
    seen there), the same when it closed, µs of CPU in a period, µs of a period], the last two null without a
    quota.
    """

    unknown: str | None
    cgroups: list[list[Any]]


class Processes(TypedDict):
    """To watch: those of that root; to programs: all."""

    processes: list[Process]


class Opened(TypedDict):
    """To open."""

    window: int


class Traced(TypedDict):
    """Of a root, in ns since the window opened. Rows have the fields of pytest_netpoll/model/trace.py, and of
    a stack its index in `stacks` or None. dropped: of all roots.
    """

    polls: list[list[Any]]
    events: list[list[Any]]
    calls: list[list[Any]]
    readies: list[list[Any]]
    looks: list[list[int]]
    stacks: list[list[list[Any]]]
    dropped: int


class _Traces(TypedDict, total=False):
    """By the root's pid; empty where the program was not loaded for a trace. An older agent has none."""

    traces: dict[str, Traced]


class Closed(_Traces):
    """To close and lap, by the root's pid. timelines: rows of agent/counters/timeline.py. dropped_datagrams:
    UDP, for their checksum, in the network namespace.
    """

    duration_ns: int
    services: dict[str, list[Measured]]
    timelines: dict[str, list[list[float | None]]]
    throttled: dict[str, Throttled]
    times: dict[str, Times]
    dropped_datagrams: dict[str, int | None]
