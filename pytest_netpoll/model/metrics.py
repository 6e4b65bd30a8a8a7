"""The metric table, and the numbers it describes: Snapshot (as counted) and Measurement (as read)."""

from __future__ import annotations

import difflib
import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal, TypeAlias

from pytest_netpoll.agent.constants import LATENCY_BITS, LATENCY_BUCKETS, LATENCY_SUB_BITS
from pytest_netpoll.errors import Reason
from pytest_netpoll.model import units
from pytest_netpoll.model.evidence import Offence, Offender, SlowWakeup, TimelinePoint

Value: TypeAlias = int | float | None

# What does not have all metrics. summary: columns of the table of tests, also in HTML and the step summary.
# baseline, toolchains, runs: columns of the tables below it. watch: rows of its table. lines: columns of its
# plain lines. junit: properties.
Report: TypeAlias = Literal["summary", "baseline", "toolchains", "runs", "watch", "lines", "junit"]
_BY_RANK: tuple[Report, ...] = ("summary", "watch", "lines")

BUCKETS = LATENCY_BUCKETS  # of the kernel's latency histogram
_SUB_BUCKETS = 1 << LATENCY_SUB_BITS


def bucket_of(ns: int) -> int:
    """The index, 0 <= index < BUCKETS, of a latency in ns; longer than 2**40-1 ns (18 min) is clamped."""
    ns = min(ns, (1 << LATENCY_BITS) - 1)
    if ns < _SUB_BUCKETS:
        return ns
    shift = ns.bit_length() - 1 - LATENCY_SUB_BITS
    return (shift + 1) * _SUB_BUCKETS + (ns >> shift) % _SUB_BUCKETS


def bucket_bounds(index: int) -> tuple[int, int]:
    """The half-open range (low, high_exclusive) of ns that a bucket holds."""
    if not 0 <= index < BUCKETS:
        raise ValueError(f"bucket {index} is not in 0..{BUCKETS - 1}")
    octave, sub = divmod(index, _SUB_BUCKETS)
    if octave == 0:
        return sub, sub + 1
    low = (_SUB_BUCKETS + sub) << (octave - 1)
    return low, low + (1 << (octave - 1))


def percentile(histogram: Mapping[int, int], q: float) -> float | None:
    """The nearest-rank quantile `q` (0 < q <= 1) in ns, None for no samples.

    histogram: bucket index -> count. The answer is the middle of the bucket's integers, at most
    3.2 % off (and exact below 32 ns, where a bucket holds one integer).
    """
    if not 0 < q <= 1:
        raise ValueError(f"quantile {q} is not in 0..1")
    # In floats 0.07 * 100 is 7.000000000000001, whose ceiling is one rank too far.
    rank = math.ceil(Fraction(str(q)) * sum(histogram.values()))
    seen = 0
    for index in sorted(histogram):
        seen += histogram[index]
        if 0 < rank <= seen:
            low, high = bucket_bounds(index)
            return (low + high - 1) / 2
    return None


@dataclass(frozen=True)
class Snapshot:
    """What the kernel counted in one window, for one process or for a sum of them.

    counters: by metric name; an absent one was not measured.
    histogram: wake-to-run latencies, bucket index -> count.
    io_outcomes: how the I/O calls ended ("data", "end of file", "EAGAIN", …) -> calls, which add up to
    io_calls. futile: (syscall, outcome) -> futile calls.
    """

    counters: Mapping[str, int] = field(default_factory=dict)
    histogram: Mapping[int, int] = field(default_factory=dict)
    latency_max_ns: int = 0
    cpu_ns: int | None = None
    run_delay_ns: int | None = None
    runq_max: int | None = None
    io_outcomes: Mapping[str, int] = field(default_factory=dict)
    futile: Mapping[tuple[str, str], int] = field(default_factory=dict)

    def __add__(self, other: Snapshot) -> Snapshot:
        """The sum over two processes; what either did not measure, the sum does not know."""
        if not isinstance(other, Snapshot):
            return NotImplemented
        return Snapshot(
            counters={
                name: count + other.counters[name]
                for name, count in self.counters.items()
                if name in other.counters
            },
            histogram=dict(Counter(self.histogram) + Counter(other.histogram)),
            latency_max_ns=max(self.latency_max_ns, other.latency_max_ns),
            cpu_ns=_sum(self.cpu_ns, other.cpu_ns),
            run_delay_ns=_sum(self.run_delay_ns, other.run_delay_ns),
            runq_max=_longest(self.runq_max, other.runq_max),
            io_outcomes=dict(Counter(self.io_outcomes) + Counter(other.io_outcomes)),
            futile=dict(Counter(self.futile) + Counter(other.futile)),
        )

    @classmethod
    def from_json(cls, message: object) -> Snapshot:
        """Read an agent's message; ValueError says which field is wrong.

        {"counters": {name: int}, "histogram": {"index": int}, "latency_max_ns": int, "runq_max": int|null,
        "io_outcomes": {outcome: int}, "futile": [[syscall, outcome, int]]};
        other fields are not ours to judge. Of a process's times nothing is in it.
        Optional counters may be absent or null.
        """
        if not isinstance(message, Mapping):
            raise ValueError(f"snapshot: expected an object, got {message!r}")
        raw_counters = _object(message, "counters")
        # An unknown name may be a misspelt optional counter, which would silently read as not measured.
        for name in raw_counters:
            if name not in COUNTERS and name not in OPTIONAL_COUNTERS:
                raise ValueError(f"counters: unknown counter {name!r}")
        counters = {name: _natural(raw_counters.get(name), f"counters.{name}") for name in COUNTERS}
        for name in OPTIONAL_COUNTERS:
            if raw_counters.get(name) is not None:
                counters[name] = _natural(raw_counters[name], f"counters.{name}")
        histogram = {}
        for key, count in _object(message, "histogram").items():
            index = int(key) if isinstance(key, str) and key.isascii() and key.isdecimal() else -1
            if not 0 <= index < BUCKETS:
                raise ValueError(f"histogram: {key!r} is not a bucket in 0..{BUCKETS - 1}")
            histogram[index] = _natural(count, f"histogram.{key}")
        return cls(
            counters=counters,
            histogram=histogram,
            latency_max_ns=_natural(message.get("latency_max_ns"), "latency_max_ns"),
            runq_max=_optional_natural(message.get("runq_max"), "runq_max"),
            io_outcomes={
                outcome: _natural(count, f"io_outcomes.{outcome}")
                for outcome, count in _object(message, "io_outcomes").items()
            },
            futile=_futile(message.get("futile")),
        )


def _sum(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a + b


def _longest(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else max(a, b)


def _object(message: Mapping[str, object], name: str) -> Mapping[str, object]:
    value = message.get(name)
    if not isinstance(value, Mapping):
        raise ValueError(f"{name}: expected an object, got {value!r}")
    return value


def _futile(value: object) -> dict[tuple[str, str], int]:
    if not isinstance(value, list):
        raise ValueError(f"futile: expected a list, got {value!r:.200}")
    found: Counter[tuple[str, str]] = Counter()
    for entry in value:
        match entry:
            case [str(syscall), str(outcome), count]:
                found[syscall, outcome] += _natural(count, "futile")
            case _:
                raise ValueError(f"futile: expected [syscall, outcome, calls], got {entry!r:.200}")
    return dict(found)


def _natural(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name}: expected an integer >= 0, got {value!r}")
    return value


def _optional_natural(value: object, name: str) -> int | None:
    return None if value is None else _natural(value, name)


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


def _no_event_or(reason: Reason) -> Reason:
    return Reason(f"there was no event, or {reason.headline}", fix=reason.fix)


@dataclass(frozen=True)
class Metric:
    """One row of the table. The JSON, the HTML details, baselines and the docs have all metrics.

    compute: reads it from a snapshot, in the canonical value of `unit`; None for the counter of its name.
    source: "counter" is kept by the kernel, "memory" by the Go runtime and read from the process's memory,
    "proc" read from /proc, "derived" computed from those.
    absent: why the metric can be None.
    more_is_worse: False where more of it is neither good nor bad, so that it cannot regress.
    optional: of what the agent counts, whether a program may give no way to count it.
    adds_up: of a count, whether it grows with the window: what does not has no rate.
    tail: of a percentile the share of wakeups beyond it, on which it rests; None for other metrics.
    of: of a rate the metric that it is the rate of, None of others.
    explained_by: the evidence that is kept for a limit on it, and named when the limit is broken.

    row: of a service's numbers in the terminal, None where it is not among them; rows are in the order in
    which the table comes to them. part: what it is called there, None where it leads the row. ahead: before
    the other parts.
    reports: where else it stands; see Report.
    heading: of its columns, where that is not the name.
    rank: columns, and the rows of `watch`, begin with the lowest. Those of one rank are in the table's order.
    keep: of the columns, a terminal too narrow for all leaves out the lowest first, and the highest never.
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
    row: str | None = None
    part: str | None = None
    ahead: bool = False
    reports: tuple[Report, ...] = ()
    heading: str = ""
    rank: int = 4
    keep: int = 0

    @property
    def base(self) -> str:
        """The metric of the table: itself, or what it is the rate of."""
        return self.of or self.name

    @property
    def column(self) -> str:
        """The heading of its columns."""
        return self.heading or self.name

    @property
    def is_time(self) -> bool:
        """Whether it depends on the machine, and on what else the machine does, as no count does."""
        return self.unit in ("ns", "s")

    @property
    def needs_wakeups(self) -> bool:
        """Whether it is a statistic over wakeups, which says nothing over a few of them."""
        return self.name == "spurious" or self.name.startswith("latency_")

    def read(self, snapshot: Snapshot) -> Value:
        return snapshot.counters.get(self.name) if self.compute is None else self.compute(snapshot)

    def format(self, value: Value, digits: int | None = None) -> str:
        """`value` for people: 15,000 · 4.8 % · 1.03 · 1.2 ms; an en dash for None."""
        return units.show(value, self.unit, digits)


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


def _latency_max(snapshot: Snapshot) -> int | None:
    occupied = [index for index, count in snapshot.histogram.items() if count]
    if not occupied:
        return None
    # The kernel stores the histogram and the maximum one after the other: a sample that landed in
    # between must not make the maximum smaller than what the histogram proves.
    return max(snapshot.latency_max_ns, bucket_bounds(max(occupied))[0])


def _latency(q: float) -> Callable[[Snapshot], float | None]:
    def read(snapshot: Snapshot) -> float | None:
        middle, longest = percentile(snapshot.histogram, q), _latency_max(snapshot)
        # The middle of the last bucket may lie beyond the longest latency seen.
        return None if middle is None or longest is None else min(middle, longest)

    return read


def _seconds(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / 1e9


_TABLE = (
    Metric(
        "wakeups",
        "a readiness event found a goroutine parked on that fd and direction",
        row="wakeups",
        reports=("summary", "watch", "lines", "junit"),
        rank=1,
        keep=4,
    ),
    Metric(
        "productive_wakeups",
        "its next I/O syscall there did not return EAGAIN",
        more_is_worse=False,
        row="wakeups",
        part="productive",
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
        "the fd was closed, or woken again, before any such syscall",
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
        "epoll events for pollDescs (the runtime's own wake-up fd apart)",
        row="events",
        reports=("watch", "lines", "junit"),
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
        explained_by=("cpu",),
        row="polls",
        reports=("watch", "lines", "junit"),
    ),
    Metric("blocking_polls", "polls with a timeout < 0", explained_by=("cpu",), row="polls", part="blocking"),
    Metric("timed_polls", "polls with a timeout > 0", explained_by=("cpu",), row="polls", part="timed"),
    Metric(
        "nonblocking_polls",
        "polls with a timeout of 0",
        explained_by=("cpu",),
        row="polls",
        part="non-blocking",
    ),
    Metric(
        "empty_polls",
        "non-blocking polls with no event",
        explained_by=("cpu",),
        row="polls",
        part="empty",
        reports=("watch", "lines"),
        heading="empty",
    ),
    Metric(
        "timeout_polls",
        "timed polls with no event",
        explained_by=("cpu",),
        row="polls",
        part="timed out",
        reports=("watch",),
    ),
    Metric(
        "break_polls",
        "the runtime's own wake-up fd was the only event",
        explained_by=("cpu",),
        row="polls",
        part="woken by the runtime itself",
        reports=("watch",),
    ),
    Metric(
        "interrupted_polls",
        "polls ended by a signal (EINTR)",
        explained_by=("cpu",),
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
        explained_by=("cpu",),
        row="polls",
        part="per event",
        ahead=True,
        reports=("summary", "baseline", "toolchains", "runs", "watch", "junit"),
        heading="polls/ev",
        keep=3,
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
        "of those, the third and further in a row on one fd and direction that ended in EAGAIN, end of file "
        "or the same error, each within 1 ms of the one before, with neither data nor an event in between",
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
        tail=0.001,
    ),
    Metric(
        "latency_max",
        "the longest wake-to-run time, from the poll's return to the resolving syscall's",
        "ns",
        _latency_max,
        "derived",
        _NO_RESOLVED,
        tail=0.0,
        row="latency",
        part="max",
        reports=("watch", "lines", "junit"),
        heading="max",
        rank=3,
    ),
    Metric(
        "ready_calls",
        "goroutine wakeups through runtime.ready, not the network's",
        absent=_NO_READY_CALLS,
        optional=True,
        explained_by=("ready",),
        row="ready calls",
        reports=("watch",),
    ),
    Metric(
        "deadline_wakeups",
        "of those, the poller's own for expired deadlines and closed fds",
        absent=_NO_READY_CALLS,
        optional=True,
        explained_by=("ready",),
        row="ready calls",
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
        "most goroutines seen waiting in a process's run queues, looked at every 10 ms",
        compute=lambda s: s.runq_max,
        source="memory",
        absent=_NO_SCHEDULER,
        adds_up=False,
        explained_by=("cpu",),
        row="dispatches",
        part="longest run queue",
    ),
    Metric(
        "cpu_seconds",
        "CPU time used",
        "s",
        lambda s: _seconds(s.cpu_ns),
        "proc",
        explained_by=("cpu",),
        row="CPU",
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
        part="waiting for a CPU",
        reports=("watch",),
    ),
    Metric(
        "lost",
        "what the probe could not record; not 0 = the numbers are not exact",
        row="lost",
        reports=("junit",),
    ),
)

METRICS: Mapping[str, Metric] = {metric.name: metric for metric in _TABLE}


def _rate(metric: Metric) -> Metric:
    name = f"{metric.name}_per_second"
    meaning = f"{metric.name} / seconds of the window"
    return Metric(name, meaning, "ratio", lambda _: None, "derived", metric.absent, of=metric.name)


# What can be limited besides: a limit on a rate does not depend on how long the test runs.
RATES: Mapping[str, Metric] = {
    rate.name: rate for rate in (_rate(m) for m in _TABLE if m.unit == "count" and m.adds_up)
}
LIMITABLE: Mapping[str, Metric] = {**METRICS, **RATES}


def in_report(report: Report) -> tuple[Metric, ...]:
    """The metrics that stand in it, in their order there."""
    found = [metric for metric in _TABLE if report in metric.reports]
    return tuple(sorted(found, key=lambda metric: metric.rank) if report in _BY_RANK else found)


def _explained_by(offence: Offence) -> tuple[str, ...]:
    return tuple(metric.name for metric in _TABLE if offence in metric.explained_by)


# A limit on one of these makes stacks be recorded: of callers of runtime.ready (which takes a probe there),
# of I/O calls, of the futile ones, of what uses the CPU.
READY_METRICS = _explained_by("ready")
IO_METRICS = _explained_by("io")
FUTILE_METRICS = _explained_by("futile")
CPU_METRICS = _explained_by("cpu")

# Of the counters: those that a program may give no way to count, and those always there.
OPTIONAL_COUNTERS = tuple(metric.name for metric in _TABLE if metric.optional)
COUNTERS = tuple(m.name for m in _TABLE if m.source == "counter" and not m.optional)


@dataclass(frozen=True)
class Measurement:
    """One service in one window. Every metric of the table is also an attribute, and so is every rate.

    service: its name. pid: of its main process; the snapshot sums over all of them.
    offenders, slowest: what was woken for nothing and the like, and woken latest, worst first.
    timeline: the window in intervals.
    unmeasured: why the numbers cannot be trusted, None if they can.
    absent: metric -> why it is None this time, where more is known than the table tells.
    unexplained: offence -> why it could not be recorded where it happens.
    gomaxprocs: threads that run Go at once; None where it is not known.
    runs: the windows of a repeated test, in order: each metric is then their median. Empty for one window.
    """

    service: str
    pid: int | None
    executable: str | None
    go_version: str | None
    window_seconds: float
    # Without the large ones: pytest shows what an assertion is about.
    snapshot: Snapshot = field(default_factory=Snapshot, repr=False)
    offenders: tuple[Offender, ...] = field(default=(), repr=False)
    slowest: tuple[SlowWakeup, ...] = field(default=(), repr=False)
    timeline: tuple[TimelinePoint, ...] = field(default=(), repr=False)
    unmeasured: Reason | None = None
    absent: Mapping[str, Reason] = field(default_factory=dict, repr=False)
    unexplained: Mapping[str, Reason] = field(default_factory=dict, repr=False)
    gomaxprocs: int | None = None
    runs: tuple[Measurement, ...] = field(default=(), repr=False)

    def __getattr__(self, name: str) -> Value:
        metric = LIMITABLE.get(name)
        if metric is not None:
            return median(self.each(name)) if self.runs else _value(self, metric)
        close = difflib.get_close_matches(name, METRICS, n=1)
        hint = f", did you mean {close[0]!r}?" if close else ""
        raise AttributeError(f"no metric {name!r}{hint}", name=name, obj=self)

    @property
    def metrics(self) -> dict[str, Value]:
        """Every metric of the table, in its order; None where it was not measured."""
        return {name: getattr(self, name) for name in METRICS}

    def judged(self, name: str) -> list[Value]:
        """What a limit on it is about, in each of the runs: of ready calls the program's own."""
        metric = LIMITABLE[name]
        return [
            _value(run, metric, run.runtime_ready_calls or 0 if metric.base == "ready_calls" else 0)
            for run in self.runs or (self,)
        ]

    def each(self, name: str) -> list[Value]:
        """The metric, or rate, in each of the runs."""
        return [_value(run, LIMITABLE[name]) for run in self.runs]


def _value(measurement: Measurement, metric: Metric, without: int | float = 0) -> Value:
    """Of one run. without: how much of the count is left out."""
    value = METRICS[metric.base].read(measurement.snapshot)
    if value is not None and without:
        value = max(0, value - without)
    if metric.of is None:
        return value
    seconds = measurement.window_seconds
    return value / seconds if value is not None and seconds else None


def median(values: Sequence[Value]) -> Value:
    """None where it was not measured in one of the runs. Of an even number the middle of the middle two."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    middle = statistics.median(known)
    # Counts stay counts where they can: the median of 2 and 4 is 3, not 3.0.
    return int(middle) if all(isinstance(v, int) for v in known) and middle == int(middle) else middle


def spread(metric: Metric, values: Sequence[Value]) -> str:
    """The least and the most for people: "5.1 µs to 6.3 µs"; one of them where they look alike."""
    known = [value for value in values if value is not None]
    if not known:
        return metric.format(None)
    return " to ".join(dict.fromkeys((metric.format(min(known)), metric.format(max(known)))))


def resolved_wakeups(metrics: Mapping[str, Value]) -> int | float:
    """Those of which it is known what came of them: shares and latencies are over no others.

    All of them where it is not said what came of any, as it may be in a baseline.
    """
    parts = [metrics.get("productive_wakeups"), metrics.get("spurious_wakeups")]
    return metrics.get("wakeups") or 0 if None in parts else sum(part or 0 for part in parts)


def not_exact(lost: Value) -> str:
    """What it means that something was lost; which table was too small only the window knows."""
    return f"{METRICS['lost'].format(lost)} lost, so the numbers are not exact"


def markdown_table() -> str:
    """The metric table for the docs, which `make docs` writes there."""
    names = {"share": "ratio 0–1"}  # noqa: RUF001 - an en dash is right in a range
    rows = [f"| `{m.name}` | {names.get(m.unit, m.unit)} | {m.meaning} |" for m in _TABLE]
    return "\n".join(["| metric | unit | meaning |", "|---|---|---|", *rows])
