"""The metric table: each number's name, meaning and source, and the reports that show it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from pytest_netpoll.errors import Reason
from pytest_netpoll.model import units
from pytest_netpoll.model.evidence import Offence
from pytest_netpoll.model.histogram import bucket_bounds, percentile, ranked
from pytest_netpoll.model.snapshot import Delay, Snapshot

Value: TypeAlias = int | float | None

# Reports that don't have all metrics. summary: columns of the table of tests, also in HTML and the step
# summary. baseline, toolchains, runs: columns of the tables below it. watch: rows of its table. lines:
# columns of its plain lines. junit: properties.
Report: TypeAlias = Literal["summary", "baseline", "toolchains", "runs", "watch", "lines", "junit"]
_BY_RANK: tuple[Report, ...] = ("summary", "watch", "lines")

# Why a metric may be None.
_NOT_REPORTED = Reason("the probe did not report it")
_NO_RESOLVED = Reason("no wakeup was resolved in the window")
_NO_READY_CALLS = Reason("ready calls were not counted", fix="--netpoll-goready=on")
_NO_READY_STACKS = Reason(
    "the callers of ready calls were not recorded",
    fix="limit them, with max_ready_calls=… or so, or use --netpoll-goready=on",
)
_NO_WAKEUPS = Reason("there was no wakeup")
_NO_SCHEDULER = Reason("the Go scheduler's counters were not found in the service's memory")
_NO_SCHEDSTAT = Reason(
    "there is no /proc/PID/schedstat", why="this kernel was built without CONFIG_SCHED_INFO"
)
_NO_EVENT = Reason("there was no event")
_NO_QUOTA_READ = Reason("the counters of the service's cgroup could not be read")
_NO_SCHED_EVENT = Reason(
    "the Go runtime recorded no scheduling event in the window, of which it records one in 8",
    fix="send more traffic",
)
_NOT_LOOKED_AT = Reason(
    "parked goroutines were not looked at", fix="limit them, with max_parked_growth=… or so"
)
_NO_ARRIVALS = Reason("nothing arrived on a socket in the window")
_NO_POLLED = Reason("no wakeup for reading on a socket was resolved in the window")
_NO_ANSWERS = Reason("no read was answered by a write of the same goroutine")


def _no_event_or(reason: Reason) -> Reason:
    return Reason(f"there was no event, or {reason.headline}", fix=reason.fix)


@dataclass(frozen=True)
class Metric:
    """One row of the table. The JSON, the HTML details, baselines and the docs have all metrics.

    compute: reads it from a snapshot, in the canonical value of `unit`; None for the counter of its name.
    source: "counter" is counted in the kernel, "memory" by the Go runtime and read from the process's memory,
    "proc" read from /proc, "derived" computed from those. absent: why the metric can be None. more_is_worse:
    False where more of it is neither good nor bad, so that it cannot regress. optional: whether some programs
    don't allow the agent to count it. adds_up: whether a count grows with the window; others have no rate.
    tail: for a percentile, the share of wakeups beyond it; None for other metrics. of: for a rate, the metric
    that it is the rate of; None for others. explained_by: the evidence that is recorded for a limit on it,
    and shown when the limit is broken. fix: of a broken maximum, None if that depends on the evidence. row:
    its row of a service's numbers in the terminal, None if it isn't shown there; rows are in the table's
    order. part: its name there, None if it leads the row. ahead: whether it comes before the other parts.
    beside: the other rows that it says more about; it is shown with them if a limit on one of their metrics
    is broken. reports: where else it is shown; see Report. heading: of its columns, if that is not the name.
    rank: columns, and the rows of `watch`, begin with the lowest; equal ranks are in the table's order. keep:
    a narrow terminal drops the columns with the lowest value first, and never the highest.
    """

    name: str
    meaning: str
    unit: units.Unit = "count"
    compute: Callable[[Snapshot], Value] | None = field(default=None, repr=False, compare=False)
    source: Literal["counter", "derived", "memory", "proc"] = "counter"
    absent: Reason = _NOT_REPORTED
    more_is_worse: bool = True
    optional: bool = False
    adds_up: bool = True
    tail: float | None = None
    of: str | None = None
    explained_by: tuple[Offence, ...] = ()
    fix: str | None = None
    row: str | None = None
    part: str | None = None
    ahead: bool = False
    beside: tuple[str, ...] = ()
    reports: tuple[Report, ...] = ()
    heading: str = ""
    rank: int = 4
    keep: int = 0

    @property
    def base(self) -> str:
        """The metric of the table: itself, or the one that it is the rate of."""
        return self.of or self.name

    @property
    def column(self) -> str:
        """The heading of its columns."""
        return self.heading or self.name

    @property
    def is_time(self) -> bool:
        """Whether it depends on the machine and its load, unlike a count."""
        return self.unit in ("ns", "s")

    @property
    def needs_wakeups(self) -> bool:
        """Whether it is a statistic over wakeups, which means nothing with only a few."""
        return self.name == "spurious" or self.name.startswith("latency_")

    @property
    def is_statistic(self) -> bool:
        """Whether it means nothing with only a few samples; there are about as many samples as wakeups."""
        return self.needs_wakeups or self.tail is not None

    @property
    def family(self) -> str:
        """What it is a percentile of: "latency"."""
        return self.name.rpartition("_")[0]

    def read(self, snapshot: Snapshot) -> Value:
        return snapshot.counters.get(self.name) if self.compute is None else self.compute(snapshot)

    def format(self, value: Value, digits: int | None = None) -> str:
        """`value` for people: 15,000 · 4.8 % · 1.03 · 1.2 ms; an en dash for None."""
        return units.show(value, self.unit, digits)


# The rows of times that end with the service's own work, and those of waits in its run queues.
_OF_WORK = ("latency", "sched latency", "queue delay", "poll delay", "handling", "response")
_OF_QUEUES = ("latency", "sched latency")

# For polls: whom they woke, whom timers woke (polls end for them, too), and who uses the CPU meanwhile.
_POLLERS: tuple[Offence, ...] = ("woken", "ready", "cpu")


def _pending(snapshot: Snapshot) -> int | None:
    counters = snapshot.counters
    if "wakeups" not in counters:
        return None
    resolved = ("productive_wakeups", "spurious_wakeups", "abandoned_wakeups")
    return counters["wakeups"] - sum(counters.get(name, 0) for name in resolved)


def _spurious(snapshot: Snapshot) -> float | None:
    spurious = snapshot.counters.get("spurious_wakeups", 0)
    resolved = spurious + snapshot.counters.get("productive_wakeups", 0)
    return spurious / resolved if resolved else None


def _per(denominator: str, *names: str) -> Callable[[Snapshot], float | None]:
    def read(snapshot: Snapshot) -> float | None:
        counters = snapshot.counters
        if not counters.get(denominator) or any(name not in counters for name in names):
            return None
        return sum(counters[name] for name in names) / counters[denominator]

    return read


def _per_event(*names: str) -> Callable[[Snapshot], float | None]:
    return _per("events", *names)


def _longest(histogram: Mapping[int, int], seen: int) -> int | None:
    occupied = [index for index, count in histogram.items() if count]
    if not occupied:
        return None
    # The kernel stores the histogram and then the maximum: a sample in between must not make the maximum
    # smaller than the histogram proves.
    return max(seen, bucket_bounds(max(occupied))[0])


def _latency_max(snapshot: Snapshot) -> int | None:
    return _longest(snapshot.histogram, snapshot.latency_max_ns)


def _quantile(histogram: Mapping[int, int], seen: int, q: float) -> float | None:
    middle, longest = percentile(histogram, q), _longest(histogram, seen)
    # The middle of the last bucket may lie beyond the longest seen.
    return None if middle is None or longest is None else min(middle, longest)


def _latency(q: float) -> Callable[[Snapshot], float | None]:
    return lambda snapshot: _quantile(snapshot.histogram, snapshot.latency_max_ns, q)


def delay_of(snapshot: Snapshot, name: str) -> Delay | None:
    """The times of that name; None if they were not measured, or would be misleading."""
    if name == "response" and snapshot.answered * 2 < snapshot.requests:
        return None
    return snapshot.delays.get(name)


_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999, "max": 1.0}
_PERCENTILES = {
    "p90": "90th percentile of the {}",
    "p99": "99th percentile of the {}",
    "p999": "99.9th percentile of the {}",
    "max": "longest {}",
}


def _delays(
    family: str, meaning: str, absent: Reason, reports: Mapping[str, tuple[Report, ...]], heading: str = ""
) -> Iterator[Metric]:
    """Metrics for the percentiles of one kind of times. reports: by percentile. heading: of the p99's
    columns.
    """

    def read(which: str) -> Callable[[Snapshot], Value]:
        def value(snapshot: Snapshot) -> Value:
            delay = delay_of(snapshot, family)
            if delay is None:
                return None
            if which == "max":
                return _longest(delay.histogram, delay.max_ns)
            return _quantile(delay.histogram, delay.max_ns, _QUANTILES[which])

        return value

    name = family.replace("_", " ")
    noun = name if name.endswith("delay") else f"{name} time"
    for which, q in _QUANTILES.items():
        shown = name if which != "p999" else None
        yield Metric(
            f"{family}_{which}",
            meaning if which == "p50" else _PERCENTILES[which].format(noun),
            "ns",
            read(which),
            "derived",
            absent,
            tail=round(1 - q, 3),
            row=shown,
            part=shown and which,
            reports=reports.get(which, ()),
            heading=heading if which == "p99" else "",
            rank=3,
        )


def _events_per_poll(q: float) -> Callable[[Snapshot], int | None]:
    """The nearest-rank quantile."""

    def read(snapshot: Snapshot) -> int | None:
        return ranked(snapshot.events_per_poll, q)

    return read


def _sched_latency(q: float) -> Callable[[Snapshot], float | None]:
    """The middle of the runtime's bucket, which is wide."""

    def read(snapshot: Snapshot) -> float | None:
        bounds = ranked(snapshot.sched_latency or {}, q)
        return None if bounds is None else (bounds[0] + bounds[1] - 1) / 2

    return read


def _p_utilization(snapshot: Snapshot) -> float | None:
    if not snapshot.p_looks or snapshot.p_running is None:
        return None
    return snapshot.p_running / snapshot.p_looks


def _seconds(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / 1e9


_TABLE = (
    Metric(
        "wakeups",
        "a readiness event found a goroutine parked on that descriptor and direction",
        row="wakeups",
        beside=("events", "I/O calls", "ready calls"),
        reports=("summary", "watch", "lines", "junit"),
        rank=1,
        keep=4,
        explained_by=("woken",),
    ),
    Metric(
        "productive_wakeups",
        "its next I/O syscall there did not return EAGAIN",
        more_is_worse=False,
        row="wakeups",
        part="productive",
        explained_by=("woken",),
    ),
    Metric(
        "spurious_wakeups",
        "its next I/O syscall there returned EAGAIN",
        explained_by=("spurious",),
        row="wakeups",
        part="spurious",
        reports=("watch", "junit"),
        rank=2,
    ),
    Metric(
        "abandoned_wakeups",
        "the descriptor was closed, or woken again, before any such syscall",
        row="wakeups",
        part="abandoned",
        reports=("watch",),
        rank=2,
    ),
    Metric(
        "pending_wakeups",
        "not resolved when the window closed",
        compute=_pending,
        source="derived",
        more_is_worse=False,
        adds_up=False,
        row="wakeups",
        part="pending",
    ),
    Metric(
        "spurious",
        "spurious / (spurious + productive)",
        "share",
        _spurious,
        "derived",
        _NO_RESOLVED,
        explained_by=("spurious",),
        reports=("summary", "baseline", "toolchains", "runs", "watch", "lines", "junit"),
        rank=1,
        keep=6,
    ),
    Metric(
        "stale_retries",
        "EAGAIN, no wakeup since, EAGAIN again: a stored readiness was stale",
        explained_by=("stale",),
        row="wakeups",
        part="stale retries",
        reports=("watch", "junit"),
        rank=2,
    ),
    Metric(
        "events",
        "epoll events for pollDescs (the runtime's own wake-up descriptor apart)",
        row="events",
        beside=("polls", "ready calls", "dispatches"),
        reports=("watch", "lines", "junit"),
        explained_by=("woken",),
    ),
    Metric(
        "unclaimed_events",
        "event directions that found nobody waiting",
        explained_by=("unclaimed",),
        row="events",
        part="unclaimed",
    ),
    Metric(
        "duplicate_events",
        "event directions that found a readiness already stored",
        row="events",
        part="duplicate",
    ),
    Metric(
        "parking_events",
        "event directions that found a goroutine about to park",
        row="events",
        part="to parking goroutines",
    ),
    Metric(
        "polls",
        "returns of epoll_wait, epoll_pwait, epoll_pwait2 on the runtime's epoll instance",
        explained_by=_POLLERS,
        row="polls",
        reports=("watch", "lines", "junit"),
    ),
    Metric("blocking_polls", "polls with a timeout < 0", explained_by=_POLLERS, row="polls", part="blocking"),
    Metric("timed_polls", "polls with a timeout > 0", explained_by=_POLLERS, row="polls", part="timed"),
    Metric(
        "nonblocking_polls",
        "polls with a timeout of 0",
        explained_by=_POLLERS,
        row="polls",
        part="non-blocking",
    ),
    Metric(
        "empty_polls",
        "non-blocking polls with no event",
        explained_by=_POLLERS,
        row="polls",
        part="empty",
        reports=("watch", "lines"),
        heading="empty",
    ),
    Metric(
        "timeout_polls",
        "timed polls with no event",
        explained_by=_POLLERS,
        row="polls",
        part="timed out",
        reports=("watch",),
    ),
    Metric(
        "break_polls",
        "the runtime's own wake-up descriptor was the only event",
        explained_by=_POLLERS,
        row="polls",
        part="woken by the runtime itself",
        reports=("watch",),
    ),
    Metric(
        "interrupted_polls",
        "polls ended by a signal (EINTR)",
        explained_by=_POLLERS,
        row="polls",
        part="interrupted",
    ),
    Metric(
        "polls_per_event",
        "polls / events",
        "ratio",
        _per_event("polls"),
        "derived",
        _NO_EVENT,
        explained_by=_POLLERS,
        row="polls",
        part="per event",
        ahead=True,
        reports=("summary", "baseline", "toolchains", "runs", "watch", "junit"),
        heading="polls/ev",
        keep=3,
    ),
    Metric(
        "events_per_poll_p50",
        "median number of events in the polls that returned any",
        compute=_events_per_poll(0.5),
        source="derived",
        explained_by=("woken",),
        absent=_NO_EVENT,
        more_is_worse=False,
        adds_up=False,
        row="events",
        part="a poll (p50)",
        ahead=True,
    ),
    Metric(
        "events_per_poll_p99",
        "number of events that 99 % of the polls that returned any do not exceed",
        compute=_events_per_poll(0.99),
        source="derived",
        explained_by=("woken",),
        absent=_NO_EVENT,
        more_is_worse=False,
        adds_up=False,
    ),
    Metric(
        "events_per_poll_max",
        "most events that one poll returned, 128 at most",
        compute=_events_per_poll(1),
        source="derived",
        explained_by=("woken",),
        absent=_NO_EVENT,
        more_is_worse=False,
        adds_up=False,
    ),
    Metric(
        "io_calls",
        "I/O syscalls (reads, writes, accepts, connects, splice, sendfile, … on any descriptor) that "
        "returned, whatever they returned",
        explained_by=("io", "futile"),
        row="I/O calls",
    ),
    Metric(
        "futile_calls",
        "of those, the third and further in a row on one descriptor and direction that ended in EAGAIN, end "
        "of file or the same error, each within 1 ms of the one before, with neither data nor an event in "
        "between",
        explained_by=("futile",),
        row="I/O calls",
        part="futile",
    ),
    Metric(
        "io_calls_per_wakeup",
        "io_calls / wakeups",
        "ratio",
        _per("wakeups", "io_calls"),
        "derived",
        _NO_WAKEUPS,
        explained_by=("io", "futile"),
        row="I/O calls",
        part="per wakeup",
    ),
    Metric(
        "latency_p50",
        "wake-to-run time not exceeded by half the wakeups",
        "ns",
        _latency(0.5),
        "derived",
        _NO_RESOLVED,
        explained_by=("cpu",),
        tail=0.5,
        row="latency",
        part="p50",
        reports=("summary", "toolchains", "runs", "watch", "lines", "junit"),
        heading="p50",
        rank=3,
        keep=1,
    ),
    Metric(
        "latency_p90",
        "wake-to-run time not exceeded by 90 % of the wakeups",
        "ns",
        _latency(0.9),
        "derived",
        _NO_RESOLVED,
        explained_by=("cpu",),
        tail=0.1,
        row="latency",
        part="p90",
    ),
    Metric(
        "latency_p99",
        "wake-to-run time not exceeded by 99 % of the wakeups",
        "ns",
        _latency(0.99),
        "derived",
        _NO_RESOLVED,
        explained_by=("cpu",),
        tail=0.01,
        row="latency",
        part="p99",
        reports=("summary", "baseline", "toolchains", "runs", "watch", "lines", "junit"),
        heading="p99",
        rank=3,
        keep=5,
    ),
    Metric(
        "latency_p999",
        "wake-to-run time not exceeded by 99.9 % of the wakeups",
        "ns",
        _latency(0.999),
        "derived",
        _NO_RESOLVED,
        explained_by=("cpu",),
        tail=0.001,
    ),
    Metric(
        "latency_max",
        "the longest wake-to-run time, from the poll's return to the resolving syscall's",
        "ns",
        _latency_max,
        "derived",
        _NO_RESOLVED,
        explained_by=("cpu",),
        tail=0.0,
        row="latency",
        part="max",
        reports=("watch", "lines", "junit"),
        heading="max",
        rank=3,
    ),
    *_delays(
        "queue_delay",
        "median time from the first data (or connection) queued on a socket to the return of the read or "
        "accept that takes it; data that nobody has taken when the window closes counts with its age",
        _NO_ARRIVALS,
        {"p50": ("watch", "junit"), "p99": ("watch", "lines", "junit"), "max": ("watch", "junit")},
        heading="queue",
    ),
    *_delays(
        "poll_delay",
        "for wakeups that read from sockets, the median time from the data's arrival to the return of the "
        "poll that reports it; the rest of the wakeup's queue delay is its latency",
        _NO_POLLED,
        {"p50": ("watch", "junit"), "p99": ("watch", "junit"), "max": ("junit",)},
    ),
    *_delays(
        "handling",
        "on accepted stream sockets, the median time from a read's return to the return of the first write "
        "that the same goroutine makes there before it parks for reading again",
        _NO_ANSWERS,
        {"p50": ("watch", "junit"), "p99": ("watch", "junit"), "max": ("junit",)},
    ),
    *_delays(
        "response",
        "median of queue delay plus handling, for reads that were answered in this way; not measured if "
        "fewer than half of the reads that took data were",
        _NO_ANSWERS,
        {
            "p50": ("watch", "junit"),
            "p99": ("summary", "baseline", "runs", "watch", "lines", "junit"),
            "max": ("watch", "junit"),
        },
        heading="response",
    ),
    Metric(
        "ready_calls",
        "goroutines woken through runtime.ready, not by the network",
        absent=_NO_READY_CALLS,
        optional=True,
        explained_by=("ready",),
        row="ready calls",
        beside=("polls",),
        reports=("watch",),
    ),
    Metric(
        "deadline_wakeups",
        "of those, the poller's own for expired deadlines and closed descriptors",
        absent=_NO_READY_CALLS,
        optional=True,
        explained_by=("ready",),
        row="ready calls",
        beside=("polls",),
        part="by deadlines",
    ),
    Metric(
        "runtime_ready_calls",
        "of ready_calls, those of the runtime's own background work (GC, sweeper, scavenger, …), recognized "
        "by the callers' stacks; limits on ready_calls are about the others",
        source="derived",
        absent=_NO_READY_STACKS,
        more_is_worse=False,
        explained_by=("ready",),
        row="ready calls",
        part="of the runtime's own",
        ahead=True,
    ),
    Metric(
        "wakeups_per_event",
        "(wakeups + ready_calls) / events",
        "ratio",
        _per_event("wakeups", "ready_calls"),
        "derived",
        _no_event_or(_NO_READY_CALLS),
        explained_by=("ready",),
        row="ready calls",
        part="wakeups per event",
    ),
    Metric(
        "dispatches",
        "time slices the Go scheduler gave to goroutines (p.schedtick)",
        source="memory",
        absent=_NO_SCHEDULER,
        optional=True,
        explained_by=("cpu",),
        row="dispatches",
        beside=_OF_QUEUES,
    ),
    Metric(
        "dispatches_per_event",
        "dispatches / events",
        "ratio",
        _per_event("dispatches"),
        "derived",
        _no_event_or(_NO_SCHEDULER),
        explained_by=("cpu",),
        row="dispatches",
        part="per event",
    ),
    Metric(
        "runq_max",
        "most goroutines seen waiting in a process's run queues, sampled every 10 ms",
        compute=lambda s: s.runq_max,
        source="memory",
        absent=_NO_SCHEDULER,
        adds_up=False,
        explained_by=("cpu",),
        row="dispatches",
        beside=_OF_QUEUES,
        part="longest run queue",
    ),
    Metric(
        "p_utilization",
        "share of GOMAXPROCS that ran Go code, sampled every 10 ms; without syscalls, garbage "
        "collection, and the search for work",
        "share",
        _p_utilization,
        "memory",
        _NO_SCHEDULER,
        more_is_worse=False,
        explained_by=("cpu",),
        row="dispatches",
        beside=("CPU", *_OF_QUEUES),
        part="of the Ps busy",
    ),
    *(
        Metric(
            f"sched_latency_{name}",
            f"{meaning} of the time that goroutines were runnable before they ran, whatever woke them; from "
            "the Go runtime's own histogram of one scheduling event in 8, up to 12.5 % off",
            "ns",
            _sched_latency(q),
            "memory",
            _NO_SCHED_EVENT,
            explained_by=("cpu",),
            row=None if name == "p999" else "sched latency",
            beside=("latency",),
            part=None if name == "p999" else name,
        )
        for name, q, meaning in (
            ("p50", 0.5, "median"),
            ("p90", 0.9, "90th percentile"),
            ("p99", 0.99, "99th percentile"),
            ("p999", 0.999, "99.9th percentile"),
            ("max", 1.0, "maximum"),
        )
    ),
    Metric(
        "mutex_wait_seconds",
        "time that goroutines waited for sync.Mutex and sync.RWMutex: looked at every 10 ms while a limit or "
        "a comparison asks for it, else a rough estimate by the Go runtime, which samples one wait in 8, "
        "when it ends",
        "s",
        lambda s: _seconds(s.mutex_wait_ns),
        "memory",
        _NO_SCHEDULER,
        explained_by=("mutex", "ready"),
        fix="hold the lock for less: look for I/O, a query or an RPC between Lock and Unlock",
        row="waits",
        part="for mutexes",
    ),
    Metric(
        "runtime_lock_wait_seconds",
        "estimate by the Go runtime: time that threads waited for the runtime's own locks; it samples one "
        "wait in 8",
        "s",
        lambda s: _seconds(s.lock_wait_ns),
        "memory",
        _NO_SCHEDULER,
        row="waits",
        part="for the runtime's locks (estimate)",
    ),
    Metric(
        "cpu_seconds",
        "CPU time used",
        "s",
        lambda s: _seconds(s.cpu_ns),
        "proc",
        explained_by=("cpu",),
        row="CPU",
        beside=("I/O calls", "dispatches", "waits", *_OF_WORK),
        reports=("summary", "baseline", "toolchains", "watch", "lines", "junit"),
        heading="CPU",
        keep=2,
    ),
    Metric(
        "run_delay_seconds",
        "time spent runnable but waiting for a CPU",
        "s",
        lambda s: _seconds(s.run_delay_ns),
        "proc",
        _NO_SCHEDSTAT,
        row="CPU",
        beside=_OF_WORK,
        part="waiting for a CPU",
        reports=("watch",),
    ),
    Metric(
        "throttled_seconds",
        "how long the CPU quota of the service's cgroup, or of one above it, stopped the service, over all "
        "CPUs; of several such cgroups, the one that stopped it longest",
        "s",
        lambda s: _seconds(s.throttled_ns),
        "proc",
        _NO_QUOTA_READ,
        row="CPU",
        beside=_OF_WORK,
        part="stopped by a CPU quota",
    ),
    Metric(
        "throttled_periods",
        "quota periods in which that happened",
        compute=lambda s: s.throttled_periods,
        source="proc",
        absent=_NO_QUOTA_READ,
        row="CPU",
        beside=_OF_WORK,
        part="periods of it",
    ),
    Metric(
        "parked_goroutines",
        "goroutines parked on descriptors when the window closed",
        source="memory",
        absent=_NOT_LOOKED_AT,
        more_is_worse=False,
        adds_up=False,
        explained_by=("parked",),
        row="parked",
    ),
    Metric(
        "parked_growth",
        "how many more are parked than when the window opened, added up over the stacks that grew",
        source="memory",
        absent=_NOT_LOOKED_AT,
        adds_up=False,
        explained_by=("parked",),
        fix="close the connection when its client has gone, and each one that the service dials; if it is a "
        "pool, allow for its size in the limit.",
        row="parked",
        part="more than at the start",
    ),
    Metric(
        "abandoned_descriptors",
        "sockets still open when the window closed although their peer closed meanwhile",
        source="memory",
        absent=_NOT_LOOKED_AT,
        adds_up=False,
        explained_by=("parked",),
        row="parked",
        part="abandoned descriptors",
    ),
    Metric(
        "stuck_goroutines",
        "parked goroutines whose TCP or UDP socket holds data that a poll reported more than 20 ms ago",
        source="memory",
        absent=_NOT_LOOKED_AT,
        adds_up=False,
        explained_by=("parked",),
        row="parked",
        part="stuck",
    ),
    Metric(
        "lost",
        "what the probe could not record; if it isn't 0, the numbers are not exact",
        row="lost",
        reports=("junit",),
    ),
)

METRICS: Mapping[str, Metric] = {metric.name: metric for metric in _TABLE}


def _rate(metric: Metric) -> Metric:
    name = f"{metric.name}_per_second"
    meaning = f"{metric.name} / seconds of the window"
    return Metric(name, meaning, "ratio", lambda _: None, "derived", metric.absent, of=metric.name)


# Rates can be limited, too: such a limit does not depend on how long the test runs.
RATES: Mapping[str, Metric] = {
    rate.name: rate for rate in (_rate(m) for m in _TABLE if m.unit == "count" and m.adds_up)
}
LIMITABLE: Mapping[str, Metric] = {**METRICS, **RATES}


def base_of(metric: str) -> str:
    """The metric of the table, also for a rate; other names stay as they are."""
    return LIMITABLE[metric].base if metric in LIMITABLE else metric


def in_report(report: Report) -> tuple[Metric, ...]:
    """The metrics that the report shows, in its order."""
    found = [metric for metric in _TABLE if report in metric.reports]
    return tuple(sorted(found, key=lambda metric: metric.rank) if report in _BY_RANK else found)


def _explained_by(offence: Offence) -> tuple[str, ...]:
    return tuple(metric.name for metric in _TABLE if offence in metric.explained_by)


# The metrics that need a probe at runtime.ready.
READY_METRICS = tuple(metric.name for metric in _TABLE if metric.explained_by == ("ready",))
PARKED_METRICS = _explained_by("parked")

SCHED_LATENCIES = tuple(name for name in METRICS if name.startswith("sched_latency_"))

# Counters that some programs don't allow, and those that are always there.
OPTIONAL_COUNTERS = tuple(metric.name for metric in _TABLE if metric.optional)
COUNTERS = tuple(m.name for m in _TABLE if m.source == "counter" and not m.optional)


def not_exact(lost: Value) -> str:
    """Why the numbers aren't exact if something was lost; only the window knows which table was too small."""
    return f"{METRICS['lost'].format(lost)} lost, so the numbers are not exact"


def markdown_table() -> str:
    """The metric table for the docs, which `make docs` writes there."""
    names = {"share": "ratio 0–1"}  # noqa: RUF001 - an en dash is right in a range
    rows = [f"| `{m.name}` | {names.get(m.unit, m.unit)} | {m.meaning} |" for m in _TABLE]
    return "\n".join(["| metric | unit | meaning |", "|---|---|---|", *rows])
