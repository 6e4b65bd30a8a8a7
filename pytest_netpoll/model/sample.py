"""One side of a comparison: a service's numbers in one test, from one round or several."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from pytest_netpoll.errors import Reason
from pytest_netpoll.model.limits import Limits
from pytest_netpoll.model.measurement import Measurement, resolved_wakeups
from pytest_netpoll.model.metrics import METRICS, Metric, Value

ESTIMATE = Reason(
    "it is only the Go runtime's rough estimate", fix="limit it, or name it in --netpoll-compare-fail"
)


@dataclass(frozen=True)
class Sample:
    """metrics: in canonical units, the medians if there were several rounds. absent: metric -> why it is
    None, if more is known than the metric's own reason. rounds: one sample for each of several rounds, else
    empty.
    """

    metrics: Mapping[str, Value]
    go_version: str | None = None
    gomaxprocs: int | None = None
    unmeasured: Reason | None = None
    absent: Mapping[str, Reason] = field(default_factory=dict)
    rounds: tuple[Sample, ...] = ()

    @classmethod
    def of(cls, measurement: Measurement) -> Sample:
        m = measurement
        rounds = tuple(Sample(without(run.metrics, run.estimates), absent=run.absent) for run in m.runs)
        metrics = without(m.metrics, m.estimates)
        absent = {**m.absent, **dict.fromkeys(m.estimates, ESTIMATE)}
        return cls(metrics, m.go_version, m.gomaxprocs, m.unmeasured, absent, rounds)

    @property
    def each(self) -> tuple[Sample, ...]:
        """The rounds, or the sample itself if there was only one."""
        return self.rounds or (self,)


def without(metrics: Mapping[str, Value], estimates: Collection[str]) -> dict[str, Value]:
    """The metrics that can be compared: an estimate may not be the same number as a measured one."""
    return {name: None if name in estimates else value for name, value in metrics.items()}


Samples: TypeAlias = Mapping[str, Sample]  # by service


def samples_of(measurements: Iterable[Measurement], limits: Limits) -> Samples:
    """The samples of the services that the limits bind."""
    return {m.service: Sample.of(m) for m in measurements if limits.binds(m.service)}


def values_of(metric: Metric, samples: Sequence[Sample]) -> list[float] | None:
    """The metric's value in each sample; None if one of them lacks it."""
    values = [sample.metrics.get(metric.name) for sample in samples]
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else None


def too_few(sample: Sample, minimum: int | float) -> str | None:
    """Why the sample has too few wakeups for a statistic; None if it has enough."""
    wakeups, resolved = sample.metrics.get("wakeups"), resolved_wakeups(sample.metrics)
    if wakeups is None or resolved >= minimum:
        return None
    show = METRICS["wakeups"].format
    few = f"{show(resolved)} resolved" if wakeups >= minimum else show(wakeups)
    return f"only {few} wakeups, needs {show(minimum)}"
