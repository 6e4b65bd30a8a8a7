"""From numbers to plain words: which known way of wasting wakeups a measurement shows, and the fix.

A sentence is said only where the numbers carry it. The thresholds lie far from what healthy services
measure, also on a busy machine, and far below what each fault of example_project does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pytest_netpoll.model import units
from pytest_netpoll.model.evidence import TimelinePoint
from pytest_netpoll.model.histogram import bucket_bounds
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.median import middle

# Fewer, or a smaller part of the wakeups, may be chance.
LEAST_WASTED = 5
LEAST_SHARE = 0.05

# Polls a second that a timer ended, and how many of them an event.
TIMER_RATE = 200
TIMERS_PER_EVENT = 5

# ns to run from which a wakeup is late; so many must be, and so large a part.
LATE_NS = 5_000_000
LEAST_LATE = 10
LATE_SHARE = 0.1
# Of the window: CPU that the service used, and that it had use for, when its own goroutines are what others
# wait for. On a busy machine it gets little of what it wants.
BUSY_USED = 0.1
BUSY_WANTED = 0.8
# Of a late wakeup's delay: what the threads must have waited for a CPU meanwhile to explain it.
CPU_WAIT_SHARE = 0.5

_ACCEPTS = ("accept", "accept4")


def diagnose(measurement: Measurement) -> list[str]:
    """A text for each pathology: "server: what was seen: its cause. Typically … Fix: …".

    Empty for a healthy service, and where the numbers cannot be trusted. Of several runs the one is
    diagnosed whose offenders, slowest wakeups and timeline are kept: they go with its numbers only.
    """
    if measurement.unmeasured is not None or measurement.lost:
        return []
    if measurement.runs:
        measurement = middle(measurement.runs)
    found = (recognise(measurement) for recognise in _PATHOLOGIES)
    return [f"{measurement.service}: {text}" for text in found if text is not None]


def _shared_listener(m: Measurement) -> str | None:
    spurious, accepts = _spurious_wakeups(m)
    if not _matters(accepts, m):
        return None
    return (
        f"{_count(accepts)} of {_count(spurious)} spurious wakeups found no connection to accept: each "
        "connection wakes every acceptor of a shared listener, and one gets it. Typically worker "
        "processes inherited one listener. Fix: serve from one process (Go uses all CPUs), or give each "
        "worker a listener of its own with SO_REUSEPORT."
    )


def _second_reader(m: Measurement) -> str | None:
    spurious, accepts = _spurious_wakeups(m)
    if not _matters(spurious - accepts, m):
        return None
    return (
        f"{_count(spurious - accepts)} of {_count(_wakeups(m))} wakeups found nothing to read or write: "
        "another reader of the same socket had already consumed the data. Typically a connection was "
        "duplicated (File, FileConn, an inherited descriptor) and both ends are read. Fix: read from one "
        "goroutine only, and close the duplicate."
    )


def _stale_readiness(m: Measurement) -> str | None:
    retries = _number(m, "stale_retries")
    # A second reader takes also what was stored for the first.
    if not _matters(retries, m) or _second_reader(m) is not None:
        return None
    return (
        f"{_count(retries)} retries got EAGAIN again, beside {_count(_wakeups(m))} wakeups: the wait "
        "returned immediately because of an event whose data had already been read. Typically RawConn.Read "
        "or a hand-written loop drains the socket, and takes long between two reads. Fix: use the "
        "connection's Read, which forgets old events first, or do not block while draining."
    )


def _timers(m: Measurement) -> str | None:
    ended = _number(m, "timeout_polls") + _number(m, "break_polls")
    waiting = _number(m, "blocking_polls") + _number(m, "timed_polls")
    events = _number(m, "events")
    if ended < TIMER_RATE * m.window_seconds or ended < TIMERS_PER_EVENT * events or ended < waiting / 2:
        return None
    rate = units.show(int(ended / m.window_seconds), "count")
    seen = f"{_count(ended)} of {_count(waiting)} blocking polls ended by a timer, {rate} a second"
    deadlines = m.deadline_wakeups
    if deadlines is not None and deadlines > ended / 4:
        return (
            f"{seen}, with {_count(deadlines)} deadlines expired and {_count(events)} events: reads or "
            "writes that time out again and again keep the poller busy. Typically a loop sets a short "
            "deadline to look at a flag. Fix: read without a deadline, and to stop call "
            "SetReadDeadline(time.Now()) once."
        )
    which = "tickers or deadlines keep" if deadlines is None else "tickers or sleeps keep"
    return (
        f"{seen}, for {_count(events)} events: {which} the poller busy. Typically many components look "
        "for changes every few milliseconds, or a loop reads with a short deadline. Fix: notify on change, "
        "share one slow ticker, or read without a deadline."
    )


def _cpu_quota(m: Measurement) -> str | None:
    """Of late wakeups where the quota stopped the service while most of the slowest were on their way."""
    quota = next((cgroup for cgroup in m.cgroups if cgroup.throttled_periods and cgroup.period_us), None)
    if quota is None or quota.quota_us is None or quota.period_us is None or not _many_late(m):
        return None
    if not _explained(m, lambda point: point.throttled_ns or 0):
        return None
    return (
        f"the CPU quota of the cgroup {quota.name}, {quota.quota_us / 1000:g} ms every "
        f"{quota.period_us / 1000:g} ms, stopped the service in {_count(quota.throttled_periods)} of "
        f"{_count(quota.periods)} periods: woken goroutines wait until the next period. Fix: raise the "
        "quota, or lower GOMAXPROCS and the CPU time that the service uses."
    )


def _many_late(m: Measurement) -> bool:
    count = sum(n for bucket, n in m.snapshot.histogram.items() if bucket_bounds(bucket)[0] >= LATE_NS)
    return count >= max(LEAST_LATE, LATE_SHARE * sum(m.snapshot.histogram.values()))


def _starvation(m: Measurement) -> str | None:
    if _cpu_quota(m) is not None:
        return None
    late = {bucket: n for bucket, n in m.snapshot.histogram.items() if bucket_bounds(bucket)[0] >= LATE_NS}
    count, resolved = sum(late.values()), sum(m.snapshot.histogram.values())
    used, waited = m.cpu_seconds, m.run_delay_seconds
    if used is None or waited is None or count < max(LEAST_LATE, LATE_SHARE * resolved):
        return None
    seconds = m.window_seconds
    busy = used >= BUSY_USED * seconds and used + waited >= BUSY_WANTED * seconds
    short = waited >= used and _waited_for_cpu(m)
    if not busy and not short:
        return None
    said = [
        f"{_count(count)} of {_count(resolved)} wakeups ran more than {units.show(LATE_NS, 'ns')} late, with "
        f"{_seconds(used)} of CPU used and {_seconds(waited)} waited for in {_seconds(seconds)}:"
    ]
    if busy:
        said.append(
            "woken goroutines queue behind the service's own CPU-bound ones. "
            "Typically GOMAXPROCS is too small for a job in the background. Fix: give the job fewer "
            "goroutines than GOMAXPROCS, or another process."
        )
    if short:
        said.append(
            "Besides, the machine is short of CPU: the service's threads waited longer for one than they ran."
            if busy
            else "the machine is short of CPU: other processes have it when the service's threads want it. "
            "Fix: run less beside the test, or give the machine more CPUs."
        )
    return " ".join(said)


_PATHOLOGIES: Sequence[Callable[[Measurement], str | None]] = (
    _shared_listener,
    _second_reader,
    _stale_readiness,
    _timers,
    _cpu_quota,
    _starvation,
)


def _spurious_wakeups(m: Measurement) -> tuple[float, float]:
    """(spurious wakeups, those of them in accept)."""
    spurious = [offender for offender in m.offenders if offender.offence == "spurious"]
    accepts = sum(offender.count for offender in spurious if offender.syscall in _ACCEPTS)
    return _number(m, "spurious_wakeups"), accepts


def _waited_for_cpu(m: Measurement) -> bool:
    """Whether the service's threads waited for a CPU while most of the slowest wakeups were on their way."""
    return _explained(m, lambda point: point.run_delay_ns)


def _explained(m: Measurement, waited_in: Callable[[TimelinePoint], int]) -> bool:
    """Whether it was long enough while most of the slowest wakeups were on their way."""
    late = [wakeup for wakeup in m.slowest if wakeup.latency_ns >= LATE_NS]
    explained = 0
    for wakeup in late:
        end, begin = wakeup.at_ms, wakeup.at_ms - wakeup.latency_ns / 1e6
        opened = 0.0
        waited = 0
        for point in m.timeline:
            if opened < end and begin < point.t_ms:
                waited += waited_in(point)
            opened = point.t_ms
        explained += waited >= CPU_WAIT_SHARE * wakeup.latency_ns
    return explained > len(late) / 2


def _matters(wasted: float, m: Measurement) -> bool:
    return wasted >= max(LEAST_WASTED, LEAST_SHARE * _wakeups(m))


def _wakeups(m: Measurement) -> float:
    return _number(m, "productive_wakeups") + _number(m, "spurious_wakeups")


def _number(m: Measurement, metric: str) -> float:
    return m.snapshot.counters.get(metric, 0)


def _count(number: float) -> str:
    return units.show(number, "count")


def _seconds(number: float) -> str:
    return units.show(number, "s")
