"""What to look at next if a broken limit's evidence names a handler that only waited. Not a diagnosis: it
doesn't say for what.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pytest_netpoll.model.histogram import bucket_bounds
from pytest_netpoll.model.metrics import METRICS, base_of
from pytest_netpoll.report import evidence_entries, wording
from pytest_netpoll.report.record import (
    BreachRecord,
    RegressionRecord,
    ServiceRecord,
    SlowAnswerRecord,
    TestRecord,
)

_MOST = 0.9  # the least share of the slow answers' time that was handling
_IDLE = 0.2  # of that handling, the most that the CPU may have been used for
_LOOKED = 0.1  # s of handling from which looks at the Ps, every 10 ms, prove that


class NextStep(NamedTuple):
    """seen: what was measured. steps: what to do next."""

    seen: str
    steps: str


def next_step(record: TestRecord, service: ServiceRecord) -> NextStep | None:
    """For slow answers that spent their time in the handler while the service used no CPU; None where that
    isn't certain.
    """
    metrics = [METRICS.get(base_of(fault["metric"])) for fault in wording.broken(record, service)]
    families = {metric.family for metric in metrics if metric is not None}
    if not families & {"response", "handling"} or "mutex_wait" in families:
        return None
    faults = [fault for fault in wording.broken(record, service) if _waited_beyond(service, fault)]
    if any("limit" in fault for fault in faults):
        return _step(record, service, "the answers beyond the limit")
    if faults:
        return _step(record, service, "the slow answers")
    if _slowest_waited(record, service):
        return _step(record, service, "the slowest answers")
    return None


def _step(record: TestRecord, service: ServiceRecord, which: str) -> NextStep:
    limited = ("max", "mutex_wait_seconds") in wording.limits_of(record, service)
    steps = [] if limited else ["limit max_mutex_wait_seconds= to see whether it waits for a mutex"]
    steps.append("run python -m pytest_netpoll dump --port PORT meanwhile to see who waits for the network")
    return NextStep(
        f"{which} spent nearly all their time in the handler, while the service hardly used the CPU: "
        "it waited, for a lock, another service or a timer",
        "; ".join(steps),
    )


def _waited_beyond(service: ServiceRecord, fault: BreachRecord | RegressionRecord) -> bool:
    """Whether the answers beyond the limit, or the baseline, spent their time in the handler, and that is
    much longer than the CPU time of the whole service shared among them, together with a wait for a P.
    """
    family, _, which = base_of(fault["metric"]).rpartition("_")
    metrics, counts = service["metrics"], service.get("delays", {}).get(family, {})
    numbers: Mapping[str, Any] = fault
    least = numbers.get("limit", numbers.get("baseline"))
    handling, response = metrics.get(f"handling_{which}"), metrics.get(f"response_{which}")
    beyond = [(low, n) for bucket, n in counts.items() if (low := bucket_bounds(int(bucket))[0]) >= least]
    answers = sum(n for _, n in beyond)
    if family not in ("response", "handling") or not handling or not response or not answers:
        return False
    to_run = metrics.get(_longest_wait(metrics.get("dispatches"), answers))
    if to_run is None:
        return False
    # Threads that waited for a CPU, or were stopped by a quota, would have used it.
    of_cpu = sum(metrics.get(name) or 0 for name in ("cpu_seconds", "run_delay_seconds", "throttled_seconds"))
    explained = of_cpu / answers * 1e9 + to_run
    return handling >= _MOST * response and explained <= _IDLE * sum(low * n for low, n in beyond) / answers


def _longest_wait(dispatches: float | None, answers: int) -> str:
    """The metric that shows it if each of that many answers waited long for a P once."""
    share = answers / dispatches if dispatches else 0
    return f"sched_latency_{'p99' if share >= 0.02 else 'p999' if share >= 0.002 else 'max'}"


def _slowest_waited(record: TestRecord, service: ServiceRecord) -> bool:
    """Whether the slowest answers spent their time in the handler, while the service hardly used a CPU, nor
    waited for one.
    """
    answers = [
        answer for answer in evidence_entries.slow_answers(record, service) if answer["what"] == "response"
    ]
    total = sum(answer["ns"] for answer in answers)
    handled = sum(answer["handling_ns"] for answer in answers)
    cpu = service["metrics"].get("cpu_seconds")
    if not total or handled < _MOST * total or cpu is None:
        return False
    spans = _spans(answers)
    seconds = sum(end - begin for begin, end in spans)
    if seconds >= _LOOKED:
        cpu = min(cpu, _used(service, spans, cpu))
    # Threads that waited for a CPU, or were stopped by a quota, would have used it.
    return cpu + _kept_waiting(service, spans) <= _IDLE * seconds


def _spans(answers: Iterable[SlowAnswerRecord]) -> list[tuple[float, float]]:
    """When any of them was handled: [(begin, end)] in s, in order and apart."""
    spans: list[tuple[float, float]] = []
    for answer in sorted(answers, key=lambda answer: (answer["at_ms"] or 0) * 1e6 - answer["handling_ns"]):
        end = (answer["at_ms"] or 0) / 1e3
        begin = end - answer["handling_ns"] / 1e9
        if spans and begin <= spans[-1][1]:
            spans[-1] = spans[-1][0], max(end, spans[-1][1])
        else:
            spans.append((begin, end))
    return spans


def _kept_waiting(service: ServiceRecord, spans: Iterable[tuple[float, float]]) -> float:
    """For how long, in s, threads waited for a CPU and a quota stopped them, in the timeline's intervals that
    the spans touch; in the whole window if there is no timeline.
    """
    spans = list(spans)
    if not service.get("timeline"):
        metrics = service["metrics"]
        return sum(metrics.get(name) or 0 for name in ("run_delay_seconds", "throttled_seconds"))
    waited, begin = 0, 0.0
    for point in service["timeline"]:
        end = point["t_ms"] / 1e3
        if any(first < end and last > begin for first, last in spans):
            waited += point["run_delay_ns"] + (point.get("throttled_ns") or 0)
        begin = end
    return waited / 1e9


def _used(service: ServiceRecord, spans: Iterable[tuple[float, float]], cpu: float) -> float:
    """The most CPU time, in s, that the service can have used in the spans: what its Ps ran in the timeline's
    intervals that these touch, and all that it used outside of Go code (system calls, C, GC). cpu: in all.
    """
    within = everywhere = begin = 0.0
    spans = list(spans)
    for point in service.get("timeline", []):
        end, running = point["t_ms"] / 1e3, point.get("ps_running")
        if running is None:
            return cpu
        everywhere += running * (end - begin)
        if any(first < end and last > begin for first, last in spans):
            within += running * (end - begin)
        begin = end
    return within + max(0.0, cpu - everywhere)
