"""Measurement: one service in one window, with every metric of the table as an attribute."""

from __future__ import annotations

import difflib
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pytest_netpoll.errors import Reason
from pytest_netpoll.model.evidence import CpuQuota, Offender, SlowAnswer, SlowWakeup, TimelinePoint
from pytest_netpoll.model.metrics import LIMITABLE, METRICS, Metric, Value
from pytest_netpoll.model.snapshot import Snapshot


@dataclass(frozen=True)
class Measurement:
    """One service in one window. Every metric of the table is also an attribute, and so is every rate.

    service: its name. pid: of its main process; the snapshot sums over all of them.
    offenders, slowest: the causes of waste, and the slowest wakeups, worst first. slow_answers: the longest
    queue delays and responses, each kind worst first. timeline: the window in intervals. cgroups: those whose
    CPU quota bound it, the one that stopped it longest first. unmeasured: why the numbers aren't exact, None
    if they are. absent: metric -> why it is None this time, if more is known than the table says.
    unexplained: offence -> why its evidence could not be recorded. gomaxprocs: threads that run Go at once.
    cpus: CPUs that it may run on. Both are None if unknown. listening: the TCP ports on which any process of
    its network namespace listens; empty if unknown, and without parked goroutines. runs: the windows of a
    repeated test, in order: each metric is then their median. Empty for one window.
    """

    service: str
    pid: int | None
    executable: str | None
    go_version: str | None
    window_seconds: float
    # Without the large fields, because pytest shows it in failed assertions.
    snapshot: Snapshot = field(default_factory=Snapshot, repr=False)
    offenders: tuple[Offender, ...] = field(default=(), repr=False)
    slowest: tuple[SlowWakeup, ...] = field(default=(), repr=False)
    slow_answers: tuple[SlowAnswer, ...] = field(default=(), repr=False)
    timeline: tuple[TimelinePoint, ...] = field(default=(), repr=False)
    cgroups: tuple[CpuQuota, ...] = field(default=(), repr=False)
    unmeasured: Reason | None = None
    absent: Mapping[str, Reason] = field(default_factory=dict, repr=False)
    unexplained: Mapping[str, Reason] = field(default_factory=dict, repr=False)
    gomaxprocs: int | None = None
    cpus: int | None = None
    listening: frozenset[int] = field(default=frozenset(), repr=False)
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
        """Every metric of the table, in order; None if it was not measured."""
        return {name: getattr(self, name) for name in METRICS}

    @property
    def estimates(self) -> tuple[str, ...]:
        """The metrics that are only the Go runtime's rough estimate here, because nothing asked for more.
        They aren't compared.
        """
        looked = all(run.snapshot.mutex_looked for run in self.runs or (self,))
        return () if looked or self.mutex_wait_seconds is None else ("mutex_wait_seconds",)

    def judged(self, name: str) -> list[Value]:
        """The values that a limit judges, one for each run: for ready calls only the program's own."""
        metric = LIMITABLE[name]
        return [
            _value(run, metric, run.runtime_ready_calls or 0 if metric.base == "ready_calls" else 0)
            for run in self.runs or (self,)
        ]

    def each(self, name: str) -> list[Value]:
        """The values of the metric, or rate, one for each run."""
        return [_value(run, LIMITABLE[name]) for run in self.runs]


def _value(measurement: Measurement, metric: Metric, without: int | float = 0) -> Value:
    """The value in one run. without: how much to subtract from the count."""
    value = METRICS[metric.base].read(measurement.snapshot)
    if value is not None and without:
        value = max(0, value - without)
    if metric.of is None:
        return value
    seconds = measurement.window_seconds
    return value / seconds if value is not None and seconds else None


def median(values: Sequence[Value]) -> Value:
    """The median; None if one of the runs wasn't measured. For an even number, the mean of the middle two."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    middle = statistics.median(known)
    # Counts stay integers if possible: the median of 2 and 4 is 3, not 3.0.
    return int(middle) if all(isinstance(v, int) for v in known) and middle == int(middle) else middle


def spread(metric: Metric, values: Sequence[Value]) -> str:
    """The minimum and maximum for people: "5.1 µs to 6.3 µs", or one of them if they look alike."""
    known = [value for value in values if value is not None]
    if not known:
        return metric.format(None)
    return " to ".join(dict.fromkeys((metric.format(min(known)), metric.format(max(known)))))


def resolved_wakeups(metrics: Mapping[str, Value]) -> int | float:
    """The wakeups whose outcome is known, over which shares and latencies are computed. All wakeups if no
    outcome was recorded, as may be in a baseline.
    """
    parts = [metrics.get("productive_wakeups"), metrics.get("spurious_wakeups")]
    return metrics.get("wakeups") or 0 if None in parts else sum(part or 0 for part in parts)
