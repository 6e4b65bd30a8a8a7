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
    offenders, slowest: what was woken for nothing and the like, and woken latest, worst first.
    slow_answers: the longest queue delays and responses, each kind worst first.
    timeline: the window in intervals.
    cgroups: those whose CPU quota bound it, the one that stopped it longest first.
    unmeasured: why the numbers cannot be trusted, None if they can.
    absent: metric -> why it is None this time, where more is known than the table tells.
    unexplained: offence -> why it could not be recorded where it happens.
    gomaxprocs: threads that run Go at once; cpus: that it may run on; None where it is not known.
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
    slow_answers: tuple[SlowAnswer, ...] = field(default=(), repr=False)
    timeline: tuple[TimelinePoint, ...] = field(default=(), repr=False)
    cgroups: tuple[CpuQuota, ...] = field(default=(), repr=False)
    unmeasured: Reason | None = None
    absent: Mapping[str, Reason] = field(default_factory=dict, repr=False)
    unexplained: Mapping[str, Reason] = field(default_factory=dict, repr=False)
    gomaxprocs: int | None = None
    cpus: int | None = None
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
