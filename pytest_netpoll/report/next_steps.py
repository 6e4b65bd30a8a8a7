"""What to look at next if a broken limit's evidence names a handler that only waited. Not a diagnosis: it
doesn't say for what.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from pytest_netpoll.model.metrics import METRICS
from pytest_netpoll.report import wording
from pytest_netpoll.report.record import ServiceRecord, SlowAnswerRecord, TestRecord

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
    metrics = [METRICS.get(wording.base_of(fault["metric"])) for fault in wording.broken(record, service)]
    families = {metric.family for metric in metrics if metric is not None}
    if not families & {"response", "handling"} or "mutex_wait" in families:
        return None
    answers = [answer for answer in wording.slow_answers(record, service) if answer["what"] == "response"]
    total = sum(answer["ns"] for answer in answers)
    handled = sum(answer["handling_ns"] for answer in answers)
    cpu = service["metrics"].get("cpu_seconds")
    if not total or handled < _MOST * total or cpu is None:
        return None
    spans = _spans(answers)
    seconds = sum(end - begin for begin, end in spans)
    if seconds >= _LOOKED:
        cpu = min(cpu, _used(service, spans, cpu))
    # Threads that waited for a CPU, or were stopped by a quota, would have used it.
    waited = sum(service["metrics"].get(name) or 0 for name in ("run_delay_seconds", "throttled_seconds"))
    if cpu + waited > _IDLE * seconds:
        return None
    limited = ("max", "mutex_wait_seconds") in wording.limits_of(record, service)
    steps = [] if limited else ["limit max_mutex_wait_seconds="]
    steps.append("while it waits, python -m pytest_netpoll dump --port PORT shows who waits for the network")
    return NextStep(
        "the slowest answers were in the handler nearly all the time, while the service hardly used the CPU: "
        "it waited, for a lock, another service or a timer",
        f"{'; '.join(steps)} (docs/debugging.md)",
    )


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
