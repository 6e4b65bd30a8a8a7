"""Exports `watch`'s numbers to Prometheus: the metric table under Prometheus' naming rules.

Counts and times become counters over the whole run (`_total`), ratios gauges of the last interval,
latencies a histogram. prometheus_client is an extra, imported only when it is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_netpoll.cli.watch.page_server import PageServer
from pytest_netpoll.errors import NetpollError
from pytest_netpoll.model.histogram import bucket_bounds, percentile
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.metrics import METRICS, Metric, delay_of

if TYPE_CHECKING:
    from prometheus_client import Metric as Family

PREFIX = "netpoll_"
LATENCY = f"{PREFIX}wakeup_latency_seconds"

DELAYS = {
    "queue_delay": "From the arrival of data or a connection to the return of the read that takes it.",
    "poll_delay": "Of wakeups, from the data's arrival to the return of the poll that reports it.",
    "handling": "From a read to the write of the same goroutine that answers it.",
    "response": "From the data's arrival to the answer.",
}

# Powers of two from 1 µs to 17 s are bounds of the kernel's buckets, too: nothing is interpolated.
BORDERS_NS = tuple(1 << bits for bits in range(10, 35))


def alert_rules() -> str:
    """Example alert rules, as YAML."""
    return Path(__file__).with_name("alerts.yml").read_text()


def cumulative(histogram: Mapping[int, int]) -> list[tuple[str, int]]:
    """[(le in seconds, wakeups that took less)], ending with "+Inf". histogram: bucket index -> count, as in
    a Snapshot.
    """
    return _cumulative([(bucket_bounds(index)[1], count) for index, count in histogram.items()])


def _cumulative(ends: Sequence[tuple[int, int]]) -> list[tuple[str, int]]:
    """ends: (first ns beyond a bucket, how many are in it)"""
    buckets = [(repr(border / 1e9), sum(n for end, n in ends if end <= border)) for border in BORDERS_NS]
    return [*buckets, ("+Inf", sum(count for _, count in ends))]


class Exporter:
    """Serves metrics until its block ends. Raises NetpollError if prometheus_client is missing or the address
    isn't available.
    """

    def __init__(self, host: str, port: int) -> None:
        try:
            import prometheus_client
        except ImportError:
            raise NetpollError(
                "metrics cannot be served for Prometheus",
                why="the package prometheus_client is not installed",
                fix="pip install 'pytest-netpoll[prometheus]'",
            ) from None
        self._latest: tuple[Measurement, Measurement] | None = None
        registry = prometheus_client.CollectorRegistry(auto_describe=False)
        registry.register(self)
        try:
            self._server = PageServer(host, port, prometheus_client.make_wsgi_app(registry))
        except OSError as error:
            raise NetpollError(
                f"metrics cannot be served at {host}:{port}",
                why=error.strerror or str(error),
                fix="give another --prometheus=[HOST]:PORT; port 0 takes a free one",
            ) from None
        host = f"[{host}]" if ":" in host else host
        self.url = f"http://{host}:{self._server.server_port}/metrics"

    def __enter__(self) -> Exporter:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()

    def update(self, total: Measurement, latest: Measurement) -> None:
        """Sets what is served. total: of the whole run. latest: of the last interval."""
        self._latest = total, latest

    def collect(self) -> Iterator[Family]:
        """Called by prometheus_client for every scrape, on a thread of its own."""
        if self._latest is None:
            return
        from prometheus_client import core

        total, latest = self._latest
        labels = {"service": total.service}
        measured = core.GaugeMetricFamily(
            f"{PREFIX}measured", "Whether the last interval could be measured.", labels=list(labels)
        )
        measured.add_metric(list(labels.values()), float(latest.unmeasured is None))
        yield measured
        yield _info(core, total, labels)
        if total.unmeasured is not None:
            return
        for metric in METRICS.values():
            family = _family(core, metric, total, latest, labels)
            if family is not None:
                yield family
        snapshot = total.snapshot
        yield _histogram(
            core,
            LATENCY,
            "Wake-to-run time, from the poll's return to that of the resolving syscall.",
            snapshot.histogram,
            labels,
        )
        for name, meaning in DELAYS.items():
            delay = delay_of(snapshot, name)
            if delay is not None:
                yield _histogram(core, f"{PREFIX}{name}_seconds", meaning, delay.histogram, labels)
        if snapshot.sched_latency is not None:
            yield _sched_latency(core, snapshot.sched_latency, labels)


def _info(core: Any, total: Measurement, labels: Mapping[str, str]) -> Family:
    info: Family = core.InfoMetricFamily(f"{PREFIX}service", "Which process it is.", labels=list(labels))
    about = {"pid": str(total.pid or ""), "go_version": total.go_version or ""}
    info.add_metric(list(labels.values()), about)  # type: ignore[attr-defined]
    return info


def _family(
    core: Any, metric: Metric, total: Measurement, latest: Measurement, labels: Mapping[str, str]
) -> Family | None:
    """One metric; None if it is unknown, or in the histogram."""
    if metric.unit == "ns":
        return None
    if metric.source == "counter" or metric.unit == "s":
        value, kind, suffix = metric.read(total.snapshot), core.CounterMetricFamily, ""
    elif latest.unmeasured is not None:
        return None
    else:
        value, kind = metric.read(latest.snapshot), core.GaugeMetricFamily
        suffix = "_ratio" if metric.unit == "share" else ""
    if value is None:
        return None
    meaning = metric.meaning[0].upper() + metric.meaning[1:]
    family: Family = kind(f"{PREFIX}{metric.name}{suffix}", f"{meaning}.", labels=list(labels))
    family.add_metric(list(labels.values()), value)  # type: ignore[attr-defined]
    return family


def _histogram(
    core: Any, name: str, meaning: str, histogram: Mapping[int, int], labels: Mapping[str, str]
) -> Family:
    # Each time counts as the middle of its bucket: at most 3.2 % off.
    nanoseconds = sum((percentile({index: 1}, 1) or 0) * count for index, count in histogram.items())
    family: Family = core.HistogramMetricFamily(name, meaning, labels=list(labels))
    family.add_metric(  # type: ignore[attr-defined]
        list(labels.values()), buckets=cumulative(histogram), sum_value=nanoseconds / 1e9
    )
    return family


def _sched_latency(core: Any, histogram: Mapping[tuple[int, int], int], labels: Mapping[str, str]) -> Family:
    nanoseconds = sum((low + high - 1) / 2 * count for (low, high), count in histogram.items())
    family: Family = core.HistogramMetricFamily(
        f"{PREFIX}sched_latency_seconds",
        "How long goroutines were runnable before they ran, of one scheduling event in 8.",
        labels=list(labels),
    )
    family.add_metric(  # type: ignore[attr-defined]
        list(labels.values()),
        buckets=_cumulative([(high, count) for (_, high), count in histogram.items()]),
        sum_value=nanoseconds / 1e9,
    )
    return family
